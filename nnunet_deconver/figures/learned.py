"""Figures of what layers learned: where an upsampling samples, and what a head makes of the position in the patch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_deconver.figures.panels import to_rgb_picture
from nnunet_deconver.figures.plots import COLUMN, save, styled

WINDOW = 16  # voxels along a side of the part that is shown enlarged
TRUTH_COLOR, SAMPLE_COLOR = "#ffe14d", "#ff1f1f"


@styled
def draw_sampling(
    image: np.ndarray,
    truth: np.ndarray,
    displacement: np.ndarray,
    path: Path,
    *,
    aspect: float = 1.0,
    title: str = "",
    limit: float = np.inf,
) -> list[Path]:
    """Draws where an upsampling samples: the patch, an enlarged part with a line to each sample, and all distances.

    Args:
        image: (channels, rows, columns), what the network saw.
        truth: (rows, columns), 0 for background; outlined.
        displacement: (2, rows, columns), of each output voxel's sample from its own place, in voxels, down and right.
        path: without ending.
        aspect: height of a voxel over its width.
        title: stands on top.
        limit: the largest displacement along an axis that there can be.

    Returns:
        The files written.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    picture = to_rgb_picture(image, color=len(image) == 3)
    length = np.hypot(*displacement)
    top, left, height, width = choose_window(truth > 0, length, WINDOW)
    figure = Figure(figsize=(2 * COLUMN, 2.6), layout="constrained")
    overview, enlarged, distances = figure.subplots(1, 3)
    for axes, linewidth in ((overview, 0.6), (enlarged, 1.2)):
        axes.imshow(picture, aspect=aspect, interpolation="nearest")
        if (truth > 0).any() and (truth <= 0).any():
            axes.contour(truth > 0, [0.5], colors=TRUTH_COLOR, linewidths=linewidth)
    frame = Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor="white", linewidth=0.8)
    overview.add_patch(frame)
    places = np.mgrid[top : top + height, left : left + width].reshape(2, -1)
    samples = places + displacement[:, top : top + height, left : left + width].reshape(2, -1)
    lines = np.stack([places[::-1].T, samples[::-1].T], axis=1)
    enlarged.add_collection(LineCollection([*lines], colors=SAMPLE_COLOR, linewidths=0.6, zorder=2))
    dots = {"linestyle": "", "marker": "o", "markeredgewidth": 0.3, "markeredgecolor": "black"}
    enlarged.plot(*places[::-1], **dots, color="white", markersize=1.6, label="output voxel")
    enlarged.plot(*samples[::-1], **dots, color=SAMPLE_COLOR, markersize=2.6, label="where it samples")
    enlarged.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))
    shown = distances.imshow(length, aspect=aspect, cmap="viridis", vmin=0, interpolation="nearest")
    bar = figure.colorbar(shown, ax=distances, fraction=0.05, pad=0.03)
    bar.set_label("voxels" if np.isinf(limit) else f"voxels (at most {limit:g} along an axis)")
    names = ("patch, outline of the truth", "samples in the frame", "distance of samples")
    for axes, text in zip((overview, enlarged, distances), names, strict=True):
        axes.set(xticks=[], yticks=[], title=text)
        axes.spines[:].set_visible(False)
    handles = enlarged.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, markerscale=1.6)
    figure.suptitle(title, size=8)
    return save(figure, path)


def choose_window(truth: np.ndarray, length: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """The part of a patch to enlarge: that with most of the truth's outline; without truth, with longest displacements.

    Args:
        truth: (rows, columns), bool.
        length: (rows, columns), of displacements.
        size: of its sides, in voxels; less where the patch is smaller.

    Returns:
        Top, left, height and width.
    """
    rows, columns = (min(size, extent) for extent in length.shape)
    outline = np.zeros(truth.shape)
    outline[1:] += truth[1:] != truth[:-1]
    outline[:, 1:] += truth[:, 1:] != truth[:, :-1]
    sums = np.pad(outline if outline.any() else length, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(top), int(left), rows, columns


@styled
def draw_position(
    constants: Sequence[Sequence[np.ndarray]],
    weights: Sequence[Sequence[np.ndarray]],
    classes: Sequence[str],
    path: Path,
    *,
    spacing: Sequence[float],
    title: str = "",
) -> list[Path]:
    """Draws what a head makes of the position in the patch: a row per class.

    Args:
        constants: for each class and plane, (rows, columns): what the position adds to the logit.
        weights: for each class and plane, (rows, columns): by how much the weights of the features differ.
        classes: names.
        path: without ending.
        spacing: size of a voxel along the two or three axes of the patch.
        title: stands on top.

    Returns:
        The files written.
    """
    from matplotlib.figure import Figure

    planes = len(constants[0])
    names = [""] if planes == 1 else [f"axes {a} and {b}" for a, b in ((2, 3), (1, 3), (1, 2))]
    aspects = [spacing[0] / spacing[1]] if planes == 1 else _aspects(spacing)
    width = COLUMN if planes == 1 else 2 * COLUMN
    figure = Figure(figsize=(width, 0.7 + len(classes) * width / (2 * planes) * 0.95), layout="constrained")
    panels = figure.subplots(len(classes), 2 * planes, squeeze=False)
    for kind, maps in enumerate((constants, weights)):
        # About zero in two hues; what has no sign in one.
        high = max(float(np.abs(plane).max()) for of_class in maps for plane in of_class) or 1.0
        style = (
            {"cmap": "viridis", "vmin": 0, "vmax": high} if kind else {"cmap": "RdBu_r", "vmin": -high, "vmax": high}
        )
        shown = None
        own = panels[:, kind * planes : (kind + 1) * planes]
        for row, of_class in enumerate(maps):
            for column, plane in enumerate(of_class):
                shown = own[row, column].imshow(plane, aspect=aspects[column], **style)
                if row == 0 and planes > 1:
                    own[row, column].set_title(names[column])
        assert shown is not None  # there is a class at least
        bar = figure.colorbar(shown, ax=own, location="bottom", fraction=0.06, pad=0.03, aspect=25)
        bar.set_label(("added to the log-odds", "change of the weights")[kind])
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, name in zip(panels[:, 0], classes, strict=True):
        axes.set_ylabel(name)
    figure.suptitle(title, size=8)
    return save(figure, path)


def _aspects(spacing: Sequence[float]) -> list[float]:
    """Height of a pixel over its width in the planes across each of three axes."""
    return [rows / columns for rows, columns in ((spacing[1:]), (spacing[0], spacing[2]), (spacing[:2]))]
