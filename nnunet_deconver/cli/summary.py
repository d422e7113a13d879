"""`nnunet-deconver summary`: what training a network takes, before a night is spent on it."""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from nnunet_deconver.cli.datasets import dataset_name, read_json, variable_folder
from nnunet_deconver.cli.errors import CommandError
from nnunet_deconver.cli.nnunet import require_nnunetv2
from nnunet_deconver.cli.tables import table

DEFAULT_TRAINER = "nnUNetTrainer"
# What nnU-Net's own network on the same stages is called beside the others.
DEFAULT_NETWORK = "nnU-Net's PlainConvUNet"

NOTE = """\
FLOPs are 2 x multiply-adds of convolutions and matrix products when a patch is predicted, per voxel of the patch; in
brackets without the convolutions inside the deconvolution updates, as Deconver's paper counts. Sampling, norms and
activations are not counted. Memory is that of a training step in mixed precision; weights are parameters, gradients and
the optimizer's state."""


@dataclass(frozen=True)
class Subject:
    """A network to be summarised.

    Attributes:
        name: what it is called in tables.
        build: constructs it, given input channels, output channels, and whether with deep supervision.
        build_optimizer: constructs the optimizer of a network.
    """

    name: str
    build: Callable
    build_optimizer: Callable


@dataclass(frozen=True)
class Task:
    """What the networks are for, see `plans.memory.training_memory`; `architecture` says on which stages."""

    input_channels: int
    num_classes: int
    regions: bool
    patch_size: list[int]
    batch_size: int
    architecture: dict


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `summary`."""
    parser = subparsers.add_parser(
        "summary",
        help="show what training a network takes: parameters, FLOPs, memory",
        description="Counts parameters, FLOPs and training memory, stage by stage, of the network that a plans file, a "
        "trainer or a preset stands for, beside nnU-Net's default network on the same stages. Nothing is trained, no "
        "GPU and no preprocessed data are needed.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-d", "--dataset", metavar="D", help="number or name of a planned dataset")
    what.add_argument("--plans-file", type=Path, metavar="FILE", help="a plans file with its dataset.json beside it")
    what.add_argument("--preset", metavar="NAME", help="a published configuration (see `list`), or a file like theirs")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", metavar="NAME", help="with -d; default: nnUNetPlans")
    parser.add_argument("-c", "--configuration", metavar="C", help="default: 3d_fullres, or 2d where there is none")
    parser.add_argument("-tr", "--trainer", default=DEFAULT_TRAINER, metavar="T", help=f"default: {DEFAULT_TRAINER}")
    parser.add_argument("--patch-size", type=int, nargs="+", metavar="N", help="instead of that of the plans")
    parser.add_argument("--batch-size", type=int, metavar="N", help="likewise")
    parser.add_argument("--compare", nargs="+", metavar="T", help="trainers to compare, in one table")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw parameters and FLOPs per voxel (.png, .svg, .pdf)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    """Prints the summary."""
    from tqdm import tqdm

    require_nnunetv2()
    check(args)
    task, subjects = from_preset(args) if args.preset is not None else from_plans(args)
    with tqdm([*subjects, *default_network(task)], unit="network", leave=False) as progress:
        costs = {subject.name: count(subject, task) for subject in progress}
    default = costs.get(DEFAULT_NETWORK)
    if default and any(same(costs[subject.name], default) for subject in subjects):
        del costs[DEFAULT_NETWORK]
    if args.plot is not None:
        draw(costs, args.plot)
    if args.json:
        print(json.dumps({name: as_json(cost) for name, cost in costs.items()}, indent=1))
        return
    for subject in [] if args.compare else subjects:
        print(f"{subject.name}\n\n{stage_table(costs[subject.name])}\n")
    cost = costs[subjects[0].name]
    print(f"patch {' x '.join(map(str, cost.patch_size))}, batch {cost.batch_size}\n\n{total_table(costs)}\n\n{NOTE}")
    if args.plot is not None:
        print(f"\nwrote {args.plot}")


def check(args: argparse.Namespace):
    """Raises CommandError for options that cannot be, before anything is counted."""
    if args.plot is not None and args.plot.suffix not in (".png", ".svg", ".pdf"):
        raise CommandError(f"--plot {args.plot}: must end in .png, .svg or .pdf")
    if args.plot is not None and not args.plot.absolute().parent.is_dir():
        raise CommandError(f"--plot {args.plot}: there is no folder {args.plot.parent}")
    for option, values in (("--patch-size", args.patch_size or []), ("--batch-size", [args.batch_size])):
        if any(value is not None and value < 1 for value in values):
            raise CommandError(f"{option} {' '.join(map(str, values))}: must be positive")


def from_preset(args: argparse.Namespace) -> tuple[Task, list[Subject]]:
    """The network of a preset, with the channels it was published with.

    Raises:
        CommandError: if there is no such preset, or it leaves open what it takes.
    """
    from nnunet_deconver.plans.memory import usual_optimizer
    from nnunet_deconver.plans.presets import load_preset

    if args.compare or args.trainer != DEFAULT_TRAINER:
        raise CommandError("--preset is a network without a trainer; leave --compare and --trainer out")
    try:
        preset = load_preset(args.preset)
    except ValueError as error:
        raise CommandError(f"--preset: {error}") from error
    if preset.architecture is None:
        raise CommandError(
            f"--preset {args.preset}: its stages depend on the dataset; run: nnunet-deconver plan -d D --preset "
            f"{args.preset}, then: nnunet-deconver summary -d D -p {preset.planner().plans_name}"
        )
    patch_size, batch_size = args.patch_size or preset.patch_size, args.batch_size or preset.batch_size
    if patch_size is None or batch_size is None:
        raise CommandError(
            f"--preset {args.preset}: patch and batch are not published; add --patch-size and --batch-size"
        )
    optimizer = usual_optimizer(preset.architecture)
    subject = Subject(preset.name, partial(_from_architecture, preset.architecture), optimizer)
    task = Task(preset.input_channels, preset.num_classes, preset.regions, patch_size, batch_size, preset.architecture)
    return task, [subject]


def _from_architecture(architecture: dict, channels: int, num_classes: int, deep_supervision: bool):
    from nnunet_deconver.networks.plans import build_network

    return build_network(architecture, channels, num_classes, deep_supervision=deep_supervision)


def from_plans(args: argparse.Namespace) -> tuple[Task, list[Subject]]:
    """The networks that trainers build from a configuration of a plans file.

    Raises:
        CommandError: if the file, the configuration or a trainer does not exist.
    """
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if args.plans_file is not None:
        path, description = args.plans_file, args.plans_file.with_name("dataset.json")
        where = "it should lie beside the plans file, as in the folder of a trained model"
    else:
        folder = variable_folder("nnUNet_preprocessed") / dataset_name(args.dataset)
        path, description = folder / f"{args.plans}.json", folder / "dataset.json"
        where = "planning makes it"
    plans = read_json(path, "make it with nnUNetv2_plan_experiment or nnunet-deconver plan, or name others with -p")
    dataset_json = read_json(description, where)
    configurations = plans.get("configurations", {})
    name = args.configuration or ("3d_fullres" if "3d_fullres" in configurations else "2d")
    if name not in configurations:
        raise CommandError(f"-c {name}: {path} has only {', '.join(configurations) or 'no configurations at all'}")
    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    labels = manager.get_label_manager(dataset_json)
    task = Task(
        determine_num_input_channels(manager, configuration, dataset_json),
        labels.num_segmentation_heads,
        labels.has_regions,
        args.patch_size or list(configuration.patch_size),
        args.batch_size or configuration.batch_size,
        configuration.configuration["architecture"],
    )
    trainers = {trainer: find_trainer(trainer) for trainer in (args.compare or [args.trainer])}
    subjects = [
        Subject(name, partial(_from_trainer, trainer, manager, configuration), partial(_optimizer, trainer))
        for name, trainer in trainers.items()
    ]
    return task, subjects


def find_trainer(name: str) -> type:
    """A trainer of this package, registered or not, or any other that nnU-Net finds.

    Raises:
        CommandError: if there is none.
    """
    from nnunet_deconver import trainers
    from nnunet_deconver.cli import status

    found = getattr(trainers, name, None) or status.find_trainer(name)
    if not isinstance(found, type):
        raise CommandError(f"-tr {name}: nnU-Net finds no such trainer ({found}); see `nnunet-deconver list`")
    return found


def _from_trainer(trainer: type, manager, configuration, channels: int, num_classes: int, deep_supervision: bool):
    return trainer.build_network_architecture(manager, configuration, channels, num_classes, deep_supervision)


def _optimizer(trainer: type, network):
    # A trainer needs preprocessed data and makes folders when it is constructed; its optimizer needs neither.
    instance = trainer.__new__(trainer)
    instance.network = network
    instance.initial_lr, instance.weight_decay, instance.num_epochs = 1e-2, 3e-5, 1000
    try:
        return instance.configure_optimizers()[0]
    except AttributeError as error:
        raise ValueError(f"its optimizer cannot be made without training ({error})") from error


def default_network(task: Task) -> list[Subject]:
    """nnU-Net's default network on the stages of a task; none, where a network is not made of stages."""
    from nnunet_deconver.networks.plans import plain_architecture
    from nnunet_deconver.plans.memory import sgd

    try:
        architecture = plain_architecture(task.architecture)
    except ValueError:
        return []
    return [Subject(DEFAULT_NETWORK, partial(_from_architecture, architecture), sgd)]


