"""The best, the median and the worst case of models, as papers show them, and what DTC and NeRD have learned."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.figures.panels import Case, Prediction, best_median_worst, draw_panels, label_names
from nnunet_deconver.figures.trained import draw_learned
from nnunet_deconver.files import read_json
from nnunet_deconver.metrics.cases import (
    CaseError,
    CaseFiles,
    DatasetLabels,
    find_images,
    load_case,
    load_image,
    pair_folders,
    pair_folds,
    read_dataset,
)
from nnunet_deconver.metrics.comparison import (
    MEAN,
    Evaluation,
    case_values,
    common_cases,
    name_models,
    read_evaluations,
)
from nnunet_deconver.metrics.evaluation import find_dataset_json
from nnunet_deconver.metrics.measure import far_masks
from nnunet_deconver.metrics.overlap import overlap_metrics

PANELS = "cases"
# The axis that a plane cuts across, of an image turned by `PatientAxes`.
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}


@dataclass(frozen=True)
class Source:
    """Where a model's cases are.

    Attributes:
        name: of the model.
        evaluation: of it.
        dataset: what is in the files.
        files: case to its reference and prediction.
        images: folders in which its images may be.
        model: its folder, if known.
    """

    name: str
    evaluation: Evaluation
    dataset: DatasetLabels
    files: Mapping[str, CaseFiles]
    images: Sequence[Path]
    model: Path | None


@dataclass(frozen=True)
class Drawn:
    """What `draw_models` drew.

    Attributes:
        evaluations: of the models.
        cases: a row each.
        paths: the files written.
        problems: what could not be drawn, and why.
        not_built: by model, why its network cannot be built here.
    """

    evaluations: Sequence[Evaluation]
    cases: Sequence[Case]
    paths: list[Path]
    problems: dict[str, str]
    not_built: dict[str, str]


def draw_models(
    models: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    images: Path | None = None,
    of: str | None = None,
    channel: int | None = None,
    plane: str | None = None,
    far: float | None = None,
    trust: bool = False,
) -> Drawn:
    """Draws cases of models, and what their DTC and NeRD layers have learned; `nnunet-deconver figures`.

    Args:
        models: one folder or more: what `metrics.evaluation.evaluate` wrote, or model folders of nnU-Net.
        out: folder to write to.
        names: of the models; None for the shortest ends of their paths that differ.
        cases: to draw; None for best, median and worst in the first model's Dice, mean over classes.
        images: folder of the cases' images; None for where they may be.
        of: class or region to show; None for all in one.
        channel: of the images to show; None for RGB in color, the first of others.
        plane: key of `PLANES`, for 3D images; None for that of their slices, or axial.
        far: distance in the evaluation's unit, from any foreground of the truth, beyond which false positives have a
            color of their own; None for the smallest that the first model was evaluated with, if any.
        trust: whether to build networks of any package that the models' plans name, see `networks.trust`.

    Raises:
        InputError: if there is nothing to draw, or `out` cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise ArgumentError("out", out, "is a file; name a folder")
    if images is not None and not images.is_dir():
        raise ArgumentError("images", images, "no such folder")
    if far is not None and not 0 <= far < math.inf:
        raise ArgumentError("far", far, "must be a number of at least 0")
    evaluations = read_evaluations(models, name_models(models, names), out)
    common, _ = common_cases(evaluations)
    sources = [find_files(evaluation, images) for evaluation in evaluations]
    chosen = choose_cases(evaluations, common, cases, of)
    problems = {} if cases else unmeasured(evaluations)
    settings = evaluations[0].summary["settings"]
    far = min(settings.get("far", ()), default=None) if far is None else far
    drawn = read_cases(sources, chosen, of, channel, problems, far)
    paths, not_built = [], {}
    dataset = sources[0].dataset
    try:
        out.mkdir(parents=True, exist_ok=True)
        if drawn:
            paths += draw_panels(
                drawn,
                {1: of} if of else label_names(dataset.classes),
                out / PANELS,
                ignore=dataset.ignore,
                axis=None if plane is None else PLANES[plane],
                far="" if far is None else f"false positive beyond {far:g} {settings['unit']}",
            )
        for source in sources:
            paths += draw_learned(source, list(chosen), out, problems, not_built, trust)
    except OSError as error:
        raise ArgumentError("out", out, f"cannot be written ({error}); choose another folder") from error
    return Drawn(evaluations, drawn, paths, problems, not_built)


