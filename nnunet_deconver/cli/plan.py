"""`nnunet-deconver plan`: plans of a dataset for a network of this package."""

import argparse
import io
import json
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_deconver.cli.component_options import head_entry, upsampling_entry
from nnunet_deconver.cli.tables import table
from nnunet_deconver.errors import InputError
from nnunet_deconver.files import read_json
from nnunet_deconver.integration.datasets import dataset_name, variable_folder
from nnunet_deconver.integration.installation import require_nnunetv2

if TYPE_CHECKING:
    from nnunet_deconver.plans.planners import MemoryPlanner
    from nnunet_deconver.plans.presets import Preset


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `plan`."""
    parser = subparsers.add_parser(
        "plan",
        help="plan a dataset for a network of this package",
        description="Makes a plans file whose patch and batch size suit the network that will be trained: any backbone "
        "with any upsampling and any head, or a published configuration. nnUNetv2_train -p takes it, with nnU-Net's "
        "own trainers or this package's. The dataset's fingerprint must be there (nnUNetv2_extract_fingerprint).",
    )
    parser.add_argument("-d", "--dataset", required=True, metavar="D", help="number or name of the dataset")
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="deconver, mednext, nnU-Net's plain or residual, or one of MONAI's (see `list backbones`); default: "
        "deconver",
    )
    parser.add_argument("--upsampling", metavar="NAME", help="dtc, dysample or linear; default: the backbone's own")
    parser.add_argument("--receptive-field", metavar="R", help="of dtc: a positive number or inf; default: 2")
    parser.add_argument("--head", metavar="NAME", help="nerdm, nerdc or norm; default: the backbone's own")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="what it will be trained with, see `nnunet-deconver list recipes`; default: what the backbone usually is",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="a published configuration (see `list`), or a file like theirs"
    )
    parser.add_argument(
        "--gpu-memory",
        type=float,
        default=8,
        metavar="GIB",
        help="what training may take; the GPU needs 2 to 4 more; default: 8",
    )
    parser.add_argument(
        "--recompute",
        metavar="WHEN",
        default="auto",
        help="Deconver's stages that compute again in the backward pass rather than keep: always, never (faster, much "
        "more memory), or auto: those that do not fit otherwise; default: auto",
    )
    parser.add_argument("--plans-name", metavar="NAME", help="default: one that says what was chosen")
    parser.add_argument("--overwrite", action="store_true", help="replace plans of that name")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plans the dataset and says what comes next."""
    require_nnunetv2()
    chosen = [args.backbone, args.upsampling, args.receptive_field, args.head, args.recipe]
    if args.preset is not None and any(option is not None for option in chosen):
        raise InputError("--preset fixes the network; leave --backbone, --upsampling, --head and --recipe out")
    if not 0 < args.gpu_memory < float("inf"):
        raise InputError(f"--gpu-memory {args.gpu_memory}: must be a positive number of GiB")
    raw, preprocessed = variable_folder("nnUNet_raw"), variable_folder("nnUNet_preprocessed")
    name = dataset_name(args.dataset)
    read_json(raw / name / "dataset.json", "planning reads the raw dataset's")
    read_json(
        preprocessed / name / "dataset_fingerprint.json",
        f"it is the dataset's fingerprint; run: nnUNetv2_extract_fingerprint -d {int(name[7:10])}",
    )

    from nnunet_deconver.plans.planners import make_planner
    from nnunet_deconver.plans.presets import load_preset

    # Outside of try, for their errors name the option.
    upsampling, head = upsampling_entry(args.upsampling, args.receptive_field), head_entry(args.head)
    preset = None
    try:
        if args.preset is not None:
            preset = load_preset(args.preset)
            planner = preset.planner(args.gpu_memory, args.recompute)
        else:
            planner = make_planner(
                args.backbone or "deconver", upsampling, head, args.gpu_memory, args.recipe, args.recompute
            )
        plans, changed = make_plans(planner, name, args.plans_name, args.overwrite)
    except FileExistsError as error:
        raise InputError(f"{error}; add --overwrite, or --plans-name another") from error
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error
    path = preprocessed / name / f"{plans['plans_name']}.json"
    print(f"{'wrote' if changed else 'unchanged:'} {path}\n")
    print("\n".join(report(plans, preprocessed / name, args.gpu_memory, preset, args.recipe)))


