"""The trainers that nnU-Net finds, and the folders besides its own in which it looks for them."""

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import nnunet_deconver
from nnunet_deconver.errors import ArgumentError

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

VARIABLE = "nnUNet_extTrainer"


def shim_folder() -> Path:
    """The folder whose one module re-exports this package's trainers.

    nnU-Net imports every module of such a folder by its bare name and forgets it again. The folder of the trainers
    themselves would not do: checkpoints and worker processes need classes that can be imported.
    """
    return Path(nnunet_deconver.__file__).resolve().parent / "shim"


def external_folders() -> list[Path]:
    """The folders listed in nnUNet_extTrainer, as nnU-Net reads it."""
    listed = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [Path(folder) for folder in listed if folder.strip()]


def export_line() -> str:
    """The shell line with which nnU-Net finds the trainers unregistered; folders listed already are kept."""
    kept = f"${VARIABLE}{os.pathsep}" if external_folders() else ""
    return f"export {VARIABLE}={kept}$(nnunet-deconver trainer-path)"


def search_trainer(name: str) -> "type[nnUNetTrainer]":
    """Asks nnU-Net for a trainer, as nnUNetv2_train does.

    Raises:
        ArgumentError: if the search ended in an exception, its cause. Every module in nnU-Net's reach is imported on
            the way, so it can be any.
    """
    try:
        # The search prints as it goes, and so may what it imports.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

            return recursive_find_trainer_class_by_name(name)
    except Exception as error:
        problem = f"nnU-Net finds no such trainer ({error}); see `nnunet-deconver list`"
        raise ArgumentError("trainer", name, problem) from error