def find_files(evaluation: Evaluation, images: Path | None) -> Source:
    """Where the files are that an evaluation measured.

    Args:
        evaluation: of a model.
        images: folder the user named; None for those where they may be.

    Raises:
        InputError: if the evaluation does not say.
        EvaluationError: if they are gone, of which this is one.
    """
    noted = evaluation.summary.get("source") or {}
    if not noted.get("references") or not noted.get("predictions"):
        raise InputError(f"{evaluation.name}: its summary.json names no references and predictions; evaluate again")
    references, predictions = Path(noted["references"]), Path(noted["predictions"])
    model = Path(noted["model"]) if noted.get("model") else None
    dataset_json = noted.get("dataset_json")  # not there if an earlier version evaluated
    path = Path(dataset_json) if dataset_json else find_dataset_json(references, predictions, model)
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

    def content(name: str) -> dict:
        try:
            return read_json(predictions / name)
        except InputError:
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


def choose_cases(
    evaluations: Sequence[Evaluation], common: Sequence[str], wanted: Sequence[str] | None, of: str | None
) -> dict:
    """The cases to draw, each with the word that stands before its name, if any.

    Args:
        evaluations: of the models, the first of which is asked for the best, the median and the worst.
        common: the cases that all have.
        wanted: by the user.
        of: class that counts; None for the mean over all.

    Raises:
        InputError: if there is no such case or class.
    """
    classes = evaluations[0].summary["classes"]
    if of is not None and of not in classes:
        raise ArgumentError("class", of, f"must be among {', '.join(classes)}")
    if wanted is not None:
        known = set().union(*({*each.values, *each.summary["problems"]} for each in evaluations))
        unknown = [case for case in wanted if case not in known]
        if unknown:
            some = ", ".join(common[:5]) + (" ..." if len(common) > 5 else "")
            raise ArgumentError("cases", " ".join(unknown), f"must be among what was evaluated, such as {some}")
        return dict.fromkeys(wanted, "")
    values = case_values(evaluations[0], common, "dice")
    scores = values[of] if of else values.get(MEAN, next(iter(values.values())))
    return best_median_worst(dict(zip(common, map(float, scores), strict=True)))


def unmeasured(evaluations: Sequence[Evaluation]) -> dict[str, str]:
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
) -> list[Case]:
    """Reads cases.

    Args:
        sources: of the models.
        chosen: case to the word before its name.
        of: class to show; None for all.
        channel: of the images to show; None for RGB in color, the first of others.
        problems: gets what is wrong with cases.
        far: distance from all foreground of the truth beyond which false positives are far; None for none.
    """
    found = []
    for name, rank in chosen.items():
        try:
            found.append(read_case(sources, name, rank, of, channel, problems, far))
        except CaseError as error:
            problems[name] = str(error)
    return found


def read_case(
    sources: Sequence[Source],
    name: str,
    rank: str,
    of: str | None,
    channel: int | None,
    problems: dict[str, str],
    far: float | None,
) -> Case:
    """Reads one case; what is wrong with a single prediction goes to `problems`.

    Raises:
        CaseError: if there is nothing to show.
    """
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
    if truth is None or spacing is None:
        raise CaseError("no model has a prediction that can be shown")
    dataset = sources[0].dataset
    image, axes = load_image(find_images(name, sources[0].images, dataset.file_ending), dataset, truth.shape)
    color = channel is None and image.shape[:2] == (3, 1)
    channel = channel or 0
    if not 0 <= channel < len(image):
        raise ArgumentError("channel", channel, f"the images have the channels 0 to {len(image) - 1}")

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


def read_labels(source: Source, name: str) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Reference, prediction and spacing of a case, as `cases.load_case`.

    Raises:
        CaseError: if they cannot be read, or are not what was evaluated.
    """
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
    values = case_values(source.evaluation, [name], "dice")
    return float((values[of] if of else values.get(MEAN, next(iter(values.values()))))[0])
