"""What nnU-Net noted while it trained: losses, validation Dice and seconds, epoch by epoch."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_deconver.errors import InputError
from nnunet_deconver.files import read_json
from nnunet_deconver.models.checkpoint import CHECKPOINTS, load_unpickled


@dataclass(frozen=True)
class Curves:
    """A run of training.

    Attributes:
        train_loss: (epochs,), NaN where unknown.
        val_loss: (epochs,), on patches of the validation cases.
        dice: (epochs,), nnU-Net's pseudo Dice on these patches, mean over classes.
        seconds: (epochs,), that an epoch took, its validation included; NaN where unknown.
    """

    train_loss: np.ndarray
    val_loss: np.ndarray
    dice: np.ndarray
    seconds: np.ndarray


def read_curves(fold: Path) -> Curves | None:
    """Reads the curves of a fold, from its logs, or a checkpoint where there are none.

    The logs are small, and complete where the run was interrupted after its last checkpoint.

    Args:
        fold: folder such as fold_0.

    Returns:
        The curves; None if the folder has neither, or its checkpoint cannot be read.
    """
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime)
    curves = parse_logs([path.read_text(errors="replace") for path in logs])
    if curves is not None:
        return curves
    for name in CHECKPOINTS:
        if (fold / name).is_file():
            try:
                return _read_checkpoint(fold / name)
            except ValueError:  # cut short, or of somebody whose code we do not run
                return None
    return None


def noted_number(fold: Path, name: str) -> int | None:
    """A whole number that nnU-Net wrote down before the first epoch, in debug.json.

    Args:
        fold: folder such as fold_0.
        name: such as num_epochs.

    Returns:
        The number; None if nnU-Net did not write it, or has not yet.
    """
    try:
        return int(read_json(fold / "debug.json")[name])
    except (InputError, KeyError, TypeError, ValueError):
        return None


def parse_logs(texts: list[str]) -> Curves | None:
    """Reads the text that nnU-Net prints while it trains.

    Args:
        texts: contents of training_log_*.txt, the oldest first. Epochs that a resumed run repeats count as it has them.

    Returns:
        The curves; None if there is no epoch.
    """
    epochs = {}
    for text in texts:
        for part in re.split(r"Epoch (?=\d+\s)", text)[1:]:
            number = int(part.split(maxsplit=1)[0])
            losses = [_number(rf"{name} (\S+)", part) for name in ("train_loss", "val_loss")]
            dice = re.search(r"Pseudo dice \[(.*?)\]", part)
            # Newer versions of numpy print np.float32(0.5).
            numbers = re.findall(r"(?<![\w.])(?:nan|\d+(?:\.\d*)?(?:e-?\d+)?)", dice[1]) if dice else []
            seconds = _number(r"Epoch time: (\S+) s", part)
            epochs[number] = (*losses, _mean([float(value) for value in numbers]), seconds)
    finished = {number: values for number, values in epochs.items() if not np.isnan(values[0])}
    if not finished:
        return None
    table = np.full((max(finished) + 1, 4), np.nan)
    for number, values in finished.items():
        table[number] = values
    return Curves(*table.T)


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    try:
        return float(found[1]) if found else np.nan
    except ValueError:
        return np.nan


def _mean(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else np.nan


def _read_checkpoint(path: Path) -> Curves | None:
    checkpoint = load_unpickled(path, mmap=True)
    logging = checkpoint.get("logging") if isinstance(checkpoint, dict) else None
    if not isinstance(logging, dict):
        return None
    train_loss, val_loss, dice, starts, ends = (
        np.asarray(logging.get(name, []), float).ravel()
        for name in ("train_losses", "val_losses", "mean_fg_dice", "epoch_start_timestamps", "epoch_end_timestamps")
    )
    epochs = min(len(train_loss), len(val_loss), len(dice))
    if not epochs:
        return None
    seconds, timed = np.full(epochs, np.nan), min(epochs, len(starts), len(ends))
    seconds[:timed] = ends[:timed] - starts[:timed]
    return Curves(train_loss[:epochs], val_loss[:epochs], dice[:epochs], seconds)
