"""Figures for papers: values case by case, quality against cost, curves of training.

One column of a paper is 3.5 inches wide; nothing here is set smaller than 7 points at that width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from nnunet_deconver.files import written_whole
from nnunet_deconver.models.training_log import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnunet_deconver.plans.cost import NetworkCost

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Okabe and Ito's colors, which color-blind readers tell apart; without black and yellow.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", ":")  # for more models than colors
COLUMN = 3.5  # inches
MOST_IN_A_COLUMN = 4  # panels below each other; more stand in two columns of a page
MOST_ON_A_LINEAR_AXIS = 20
FORMATS = ("png", "svg")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text
}


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Lets a function draw in `STYLE`, which matplotlib looks up while it draws."""

    @wraps(draw)
    def styled(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@styled
def draw_cases(values: Mapping[str, Mapping[str, np.ndarray]], label: str, path: Path) -> list[Path]:
    """Draws a metric case by case: a panel per class, a row per model, a dot per case under a box of quartiles.

    Args:
        values: class to model to values (cases,); undefined ones, NaN, are left out.
        label: of the axis: metric and unit.
        path: without ending.

    Returns:
        The files written.
    """
    from matplotlib.lines import Line2D

    models = list(next(iter(values.values())))
    columns = 1 if len(values) <= MOST_IN_A_COLUMN else 2
    rows = -(-len(values) // columns)
    figure = new_figure(COLUMN * columns, 0.45 + 0.16 * len(models) + rows * (0.35 + 0.22 * len(models)))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for panel in panels.flat[len(values) :]:
        panel.set_visible(False)
    # The same scatter at every drawing.
    generator = np.random.default_rng(0)
    for panel, (name, of_class) in zip(panels.flat, values.items(), strict=False):
        for row, model in enumerate(models):
            defined = of_class[model][~np.isnan(of_class[model])]
            if not len(defined):
                continue
            color = COLORS[row % len(COLORS)]
            height = row + generator.uniform(-0.22, 0.22, len(defined))
            panel.scatter(defined, height, s=6, color=color, alpha=0.6, linewidths=0, zorder=1)
            _draw_box(panel, defined, row)
        panel.set_yticks([])
        panel.use_sticky_edges = False  # of the boxes, at which the axis would end
        panel.set_ylim(len(models) - 0.5, -0.5)
        panel.set_title(name, loc="left", pad=2)
        panel.grid(axis="x", linewidth=0.4, alpha=0.5)
    for column in range(columns):
        lowest = [panel for panel in panels[:, column] if panel.get_visible()][-1]
        lowest.set_xlabel(label)
        lowest.xaxis.set_tick_params(labelbottom=True)
    # Names of trainers are long: beside the boxes, they would leave these no room.
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=4, color=COLORS[row % len(COLORS)], label=model)
        for row, model in enumerate(models)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False, title="from top to bottom")
    return save(figure, path)


@styled
def draw_cost(
    quality: Mapping[str, tuple[float, float, float]],
    costs: Mapping[str, Mapping[str, float]],
    label: str,
    path: Path,
) -> list[Path]:
    """Draws quality against each kind of cost, beside each other.

    Args:
        quality: model to mean, and lower and upper end of its interval.
        costs: kind of cost, for the axis, to model to number; models without are left out.
        label: of the vertical axis.
        path: without ending.

    Returns:
        The files written.
    """
    figure = new_figure(COLUMN, 2.1 + 0.16 * len(quality))
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    for panel, (kind, numbers) in zip(panels, costs.items(), strict=True):
        for index, (model, (mean, low, high)) in enumerate(quality.items()):
            if model not in numbers:
                continue
            panel.errorbar(
                numbers[model],
                mean,
                yerr=[[mean - low], [high - mean]],
                **point_style(index),
                linestyle="",
                markersize=5,
                elinewidth=0.8,
                capsize=2,
                label=model,
            )
        panel.set_xlabel(kind)
        # From zero, half the distance is half the cost; where models are too far apart for that, logarithmic.
        if max(numbers.values()) > MOST_ON_A_LINEAR_AXIS * min(numbers.values()):
            panel.set_xscale("log")
        else:
            panel.set_xlim(0, 1.15 * max(numbers.values()))
        panel.grid(linewidth=0.4, alpha=0.5)
    panels[0].set_ylabel(label)
    handles = {
        name: handle for panel in panels for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=1, frameon=False)
    return save(figure, path)


