"""The datasets of the user's nnU-Net, and what is known of them."""

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from nnunet_deconver.errors import ArgumentError, InputError


def variable_folder(name: str) -> Path:
    """The folder that a variable of nnU-Net names.

    Raises:
        InputError: if it is not set, or there is no such folder.
    """
    value = os.environ.get(name)
    if not value:
        raise InputError(f"the variable {name} is not set; run: export {name}=FOLDER")
    if not Path(value).is_dir():
        raise InputError(f"the variable {name} is {value}, which is not a folder; make it or set another")
    return Path(value)


def dataset_name(number_or_name: str) -> str:
    """The full name of a dataset that nnU-Net knows, such as Dataset004_Hippocampus.

    Raises:
        InputError: if nnU-Net finds no such dataset.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets, maybe_convert_to_dataset_name

    try:
        with redirect_stdout(StringIO()):
            name = maybe_convert_to_dataset_name(number_or_name)
            known = find_candidate_datasets(int(name[7:10]))
    except (RuntimeError, ValueError) as error:
        raise ArgumentError("dataset", number_or_name, _said(error)) from error
    if name not in known:
        raise ArgumentError(
            "dataset", number_or_name, "nnU-Net finds no such dataset in nnUNet_raw or nnUNet_preprocessed"
        )
    return name


def as_labels(value: int | str | list[int] | tuple[int, ...]) -> tuple[int, ...]:
    """A label, or the labels of a region, alike for the numbers, lists and tuples that nnU-Net has for them."""
    labels = value if isinstance(value, list | tuple) else (value,)
    return tuple(sorted(int(label) for label in labels))


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
