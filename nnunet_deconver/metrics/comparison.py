"""Several models on the same cases: paired differences, and whether they are more than chance."""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.files import check_is_file, check_schema, read_json, written_whole
from nnunet_deconver.metrics.cases import EvaluationError
from nnunet_deconver.metrics.definitions import Settings
from nnunet_deconver.metrics.evaluation import SUMMARY as EVALUATION_SUMMARY
from nnunet_deconver.metrics.evaluation import TABLE as EVALUATION_TABLE
from nnunet_deconver.metrics.evaluation import evaluate_model
from nnunet_deconver.metrics.statistics import bootstrap_means, interval

TABLE, SUMMARY, EVALUATIONS = "comparison.csv", "comparison.json", "evaluations"
# What is compared by default, as far as it was measured; surface Dice at each tolerance besides.
METRICS = ("dice", "hd95", "lesion_dice", "brats_dice", "brats_hd95")
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
        folder: it was read from.
    """

    name: str
    values: Mapping[str, Mapping[tuple[str, str], float]]
    summary: Mapping
    folder: Path = Path()


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


@dataclass(frozen=True)
class Comparison:
    """Several models on the same cases.

    Attributes:
        evaluations: of the models.
        cases: that all of them have.
        left_out: by model, the cases that others lack.
        metrics: that are compared.
        differences: metric by metric, class by class, pair by pair.
    """

    evaluations: Sequence[Evaluation]
    cases: Sequence[str]
    left_out: Mapping[str, Sequence[str]]
    metrics: Sequence[str]
    differences: Sequence[Difference]

    @property
    def definitions(self) -> Mapping[str, dict]:
        """Unit and definition of every metric that was measured."""
        return self.evaluations[0].summary["definitions"]


def read_evaluations(folders: Sequence[Path], names: Sequence[str], out: Path) -> list[Evaluation]:
    """The evaluations of models.

    Args:
        folders: what `evaluate` wrote, or a model folder, whose cross-validation is evaluated first.
        names: of the models, see `name_models`.
        out: what has to be evaluated first is written into its folder `evaluations`.

    Raises:
        InputError: if a folder is neither, or an evaluation cannot be read.
    """
    found = [_evaluation_folder(path, name, out) for path, name in zip(folders, names, strict=True)]
    return [read_evaluation(folder, name) for folder, name in zip(found, names, strict=True)]


def _evaluation_folder(folder: Path, name: str, out: Path) -> Path:
    if (folder / EVALUATION_TABLE).is_file():
        return folder
    if not (folder / "plans.json").is_file():
        raise InputError(
            f"{folder}: is neither what `nnunet-deconver evaluate` wrote (it has no metrics.csv) nor a model folder of "
            "nnU-Net (it has no plans.json)"
        )
    target = out / EVALUATIONS / file_name(name)
    if target.exists() and not target.is_dir():
        raise ArgumentError("out", target, "is a file; name a folder")
    evaluate_model(folder, target)
    return target


def name_models(folders: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """Names for models: those given, or the shortest ends of their paths that differ.

    Raises:
        InputError: if there are not as many distinct names as models.
    """
    if names is None:
        parts = [folder.resolve().parts for folder in folders]
        names = [folder[-1] for folder in parts]
        for length in range(2, max(map(len, parts)) + 1):
            counts = Counter(names)
            names = [
                "/".join(folder[-length:]) if counts[name] > 1 else name
                for folder, name in zip(parts, names, strict=True)
            ]
        # Of nnU-Net's TRAINER__PLANS__CONFIGURATION, what all models share says nothing.
        fields = [name.split("__") for name in names]
        if len({len(field) for field in fields}) == 1:
            differing = [column for column in zip(*fields, strict=True) if len(set(column)) > 1]
            names = ["__".join(row) for row in zip(*differing, strict=True)] if differing else names
        if len(set(names)) < len(names):
            raise InputError("the same folder is named twice; compare different ones")
    if len(names) != len(folders) or len(set(names)) != len(names):
        raise ArgumentError("names", " ".join(names), f"must be {len(folders)} different names, one per folder")
    return list(names)


def file_name(name: str) -> str:
    """A model's name as a part of a file's, without what shells and LaTeX stumble over."""
    return re.sub(r"[^\w.+-]+", "_", name)


def read_evaluation(folder: Path, name: str) -> Evaluation:
    """Reads what `evaluate` wrote.

    Raises:
        EvaluationError: if the folder has no evaluation.
    """
    what = "evaluate again"
    schema = read_json(Path(__file__).with_name("summary.schema.json"))
    summary = check_schema(read_json(folder / EVALUATION_SUMMARY, what), schema, str(folder / EVALUATION_SUMMARY), what)
    values = {}
    check_is_file(folder / EVALUATION_TABLE, what)
    try:
        with (folder / EVALUATION_TABLE).open(newline="") as file:
            for row in csv.DictReader(file):
                of_case = values.setdefault(row["case"], {})
                of_case[row["class"], row["metric"]] = float(row["value"] or "nan")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise EvaluationError(f"{folder / EVALUATION_TABLE}: cannot be read ({error}); evaluate again") from error
    if not values:
        raise EvaluationError(f"{folder}: has no case that could be measured")
    return Evaluation(name, values, summary, folder)


def _comparable(summary: Mapping, key: str) -> Any:
    """What of a summary must be the same in another; settings that earlier versions did not have are the default."""
    if key != "settings":
        return summary.get(key)
    settings = json.loads(json.dumps(asdict(Settings()))) | (summary.get(key) or {})
    return {name: value for name, value in settings.items() if name != "like"}  # which is only a note


def common_cases(evaluations: Sequence[Evaluation]) -> tuple[list[str], dict[str, list[str]]]:
    """The cases that all models have, and per model those that are left out because others lack them.

    Raises:
        EvaluationError: if classes or settings differ, so that numbers cannot be compared, or there is no such case.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        for key in ("classes", "settings", "ignore_label"):
            one, another = (_comparable(evaluation.summary, key) for evaluation in (first, other))
            if one == another:
                continue
            if key == "settings":  # they are many
                names = [name for name in one if one[name] != another.get(name)]
                one, another = ({name: settings.get(name) for name in names} for settings in (one, another))
            raise EvaluationError(
                f"{first.name} and {other.name} were evaluated with different {key}: {one} and {another}; evaluate "
                "them alike"
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


def compare_evaluations(evaluations: Sequence[Evaluation], metrics: Sequence[str] | None = None) -> Comparison:
    """Compares models on the cases that all of them have.

    Args:
        evaluations: of at least two models, of distinct names.
        metrics: names; None for `METRICS` and the surface Dice, as far as they were measured.

    Raises:
        InputError: if a metric was not measured, or the evaluations cannot be compared.
    """
    cases, left_out = common_cases(evaluations)
    chosen = choose_metrics(metrics, evaluations[0].summary["definitions"])
    return Comparison(evaluations, cases, left_out, chosen, compare(evaluations, cases, chosen))


def choose_metrics(wanted: Sequence[str] | None, measured: Mapping[str, dict]) -> list[str]:
    """The metrics to compare.

    Raises:
        ArgumentError: if one was not measured.
    """
    if wanted is None:
        return [name for name in measured if name in METRICS or name.startswith("nsd_")]
    unknown = [name for name in wanted if name not in measured]
    if unknown:
        raise ArgumentError("metrics", " ".join(unknown), f"must be among what was measured, {', '.join(measured)}")
    return list(dict.fromkeys(wanted))


def write_comparison(comparison: Comparison, out: Path, costs: Mapping[str, Mapping[str, float]]) -> list[Path]:
    """Writes the table, and as JSON the same with what it means.

    Args:
        comparison: to write.
        out: folder.
        costs: kind of cost to model to number.

    Returns:
        The files written.
    """
    rows = [asdict(row) for row in comparison.differences]
    with written_whole(out / TABLE, newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)
    first = comparison.evaluations[0].summary
    content = {
        "models": {model.name: model.summary.get("source") for model in comparison.evaluations},
        "cases": comparison.cases,
        "left_out": comparison.left_out,
        "costs": costs,
        "methods": METHODS,
        "settings": first["settings"],
        "definitions": first["definitions"],
        "differences": [{key: None if value != value else value for key, value in row.items()} for row in rows],
    }
    with written_whole(out / SUMMARY) as file:
        file.write(json.dumps(content, indent=1) + "\n")
    return [out / TABLE, out / SUMMARY]


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
    found: Any = stats.wilcoxon(differences, zero_method="wilcox")  # scipy comes without types
    return float(found.pvalue)


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
