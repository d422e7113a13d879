"""Pictures of cases for papers: image, truth and what each method got right and wrong, in one slice per case.

A picture is as wide as a column of a paper or as its page, and nothing in it is set smaller than 7 points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_deconver.figures.plots import COLUMN, FORMATS, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CORRECT, FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS, FAR = 1, 2, 3, 4, 5
ERRORS = {
    CORRECT: ("true positive", "#1f6fff"),
    FALSE_POSITIVE: ("false positive", "#00c83c"),
    FALSE_NEGATIVE: ("false negative", "#ff1f1f"),
    WRONG_CLASS: ("wrong class", "#ffb000"),
    FAR: ("false positive, far", "#ff2fd6"),
}
# Kept apart from the hues of the errors.
CLASS_COLORS = ("#ffe14d", "#e668d8", "#35d6d0", "#ff9a4d", "#a98bff", "#d8f08a", "#ffb3c7", "#b08d57")
OPACITY = 0.6
# An image whose slices are further apart than that, in sides of the smallest voxel, is looked at in those slices.
ANISOTROPIC = 2
MOST_IN_A_COLUMN = 3  # pictures beside each other; more take the page's width

# Inches, and characters of 7 points in one.
LABELS, GAP, LINE, LEGEND_LINE, CHARACTERS = 0.32, 0.03, 0.125, 0.16, 18
TALLEST, FLATTEST = 1.5, 0.4  # height of a row over the width of its pictures


@dataclass(frozen=True)
class Prediction:
    """What a method made of a case.

    Attributes:
        labels: (z, y, x), whole numbers; None where there is nothing to show.
        dice: stands in the corner; NaN where undefined.
    """

    labels: np.ndarray | None
    dice: float = np.nan


@dataclass(frozen=True)
class Case:
    """What is drawn of a case: one row.

    Attributes:
        title: stands beside the row; may have two lines.
        image: (channels, z, y, x), one slice for 2D data.
        truth: (z, y, x), whole numbers.
        predictions: by method, the same methods in each case.
        spacing: size of a voxel along z, y and x.
        far: (z, y, x), where false positives are shown as far; None for nowhere.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, Prediction]
    spacing: Sequence[float] = field(default=(1.0, 1.0, 1.0))
    far: np.ndarray | None = None


def error_map(
    truth: np.ndarray, prediction: np.ndarray, ignore: int | None = None, far: np.ndarray | None = None
) -> np.ndarray:
    """Says of every voxel how the prediction fares there.

    Args:
        truth: labels, 0 for background.
        prediction: labels, of the same shape.
        ignore: label of the truth that counts neither way; None if there is none.
        far: mask of the voxels where false positives have a key of their own; None for nowhere.

    Returns:
        A key of `ERRORS` where either is foreground, else 0, in the inputs' shape. A voxel of one class predicted as
        another is false for both, and has a key of its own.
    """
    codes = np.zeros(truth.shape, np.uint8)
    codes[(truth != 0) & (prediction == truth)] = CORRECT
    false_positive = (truth == 0) & (prediction != 0)
    codes[false_positive] = FALSE_POSITIVE
    if far is not None:
        codes[false_positive & far] = FAR
    codes[(truth != 0) & (prediction == 0)] = FALSE_NEGATIVE
    codes[(truth != 0) & (prediction != 0) & (prediction != truth)] = WRONG_CLASS
    if ignore is not None:
        codes[truth == ignore] = 0
    return codes


def choose_slice(codes: np.ndarray) -> int:
    """The slice worth showing: the one with most errors; without errors, with most structure; without, the middle.

    Args:
        codes: (methods, z, y, x), from `error_map`; the errors of all methods count together.

    Returns:
        An index along z.
    """
    wrong = (codes > CORRECT).sum(axis=(0, 2, 3))
    structure = (codes == CORRECT).sum(axis=(0, 2, 3))
    for voxels in (wrong, structure):
        if voxels.any():
            return int(voxels.argmax())
    return codes.shape[1] // 2


def choose_axis(shape: Sequence[int], spacing: Sequence[float]) -> int:
    """The axis to cut across: that of one voxel, or along which the voxels are longest by far; else the first.

    Args:
        shape: of an image of three axes.
        spacing: size of a voxel along each.
    """
    if shape[0] > 1 and max(spacing) > ANISOTROPIC * min(spacing):
        return int(np.argmax(spacing))
    return 0


