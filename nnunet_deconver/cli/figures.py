"""`nnunet-deconver figures`: cases as papers show them, and what DTC and NeRD have learned."""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_deconver.cli import evaluate
from nnunet_deconver.cli.errors import CommandError
from nnunet_deconver.cli.evaluations import add_arguments, name_models, read_evaluations
from nnunet_deconver.cli.nnunet import require_nnunetv2
from nnunet_deconver.cli.tables import table

PANELS = "cases"
# The axis that a plane cuts across, of an image turned by `PatientAxes`.
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `figures`."""
    parser = subparsers.add_parser(
        "figures",
        help="draw the best, the median and the worst case, and what DTC and NeRD learned",
        description="Draws image, truth and each model's true positives (blue), false positives (green) and false "
        "negatives (red), with Dice in the corner, in the slice with most errors. Of a model folder whose network has "
        "DTC upsampling or a NeRD head, also where its last upsampling samples, or what its head makes of the position "
        "in the patch. All as PNG and SVG. Exits with 1 if something could not be drawn, after all else was.",
    )
    add_arguments(parser, "one or more")
    parser.add_argument(
        "--cases",
        nargs="+",
        metavar="CASE",
        help="default: best, median and worst in the first model's Dice, mean over classes",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="of the cases' images; default: beside the references, what was predicted from, or in nnUNet_raw",
    )
    parser.add_argument("--class", dest="of", metavar="NAME", help="show one class or region; default: all in one")
    parser.add_argument("--channel", type=int, metavar="N", help="of the images to show; default: 0, or RGB in color")
    parser.add_argument(
        "--far",
        type=float,
        metavar="MM",
        help="show false positives further than that from any foreground of the truth in a color of their own, and "
        "their number; default: the smallest distance the first model was evaluated with (evaluate --far), if any",
    )
    parser.add_argument("--plane", choices=PLANES, help="of 3D images; default: that of their slices, or axial")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Source:
    """Where a model's cases are.

    Attributes:
        name: of the model.
        evaluation: of it, a `comparison.Evaluation`.
        dataset: a `cases.Dataset`.
        files: case to its reference and prediction, a `cases.Case`.
        images: folders in which its images may be.
        model: its folder, if known.
    """

    name: str
    evaluation: object
    dataset: object
    files: Mapping
    images: Sequence[Path]
    model: Path | None


def run(args: argparse.Namespace) -> int:
    """Draws, prints what was drawn; returns 1 if something could not be, else 0."""
    require_nnunetv2()
    if args.out.exists() and not args.out.is_dir():
        raise CommandError(f"--out {args.out}: is a file; name a folder")
    if args.images is not None and not args.images.is_dir():
        raise CommandError(f"--images {args.images}: no such folder")
    if args.far is not None and not 0 <= args.far < math.inf:
        raise CommandError(f"--far {args.far}: must be a number of at least 0")
    names = name_models(args.models, args.names)
    from nnunet_deconver.cli.learned import draw_learned
    from nnunet_deconver.evaluation.cases import EvaluationError
    from nnunet_deconver.evaluation.comparison import common_cases

    try:
        evaluations = read_evaluations(args.models, names, args.out)
        common, _ = common_cases(evaluations)
        sources = [find_files(evaluation, args.images) for evaluation in evaluations]
        chosen = choose_cases(evaluations, common, args.cases, args.of)
        problems = {} if args.cases else unmeasured(evaluations)
        settings = evaluations[0].summary["settings"]
        far = min(settings.get("far", ()), default=None) if args.far is None else args.far
        drawn = read_cases(sources, chosen, args.of, args.channel, problems, far)
        args.out.mkdir(parents=True, exist_ok=True)
        legend = "" if far is None else f"false positive beyond {far:g} {settings['unit']}"
        paths = draw(drawn, sources[0].dataset, args, legend) if drawn else []
        for source in sources:
            paths += draw_learned(source, list(chosen), args.out, problems)
    except EvaluationError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"--out {args.out}: cannot be written ({error}); choose another folder") from error
    if drawn:
        print(render(drawn))
    if paths:
        print(f"wrote {', '.join(map(str, paths))}")
    return report_problems(problems)


def find_files(evaluation, images: Path | None) -> Source:
    """Where the files are that an evaluation measured.

    Args:
        evaluation: a `comparison.Evaluation`.
        images: folder the user named; None for those where they may be.

    Raises:
        CommandError: if the evaluation does not say.
        EvaluationError: if they are gone.
    """
    from nnunet_deconver.evaluation.cases import pair_folders, pair_folds, read_dataset

    noted = evaluation.summary.get("source") or {}
    if not noted.get("references") or not noted.get("predictions"):
        raise CommandError(f"{evaluation.name}: its summary.json names no references and predictions; evaluate again")
    references, predictions = Path(noted["references"]), Path(noted["predictions"])
    model = Path(noted["model"]) if noted.get("model") else None
    options = argparse.Namespace(model=model, dataset_json=None)
    dataset_json = noted.get("dataset_json")  # not there if an earlier version evaluated
    path = Path(dataset_json) if dataset_json else evaluate.find_dataset_json(options, references, predictions)
    plans = predictions / "plans.json"
    dataset = read_dataset(path, plans if plans.is_file() else None, references)
    if predictions == model:
        cases, _, _ = pair_folds(predictions, references, dataset.file_ending, None)
    else:
        cases, _, _ = pair_folders(references, predictions, dataset.file_ending)
    folders = [images] if images else image_folders(references, predictions)
    return Source(evaluation.name, evaluation, dataset, {case.name: case for case in cases}, folders, model)


def image_folders(references: Path, predictions: Path) -> list[Path]:
    """Folders in which the images of cases may be, the likeliest first."""
    from nnunet_deconver.evaluation.cases import EvaluationError, read_json

    def content(name: str) -> dict:
        try:
            return read_json(predictions / name)
        except EvaluationError:
            return {}

    folders = []
    if references.name.startswith("labels"):
        folders.append(references.with_name("images" + references.name.removeprefix("labels")))
    predicted = content("predict_from_raw_data_args.json").get("list_of_lists_or_source_folder")
    if isinstance(predicted, str):
        folders.append(Path(predicted))
    dataset = content("plans.json").get("dataset_name")
    if dataset and os.environ.get("nnUNet_raw"):
        folders += [Path(os.environ["nnUNet_raw"]) / dataset / name for name in ("imagesTr", "imagesTs")]
    return list(dict.fromkeys(folders))


def choose_cases(evaluations: Sequence, common: Sequence[str], wanted: Sequence[str] | None, of: str | None) -> dict:
    """The cases to draw, each with the word that stands before its name, if any.

    Args:
        evaluations: of the models, the first of which is asked for the best, the median and the worst.
        common: the cases that all have.
        wanted: by the user.
        of: class that counts; None for the mean over all.

    Raises:
        CommandError: if there is no such case or class.
    """
    from nnunet_deconver.evaluation.comparison import MEAN, case_values
    from nnunet_deconver.evaluation.panels import best_median_worst

    classes = evaluations[0].summary["classes"]
    if of is not None and of not in classes:
        raise CommandError(f"--class {of}: must be among {', '.join(classes)}")
    if wanted is not None:
        known = set().union(*({*each.values, *each.summary["problems"]} for each in evaluations))
        unknown = [case for case in wanted if case not in known]
        if unknown:
            some = ", ".join(common[:5]) + (" ..." if len(common) > 5 else "")
            raise CommandError(f"--cases {' '.join(unknown)}: must be among what was evaluated, such as {some}")
        return dict.fromkeys(wanted, "")
    values = case_values(evaluations[0], common, "dice")
    scores = values[of] if of else values.get(MEAN, next(iter(values.values())))
    return best_median_worst(dict(zip(common, map(float, scores), strict=True)))


def unmeasured(evaluations: Sequence) -> dict[str, str]:
    """What is wrong with the cases that could not be measured, and so are not chosen."""
    return {
        f"{evaluation.name}, {case}": problem
        for evaluation in evaluations
        for case, problem in evaluation.summary["problems"].items()
    }


def read_cases(
    sources: Sequence[Source],
    chosen: Mapping[str, str],
    of: str | None,
    channel: int | None,
    problems: dict[str, str],
    far: float | None = None,
) -> list:
    """Reads cases, a `panels.Case` each.

    Args:
        sources: of the models.
        chosen: case to the word before its name.
        of: class to show; None for all.
        channel: of the images to show; None for RGB in color, the first of others.
        problems: gets what is wrong with cases.
        far: distance from all foreground of the truth beyond which false positives are far; None for none.
    """
    from nnunet_deconver.evaluation.cases import CaseError

    cases = []
    for name, rank in chosen.items():
        try:
            cases.append(read_case(sources, name, rank, of, channel, problems, far))
        except CaseError as error:
            problems[name] = str(error)
    return cases


def read_case(
    sources: Sequence[Source],
    name: str,
    rank: str,
    of: str | None,
    channel: int | None,
    problems: dict[str, str],
    far: float | None,
):
    """Reads one case; what is wrong with a single prediction goes to `problems`.

    Raises:
        CaseError: if there is nothing to show.
    """
    import numpy as np

    from nnunet_deconver.evaluation.cases import CaseError, find_images, load_image
    from nnunet_deconver.evaluation.measure import far_masks
    from nnunet_deconver.evaluation.panels import Case, Prediction

    truth, spacing, predictions = None, None, {}
    for source in sources:
        predictions[source.name] = Prediction(None)
        try:
            reference, labels, own_spacing = read_labels(source, name)
            if truth is not None and not np.array_equal(reference, truth):
                raise CaseError(f"its reference is not that of {sources[0].name}: {source.files[name].reference}")
        except CaseError as error:
            problems[f"{source.name}, {name}"] = str(error)
            continue
        truth, spacing = reference, own_spacing
        predictions[source.name] = Prediction(labels, dice_of(source, name, of))
    if truth is None:
        raise CaseError("no model has a prediction that can be shown")
    dataset = sources[0].dataset
    image, axes = load_image(find_images(name, sources[0].images, dataset.file_ending), dataset, truth.shape)
    color = channel is None and image.shape[:2] == (3, 1)
    channel = channel or 0
    if not 0 <= channel < len(image):
        raise CommandError(f"--channel {channel}: the images have the channels 0 to {len(image) - 1}")

    def shown(labels: np.ndarray) -> np.ndarray:
        labels = labels.reshape(image.shape[1:])
        if of is not None:
            # The ignore label keeps its number.
            labels = np.where(labels == dataset.ignore, labels, np.isin(labels, dataset.classes[of]))
        return axes.turn(labels)

    mask = None
    if far is not None:
        (mask,) = far_masks(truth, spacing, dataset.classes, dataset.ignore, [far]).values()
        mask = axes.turn(mask.reshape(image.shape[1:]))
    spacing = axes.turn_spacing((1.0,) * (3 - len(spacing)) + spacing)
    predictions = {
        model: prediction if prediction.labels is None else Prediction(shown(prediction.labels), prediction.dice)
        for model, prediction in predictions.items()
    }
    title = f"{rank}\n{name}" if rank else name
    return Case(title, axes.turn(image if color else image[[channel]]), shown(truth), predictions, spacing, mask)


def read_labels(source: Source, name: str) -> tuple:
    """Reference, prediction and spacing of a case, as `cases.load_case`.

    Raises:
        CaseError: if they cannot be read, or are not what was evaluated.
    """
    import numpy as np

    from nnunet_deconver.evaluation.cases import CaseError, load_case
    from nnunet_deconver.evaluation.overlap import overlap_metrics

    if name not in source.files:
        raise CaseError(source.evaluation.summary["problems"].get(name, "no prediction"))
    reference, labels, spacing = load_case(
        source.files[name], source.dataset, source.evaluation.summary["settings"].get("same_grid", False)
    )
    noted = source.evaluation.values.get(name)
    if noted is None:
        raise CaseError(source.evaluation.summary["problems"].get(name, "not in metrics.csv; evaluate again"))
    counts = np.ones(reference.shape, bool) if source.dataset.ignore is None else reference != source.dataset.ignore
    for of, members in source.dataset.classes.items():
        masks = [np.isin(voxels, members) & counts for voxels in (reference, labels)]
        dice = overlap_metrics(*masks)["dice"]
        if not math.isnan(dice) and not math.isclose(dice, noted.get((of, "dice"), math.nan), abs_tol=1e-9):
            raise CaseError("its files have changed since they were evaluated; evaluate again")
    return reference, labels, spacing


def dice_of(source: Source, name: str, of: str | None) -> float:
    """The Dice of a case that `evaluate` measured: of a class, or the mean over the classes that have one."""
    from nnunet_deconver.evaluation.comparison import MEAN, case_values

    values = case_values(source.evaluation, [name], "dice")
    return float((values[of] if of else values.get(MEAN, next(iter(values.values()))))[0])


def draw(cases: Sequence, dataset, args: argparse.Namespace, far: str) -> list[Path]:
    """Writes the picture of the cases; `far` is the legend's text of far false positives."""
    from nnunet_deconver.evaluation.panels import draw_panels, label_names

    classes = {1: args.of} if args.of else label_names(dataset.classes)
    axis = None if args.plane is None else PLANES[args.plane]
    return draw_panels(cases, classes, args.out / PANELS, ignore=dataset.ignore, axis=axis, far=far)


def render(cases: Sequence) -> str:
    """The table for the terminal: a line per case, the Dice of each model."""
    return table(
        [
            {"case": case.title.replace("\n", ": ")}
            | {
                model: "-" if prediction.labels is None else f"{prediction.dice:.4f}"
                for model, prediction in case.predictions.items()
            }
            for case in cases
        ]
    )


def report_problems(problems: Mapping[str, str]) -> int:
    """Names what could not be drawn on stderr; returns 1 if there is something, else 0."""
    for name, problem in list(problems.items())[: evaluate.PROBLEMS_SHOWN]:
        print(f"not drawn: {name}: {problem}", file=sys.stderr)
    if len(problems) > evaluate.PROBLEMS_SHOWN:
        print(f"and {len(problems) - evaluate.PROBLEMS_SHOWN} more", file=sys.stderr)
    return 1 if problems else 0
