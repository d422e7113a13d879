"""Stratified folds of a dataset, written where nnU-Net's trainers look for them: splits_final.json."""

import csv
import json
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.files import check_is_file, read_json, written_whole
from nnunet_deconver.integration.images import check_image_file

Splits = list[dict[str, list[str]]]

# Numbers are binned into as many bins at most.
BINS = 10


def stratified_splits(values: Mapping[str, float | str], folds: int = 5, seed: int = 12345) -> Splits:
    """Folds in which a value is distributed as in the whole dataset.

    Numbers are put into bins of equally many cases first, unless they have few different values (`are_measured`); other
    values are classes. scikit-learn's StratifiedKFold makes the folds, shuffled.

    Args:
        values: by case.
        folds: number of them.
        seed: of the shuffling; nnU-Net's by default.

    Returns:
        For each fold the names of its cases for training ("train") and validation ("val"), sorted, as nnU-Net reads
        them.

    Raises:
        InputError: for fewer than two folds, or more than cases, or if no value has as many cases as there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    cases = sorted(values)
    if not 2 <= folds <= len(cases):
        raise ArgumentError("folds", folds, f"must be 2 to {len(cases)}, the number of cases")
    if not 0 <= seed < 2**32:
        raise ArgumentError("seed", seed, f"must be 0 to {2**32 - 1}")
    strata = _strata([values[case] for case in cases], folds)
    if max(strata.count(stratum) for stratum in set(strata)) < folds:
        raise ArgumentError("folds", folds, "no value has so many cases; take fewer folds, or coarser values")
    with warnings.catch_warnings():
        # Of a value with fewer cases than folds, some folds have none.
        warnings.simplefilter("ignore", UserWarning)
        parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(cases, strata))
    return [{"train": [cases[i] for i in train], "val": [cases[i] for i in val]} for train, val in parts]


def are_measured(values: Collection[float | str], folds: int) -> bool:
    """Whether values are numbers to be binned, rather than classes, of which there are at most as many as bins."""
    return len(set(values)) > _bins(values, folds) and not any(isinstance(value, str) for value in values)


def _bins(values: Collection[float | str], folds: int) -> int:
    # At least one case in each bin for each fold.
    return max(1, min(BINS, len(values) // folds))


def _strata(values: list[float | str], folds: int) -> list[str]:
    if not are_measured(values, folds):
        return [str(value) for value in values]
    numbers = [float(value) for value in values]
    bins = _bins(values, folds)
    # Equal values are in one bin: that of the first of them.
    ranks = np.searchsorted(np.sort(numbers), numbers)
    return [str(rank * bins // len(numbers)) for rank in ranks.tolist()]


def training_cases(raw: Path, dataset_json: dict) -> dict[str, Path]:
    """The label files of a raw dataset's training cases, by case.

    Args:
        raw: folder of the dataset in nnUNet_raw.
        dataset_json: its content.

    Raises:
        InputError: if there are none.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    if "dataset" not in dataset_json and not (raw / "imagesTr").is_dir():
        raise InputError(f"{raw}: has no folder imagesTr, where nnU-Net's raw datasets have their images")
    found = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    if not found:
        raise InputError(f"{raw / 'imagesTr'}: has no images that end with {dataset_json['file_ending']}")
    return {case: Path(files["label"]) for case, files in found.items()}


