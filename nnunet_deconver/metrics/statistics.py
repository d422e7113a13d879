"""What many cases come to: means, spreads and how sure they are."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

RESAMPLES = 10_000
SEED = 0
BLOCK = 500  # resamples at a time, so that thousands of cases do not fill the memory


def summarize(
    cases: Sequence[Mapping[str, Mapping[str, float]]], classes: Sequence[str], metrics: Sequence[str]
) -> tuple[dict, dict]:
    """Summarizes all metrics of all classes over cases.

    Args:
        cases: class to metric to value (NaN where undefined), at least one.
        classes: names.
        metrics: names.

    Returns:
        Class to metric to `mean`, `std` (n - 1), `median`, `ci95` (lower and upper end of the 95 % percentile
        bootstrap interval of the mean), `n` defined values and `undefined` ones; and metric to `mean` and `ci95` of
        the mean over classes of their means, nnU-Net's foreground mean. NaN where too few values are defined.
    """
    table = np.array([[[case[name][metric] for metric in metrics] for name in classes] for case in cases], float)
    resampled = bootstrap_means(table)
    by_class = {
        name: {
            metric: {**_describe(table[:, i, j]), "ci95": interval(resampled[:, i, j])}
            for j, metric in enumerate(metrics)
        }
        for i, name in enumerate(classes)
    }
    foreground = {
        metric: {
            "mean": float(np.mean([by_class[name][metric]["mean"] for name in classes])),
            "ci95": interval(resampled[:, :, j].mean(axis=1)),
        }
        for j, metric in enumerate(metrics)
    }
    return by_class, foreground


def bootstrap_means(table: np.ndarray) -> np.ndarray:
    """Means of the defined values over cases that are drawn with replacement.

    A case is drawn with all its values: what belongs to one patient stays together.

    Args:
        table: (cases, ...), NaN where undefined.

    Returns:
        (RESAMPLES, ...), NaN where a draw has no defined value.
    """
    columns = table.reshape(len(table), -1)
    defined = ~np.isnan(columns)
    filled, weights = np.where(defined, columns, 0), defined.astype(float)
    generator = np.random.default_rng(SEED)
    means = []
    for _ in range(RESAMPLES // BLOCK):
        draws = generator.multinomial(len(table), np.full(len(table), 1 / len(table)), size=BLOCK).astype(float)
        with np.errstate(invalid="ignore"):
            means.append(draws @ filled / (draws @ weights))
    return np.concatenate(means).reshape(-1, *table.shape[1:])


def interval(resampled: np.ndarray) -> list[float]:
    """The 2.5th and 97.5th percentile of the resampled values that are defined; NaN if none is."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return [math.nan, math.nan]
    return [float(end) for end in np.percentile(defined, [2.5, 97.5])]


def _describe(values: np.ndarray) -> dict[str, float | int]:
    defined = values[~np.isnan(values)]
    count = len(defined)
    return {
        "mean": float(defined.mean()) if count else math.nan,
        "std": float(defined.std(ddof=1)) if count > 1 else math.nan,
        "median": float(np.median(defined)) if count else math.nan,
        "n": count,
        "undefined": len(values) - count,
    }
