"""Several models on the same cases: paired differences, and whether they are more than chance."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from nnunet_deconver.evaluation.cases import EvaluationError, read_json
from nnunet_deconver.evaluation.runner import SUMMARY, TABLE
from nnunet_deconver.evaluation.statistics import bootstrap_means, interval

MEAN = "mean over classes"
METHODS = {
    "difference": "second model minus first, case by case; cases in which either value is undefined are left out",
    MEAN: "of each case: the mean of its classes' defined values",
    "p": "Wilcoxon signed-rank test of the differences, two-sided, zeros left out; with fewer than 6 differing cases "
    "it cannot fall below 0.05",
    "p_holm": "p after Holm's correction for all comparisons (pairs of models, classes, their mean) of the metric",
    "ci95": "percentile bootstrap of the mean difference over cases, 10000 resamples, seed 0",
}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` wrote about a model.

    Attributes:
        name: of the model.
        values: case to (class, metric) to value, NaN where undefined.
        summary: content of summary.json.
    """

    name: str
    values: Mapping[str, Mapping[tuple[str, str], float]]
    summary: Mapping


@dataclass(frozen=True)
class Difference:
    """A metric of two models on the same cases.

    Attributes:
        metric: name.
        of: class, or `MEAN`.
        first: model.
        second: model.
        n: cases in which both values are defined.
        mean_first: over those.
        mean_second: over those.
        difference: mean of second minus first.
        low: lower end of its 95 % interval.
        high: upper end.
        median: median difference.
        p: of Wilcoxon's test.
        p_holm: corrected.
    """

    metric: str
    of: str
    first: str
    second: str
    n: int
    mean_first: float
    mean_second: float
    difference: float
    low: float
    high: float
    median: float
    p: float
    p_holm: float = math.nan


def read_evaluation(folder: Path, name: str) -> Evaluation:
    """Reads what `evaluate` wrote.

    Raises:
        EvaluationError: if the folder has no evaluation.
    """
    summary = read_json(folder / SUMMARY)
    values = {}
    try:
        with (folder / TABLE).open(newline="") as file:
            for row in csv.DictReader(file):
                of_case = values.setdefault(row["case"], {})
                of_case[row["class"], row["metric"]] = float(row["value"] or "nan")
    except (OSError, KeyError, ValueError) as error:
        raise EvaluationError(f"{folder / TABLE}: cannot be read ({error}); evaluate again") from error
    if not values:
        raise EvaluationError(f"{folder}: has no case that could be measured")
    return Evaluation(name, values, summary)


def common_cases(evaluations: Sequence[Evaluation]) -> tuple[list[str], dict[str, list[str]]]:
    """The cases that all models have, and per model those that are left out because others lack them.

    Raises:
        EvaluationError: if classes or settings differ, so that numbers cannot be compared, or there is no such case.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        for key in ("classes", "settings", "ignore_label"):
            if first.summary.get(key) != other.summary.get(key):
                raise EvaluationError(
                    f"{first.name} and {other.name} were evaluated with different {key}: "
                    f"{first.summary.get(key)} and {other.summary.get(key)}; evaluate them alike"
                )
    cases = sorted(set.intersection(*(set(evaluation.values) for evaluation in evaluations)))
    if not cases:
        raise EvaluationError(f"{', '.join(evaluation.name for evaluation in evaluations)}: have no case in common")
    left_out = {evaluation.name: sorted(set(evaluation.values) - set(cases)) for evaluation in evaluations}
    return cases, {name: names for name, names in left_out.items() if names}


def case_values(evaluation: Evaluation, cases: Sequence[str], metric: str) -> dict[str, np.ndarray]:
    """A metric over cases: class, and where there are several `MEAN`, to values (cases,)."""
    classes = list(evaluation.summary["classes"])
    values = {
        name: np.array([evaluation.values[case].get((name, metric), math.nan) for case in cases]) for name in classes
    }
    if len(classes) > 1:
        table = np.stack(list(values.values()))
        defined = ~np.isnan(table)
        with np.errstate(invalid="ignore"):
            values[MEAN] = np.where(defined, table, 0).sum(axis=0) / defined.sum(axis=0)
    return values


def compare(evaluations: Sequence[Evaluation], cases: Sequence[str], metrics: Sequence[str]) -> list[Difference]:
    """Compares each pair of models in each metric, class by class and in the mean over classes.

    Args:
        evaluations: at least two, of distinct names.
        cases: that all have.
        metrics: names.

    Returns:
        Metric by metric, class by class, pair by pair.
    """
    result = []
    for metric in metrics:
        values = {evaluation.name: case_values(evaluation, cases, metric) for evaluation in evaluations}
        rows = [
            _difference(metric, of, first, second, values[first][of], values[second][of])
            for of in values[evaluations[0].name]
            for first, second in combinations(values, 2)
        ]
        corrected = holm([row.p for row in rows])
        result += [Difference(**{**vars(row), "p_holm": p}) for row, p in zip(rows, corrected, strict=True)]
    return result


def _difference(
    metric: str, of: str, first: str, second: str, values: np.ndarray, other_values: np.ndarray
) -> Difference:
    defined = ~np.isnan(values) & ~np.isnan(other_values)
    values, other_values = values[defined], other_values[defined]
    if not len(values):
        return Difference(metric, of, first, second, 0, *[math.nan] * 7)
    differences = other_values - values
    low, high = interval(bootstrap_means(differences[:, None]))
    return Difference(
        metric,
        of,
        first,
        second,
        len(values),
        float(values.mean()),
        float(other_values.mean()),
        float(differences.mean()),
        low,
        high,
        float(np.median(differences)),
        wilcoxon(differences),
    )


def wilcoxon(differences: np.ndarray) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test; 1 where nothing differs.

    Args:
        differences: (cases,), all defined.
    """
    from scipy import stats

    # What is equal but for rounding is a tie or no difference, not a rank of its own.
    differences = np.round(differences, 12)
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may be compared with one level together; NaN stays.

    Args:
        p: uncorrected.
    """
    order = [index for index in np.argsort(p) if not math.isnan(p[index])]
    corrected, highest = [math.nan] * len(p), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[index]))
        corrected[index] = highest
    return corrected
