"""`nnunet-deconver evaluate`: metrics of predictions against references, with their definitions."""

import argparse
import math
import sys
from pathlib import Path

from nnunet_deconver.cli.tables import report_problems, table
from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.integration.installation import require_nnunetv2

# As nnunet_deconver.metrics has them, which imports numpy; a test compares.
SURFACES = ("area", "voxels")
EMPTY_POLICIES = ("nan", "best")
PRACTICES = ("deconver", "nerd", "dtc", "brats2023", "isles2022", "wmh")
BRATS_CHALLENGES = ("GLI", "SSA", "PED", "MEN", "MET")

# Settings that are options of the same name.
OPTIONS = ("surface", "empty", "one_empty", "lesions", "panoptic", "probabilities", "brats", "same_grid")
SHORT_NAMES = {"absolute_relative_volume_difference": "|volume diff.|"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `evaluate`."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure predictions: overlap, surface distances, lesions",
        description="Compares segmentations with references and writes metrics.csv (case, class, metric, value, unit, "
        "note), summary.json (statistics, with every definition and setting) and, case by case as it goes, "
        "cases.jsonl: the same command goes on where an earlier run was interrupted. Exits with 1 if cases could not "
        "be measured, after all others were.",
    )
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
        "--folds", type=int, nargs="+", metavar="N", help="of the cross-validation of --model; default: all there are"
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
        metavar="MM",
        help="of the surface Dice (NSD), in mm, in pixels for images without spacing; default: 1",
    )
    parser.add_argument(
        "--far",
        type=float,
        nargs="+",
        metavar="MM",
        help="count predicted voxels further than this from any foreground of the reference: what a person sees first; "
        "default: do not",
    )
    parser.add_argument(
        "--surface",
        choices=SURFACES,
        help="what distances are measured between: area, elements weighted by area, as surface-distance does; voxels, "
        "centres of boundary voxels, as MONAI and MedPy do; default: area",
    )
    parser.add_argument(
        "--empty",
        choices=EMPTY_POLICIES,
        help="value where reference and prediction are empty: nan, left out of means, as in nnU-Net; best, Dice 1 and "
        "distance 0, as in the Deconver paper; default: nan",
    )
    parser.add_argument(
        "--one-empty",
        type=_number_or_word,
        metavar="MM",
        help="distance where one of them is empty: diagonal (of the image), nan, or a number; default: diagonal",
    )
    parser.add_argument(
        "--lesions", action="store_true", default=None, help="count lesions: Dice, F1, TPR, PPV, FPR of detection"
    )
    parser.add_argument(
        "--panoptic",
        type=float,
        metavar="IOU",
        help="panoptic quality of lesions matched from this intersection over union on, such as 0.5",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        default=None,
        help="average precision, Brier score and calibration error of what nnUNetv2_predict --save_probabilities, or "
        "nnUNetv2_train --npz, wrote beside the predictions",
    )
    parser.add_argument(
        "--brats", choices=BRATS_CHALLENGES, help="lesion-wise Dice and HD95 as in this challenge of BraTS 2023"
    )
    parser.add_argument(
        "--like",
        choices=PRACTICES,
        help="measure as this paper or challenge does, as far as it says; the options above change single settings",
    )
    parser.add_argument(
        "--same-grid",
        action="store_true",
        default=None,
        help="compare voxel by voxel even where spacing, origin or direction of the files differ",
    )
    parser.add_argument("-np", "--processes", type=int, metavar="N", help="processes; default: one per CPU core")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures, writes and prints; returns 1 if cases could not be measured, else 0."""
    require_nnunetv2()
    from nnunet_deconver.metrics.definitions import PRACTICES, Settings, like
    from nnunet_deconver.metrics.evaluation import check_model, evaluate, evaluate_model

    if args.out.exists() and not args.out.is_dir():
        raise ArgumentError("out", args.out, "is a file; name a folder")
    if args.model is None and (args.references is None or args.predictions is None):
        raise InputError("name two folders, GT and PRED, or a trained model: --model FOLDER")
    options = {"dataset_json": args.dataset_json, "chill": args.chill, "processes": args.processes}
    chosen = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    chosen |= {"tolerances": tuple(args.tolerance)} if args.tolerance is not None else {}
    chosen |= {"far": tuple(args.far)} if args.far is not None else {}
    options["settings"] = like(args.like, **chosen) if args.like else Settings(**chosen)
    try:
        if args.model is not None and args.predictions is None:
            summary = evaluate_model(args.model, args.out, references=args.references, folds=args.folds, **options)
        else:
            if args.folds is not None:
                raise InputError("--folds goes with --model, without PRED")
            model = check_model(args.model) if args.model else None
            summary = evaluate(args.references, args.predictions, args.out, model=model, **options)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from what is in {args.out}", file=sys.stderr)
        raise
    print(render(summary))
    if args.like:
        practice = PRACTICES[args.like]
        print(f"like {args.like}: {practice.source}{f'; {practice.open}' if practice.open else ''}")
    print(f"wrote {args.out / 'metrics.csv'} and {args.out / 'summary.json'}, which define every metric")
    return report_problems(summary["problems"], args.out)


def _number_or_word(text: str) -> float | str:
    try:
        number = float(text)
    except ValueError:
        return text
    return "nan" if math.isnan(number) else number


def render(summary: dict) -> str:
    """The table for the terminal: classes beside each other, mean +- standard deviation of the main metrics.

    Args:
        summary: from `nnunet_deconver.metrics.evaluation.evaluate`.
    """
    from nnunet_deconver.metrics.comparison import MEAN
    from nnunet_deconver.metrics.definitions import Settings
    from nnunet_deconver.metrics.measurements import metrics

    if not summary["metrics"]:
        return "no case could be measured"
    definitions = summary["definitions"]
    names = [name for name, metric in metrics(Settings(**summary["settings"])).items() if metric.headline]
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