def count(subject: Subject, task: Task):
    """What a network costs, a `plans.cost.NetworkCost`.

    Raises:
        CommandError: if the network cannot be built, or does not take the patch.
    """
    from nnunet_deconver.plans.cost import network_cost

    try:
        return network_cost(
            partial(subject.build, task.input_channels, task.num_classes),
            input_channels=task.input_channels,
            num_classes=task.num_classes,
            regions=task.regions,
            patch_size=task.patch_size,
            batch_size=task.batch_size,
            build_optimizer=subject.build_optimizer,
        )
    except (ValueError, RuntimeError, AssertionError) as error:
        patch = " x ".join(map(str, task.patch_size))
        raise CommandError(f"{subject.name} cannot be counted on patches of {patch}: {error}") from error


def same(a, b) -> bool:
    """Whether two costs are those of one network."""
    return (a.parameters, a.flops) == (b.parameters, b.flops)


def stage_table(cost) -> str:
    """The table of one network: a row per stage."""
    voxels = math.prod(cost.patch_size)
    rows = [
        {
            "stage": stage.name,
            "size": " x ".join(map(str, stage.size)),
            "channels": str(stage.channels),
            "parameters": f"{stage.parameters:,}",
            "kFLOPs / voxel": _kflops(stage, voxels),
            "kept for backward / MiB": f"{stage.kept / 2**20:,.1f}",
        }
        for stage in cost.stages
    ]
    return table(rows) if rows else "its stages are not those of a network of nnU-Net: totals only"