def point_style(index: int) -> dict[str, Any]:
    """Marker and color of a model: where there are more models than colors, further ones have other pairs."""
    marker = MARKERS[(index + index // len(COLORS)) % len(MARKERS)]
    return {"marker": marker, "color": COLORS[index % len(COLORS)]}


@styled
def draw_training(runs: Mapping[str, Sequence[Curves]], path: Path) -> list[Path]:
    """Draws training loss, validation loss and pseudo Dice of several models in one figure.

    Args:
        runs: model to the curves of its folds. Several are drawn thin, and thick their mean over the epochs that all
            have. The thick one is a running mean, over a fiftieth of the epochs, of what jumps from epoch to epoch.
        path: without ending.

    Returns:
        The files written.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(COLUMN, 4.2 + 0.16 * len(runs))
    panels = figure.subplots(3, 1, sharex=True)
    texts = ("training loss", "validation loss\n(patches)", "pseudo Dice\n(patches)")
    for index, (model, folds) in enumerate(runs.items()):
        color, line = COLORS[index % len(COLORS)], LINES[index // len(COLORS) % len(LINES)]
        shared = min(len(fold.train_loss) for fold in folds)
        window = max(1, shared // 50)
        for panel, field in zip(panels, ("train_loss", "val_loss", "dice"), strict=True):
            curves = [getattr(fold, field) for fold in folds]
            if len(folds) > 1 or window > 1:
                for curve in curves:
                    panel.plot(np.arange(1, len(curve) + 1), curve, color=color, linewidth=0.4, alpha=0.3)
            mean = np.mean([curve[:shared] for curve in curves], axis=0)
            smooth = np.convolve(mean, np.full(window, 1 / window), mode="valid")
            epochs = np.arange(len(smooth)) + 1 + (window - 1) / 2
            panel.plot(epochs, smooth, line, color=color, linewidth=1.3, label=model)
    for panel, text in zip(panels, texts, strict=True):
        panel.set_ylabel(text)
        panel.grid(linewidth=0.4, alpha=0.5)
    panels[-1].set_xlabel("epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels(panels)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1, frameon=False)
    return save(figure, path)


@styled
def draw_networks(costs: Mapping[str, "NetworkCost"], path: Path) -> None:
    """Draws networks as points: parameters across, FLOPs per voxel up, the area of a point its training memory.

    Args:
        costs: by name.
        path: image to write.
    """
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    largest = max(cost.memory.peak for cost in costs.values())
    for i, (name, cost) in enumerate(costs.items()):
        axes.scatter(
            cost.parameters / 1e6,
            cost.flops / math.prod(cost.patch_size) / 1e3,
            s=30 + 400 * cost.memory.peak / largest,
            alpha=0.6,
            color=f"C{i % 10}",
            label=f"{name}, {cost.memory.peak / 2**30:.1f} GiB",
        )
    axes.set(xlabel="parameters / M", ylabel="kFLOPs / voxel", xmargin=0.2, ymargin=0.25)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    # The areas are in the legend's numbers; there, points of one size read better.
    # Below the axes it hides none.
    legend = figure.legend(
        loc="outside lower center", ncols=2, fontsize="small", title="network, training memory", title_fontsize="small"
    )
    for handle in legend.legend_handles:
        assert isinstance(handle, PathCollection)  # of a scatter plot
        handle.set_sizes([50])
    save(figure, path.with_suffix(""), [path.suffix[1:]])


def _draw_box(panel: "Axes", values: np.ndarray, row: int) -> None:
    """Tukey's box: quartiles, the median, whiskers to the last values within 1.5 times the quartiles' distance."""
    low, median, high = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (high - low)
    ends = values[values >= low - reach].min(), values[values <= high + reach].max()
    style: dict[str, Any] = {"color": "black", "linewidth": 0.8, "zorder": 2}
    panel.barh(row, high - low, left=low, height=0.55, fill=False, edgecolor="black", linewidth=0.8, zorder=2)
    panel.plot([median, median], [row - 0.275, row + 0.275], color="black", linewidth=1.6, zorder=2)
    for start, end in ((low, ends[0]), (high, ends[1])):
        panel.plot([start, end], [row, row], **style)
        panel.plot([end, end], [row - 0.12, row + 0.12], **style)


def new_figure(width: float, height: float) -> "Figure":
    """A figure of a size in inches, whose parts make room for each other."""
    # Not pyplot: its windows and its global state are of no use here.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Writes a figure, each file whole or not at all.

    Args:
        figure: of matplotlib.
        path: without ending.
        formats: endings.

    Returns:
        The files written.
    """
    paths = [path.with_name(f"{path.name}.{ending}") for ending in formats]
    for each, ending in zip(paths, formats, strict=True):
        with written_whole(each, "wb") as file:
            figure.savefig(file, format=ending, dpi=300)
    return paths
