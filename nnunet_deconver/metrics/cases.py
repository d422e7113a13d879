"""Which cases there are, and what is in their files: the part of an evaluation that can go wrong case by case."""

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import check_is_file, read_json
from nnunet_deconver.integration.datasets import as_labels
from nnunet_deconver.integration.images import check_image_file, check_whole_numbers
from nnunet_deconver.integration.plans import read_dataset_json, read_plans

# Positions of a voxel according to two files may differ by this part of the smallest side of a voxel: headers are
# rounded to single precision, and rotations in them to quaternions.
GRID_TOLERANCE = 0.05


class EvaluationError(InputError):
    """Something is wrong with the whole evaluation; the message says what and how to mend it."""


class CaseError(ValueError):
    """Something is wrong with one case; the message says what."""


@dataclass(frozen=True)
class CaseFiles:
    """A prediction and its reference.

    Attributes:
        name: file name without ending.
        reference: file.
        prediction: file.
    """

    name: str
    reference: Path
    prediction: Path

    @property
    def probabilities(self) -> Path:
        """Where nnU-Net puts the probabilities of the prediction."""
        return self.prediction.with_name(f"{self.name}.npz")


@dataclass(frozen=True)
class DatasetLabels:
    """What dataset.json (and the label manager of a plans file) say.

    Attributes:
        classes: name to the labels it is made of, in nnU-Net's order; without background.
        labels: all that may be in a file, but `ignore`.
        ignore: label of the reference that marks voxels which do not count; None if there is none.
        file_ending: of the segmentations.
        reader: nnU-Net's class that reads them.
        unit: of the reader's spacing, "mm" or "px".
        channels: of the network's output, which probabilities have.
        channel: that of each class.
    """

    classes: Mapping[str, tuple[int, ...]]
    labels: tuple[int, ...]
    ignore: int | None
    file_ending: str
    reader: type
    unit: str
    channels: int = 0
    channel: Mapping[str, int] = field(default_factory=dict)


def read_dataset(dataset_json: Path, plans: Path | None, folder: Path) -> DatasetLabels:
    """Reads what the segmentations of a dataset are.

    Args:
        dataset_json: nnU-Net's file.
        plans: nnU-Net's file, whose label manager counts; None for the default one.
        folder: of segmentations, on which nnU-Net's readers are tried.

    Raises:
        EvaluationError: if a file cannot be read, or says too little.
    """
    content = read_dataset_json(dataset_json)
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        if plans is None:
            manager = LabelManager(content["labels"], content.get("regions_class_order"))
        else:
            manager = PlansManager(read_plans(plans)).get_label_manager(content)
    except InputError:
        raise
    except Exception as error:  # nnU-Net asserts, and looks up classes by name
        raise EvaluationError(f"{dataset_json}: nnU-Net does not accept its labels: {error}") from error
    foreground = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    names = {as_labels(value): name for name, value in content["labels"].items() if name != "ignore"}
    classes, channel = {}, {}
    for index, label_or_region in enumerate(foreground):
        labels = as_labels(label_or_region)
        name = names.get(labels, str(labels))
        classes[name] = labels
        # A region's own sigmoid, or the part of its label in the softmax.
        channel[name] = index if manager.has_regions else list(manager.all_labels).index(labels[0])
    if not classes:
        raise EvaluationError(f"{dataset_json}: has no label but the background; there is nothing to evaluate")
    reader, unit = _find_reader(content, folder)
    return DatasetLabels(
        classes=classes,
        labels=tuple(int(label) for label in manager.all_labels),
        ignore=manager.ignore_label,
        file_ending=content["file_ending"],
        reader=reader,
        unit=unit,
        channels=manager.num_segmentation_heads,
        channel=channel,
    )


