"""`nnunet-deconver summary`: what training a network takes, before a night is spent on it."""

import argparse
import json
import math
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_deconver.cli.evaluation_options import add_trust
from nnunet_deconver.cli.tables import table
from nnunet_deconver.errors import InputError
from nnunet_deconver.integration.datasets import dataset_name, variable_folder
from nnunet_deconver.integration.installation import require_nnunetv2

if TYPE_CHECKING:
    from nnunet_deconver.plans.cost import NetworkCost, StageCost

DEFAULT_TRAINER = "nnUNetTrainer"

NOTE = """\
FLOPs are 2 x multiply-adds of convolutions and matrix products when a patch is predicted, per voxel of the patch; in
brackets without the convolutions inside the deconvolution updates, as Deconver's paper counts. Sampling, norms and
activations are not counted. Memory is that of a training step in mixed precision; weights are parameters, gradients and
the optimizer's state. A step's FLOPs are those of its batch, forward and backward, and of what Deconver computes again
in the backward pass rather than keep (`recompute` in the plans); without that, it is the other number."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
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
    add_trust(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prints the summary."""
    from tqdm import tqdm

    require_nnunetv2()
    check(args)
    from nnunet_deconver.figures.plots import draw_networks
    from nnunet_deconver.models import cost

    if args.preset is not None:
        task, subjects = cost.of_preset(args.preset, args.patch_size, args.batch_size)
    else:
        trainers = args.compare or [args.trainer]
        task, subjects = cost.of_plans(
            *find_files(args), trainers, args.configuration, args.patch_size, args.batch_size, args.trust
        )
    # Bars are closed before an error is printed: its message would stand behind them.
    with ExitStack() as bars:
        costs = cost.count_beside_default(
            task, subjects, lambda networks: bars.enter_context(tqdm(networks, unit="network", leave=False))
        )
    if args.plot is not None:
        draw_networks(costs, args.plot)
    if args.json:
        print(json.dumps({name: as_json(counted) for name, counted in costs.items()}, indent=1))
        return
    for subject in [] if args.compare else subjects:
        print(f"{subject.name}\n\n{stage_table(costs[subject.name])}\n")
    patch = " x ".join(map(str, task.patch_size))
    print(f"patch {patch}, batch {task.batch_size}\n\n{total_table(costs)}\n\n{NOTE}")
    if args.plot is not None:
        print(f"\nwrote {args.plot}")


def check(args: argparse.Namespace) -> None:
    """Raises InputError for options that cannot be, before anything is counted."""
    if args.plot is not None and args.plot.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {args.plot}: must end in .png, .svg or .pdf")
    if args.plot is not None and not args.plot.absolute().parent.is_dir():
        raise InputError(f"--plot {args.plot}: there is no folder {args.plot.parent}")
    if args.preset is not None and (args.compare or args.trainer != DEFAULT_TRAINER):
        raise InputError("--preset is a network without a trainer; leave --compare and --trainer out")
    for option, values in (("--patch-size", args.patch_size or []), ("--batch-size", [args.batch_size])):
        if any(value is not None and value < 1 for value in values):
            raise InputError(f"{option} {' '.join(map(str, values))}: must be positive")


def find_files(args: argparse.Namespace) -> tuple[Path, Path]:
    """The plans file and dataset.json."""
    if args.plans_file is not None:
        return args.plans_file, args.plans_file.parent / "dataset.json"
    folder = variable_folder("nnUNet_preprocessed") / dataset_name(args.dataset)
    return folder / f"{args.plans}.json", folder / "dataset.json"


def stage_table(cost: "NetworkCost") -> str:
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


def total_table(costs: "dict[str, NetworkCost]") -> str:
    """The table of all networks: a row per network."""
    rows = [
        {
            "network": name,
            "parameters / M": f"{cost.parameters / 1e6:.2f}",
            "kFLOPs / voxel": _kflops(cost, math.prod(cost.patch_size)),
            "step / GFLOPs": _gflops(cost.training_flops),
            "without recomputation": _gflops(cost.training_flops_without_recomputation),
            "weights / GiB": _gib(cost.memory.parameters + cost.memory.gradients + cost.memory.optimizer),
            "kept for backward / GiB": _gib(cost.memory.kept),
            "training / GiB": _gib(cost.memory.peak),
        }
        for name, cost in costs.items()
    ]
    return table(rows)


def _kflops(counted: "NetworkCost | StageCost", voxels: int) -> str:
    text = f"{counted.flops / voxels / 1e3:,.1f}"
    return text + (f" ({(counted.flops - counted.ndc_flops) / voxels / 1e3:,.1f})" if counted.ndc_flops else "")


def _gflops(flops: int) -> str:
    return f"{flops / 1e9:,.1f}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def as_json(cost: "NetworkCost") -> dict:
    """A cost as it is printed with --json: counts and bytes, unrounded."""
    voxels = math.prod(cost.patch_size)
    return asdict(cost) | {
        "flops_per_voxel": cost.flops / voxels,
        "flops_per_voxel_without_ndc": (cost.flops - cost.ndc_flops) / voxels,
    }