def make_plans(
    planner: "type[MemoryPlanner]", dataset: str, plans_name: str | None, overwrite: bool
) -> tuple[dict, bool]:
    """Runs a planner.

    Args:
        planner: of `nnunet_deconver.plans`.
        dataset: full name.
        plans_name: None for the planner's own.
        overwrite: replace other plans of that name.

    Returns:
        The plans, and whether their file changed.

    Raises:
        FileExistsError: if other plans of that name are there and must stay.
        ValueError: if the dataset cannot be planned so.
    """
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
    from nnunetv2.paths import nnUNet_preprocessed
    from tqdm import tqdm

    with tqdm(desc="counting training steps", unit="", leave=False, bar_format="{desc}: {n_fmt}") as progress:
        chosen: Any = type(
            planner.__name__, (planner,), {"overwrite": overwrite, "on_count": lambda self: progress.update()}
        )
        path = Path(nnUNet_preprocessed) / dataset / f"{plans_name or planner.plans_name}.json"
        before = read_json(path, "move it away, or name the plans otherwise") if path.is_file() else None
        # nnU-Net prints every plan it tries.
        with redirect_stdout(io.StringIO()):
            plans, _ = plan_experiment_dataset(
                dataset,  # pyright: ignore[reportArgumentType] nnU-Net takes names, too
                chosen,
                overwrite_plans_name=plans_name,
            )
    return plans, json.loads(path.read_text()) != before


def report(
    plans: dict, folder: Path, gpu_memory: float, preset: "Preset | None", recipe: str | None = None
) -> list[str]:
    """What to tell about new plans.

    Args:
        plans: the plans.
        folder: of the dataset in nnUNet_preprocessed.
        gpu_memory: the target in GiB.
        preset: what they were made from; None if from none.
        recipe: what the network will be trained with; None for what it usually is.
    """
    from nnunet_deconver.networks.backbones import recipe_trainer_name
    from nnunet_deconver.plans.planners import ESTIMATE, recomputed
    from nnunet_deconver.plans.reproduction import commands, printed_row, training_length

    def sizes(values: Iterable[float]) -> str:
        return " x ".join(f"{value:.4g}" for value in values)

    own = {name: entry for name, entry in plans["configurations"].items() if name in plans[ESTIMATE]}
    rows, unprocessed = [], []
    for name, entry in own.items():
        ready = (folder / entry["data_identifier"]).is_dir()
        unprocessed += [] if ready else [name]
        rows.append(
            {
                "configuration": name,
                "patch": sizes(entry["patch_size"]),
                "batch": str(entry["batch_size"]),
                "spacing / mm": sizes(entry["spacing"]),
                "stages": str(entry["architecture"]["arch_kwargs"].get("n_stages", "-")),
                "recomputed": ", ".join(map(str, recomputed(entry["architecture"]))) or "none",
                "training / GiB": f"{plans[ESTIMATE][name]:.2f}",
                "preprocessed data": f"{entry['data_identifier']}{'' if ready else ' (to be made)'}",
            }
        )
    lines = [table(rows), ""]
    if preset is not None:
        lines += [f"{preset.name}: {preset.title}"]
        lines += [f"    {what}: {preset.source[what]}" for what in ("network", "training") if what in preset.source]
        said = {"folds": (preset.folds or {}).get("as_published"), "printed": printed_row(preset)}
        said["length"] = training_length(preset)
        lines += [f"    {what}: {text}" for what, text in said.items() if text]
        lines += [f"    {note}" for note in preset.notes]
        lines += [f"note: {sentence}" for sentence in preset_notes(preset, own[preset.configuration], folder)]
    lines += [
        f"note: {name} takes {memory:.2f} GiB, more than the {gpu_memory:g} asked for"
        for name, memory in plans[ESTIMATE].items()
        if memory > gpu_memory
    ]
    number, plans_name = int(folder.name[7:10]), plans["plans_name"]
    # The largest that is not a cascade.
    configuration = next(name for name in ("3d_fullres", "2d") if name in own)
    name = recipe_trainer_name(own[configuration]["architecture"], recipe)
    lines += ["next:"]
    if preset is not None:
        return lines + [f"    {line}" for line in commands(preset, folder.name, plans_name, name, unprocessed)]
    if unprocessed:
        lines += [f"    nnUNetv2_preprocess -d {number} -plans_name {plans_name} -c {' '.join(unprocessed)}"]
    trainer = f" -tr {name}" if name else ""
    lines += [
        f"    nnunet-deconver summary -d {number} -p {plans_name} -c {configuration}",
        f"    nnUNetv2_train {number} {configuration} 0 -p {plans_name}{trainer}",
    ]
    return lines


def preset_notes(preset: "Preset", configuration: dict, folder: Path) -> list[str]:
    """Where the dataset does not fit a preset."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from nnunet_deconver.plans.presets import misfits

    dataset_json = read_json(folder / "dataset.json", "planning copies it from nnUNet_raw")
    labels = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    return misfits(preset, dataset_json, labels.num_segmentation_heads, configuration)
