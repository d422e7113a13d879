"""Checkpoints of nnU-Net."""

from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_deconver.errors import InputError

if TYPE_CHECKING:
    from torch import nn

# The newest first: of a run that goes on, checkpoint_latest is newer than checkpoint_best.
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
# What only training needs: half of a checkpoint and more.
OF_TRAINING = ("optimizer_state", "grad_scaler_state")


def read_checkpoint(path: Path) -> dict:
    """A checkpoint of nnU-Net.

    Raises:
        InputError: if the file is missing or none.
    """
    import torch

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it must be a checkpoint of nnU-Net") from None
    except Exception as error:
        raise InputError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {error})") from error
    missing = {"network_weights", "init_args", "trainer_name"} - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        raise InputError(f"{path}: is not a checkpoint of nnU-Net 2, it has no {', '.join(sorted(missing))}")
    return checkpoint


def for_prediction(checkpoint: dict) -> dict:
    """A checkpoint without what only training needs."""
    return {key: value for key, value in checkpoint.items() if key not in OF_TRAINING}


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


def load_weights(network: "nn.Module", checkpoint: Path) -> None:
    """Gives a network a checkpoint's weights.

    Raises:
        InputError: if the checkpoint cannot be read, or is not this network's.
    """
    try:
        network.load_state_dict(read_checkpoint(checkpoint)["network_weights"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{checkpoint}: its weights are not those of {type(network).__name__}: {reason}") from error
