"""The picture of `nnunet-deconver demo`: image, truth, prediction and errors of a few cases."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CORRECT, FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS = 1, 2, 3, 4
ERRORS = {
    CORRECT: ("true positive", "#1f6fff"),
    FALSE_POSITIVE: ("false positive", "#00c83c"),
    FALSE_NEGATIVE: ("false negative", "#ff1f1f"),
    WRONG_CLASS: ("wrong class", "#ffb000"),
}
# Kept apart from the hues of the errors.
CLASS_COLORS = ("#ffe14d", "#e668d8", "#35d6d0", "#ff9a4d", "#a98bff", "#d8f08a", "#ffb3c7", "#b08d57")
OPACITY = 0.6


@dataclass
class Case:
    """What is drawn of a case: one row.

    Attributes:
        title: stands beside the row.
        image: (channels, z, y, x), one slice for 2D data.
        truth: (z, y, x), whole numbers.
        prediction: (z, y, x), whole numbers.
        dice: stands in the corner of the errors.
        aspect: height of a voxel in the slice over its width.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    dice: float
    aspect: float = 1.0


def error_map(truth: np.ndarray, prediction: np.ndarray, ignore: int | None = None) -> np.ndarray:
    """Says of every voxel how the prediction fares there.

    Args:
        truth: labels, 0 for background.
        prediction: labels, of the same shape.
        ignore: label of the truth that counts neither way; None if there is none.

    Returns:
        A key of `ERRORS` where either is foreground, else 0, in the inputs' shape. A voxel of one class predicted as
        another is false for both, and has a key of its own.
    """
    codes = np.zeros(truth.shape, np.uint8)
    codes[(truth != 0) & (prediction == truth)] = CORRECT
    codes[(truth == 0) & (prediction != 0)] = FALSE_POSITIVE
    codes[(truth != 0) & (prediction == 0)] = FALSE_NEGATIVE
    codes[(truth != 0) & (prediction != 0) & (prediction != truth)] = WRONG_CLASS
    if ignore is not None:
        codes[truth == ignore] = 0
    return codes


def choose_slice(codes: np.ndarray) -> int:
    """The slice worth showing: the one with most errors; without errors, with most structure; without, the middle.

    Args:
        codes: (z, y, x), from `error_map`.

    Returns:
        An index along the first axis.
    """
    wrong = (codes > CORRECT).sum(axis=(1, 2))
    structure = (codes == CORRECT).sum(axis=(1, 2))
    for voxels in (wrong, structure):
        if voxels.any():
            return int(voxels.argmax())
    return len(codes) // 2


def overlay(grey: np.ndarray, codes: np.ndarray, colors: dict[int, str]) -> np.ndarray:
    """Paints codes over an image.

    Args:
        grey: (y, x), from 0 to 1.
        codes: (y, x), whole numbers.
        colors: code to matplotlib color; other codes leave the image as it is.

    Returns:
        (y, x, 3), from 0 to 1.
    """
    from matplotlib.colors import to_rgb

    painted = np.repeat(grey[..., None], 3, axis=-1)
    for code, color in colors.items():
        here = codes == code
        painted[here] = (1 - OPACITY) * painted[here] + OPACITY * np.array(to_rgb(color))
    return painted


def draw(cases: Sequence[Case], classes: dict[int, str], path: Path, *, ignore: int | None = None, title: str = ""):
    """Writes the picture: a row per case; image, truth, prediction and errors of one slice in the columns.

    Args:
        cases: from top to bottom.
        classes: label to name, for colors and legend.
        path: file to write, with the ending of an image format.
        ignore: label of the truth that counts neither way.
        title: stands on top.
    """
    # Not pyplot: its windows and its global state are of no use here.
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors = {label: CLASS_COLORS[i % len(CLASS_COLORS)] for i, label in enumerate(classes)}
    errors = {code: color for code, (_, color) in ERRORS.items() if code != WRONG_CLASS or len(classes) > 1}
    columns = ("image", "truth", "prediction", "errors")
    height = 2.5
    figure = Figure(figsize=(0.5 + height * len(columns), height * len(cases) + 1.3), layout="constrained")
    rows = figure.subplots(len(cases), len(columns), squeeze=False)
    for axes, case in zip(rows, cases, strict=True):
        codes = error_map(case.truth, case.prediction, ignore)
        index = choose_slice(codes)
        picture = _picture(case.image[:, index], color=case.image.shape[:2] == (3, 1))
        grey = picture.mean(axis=-1)
        truth, prediction = case.truth[index], case.prediction[index]
        shown = (picture, overlay(grey, truth, colors), overlay(grey, prediction, colors))
        for axis, pixels in zip(axes, (*shown, overlay(grey, codes[index], errors)), strict=True):
            axis.imshow(pixels, aspect=case.aspect, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(case.title, fontsize=10)
        axes[-1].text(
            0.97,
            0.96,
            f"Dice {case.dice:.2f}",
            transform=axes[-1].transAxes,
            ha="right",
            va="top",
            color="white",
            weight="bold",
            fontsize=10,
            bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "boxstyle": "round,pad=0.25"},
        )
    for axis, name in zip(rows[0], columns, strict=True):
        axis.set_title(name, fontsize=12)
    figure.suptitle(title, fontsize=12)
    handles = [Patch(color=colors[label], label=name) for label, name in classes.items()]
    handles += [Patch(color=color, label=ERRORS[code][0]) for code, color in errors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    figure.savefig(path, dpi=150)


def _picture(image: np.ndarray, color: bool) -> np.ndarray:
    """(channels, y, x) of any range to (y, x, 3) from 0 to 1, in color or of the first channel alone."""
    channels = image if color else image[:1]
    low, high = np.percentile(channels, (0.5, 99.5))
    scaled = np.clip((channels - low) / max(high - low, 1e-8), 0, 1)
    return np.moveaxis(np.broadcast_to(scaled, (3, *scaled.shape[1:])), 0, -1)