def _find_reader(dataset_json: dict, folder: Path) -> tuple[type, str]:
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    ending = dataset_json["file_ending"]
    # Endings that several readers take (.tif) are settled by trying a file. One that cannot be read must not settle it,
    # hence more than one try, and last the first reader that takes the ending.
    for example in [*sorted(str(path) for path in folder.glob(f"*{ending}"))[:5], None]:
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                reader = determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)
        except RuntimeError:
            continue
        return reader, "px" if issubclass(reader, NaturalImage2DIO) else "mm"
    raise EvaluationError(f"file_ending {ending} in dataset.json: nnU-Net has no reader for it")


def pair_folders(
    references: Path, predictions: Path, ending: str
) -> tuple[list[CaseFiles], dict[str, str], dict[str, str]]:
    """Pairs the segmentations of two folders by name.

    Args:
        references: folder.
        predictions: folder.
        ending: of the files; others do not count.

    Returns:
        The pairs; cases without prediction, and cases without reference, each with a sentence on that.

    Raises:
        EvaluationError: if a folder is missing, or has no such file.
    """
    expected, found = list_cases(references, ending), list_cases(predictions, ending)
    pairs = [CaseFiles(name, expected[name], found[name]) for name in expected if name in found]
    missing = {name: f"no prediction: {predictions / (name + ending)}" for name in expected if name not in found}
    extra = {name: f"no reference: {references / (name + ending)}" for name in found if name not in expected}
    return pairs, missing, extra


def list_cases(folder: Path, ending: str) -> dict[str, Path]:
    """The files of a folder with an ending, by their names without it, sorted.

    Raises:
        EvaluationError: if there is no such folder, or no such file.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder")
    found = _files(folder, ending)
    if not found:
        raise EvaluationError(f"{folder}: has no file that ends with {ending}, the file_ending of dataset.json")
    return found


def _files(folder: Path, ending: str) -> dict[str, Path]:
    return {path.name.removesuffix(ending): path for path in sorted(folder.iterdir()) if path.name.endswith(ending)}


def pair_folds(
    model: Path, references: Path, ending: str, splits: Path | None, folds: Sequence[int] | None = None
) -> tuple[list[CaseFiles], dict, dict]:
    """Pairs the validation predictions of a model's folds with their references.

    Only folds 0, 1, ... count: what `fold_all` segments after training, it was trained on.

    Args:
        model: nnU-Net's model folder, with fold_*/validation.
        references: folder.
        ending: of the files.
        splits: nnU-Net's splits_final.json, which says what each fold should have segmented; None if there is none.
        folds: numbers; None for all that are there.

    Returns:
        As `pair_folders`.

    Raises:
        EvaluationError: if no fold has predictions, or one that is asked for.
    """
    there = sorted(
        (path.parent for path in model.glob("fold_*/validation") if path.parent.name.removeprefix("fold_").isdigit()),
        key=lambda fold: int(fold.name.removeprefix("fold_")),
    )
    if not there:
        hint = "; fold_all does not count, it was trained on all cases" if (model / "fold_all").is_dir() else ""
        raise EvaluationError(
            f"{model}: no fold_*/validation with predictions{hint}; nnUNetv2_train writes them at its end, "
            "and after an interruption with --val"
        )
    lacking = [fold for fold in folds or () if model / f"fold_{fold}" not in there]
    if lacking:
        raise EvaluationError(
            f"folds {', '.join(map(str, lacking))}: {model} has no predictions of them; it has those of "
            f"{', '.join(fold.name for fold in there)}"
        )
    expected = list_cases(references, ending)
    split = read_json(splits, expected=list) if splits else []
    pairs, missing, extra = {}, {}, {}
    for fold in there:
        number = int(fold.name.removeprefix("fold_"))
        if folds is not None and number not in folds:
            continue
        folder = fold / "validation"
        found = _files(folder, ending)
        for name, path in found.items():
            if name in pairs:
                other = pairs.pop(name).prediction.parents[1].name
                extra[name] = f"predicted by more than one fold, {other} and {fold.name}; delete the stale prediction"
            elif name not in expected:
                extra[name] = f"no reference: {references / (name + ending)}"
            elif name not in extra:
                pairs[name] = CaseFiles(name, expected[name], path)
        wanted = split[number]["val"] if number < len(split) else []
        missing |= {name: f"no prediction: {folder / (name + ending)}" for name in wanted if name not in found}
    return [pairs[name] for name in sorted(pairs)], missing, extra


def load_case(
    case: CaseFiles, dataset: DatasetLabels, same_grid: bool
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Reads both segmentations of a case.

    Args:
        case: whose files to read.
        dataset: what is in them.
        same_grid: whether to let spacing, origin and direction of the prediction differ.

    Returns:
        Reference and prediction, int32 of two or three axes, and the reference's size of a voxel along each of them.

    Raises:
        CaseError: if a file cannot be read or has labels the dataset has not, or if they do not lie on one grid.
    """
    reference, reference_properties = _read(case.reference, "reference", dataset)
    prediction, prediction_properties = _read(case.prediction, "prediction", dataset)
    ranks = [_file_rank(properties) for properties in (reference_properties, prediction_properties)]
    if ranks[0] != ranks[1]:
        raise CaseError(f"reference is {ranks[0]}D, prediction {ranks[1]}D")
    if reference.shape != prediction.shape:
        raise CaseError(f"shapes differ: reference {reference.shape}, prediction {prediction.shape}")
    if not same_grid:
        _check_grid(reference.shape, reference_properties, prediction_properties)
    _check_labels(reference, "reference", {*dataset.labels, *([] if dataset.ignore is None else [dataset.ignore])})
    _check_labels(prediction, "prediction", {*dataset.labels})
    spacing = tuple(float(abs(length)) for length in reference_properties["spacing"])
    if not all(0 < length < np.inf for length in spacing):
        raise CaseError(f"reference {case.reference} has a spacing of {spacing}; each must be a positive number")
    if reference.shape[0] == 1:
        # nnU-Net's readers give images of two axes a third one; and a single slice has no extent to measure along it.
        reference, prediction, spacing = reference[0], prediction[0], spacing[1:]
    return reference, prediction, spacing


