"""`nnunet-deconver evaluate`: metrics of predictions against references, with their definitions."""

import argparse
import math
import os
import sys
from pathlib import Path

from nnunet_deconver.cli.errors import CommandError
from nnunet_deconver.cli.nnunet import require_nnunetv2
from nnunet_deconver.cli.tables import table

# As nnunet_deconver.evaluation has them, which imports numpy; a test compares.
SURFACES = ("area", "voxels")
EMPTY_POLICIES = ("nan", "best")
BRATS_CHALLENGES = ("GLI", "SSA", "PED", "MEN", "MET")

PROBLEMS_SHOWN = 20
# Of all that is in the files, what the terminal shows.
HEADLINE = ("dice", "jaccard", "sensitivity", "precision", "hd95", "assd", "absolute_relative_volume_difference")
HEADLINE_LESIONS = ("lesion_dice", "lesion_tpr", "lesion_ppv", "lesion_fpr", "brats_dice", "brats_hd95")
SHORT_NAMES = {"absolute_relative_volume_difference": "|volume diff.|"}


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure predictions: overlap, surface distances, lesions",
        description="Compares segmentations with references and writes metrics.csv (case, class, metric, value, unit, "
        "note), summary.json (statistics, with every definition and setting) and, case by case as it goes, "
        "cases.jsonl: the same command goes on where an earlier run was interrupted. Exits with 1 if cases could not "
        "be measured, after all others were.",
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser):
    """Adds the arguments, which `measure` takes."""
    parser.add_argument("references", type=Path, nargs="?", metavar="GT", help="folder of reference segmentations")
    parser.add_argument("predictions", type=Path, nargs="?", metavar="PRED", help="folder of predictions")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="a model folder of nnU-Net. Without PRED, its cross-validation (fold_*/validation) is measured against "
        "nnUNet_preprocessed/DATASET/gt_segmentations, or GT; with PRED, it is noted as what PRED is from, for "
        "`compare` and `figures`",
    )
    parser.add_argument(
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="default: that of PRED, of the folder above GT, of GT, or of the model",
    )
    parser.add_argument("--chill", action="store_true", help="cases without prediction are no error, as in nnU-Net")
    parser.add_argument(
        "--tolerance",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="MM",
        help="of the surface Dice (NSD), in mm, in pixels for images without spacing; default: 1",
    )
    parser.add_argument(
        "--far",
        type=float,
        nargs="+",
        default=[],
        metavar="MM",
        help="count predicted voxels further than this from any foreground of the reference: what a person sees first; "
        "default: do not",
    )
    parser.add_argument(
        "--surface",
        choices=SURFACES,
        default="area",
        help="what distances are measured between: area, elements weighted by area, as surface-distance does; voxels, "
        "centres of boundary voxels, as MONAI and MedPy do; default: area",
    )
    parser.add_argument(
        "--empty",
        choices=EMPTY_POLICIES,
        default="nan",
        help="value where reference and prediction are empty: nan, left out of means, as in nnU-Net; best, Dice 1 and "
        "distance 0, as in the Deconver paper; default: nan",
    )
    parser.add_argument(
        "--one-empty",
        default="diagonal",
        metavar="MM",
        help="distance where one of them is empty: diagonal (of the image), nan, or a number; default: diagonal",
    )
    parser.add_argument("--lesions", action="store_true", help="count lesions: Dice, TPR, PPV, FPR of detection")
    parser.add_argument(
        "--brats", choices=BRATS_CHALLENGES, help="lesion-wise Dice and HD95 as in this challenge of BraTS 2023"
    )
    parser.add_argument(
        "--same-grid",
        action="store_true",
        help="compare voxel by voxel even where spacing, origin or direction of the files differ",
    )
    parser.add_argument("-np", type=int, metavar="N", help="processes; default: one per CPU core")


def run(args: argparse.Namespace) -> int:
    """Measures, writes and prints; returns 1 if cases could not be measured, else 0."""
    summary = measure(args)
    print(render(summary))
    print(f"wrote {args.out / 'metrics.csv'} and {args.out / 'summary.json'}, which define every metric")
    return report_problems(summary["problems"], args.out)


def measure(args: argparse.Namespace) -> dict:
    """Measures and writes.

    Args:
        args: of `add_arguments`.

    Returns:
        The summary.

    Raises:
        CommandError: if the whole of it cannot be measured.
    """
    require_nnunetv2()
    from nnunet_deconver.evaluation.cases import EvaluationError, pair_folders, pair_folds, read_dataset
    from nnunet_deconver.evaluation.definitions import Settings
    from nnunet_deconver.evaluation.runner import evaluate

    processes = args.np if args.np is not None else _cores()
    if processes < 1:
        raise CommandError(f"-np {args.np}: must be at least 1")
    if args.out.exists() and not args.out.is_dir():
        raise CommandError(f"--out {args.out}: is a file; name a folder")
    references, predictions, splits = find_folders(args)
    try:
        dataset_json = find_dataset_json(args, references, predictions)
        dataset = read_dataset(dataset_json, _plans(predictions), references)
        settings = Settings(
            surface=args.surface,
            tolerances=tuple(args.tolerance),
            far=tuple(args.far),
            empty=args.empty,
            one_empty=_number_or_word(args.one_empty),
            lesions=args.lesions,
            brats=args.brats,
            unit=dataset.unit,
            same_grid=args.same_grid,
        )
        if predictions == args.model:
            cases, missing, extra = pair_folds(predictions, references, dataset.file_ending, splits)
        else:
            cases, missing, extra = pair_folders(references, predictions, dataset.file_ending)
        problems = extra if args.chill else missing | extra
        source = {
            "references": str(references.resolve()),
            "predictions": str(predictions.resolve()),
            "model": str(args.model.resolve()) if args.model else None,
            "dataset_json": str(dataset_json.resolve()),
        }
        return evaluate(cases, problems, dataset, settings, args.out, processes, source)
    except (EvaluationError, ValueError) as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from what is in {args.out}", file=sys.stderr)
        raise