def total_table(costs: dict) -> str:
    """The table of all networks: a row per network."""
    rows = [
        {
            "network": name,
            "parameters / M": f"{cost.parameters / 1e6:.2f}",
            "kFLOPs / voxel": _kflops(cost, math.prod(cost.patch_size)),
            "weights / GiB": _gib(cost.memory.parameters + cost.memory.gradients + cost.memory.optimizer),
            "kept for backward / GiB": _gib(cost.memory.kept),
            "training / GiB": _gib(cost.memory.peak),
        }
        for name, cost in costs.items()
    ]
    return table(rows)


def _kflops(counted, voxels: int) -> str:
    text = f"{counted.flops / voxels / 1e3:,.1f}"
    return text + (f" ({(counted.flops - counted.ndc_flops) / voxels / 1e3:,.1f})" if counted.ndc_flops else "")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def as_json(cost) -> dict:
    """A cost as it is printed with --json: counts and bytes, unrounded."""
    voxels = math.prod(cost.patch_size)
    return asdict(cost) | {
        "flops_per_voxel": cost.flops / voxels,
        "flops_per_voxel_without_ndc": (cost.flops - cost.ndc_flops) / voxels,
    }


def draw(costs: dict, path: Path):
    """Draws networks as points: parameters across, FLOPs per voxel up, the area of a point its training memory.

    Args:
        costs: by name.
        path: image to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    largest = max(cost.memory.peak for cost in costs.values())
    for i, (name, cost) in enumerate(costs.items()):
        axes.scatter(
            cost.parameters / 1e6,
            cost.flops / math.prod(cost.patch_size) / 1e3,
            s=30 + 400 * cost.memory.peak / largest,
            alpha=0.6,
            color=f"C{i % 10}",
            label=f"{name}, {cost.memory.peak / 2**30:.1f} GiB",
        )
    axes.set(xlabel="parameters / M", ylabel="kFLOPs / voxel", xmargin=0.2, ymargin=0.25)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    # The areas are in the legend's numbers; there, points of one size read better.
    # Below the axes it hides none.
    legend = figure.legend(
        loc="outside lower center", ncols=2, fontsize="small", title="network, training memory", title_fontsize="small"
    )
    for handle in legend.legend_handles:
        handle.set_sizes([50])
    figure.savefig(path, dpi=200)
    plt.close(figure)
