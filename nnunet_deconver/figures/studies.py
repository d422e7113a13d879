"""Figures of a study: differences to the reference with their intervals, also against the hours of training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_deconver.figures.plots import COLUMN, new_figure, point_style, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

PANELS_IN_A_ROW = 3


@dataclass(frozen=True)
class Estimate:
    """A difference to the reference.

    Attributes:
        difference: in the metric's unit.
        low: lower end of its interval, NaN for none.
        high: upper end.
        hours: of training; NaN where unknown.
    """

    difference: float
    low: float
    high: float
    hours: float = math.nan


@styled
def draw_differences(
    estimates: Mapping[str, Mapping[str, Mapping[str, Estimate]]], label: str, path: Path
) -> list[Path]:
    """Draws a forest plot: a panel per class, a row per model, in it a point with its interval per kind of training.

    Args:
        estimates: class to model to kind of training, such as "equal time", to the difference.
        label: of the axes: metric, unit, and which side is better.
        path: without ending.

    Returns:
        The files written.
    """
    models = list(dict.fromkeys(model for of_class in estimates.values() for model in of_class))
    kinds = list(
        dict.fromkeys(kind for of_class in estimates.values() for by_kind in of_class.values() for kind in by_kind)
    )
    columns = min(len(estimates), PANELS_IN_A_ROW)
    rows = -(-len(estimates) // columns)
    height = 0.25 + 0.17 * len(models) * len(kinds)
    figure = new_figure(COLUMN if columns == 1 else 2 * COLUMN, 0.6 + rows * (0.35 + height))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for panel in panels.flat[len(estimates) :]:
        panel.set_visible(False)
    for panel, (name, of_class) in zip(panels.flat, estimates.items(), strict=False):
        for row, model in enumerate(models):
            for place, kind in enumerate(kinds):
                if kind in of_class.get(model, {}):
                    shift = 0.28 * (place - (len(kinds) - 1) / 2)
                    _draw_interval(panel, of_class[model][kind], row + shift, _style(row + 1, place))
        panel.axvline(0, color="black", linewidth=0.8, zorder=1)
        if not any(panel.dataLim.intervalx):
            panel.set_xlim(-1, 1)  # all are zero: matplotlib's own axis has digits of rounding
        panel.set_ylim(len(models) - 0.5, -0.5)
        panel.set_yticks(range(len(models)), [plain(model) for model in models])
        panel.set_title(plain(name), loc="left", pad=2)
        panel.grid(axis="x", linewidth=0.4, alpha=0.5)
        panel.locator_params(axis="x", nbins=5)
    # One label for the axes of all panels, which the legend has below them.
    figure.legend(handles=_handles(kinds), loc="outside lower center", ncols=len(kinds), frameon=False, title=label)
    return save(figure, path)


@styled
def draw_hours(estimates: Mapping[str, Estimate], reference: tuple[str, float], label: str, path: Path) -> list[Path]:
    """Draws differences to the reference against hours, or minutes, of training.

    Args:
        estimates: by model; those without hours are left out.
        reference: its name and hours.
        label: of the vertical axis.
        path: without ending.

    Returns:
        The files written.
    """
    known = {model: each for model, each in estimates.items() if not math.isnan(each.hours)}
    longest = max([reference[1], *(each.hours for each in known.values())])
    unit, factor = ("minutes", 60) if longest < 1 else ("hours", 1)
    figure = new_figure(COLUMN, 2.3 + 0.08 * (len(estimates) + 1))
    panel = figure.subplots()
    panel.axhline(0, color="black", linewidth=0.8, zorder=1)
    panel.plot([factor * reference[1]], [0], linestyle="", zorder=3, **_style(0, 0), label=plain(reference[0]))
    for index, (model, each) in enumerate(estimates.items(), start=1):
        if model in known:
            _draw_interval(panel, each, factor * each.hours, _style(index, 0), upright=True, label=plain(model))
    panel.set_xlim(0, 1.1 * factor * longest)  # from zero: half the distance is half the time
    panel.set_xlabel(f"{unit} of a training")
    panel.set_ylabel(label)
    panel.grid(linewidth=0.4, alpha=0.5)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return save(figure, path)


def plain(text: str) -> str:
    """A name as matplotlib prints it unchanged: no dollar opens a formula."""
    return text.replace("$", r"\$")


def _style(index: int, place: int) -> dict[str, Any]:
    """How a model is drawn, the reference being 0; hollow: second kind."""
    style = point_style(index)
    return {**style, "markerfacecolor": "white" if place else style["color"], "markersize": 5}


def _draw_interval(
    panel: "Axes",
    each: Estimate,
    position: float,
    style: dict[str, Any],
    upright: bool = False,
    label: str | None = None,
) -> None:
    across, ends, point = [position, position], [each.low, each.high], [position, each.difference]
    panel.plot(*((across, ends) if upright else (ends, across)), color=style["color"], linewidth=1.1, zorder=2)
    point = [[number] for number in (point if upright else point[::-1])]
    panel.plot(*point, linestyle="", zorder=3, label=label, **style)


def _handles(kinds: list[str]) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    styles = [{**_style(0, place), "color": "#555555"} for place in range(len(kinds))]
    styles[0]["markerfacecolor"] = "#555555"
    return [Line2D([], [], linewidth=1.1, **style, label=kind) for style, kind in zip(styles, kinds, strict=True)]