def load_probabilities(case: CaseFiles, dataset: DatasetLabels, shape: Sequence[int]) -> dict[str, np.ndarray]:
    """Reads the probabilities that nnU-Net saved beside a prediction.

    Args:
        case: whose file to read.
        dataset: what is in it.
        shape: of the reference, two or three axes.

    Returns:
        Those of each class, of this shape.

    Raises:
        CaseError: if there is no such file, or it has not what nnU-Net writes.
    """
    path = case.probabilities
    if not path.exists():
        raise CaseError(
            f"no probabilities: {path}; nnUNetv2_predict writes them with --save_probabilities, nnUNetv2_train with "
            "--npz"
        )
    try:
        check_is_file(path)
        with np.load(path, allow_pickle=False) as file:
            found = file["probabilities"]
    except Exception as error:  # of a file that is cut short or something else, any
        reason = " ".join(str(error).split())
        raise CaseError(f"probabilities {path} cannot be read ({type(error).__name__}: {reason[-200:]})") from error
    expected = (dataset.channels, *[1] * (3 - len(shape)), *shape)
    if found.shape != expected:
        raise CaseError(f"shapes differ: reference has {expected} with a channel per output, {path} {found.shape}")
    # Sums of half precision are a little above 1.
    if found.dtype.kind != "f" or not ((found >= 0) & (found <= 1.001)).all():
        raise CaseError(f"probabilities {path} are not all between 0 and 1")
    return {name: found[index].reshape(shape).clip(0, 1) for name, index in dataset.channel.items()}


