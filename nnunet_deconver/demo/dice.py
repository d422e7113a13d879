"""Dice of the held-out cases: that of the prediction, and the one that thresholds would reach."""

import json
import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_deconver.demo.dataset import RawData

if TYPE_CHECKING:
    import numpy as np

Dice = dict[str, dict[str, float]]  # class to case to Dice; NaN where neither truth nor prediction has the class


def read_dice(summary: Path, data: RawData) -> Dice:
    """Dice of the held-out cases, from nnU-Net's summary.json."""
    cases = json.loads(summary.read_text())["metric_per_case"]
    return {
        name: {
            Path(case["prediction_file"]).name.removesuffix(data.ending): case["metrics"][str(key)]["Dice"]
            for case in cases
        }
        for name, key in data.classes.items()
    }


def best_threshold_dice(data: RawData, bins: int = 256) -> Dice:
    """Dice that thresholds would reach on the held-out cases: for each class the interval of intensities that is best.

    Sought with these cases' truth at hand, in every channel, as it is and standardised per case, and therefore an upper
    bound of what a threshold chosen without the truth would reach.

    Args:
        data: whose held-out cases are measured.
        bins: intervals begin and end at this many quantiles of the intensities.
    """
    import numpy as np

    cases = data.cases("Ts")
    rng = np.random.default_rng(0)
    best = dict.fromkeys(data.classes, np.full(len(cases), np.nan))

    def intensities(case: str, channel: int, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
        image, truth, _ = data.read_held_out(case)
        values, counted = image[channel], np.ones(truth.shape, bool) if data.ignore is None else truth != data.ignore
        if standardise:
            values = (values - values.mean()) / max(values.std(), 1e-8)
        return values[counted], truth[counted]

    channels = range(len(data.read_held_out(cases[0])[0]))
    for kind in ((channel, standardise) for channel in channels for standardise in (False, True)):
        sample = [rng.choice(intensities(case, *kind)[0], 20_000) for case in cases]
        edges = np.quantile(np.concatenate(sample), np.linspace(0, 1, bins + 1)[1:-1])
        # Voxels below each edge, first of all, then of each class.
        below = {name: np.zeros((len(cases), bins + 1)) for name in (None, *data.classes)}
        for i, case in enumerate(cases):
            values, truth = intensities(case, *kind)
            positions = np.searchsorted(edges, values, side="right")
            for name, counts in below.items():
                chosen = positions if name is None else positions[np.isin(truth, data.classes[name])]
                counts[i, 1:] = np.bincount(chosen, minlength=bins).cumsum()
        for name in data.classes:
            dice = interval_dice(below[None], below[name])
            if not mean_dice(best[name]) >= mean_dice(dice):
                best[name] = dice
    return {name: dict(zip(cases, map(float, dice), strict=True)) for name, dice in best.items()}


def interval_dice(below: "np.ndarray", hits_below: "np.ndarray") -> "np.ndarray":
    """Dice per case of the interval with the best mean; both arguments are (cases, edges), see above."""
    import numpy as np

    predicted = below[:, None, :] - below[:, :, None]  # from the second axis' edge to the third's
    hits = hits_below[:, None, :] - hits_below[:, :, None]
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # means of nothing but NaN
        dice = np.where(predicted < 0, np.nan, 2 * hits / (predicted + hits_below[:, -1:, None]))
        mean = np.nanmean(dice, axis=0)
    if np.isnan(mean).all():
        return dice[:, 0, -1]
    return dice[(slice(None), *np.unravel_index(np.nanargmax(mean), mean.shape))]


def mean_dice(values: Iterable[float]) -> float:
    """The mean of those that are no NaN; NaN if all are."""
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def case_dice(dice: Dice, case: str) -> float:
    """The mean over classes for one case."""
    return mean_dice(results[case] for results in dice.values())