def foreground_volumes(
    labels: Mapping[str, Path], dataset_json: dict, progress: Callable[[list], Iterable] = iter
) -> dict[str, float]:
    """The volume of everything that is not background, in mm^3 (of images without spacing in pixels), by case.

    Args:
        labels: label files by case.
        dataset_json: of the dataset, which says how they are read, and whether there is an ignore label.
        progress: goes through the cases, such as tqdm.

    Raises:
        InputError: if a file cannot be read.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    ignored = dataset_json["labels"].get("ignore")
    reader, volumes = None, {}
    for case in progress(list(labels)):
        try:
            check_image_file(labels[case])
            # Found once, by reading the first file.
            reader = reader or determine_reader_writer_from_dataset_json(dataset_json, str(labels[case]), verbose=False)
            segmentation, properties = reader().read_seg(str(labels[case]))
        except Exception as error:  # each reader raises its own
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise InputError(f"{labels[case]}: cannot be read ({reason})") from error
        foreground = (segmentation > 0) & (segmentation != ignored)
        # nnU-Net gives images without spacing 999 along an axis that they do not have.
        spacing = [
            size for size, extent in zip(properties["spacing"], segmentation.shape[1:], strict=True) if extent > 1
        ]
        volumes[case] = float(foreground.sum() * math.prod(spacing))
    return volumes


def read_values(path: Path, cases: Iterable[str], column: str | None = None) -> dict[str, float | str]:
    """A column of a CSV file by case: numbers if all of them are, else text.

    Args:
        path: of a file whose first line names the columns, and whose first column has the cases.
        cases: that are needed; further lines are left out.
        column: its name; None for the second.

    Raises:
        InputError: if there is no such file or column, or a case has no value, or several.
    """
    check_is_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    header = [name.strip() for name in lines[0]] if lines else []
    if len(header) < 2:
        raise InputError(f"{path}: must have two columns, case and value, and a first line that names them")
    if column is not None and column not in header[1:]:
        raise ArgumentError("column", column, f"{path} has {', '.join(header[1:])}")
    index = 1 if column is None else header.index(column, 1)
    texts: dict[str, str] = {}
    for line in lines[1:]:
        case = line[0].strip()
        if case in texts:
            raise InputError(f"{path}: has several lines for {case}")
        texts[case] = line[index].strip() if index < len(line) else ""
    missing = [case for case in cases if not texts.get(case)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(f"{path}: has no {header[index]} for {', '.join(missing[:3])}{more}; add them, or the lines")
    chosen = {case: texts[case] for case in cases}
    try:
        numbers = {case: float(text) for case, text in chosen.items()}
    except ValueError:
        return {**chosen}
    unusable = [case for case, number in numbers.items() if not math.isfinite(number)]
    if unusable:
        raise InputError(
            f"{path}: {header[index]} of {unusable[0]} is {chosen[unusable[0]]}; it must be finite, or text"
        )
    return {**numbers}


def write_splits(splits: Splits, folder: Path, results: Path | None, overwrite: bool = False) -> bool:
    """Writes splits_final.json, unless it is there and has these folds.

    Args:
        splits: the folds.
        folder: of the dataset in nnUNet_preprocessed.
        results: of the dataset in nnUNet_results; None where that is not known.
        overwrite: replace other folds, as long as no model was trained on them.

    Returns:
        Whether it was written.

    Raises:
        InputError: if models were trained on other folds, or that cannot be known; nothing is changed.
        FileExistsError: if there are other folds, and they must stay.
    """
    path = folder / "splits_final.json"
    found = read_json(path, "it must be nnU-Net's list of folds", list) if path.exists() else None
    if found == splits:
        return False
    trained = [] if results is None else sorted(each for each in results.glob("*/fold_*") if each.name != "fold_all")
    if trained:
        more = f" and {len(trained) - 1} more" if trained[1:] else ""
        raise InputError(
            f"{path}: models were trained on other folds ({trained[0]}{more}), and what they were not trained on would "
            "no longer be known; keep those folds, or move the models away"
        )
    if found is not None and not overwrite:
        raise FileExistsError(f"{path} exists and has other folds")
    if found is not None and results is None:
        raise InputError(
            "the variable nnUNet_results is not set, so nobody knows whether models were trained on the folds in "
            f"{path}; run: export nnUNet_results=FOLDER"
        )
    with written_whole(path) as file:
        file.write(json.dumps(splits, indent=4))
    return True
