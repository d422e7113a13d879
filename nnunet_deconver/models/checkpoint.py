"""Checkpoints of nnU-Net."""

import re
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import check_is_file

if TYPE_CHECKING:
    from torch import nn

# The newest first: of a run that goes on, checkpoint_latest is newer than checkpoint_best.
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
# What only training needs: half of a checkpoint and more.
OF_TRAINING = ("optimizer_state", "grad_scaler_state")


def load_unpickled(path: Path, trust: bool = False, mmap: bool = False) -> object:
    """What a file of torch holds: tensors, Python's own types, and the numbers of numpy in nnU-Net's logs.

    Args:
        path: of the file.
        trust: whether to unpickle everything else too, which may run any code.
        mmap: whether tensors stay on the disk until they are used.

    Raises:
        InputError: if the file cannot be read, or holds something else.
    """
    import torch

    what = "it must be a checkpoint of nnU-Net"
    check_is_file(path, what)
    torch.serialization.add_safe_globals(_numpy_types())
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust, mmap=mmap)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {what}") from None
    except Exception as error:  # of a file that is cut short or something else, any
        unpickling = isinstance(error, UnpicklingError)
        found = re.search(r"GLOBAL ([\w.]+)", str(error)) if unpickling else None
        if found is None:
            # What torch says then is advice to load the file otherwise.
            reason = "no such content" if unpickling else " ".join(str(error).split())[:200]
            raise InputError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {reason})") from error
        raise InputError(
            f"{path}: holds {found[1]}, which nnU-Net's own trainers do not write, and reading which may run any code; "
            "if you trust the model, add --trust"
        ) from error


def read_checkpoint(path: Path, trust: bool = False) -> dict:
    """A checkpoint of nnU-Net.

    Args:
        path: of the file.
        trust: see `load_unpickled`.

    Raises:
        InputError: if the file is missing or none, or holds what must be unpickled.
    """
    checkpoint = load_unpickled(path, trust)
    if not isinstance(checkpoint, dict):
        checkpoint = {}
    missing = {"network_weights", "init_args", "trainer_name"} - set(checkpoint)
    if missing:
        raise InputError(f"{path}: is not a checkpoint of nnU-Net 2, it has no {', '.join(sorted(missing))}")
    _check_content(checkpoint, path)
    return checkpoint


def _numpy_types() -> list:
    """What nnU-Net's checkpoints hold besides tensors and Python's own types: numpy's numbers, in its logs."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")]
    return [scalar, np.dtype, *dtypes]


def _check_content(checkpoint: dict, path: Path) -> None:
    """Raises InputError unless what is read of a checkpoint is of the right types, and its weights are numbers."""
    import torch

    def wrong(field: str, is_not: str) -> InputError:
        return InputError(
            f"{path}: {field} is not {is_not}; it must be a checkpoint of nnU-Net, as its training wrote it"
        )

    weights, arguments = checkpoint["network_weights"], checkpoint["init_args"]
    if not isinstance(weights, dict) or not all(isinstance(each, torch.Tensor) for each in weights.values()):
        raise wrong("network_weights", "a dict of tensors")
    bad = [name for name, each in weights.items() if each.is_floating_point() and not each.isfinite().all()]
    if bad:
        raise InputError(
            f"{path}: the weights {bad[0]} hold NaN or inf, as of a training that diverged; take another checkpoint"
        )
    if not isinstance(checkpoint["trainer_name"], str) or not checkpoint["trainer_name"].isidentifier():
        raise wrong("trainer_name", "the name of a class")
    if not isinstance(arguments, dict):
        raise wrong("init_args", "a dict")
    for key, types in (("plans", dict), ("dataset_json", dict), ("configuration", str)):
        if not isinstance(arguments.get(key), types):
            raise wrong(f"init_args[{key!r}]", f"a {types.__name__}")
    fold = arguments.get("fold")
    if fold != "all" and (not isinstance(fold, int | str) or not str(fold).isdecimal()):
        raise wrong("init_args['fold']", "a number or all")


def for_prediction(checkpoint: dict) -> dict:
    """A checkpoint without what only training needs."""
    return {key: value for key, value in checkpoint.items() if key not in OF_TRAINING}


def save_checkpoint(checkpoint: dict, path: Path) -> None:
    """Writes a checkpoint.

    Args:
        checkpoint: with its `network_weights`.
        path: of the file.

    Raises:
        InputError: if the disk has not the space that the weights take.
    """
    import torch

    needed = sum(weight.nbytes for weight in checkpoint["network_weights"].values())
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise InputError(
            f"{path.parent}: the weights of {path.name} take {needed / 2**20:.1f} MiB, and {free / 2**20:.1f} MiB are "
            "free there; make room, or choose another folder"
        )
    torch.save(checkpoint, path)


def find_checkpoint(model: Path, fold: str = "fold_*") -> Path:
    """The best there is of a fold's checkpoints: the final one, else the latest, else the best.

    Args:
        model: model folder.
        fold: name of the fold's folder; by default any.

    Raises:
        InputError: if there is none.
    """
    for name in CHECKPOINTS:
        found = sorted(model.glob(f"{fold}/{name}"))
        if found:
            return found[0]
    raise InputError(f"{model / fold}: has no checkpoint ({', '.join(CHECKPOINTS)})")


def load_weights(network: "nn.Module", checkpoint: Path, trust: bool = False) -> None:
    """Gives a network a checkpoint's weights.

    Args:
        network: that of the checkpoint.
        checkpoint: file.
        trust: see `read_checkpoint`.

    Raises:
        InputError: if the checkpoint cannot be read, or is not this network's.
    """
    try:
        network.load_state_dict(read_checkpoint(checkpoint, trust)["network_weights"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{checkpoint}: its weights are not those of {type(network).__name__}: {reason}") from error