def find_folders(args: argparse.Namespace) -> tuple[Path, Path, Path | None]:
    """The folders of references and of predictions (or the model), and splits_final.json where it is known.

    Raises:
        CommandError: if the arguments do not name them.
    """
    if args.model is None:
        if args.references is None or args.predictions is None:
            raise CommandError("name two folders, GT and PRED, or a trained model: --model FOLDER")
        return args.references, args.predictions, None
    plans = args.model / "plans.json"
    if not plans.is_file():
        raise CommandError(
            f"--model {args.model}: has no plans.json; it must be a folder such as "
            "nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION"
        )
    if args.predictions is not None:
        return args.references, args.predictions, None
    from nnunet_deconver.evaluation.cases import EvaluationError, read_json

    try:
        name = read_json(plans).get("dataset_name")
    except EvaluationError as error:
        raise CommandError(str(error)) from error
    preprocessed = os.environ.get("nnUNet_preprocessed")
    folder = Path(preprocessed) / str(name) if preprocessed else None
    splits = folder / "splits_final.json" if folder and (folder / "splits_final.json").is_file() else None
    if args.references is not None:
        return args.references, args.model, splits
    if folder is None:
        raise CommandError(
            f"the references of --model {args.model} are in nnUNet_preprocessed/{name}/gt_segmentations, and "
            "nnUNet_preprocessed is not set; set it, or name the folder of references: evaluate GT --model ..."
        )
    references = folder / "gt_segmentations"
    if not references.is_dir():
        raise CommandError(
            f"{references}: no such folder; run nnUNetv2_plan_and_preprocess, or name the folder of references: "
            "evaluate GT --model ..."
        )
    return references, args.model, splits


def find_dataset_json(args: argparse.Namespace, references: Path, predictions: Path) -> Path:
    """The dataset.json to go by.

    Raises:
        CommandError: if there is none, naming the places.
    """
    if args.dataset_json is not None:
        return args.dataset_json
    folders = [predictions] if predictions == args.model else [predictions, references.resolve().parent, references]
    places = [folder / "dataset.json" for folder in folders]
    for place in places:
        if place.is_file():
            return place
    raise CommandError(
        f"no dataset.json, which says what the labels are: looked for {', '.join(map(str, places))}; "
        "name it: --dataset-json FILE"
    )


def _plans(predictions: Path) -> Path | None:
    """The plans that nnU-Net left beside predictions or model; they name the label manager."""
    path = predictions / "plans.json"
    return path if path.is_file() else None


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _number_or_word(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return "nan" if math.isnan(number) else number


def render(summary: dict) -> str:
    """The table for the terminal: classes beside each other, mean +- standard deviation of the main metrics.

    Args:
        summary: from `nnunet_deconver.evaluation.runner.evaluate`.
    """
    from nnunet_deconver.evaluation.comparison import MEAN

    if not summary["metrics"]:
        return "no case could be measured"
    definitions = summary["definitions"]
    chosen = [name for name in definitions if name.startswith(("nsd_", "false_positives_beyond_"))]
    names = [name for name in (*HEADLINE, *chosen, *HEADLINE_LESIONS) if name in definitions]
    rows = []
    for name in names:
        unit = definitions[name]["unit"]
        row = {"metric": SHORT_NAMES.get(name, name) + (f" [{unit}]" if unit else "")}
        row |= {of: _cell(of_class[name], unit) for of, of_class in summary["metrics"].items()}
        if len(summary["metrics"]) > 1:
            row[MEAN] = _number(summary["foreground_mean"][name]["mean"], unit)
        rows.append(row)
    policies, settings = summary["policies"], summary["settings"]
    notes = [
        f"{summary['cases']} cases; mean ± standard deviation of those in which a value is defined",
        f"surface: {settings['surface']}; both empty: {policies['both_empty']}",
        f"one empty: {policies['one_empty']}",
    ]
    notes += [
        f"{name}: {', '.join(f'{note} in {count}' for note, count in counts.items())}"
        for name, counts in summary["empty"].items()
    ]
    return "\n".join([table(rows), "", *notes])


def _cell(statistics: dict, unit: str) -> str:
    if not statistics["n"]:
        return "undefined"
    mean = _number(statistics["mean"], unit)
    return mean if math.isnan(statistics["std"]) else f"{mean} ± {_number(statistics['std'], unit)}"


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit else f"{value:.4f}"


def report_problems(problems: dict[str, str], out: Path) -> int:
    """Names the cases that could not be measured on stderr; returns 1 if there are any, else 0."""
    if not problems:
        return 0
    print(f"\n{len(problems)} cases could not be measured:", file=sys.stderr)
    for name, problem in list(problems.items())[:PROBLEMS_SHOWN]:
        print(f"  {name}: {problem}", file=sys.stderr)
    if len(problems) > PROBLEMS_SHOWN:
        print(f"  and {len(problems) - PROBLEMS_SHOWN} more, all in {out / 'summary.json'}", file=sys.stderr)
    return 1