def best_median_worst(scores: Mapping[str, float]) -> dict[str, str]:
    """Picks the cases to show.

    Args:
        scores: case to Dice. One without (NaN) is no worse than any: nothing was to be found, and nothing was found.

    Returns:
        Case to "best", "median" or "worst", in this order; of few cases, the extremes.
    """
    ranked = sorted(scores, key=lambda case: 1 if np.isnan(scores[case]) else scores[case], reverse=True)
    ranks = {len(ranked) // 2: "median", len(ranked) - 1: "worst", 0: "best"}
    return {ranked[index]: ranks[index] for index in sorted(ranks)}


def label_names(classes: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """The names of the labels by number; with regions, that of the smallest region a label is in.

    Args:
        classes: name to the labels it is made of.
    """
    return {
        label: min((name for name in classes if label in classes[name]), key=lambda name: len(classes[name]))
        for label in sorted({label for labels in classes.values() for label in labels})
    }


def overlay(picture: np.ndarray, codes: np.ndarray, colors: Mapping[int, str]) -> np.ndarray:
    """Paints codes over an image without its colors.

    Args:
        picture: (y, x, 3), from 0 to 1.
        codes: (y, x), whole numbers.
        colors: code to matplotlib color; other codes leave the image as it is.

    Returns:
        (y, x, 3), from 0 to 1.
    """
    from matplotlib.colors import to_rgb

    painted = np.repeat(picture.mean(axis=-1, keepdims=True), 3, axis=-1)
    for code, color in colors.items():
        here = codes == code
        painted[here] = (1 - OPACITY) * painted[here] + OPACITY * np.array(to_rgb(color))
    return painted


@styled
def draw_panels(
    cases: Sequence[Case],
    classes: Mapping[int, str],
    path: Path,
    *,
    ignore: int | None = None,
    axis: int | None = None,
    title: str = "",
    segmentations: bool = False,
    far: str = "",
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draws a row per case: one slice of image, truth, and each method's errors with its Dice in the corner.

    Args:
        cases: from top to bottom, at least one.
        classes: label to name, for colors and legend.
        path: without ending.
        ignore: label of the truth that counts neither way.
        axis: to cut volumes across; None for `choose_axis`.
        title: stands on top.
        segmentations: before a method's errors, show what it predicts, in the colors of the classes.
        far: what the false positives in the cases' `far` are called.
        formats: to write.

    Returns:
        The files written.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors = {label: CLASS_COLORS[i % len(CLASS_COLORS)] for i, label in enumerate(classes)}
    absent = {WRONG_CLASS: len(classes) == 1, FAR: not far}
    errors = {code: color for code, (_, color) in ERRORS.items() if not absent.get(code)}
    texts = {code: text for code, (text, _) in ERRORS.items()} | {FAR: far}
    columns = ["image", "truth"]
    for method in cases[0].predictions:
        columns += [method, "errors"] if segmentations else [method]
    width = COLUMN if len(columns) <= MOST_IN_A_COLUMN else 2 * COLUMN
    cell = (width - LABELS - GAP * len(columns)) / len(columns)
    rows = [_pictures(case, colors, errors, ignore, axis, segmentations) for case in cases]
    heights = [cell * min(max(pictures[0].height, FLATTEST), TALLEST) for pictures in rows]
    headers = [_wrapped(name, int(cell * CHARACTERS)) for name in columns]
    handles = [Patch(color=colors[label], label=name) for label, name in classes.items()]
    handles += [Patch(color=color, label=texts[code]) for code, color in errors.items()]
    entries = _beside([str(handle.get_label()) for handle in handles], width)
    below = LEGEND_LINE * -(-len(handles) // entries) + 2 * GAP
    above = LINE * (max(header.count("\n") for header in headers) + 1 + 1.5 * bool(title)) + 2 * GAP
    height = above + sum(heights) + GAP * (len(rows) - 1) + below

    figure = Figure(figsize=(width, height))
    top = height - above
    for row, (case, pictures) in enumerate(zip(cases, rows, strict=True)):
        bottom = top - heights[row]
        for column, picture in enumerate(pictures):
            left = LABELS + column * (cell + GAP)
            axes = figure.add_axes((left / width, bottom / height, cell / width, heights[row] / height))
            picture.draw(axes)
            if row == 0:
                axes.set_title(headers[column], pad=3)
        middle = (bottom + heights[row] / 2) / height
        label = _wrapped(case.title, int(heights[row] * CHARACTERS), most=2)
        figure.text(
            (LABELS - 2 * GAP) / width, middle, label, rotation=90, ha="right", va="center", ma="center", size=7
        )
        top = bottom - GAP
    figure.suptitle(title, y=1 - GAP / height, va="top", size=8)
    figure.legend(
        handles=[
            handle for column in range(entries) for handle in handles[column::entries]
        ],  # so that rows are in order
        loc="lower center",
        ncols=entries,
        frameon=False,
        borderaxespad=0.1,
        columnspacing=1.2,
        handlelength=1.2,
        handleheight=0.8,
        handletextpad=0.5,
    )
    return save(figure, path, formats)


@dataclass(frozen=True)
class _Picture:
    """One picture of a row: pixels (y, x, 3), None for none; height of a pixel over its width; text in the corner."""

    pixels: np.ndarray | None
    aspect: float
    height: float
    text: str = ""

    def draw(self, axes: "Axes") -> None:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if self.pixels is None:
            axes.text(0.5, 0.5, self.text, ha="center", va="center", color="0.4", size=7, transform=axes.transAxes)
            return
        axes.imshow(self.pixels, aspect=self.aspect)
        if self.text:
            box = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "boxstyle": "round,pad=0.2"}
            corner = {"transform": axes.transAxes, "ha": "right", "va": "top", "ma": "right"}
            axes.text(0.97, 0.97, self.text, color="white", weight="bold", size=7, bbox=box, **corner)


def _pictures(
    case: Case,
    colors: Mapping[int, str],
    errors: Mapping[int, str],
    ignore: int | None,
    axis: int | None,
    segmentations: bool,
) -> list[_Picture]:
    """Image, truth, and for each method its errors, in one slice."""
    flat = case.truth.shape[0] == 1
    axis = choose_axis(case.truth.shape, case.spacing) if axis is None or flat else axis
    rows, columns = (size for index, size in enumerate(case.spacing) if index != axis)
    maps = {
        name: error_map(case.truth, prediction.labels, ignore, case.far)
        for name, prediction in case.predictions.items()
        if prediction.labels is not None
    }
    # Where no method has anything to show, the largest structure.
    judged = [*maps.values()] or [error_map(case.truth, case.truth, ignore)]
    index = choose_slice(np.moveaxis(np.stack(judged), axis + 1, 1))
    image = to_rgb_picture(np.take(case.image, index, axis + 1), color=flat and len(case.image) == 3)
    aspect = rows / columns
    shape = aspect, aspect * image.shape[0] / image.shape[1]

    def painted(codes: np.ndarray, palette: Mapping[int, str], text: str = "") -> _Picture:
        return _Picture(overlay(image, np.take(codes, index, axis), palette), *shape, text)

    pictures = [_Picture(image, *shape), painted(case.truth, colors)]
    for name, prediction in case.predictions.items():
        if prediction.labels is None:
            pictures += [_Picture(None, *shape, "no prediction")] * (1 + segmentations)
            continue
        if segmentations:
            pictures.append(painted(prediction.labels, colors))
        dice = "undefined" if np.isnan(prediction.dice) else f"{prediction.dice:.2f}"
        text = f"Dice {dice}"
        if case.far is not None:
            text += f"\n{np.count_nonzero(maps[name] == FAR)} far"
        pictures.append(painted(maps[name], errors, text))
    return pictures


def to_rgb_picture(image: np.ndarray, color: bool) -> np.ndarray:
    """(channels, y, x) of any range to (y, x, 3) from 0 to 1, in color or of the first channel alone.

    The darkest and the brightest half percent are cut off.
    """
    channels = image if color else image[:1]
    low, high = np.percentile(channels, (0.5, 99.5))
    scaled = np.clip((channels - low) / max(high - low, 1e-8), 0, 1)
    return np.moveaxis(np.broadcast_to(scaled, (3, *scaled.shape[1:])), 0, -1)


def _beside(labels: Sequence[str], width: float) -> int:
    """How many entries of a legend fit beside each other: all, or as many columns as the longest leaves."""
    widths = [0.4 + len(label) / CHARACTERS for label in labels]
    return len(labels) if sum(widths) < width else max(1, int(width // max(widths)))


def _wrapped(text: str, characters: int, most: int = 3) -> str:
    """Breaks text behind spaces, slashes and underscores, or where it must be, into lines; the rest is cut off."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for part in paragraph.replace(" ", " \0").replace("_", "_\0").replace("/", "/\0").split("\0"):
            if line and len(line) + len(part.rstrip()) > characters:
                lines.append(line)
                line = ""
            line += part
            while len(line.rstrip()) > characters:
                lines.append(line[:characters])
                line = line[characters:]
        lines.append(line)
    lines = [line.strip() for line in lines]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: characters - 1] + "…"]
    return "\n".join(lines)
