"""What many cases come to: means, spreads and how sure they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
SEED = 0
SMALLEST_P = 2 / (1 + RESAMPLES)  # that resampling can give
BLOCK = 500  # resamples at a time, so that thousands of cases do not fill the memory


@dataclass(frozen=True)
class TrainingsDifference:
    """A metric of two models on the same cases, each trained from several seeds.

    Attributes:
        cases: in which all values are defined.
        undefined: cases that are left out, as a value of either model is undefined there.
        folds: that hold these cases out.
        seeds: of the model.
        seeds_reference: of the reference.
        mean: of the model, over cases and seeds.
        mean_reference: likewise.
        difference: model minus reference.
        low: lower end of its 95 % interval.
        high: upper end.
        p: two-sided, uncorrected.
        seeds_std: standard deviation (n - 1) between the means of the model's seeds; NaN with one.
        seeds_std_reference: likewise.
    """

    cases: int
    undefined: int
    folds: int
    seeds: int
    seeds_reference: int
    mean: float = math.nan
    mean_reference: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    seeds_std: float = math.nan
    seeds_std_reference: float = math.nan


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


def compare_trainings(
    values: np.ndarray, reference: np.ndarray, folds: np.ndarray, resamples: int = RESAMPLES
) -> TrainingsDifference:
    """How sure the difference of two models is, given that other cases and other trainings could have been.

    A resample draws cases, the same for both models, and in each fold seeds, for each model on its own: a training is
    a fold and a seed, and what it did better or worse than another it did to all cases of the fold. Of n cases, n - 1
    are drawn with replacement, of S seeds S - 1: the variance of the resampled means is then the unbiased estimate
    s^2 / n (McCarthy and Snowden 1985; Rao and Wu 1988), where n draws would halve it for two seeds. What both draws
    change adds up: drawn together, seeds and cases would count what is of one case in one training three times
    (Owen 2007), here it is twice, so intervals are rather too wide.

    Few seeds estimate a variance badly. Deviations from the mean are therefore spread as Student's distribution is
    beside the normal one, with Satterthwaite's degrees of freedom; trainings of a model vary alike in all folds.

    With one seed, a model's trainings are not drawn: the interval then covers cases alone. With one case there is none.

    Args:
        values: (seeds, cases), of the model; NaN where undefined. A case counts where no value of either is.
        reference: (seeds, cases), of the reference, whose seeds may be others.
        folds: (cases,), which fold holds a case out; all the same where a seed is one training to all cases.
        resamples: number of them.
    """
    defined = ~np.isnan(np.concatenate([values, reference])).any(axis=0)
    models, folds = [values[:, defined], reference[:, defined]], folds[defined]
    cases = int(defined.sum())
    counts = cases, values.shape[1] - cases, len(np.unique(folds)), len(values), len(reference)
    if not cases:
        return TrainingsDifference(*counts)
    by_seed = [model.mean(axis=1) for model in models]
    mean, mean_reference = (float(means.mean()) for means in by_seed)
    low = high = p = math.nan
    if cases > 1:
        generator = np.random.default_rng(SEED)
        differences = models[0].mean(axis=0) - models[1].mean(axis=0)
        parts = [_redraw_cases(differences, resamples, generator)]
        parts += [_redraw_trainings(model, folds, resamples, generator) for model in models if len(model) > 1]
        # What is equal but for rounding is no difference.
        resampled = np.round(differences.mean() + _add(parts, generator), 12)
        low, high = interval(resampled)
        count = min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0))
        p = min(1.0, 2 * (1 + int(count)) / (1 + resamples))
    stds = [float(means.std(ddof=1)) if len(means) > 1 else math.nan for means in by_seed]
    return TrainingsDifference(*counts, mean, mean_reference, mean - mean_reference, low, high, p, *stds)


# Resampled deviations from a mean, their variance, and the degrees of freedom with which that is known.
_Part = tuple[np.ndarray, float, int]


def _redraw_cases(differences: np.ndarray, resamples: int, generator: np.random.Generator) -> _Part:
    count, centred = len(differences), differences - differences.mean()
    means = [
        centred[generator.integers(count, size=(min(BLOCK, resamples - start), count - 1))].mean(axis=1)
        for start in range(0, resamples, BLOCK)
    ]
    return np.concatenate(means), differences.var(ddof=1) / count, count - 1


def _redraw_trainings(values: np.ndarray, folds: np.ndarray, resamples: int, generator: np.random.Generator) -> _Part:
    seeds, deviations, variance = len(values), np.zeros(resamples), 0.0
    for fold in np.unique(folds):
        held_out = folds == fold
        # What a training of this fold adds to the mean over all cases.
        means = values[:, held_out].sum(axis=1) / len(folds)
        centred = means - means.mean()
        deviations += centred[generator.integers(seeds, size=(resamples, seeds - 1))].mean(axis=1)
        variance += means.var(ddof=1) / seeds
    return deviations, variance, len(np.unique(folds)) * (seeds - 1)


def _add(parts: Sequence[_Part], generator: np.random.Generator) -> np.ndarray:
    total = np.sum([deviations for deviations, _, _ in parts], axis=0)
    variance = sum(variance for _, variance, _ in parts)
    if not variance:
        return total
    freedom = variance**2 / sum(variance**2 / freedom for _, variance, freedom in parts)
    return total * np.sqrt(freedom / generator.chisquare(freedom, len(total)))


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