@dataclass(frozen=True)
class PatientAxes:
    """Which axis of an array runs along which of a patient's, so that slices can be shown as radiologists see them.

    Attributes:
        order: the axes that run between head and feet, front and back, right and left.
        flipped: of these, whether they run from feet to head, back to front, left to right.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def of(cls, properties: dict) -> "PatientAxes":
        """Those of a file; as they are, where it does not say.

        Args:
            properties: from nnU-Net's reader.
        """
        from scipy.optimize import linear_sum_assignment

        geometry = _geometry(properties)
        if "affine" not in geometry and len(geometry.get("origin", ())) != 3:
            return cls()
        along = _voxels_to_world(properties)[:, :3]
        along = along / np.linalg.norm(along, axis=0)
        world, axes = linear_sum_assignment(-np.abs(along))
        found = dict(zip(world.tolist(), axes.tolist(), strict=True))
        # SimpleITK's x and y run to the left and to the back, nibabel's to the right and to the front; z to the head.
        wanted = {0: 1, 1: 1, 2: -1} if "origin" in geometry else {0: -1, 1: -1, 2: -1}
        depth, height, width = (bool(along[axis, found[axis]] * wanted[axis] < 0) for axis in (2, 1, 0))
        return cls((found[2], found[1], found[0]), (depth, height, width))

    def turn(self, voxels: np.ndarray) -> np.ndarray:
        """Turns (..., z, y, x) such that its last axes run from head to feet, front to back, right to left."""
        leading = voxels.ndim - 3
        turned = voxels.transpose(*range(leading), *(leading + axis for axis in self.order))
        return np.flip(turned, tuple(leading + axis for axis, flip in enumerate(self.flipped) if flip))

    def turn_spacing(self, spacing: Sequence[float]) -> tuple[float, ...]:
        """The sizes of a voxel along the axes after `turn`."""
        return tuple(float(spacing[axis]) for axis in self.order)


def find_images(name: str, folders: Sequence[Path], ending: str) -> list[Path]:
    """The files of a case's channels, NAME_0000ENDING, NAME_0001ENDING and so on, in the first folder that has any.

    Raises:
        CaseError: if none has.
    """
    for folder in folders:
        files = _files(folder, ending).values() if folder.is_dir() else ()
        channels = [path for path in files if re.fullmatch(re.escape(name) + r"_\d{4}", path.name.removesuffix(ending))]
        if channels:
            return channels
    looked = ", ".join(map(str, folders)) or "no folder: none is known"
    raise CaseError(f"no image {name}_0000{ending}: looked in {looked}; name the folder: --images FOLDER")


def load_image(files: Sequence[Path], dataset: DatasetLabels, shape: Sequence[int]) -> tuple[np.ndarray, PatientAxes]:
    """Reads the image of a case.

    Args:
        files: of its channels.
        dataset: whose reader to use.
        shape: of the reference, two or three axes.

    Returns:
        Image (channels, z, y, x) in float32, and how its axes lie in the patient.

    Raises:
        CaseError: if a file cannot be read, or does not have the reference's shape.
    """
    try:
        for path in files:
            check_image_file(path)
        with redirect_stdout(io.StringIO()):
            image, properties = dataset.reader().read_images([str(path) for path in files])
    except Exception as error:  # each library raises its own
        reason = " ".join(str(error).split())
        raise CaseError(f"image {files[0]} cannot be read ({type(error).__name__}: {reason[-200:]})") from error
    expected = (1,) * (3 - len(shape)) + tuple(shape)
    if image.shape[1:] != expected:
        raise CaseError(f"shapes differ: reference {expected}, image {files[0]} {image.shape[1:]}")
    return image.astype(np.float32), PatientAxes.of(properties)


def _read(path: Path, role: str, dataset: DatasetLabels) -> tuple[np.ndarray, dict]:
    try:
        check_image_file(path)
        check_whole_numbers(path)
    except (OSError, ValueError) as error:
        raise CaseError(f"{role} {path} {error}") from error
    try:
        # nnU-Net's readers print what they dislike before they raise.
        with redirect_stdout(io.StringIO()):
            voxels, properties = dataset.reader().read_seg(str(path))
    except Exception as error:  # each library raises its own
        reason = " ".join(str(error).split())
        raise CaseError(f"{role} {path} cannot be read ({type(error).__name__}: {reason[-200:]})") from error
    if len(voxels) != 1:
        raise CaseError(f"{role} {path} has {len(voxels)} channels; a segmentation has one, of labels")
    labels = voxels[0].astype(np.int32)
    if not np.array_equal(labels, voxels[0]):
        raise CaseError(f"{role} {path} has values that are not whole numbers; a segmentation holds labels")
    return labels, properties


def _check_labels(labels: np.ndarray, role: str, allowed: set[int]) -> None:
    unknown = sorted({int(label) for label in np.unique(labels)} - allowed)
    if unknown:
        shown = ", ".join(map(str, unknown[:10])) + (" ..." if len(unknown) > 10 else "")
        raise CaseError(f"{role} has labels {shown}; dataset.json allows {', '.join(map(str, sorted(allowed)))}")


def _file_rank(properties: dict) -> int:
    if "sitk_stuff" in properties:
        return len(properties["sitk_stuff"]["spacing"])
    return 3  # the other readers know one rank


def _check_grid(shape: tuple[int, ...], reference: dict, prediction: dict) -> None:
    """Raises CaseError if two files of one shape put a corner of the image at different places."""
    corners = np.array(np.meshgrid(*[(0, length - 1) for length in shape], indexing="ij")).reshape(3, -1)
    places = [matrix[:, :3] @ corners + matrix[:, 3:] for matrix in map(_voxels_to_world, (reference, prediction))]
    displacement = float(np.linalg.norm(places[0] - places[1], axis=0).max())
    # An axis of one voxel has no second place to be compared at, and for images of two axes a made-up side.
    spacings = [np.asarray(properties["spacing"], float) for properties in (reference, prediction)]
    sides = [length > 1 for length in shape]
    smallest = min(spacing[sides].min() if any(sides) else spacing.min() for spacing in spacings)
    if displacement > GRID_TOLERANCE * smallest:
        what = [
            f"{name} {_rounded(one[name])} in the reference, {_rounded(other[name])} in the prediction"
            for one, other in [(_geometry(reference), _geometry(prediction))]
            for name in one
            if not np.allclose(one[name], other[name], rtol=1e-4, atol=1e-4)
        ]
        raise CaseError(
            f"geometry differs, by up to {displacement:.3g} mm: {'; '.join(what)}; "
            "if the voxels do correspond, --same-grid compares them all the same"
        )


def _geometry(properties: dict) -> dict[str, np.ndarray]:
    """What a file says of where its voxels are, in its own terms."""
    if "sitk_stuff" in properties:
        return {name: np.asarray(properties["sitk_stuff"][name]) for name in ("spacing", "origin", "direction")}
    if "nibabel_stuff" in properties:
        affines = properties["nibabel_stuff"]
        # Where the reader reorients, the array is that of the reoriented image.
        return {"affine": np.asarray(affines.get("reoriented_affine", affines["original_affine"]))}
    return {"spacing": np.asarray(properties["spacing"])}


def _voxels_to_world(properties: dict) -> np.ndarray:
    """Takes array indices of three axes to positions in mm: (3, 4), the last column for the offset."""
    geometry = _geometry(properties)
    if "affine" in geometry:
        matrix = geometry["affine"][:3]
        # nnU-Net's readers transpose nibabel's x, y, z to z, y, x.
        return np.concatenate([matrix[:, 2::-1], matrix[:, 3:]], axis=1)
    matrix = np.zeros((3, 4))
    if "origin" in geometry:
        rank = len(geometry["spacing"])
        along = geometry["direction"].reshape(rank, rank) * geometry["spacing"]
        matrix[:rank, 3 - rank : 3] = along[:, ::-1]
        matrix[:rank, 3] = geometry["origin"]
    else:
        matrix[:, :3] = np.diag(geometry["spacing"])
    return matrix


def _rounded(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in np.ravel(values)) + ")"
