"""What a study's evaluated predictions come to: every model beside the reference, and what its training took."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.metrics.comparison import (
    MEAN,
    Evaluation,
    case_values,
    choose_metrics,
    common_cases,
    holm,
    read_evaluation,
)
from nnunet_deconver.metrics.definitions import Settings
from nnunet_deconver.metrics.measurements import metrics as measured_metrics
from nnunet_deconver.metrics.statistics import SMALLEST_P, TrainingsDifference, compare_trainings
from nnunet_deconver.models.training_log import Curves, read_curves
from nnunet_deconver.studies.study import CROSS_VALIDATION, ITERATIONS, TEST, TIME

LEVEL = 0.05  # below which a corrected p says more than chance


@dataclass(frozen=True)
class Result:
    """One evaluated set of predictions of one model and seed.

    Attributes:
        dataset: such as Dataset004_Hippocampus.
        model: its name in the study.
        equal: what its training has in common with the reference's: "iterations" or "time".
        seed: of its trainings; None where none was set.
        on: "cross-validation", or "test": predictions of an ensemble of all folds.
        evaluation: folder that `metrics.evaluation` wrote.
        folds: fold to nnU-Net's folder of it, with its training logs.
        fold_of_case: which fold held a case out; empty on "test".
    """

    dataset: str
    model: str
    equal: str
    seed: int | None
    on: str
    evaluation: Path
    folds: Mapping[int, Path]
    fold_of_case: Mapping[str, int]


@dataclass(frozen=True)
class ModelCost:
    """What a network costs, whatever it is trained on.

    Attributes:
        parameters: number of them.
        flops_per_voxel: of predicting a patch.
        memory_bytes: of a training step, estimated.
        iterations_per_epoch: nnU-Net's by default.
    """

    parameters: int
    flops_per_voxel: float
    memory_bytes: float
    iterations_per_epoch: int = 250


@dataclass(frozen=True)
class Group:
    """A model's results of all seeds.

    Attributes:
        dataset: see `Result`, as for the next three.
        on: likewise.
        equal: likewise.
        model: likewise.
        results: by seed.
        evaluations: of the results.
    """

    dataset: str
    on: str
    equal: str
    model: str
    results: Sequence[Result]
    evaluations: Sequence[Evaluation]

    @cached_property
    def cases(self) -> list[str]:
        """Those that all seeds have."""
        return _shared_cases([self])

    @cached_property
    def curves(self) -> dict[tuple[int | None, int], Curves]:
        """Seed and fold to the curves of a training, where there are some."""
        found = {
            (result.seed, fold): read_curves(path) for result in self.results for fold, path in result.folds.items()
        }
        return {key: curves for key, curves in found.items() if curves is not None}

    @property
    def definitions(self) -> Mapping[str, dict]:
        """Unit and definition of every metric that was measured."""
        return self.evaluations[0].summary["definitions"]

    def values(self, metric: str, cases: Sequence[str]) -> dict[str, np.ndarray]:
        """Class, and where there are several their mean, to values (seeds, cases)."""
        of_seeds = [case_values(evaluation, cases, metric) for evaluation in self.evaluations]
        return {of: np.stack([values[of] for values in of_seeds]) for of in of_seeds[0]}

    def folds_of(self, cases: Sequence[str]) -> np.ndarray:
        """Which fold holds each case out; on test cases all the same, since a seed has one ensemble.

        Raises:
            InputError: if a fold is not known, or seeds differ in it.
        """
        if self.on == TEST:
            return np.zeros(len(cases), int)
        folds = []
        for case in cases:
            of_seeds = {result.fold_of_case.get(case) for result in self.results}
            if None in of_seeds or len(of_seeds) > 1:
                known = ", ".join(str(fold) for fold in of_seeds)
                raise InputError(
                    f"{self.dataset}, {self.model}: the fold that held {case} out must be known and the same for all "
                    f"seeds, got {known}; train all of them on one splits_final.json"
                )
            folds.append(of_seeds.pop())
        return np.array(folds, int)


@dataclass(frozen=True)
class ModelComparison:
    """A metric of a model beside the reference's.

    Attributes:
        dataset: see `Result`.
        on: likewise.
        equal: likewise.
        model: its name.
        reference: the other's name.
        reference_equal: of the reference's trainings; "iterations" where it has none of equal time, which it defines.
        metric: name.
        unit: of the metric, "" for a ratio.
        of: class, or the mean over classes.
        better: 1 where more is better, -1 where less is, 0 where neither can be said.
        found: the difference and how sure it is.
        by_seed: the difference of each seed that both have.
        p_holm: p after Holm's correction for all comparisons of the metric in the study.
    """

    dataset: str
    on: str
    equal: str
    model: str
    reference: str
    reference_equal: str
    metric: str
    unit: str
    of: str
    better: int
    found: TrainingsDifference
    by_seed: Mapping[int | None, float]
    p_holm: float = math.nan

    @property
    def covers_trainings(self) -> bool:
        """Whether the interval covers other trainings, besides other cases."""
        return min(self.found.seeds, self.found.seeds_reference) > 1

    @property
    def verdict(self) -> str:
        """What the corrected p allows to say of the model: better, worse, higher, lower, no difference shown."""
        if not self.found.cases:
            return "not defined"
        # Without an interval, nothing is shown either.
        if not (self.p_holm < LEVEL and (self.found.low > 0 or self.found.high < 0)):
            return "no difference shown"
        sign = 1 if self.found.difference > 0 else -1
        return {1: "better", -1: "worse"}[sign * self.better] if self.better else {1: "higher", -1: "lower"}[sign]


@dataclass(frozen=True)
class Training:
    """What the trainings of a model took, as nnU-Net's logs have it.

    Attributes:
        trainings: number of those with a log.
        epochs: their number, mean over trainings.
        hours: sum over a training's epochs, mean over trainings; NaN if the time of an epoch is unknown. Loading,
            and the prediction of the held-out cases, are not in it.
        fastest: seconds of the fastest epoch.
        median: seconds of the median epoch.
    """

    trainings: int
    epochs: float = math.nan
    hours: float = math.nan
    fastest: float = math.nan
    median: float = math.nan


@dataclass(frozen=True)
class ModelSummary:
    """A model's results on a dataset, in one line.

    Attributes:
        dataset: see `Result`.
        on: likewise.
        equal: likewise.
        model: likewise.
        seeds: that were evaluated.
        folds: that hold its cases out; on test cases, of its ensemble.
        cases: that all seeds have.
        means: metric to its mean over cases and seeds, of the mean over classes.
        seeds_stds: metric to the standard deviation (n - 1) between the means of seeds.
        units: metric to its unit.
        training: what it took.
        cost: of the network, where it is known.
    """

    dataset: str
    on: str
    equal: str
    model: str
    seeds: int
    folds: int
    cases: int
    means: Mapping[str, float]
    seeds_stds: Mapping[str, float]
    units: Mapping[str, str]
    training: Training
    cost: ModelCost | None


def group_results(results: Sequence[Result], reference: str) -> list[Group]:
    """Reads the evaluations: a group for each dataset, kind of cases, model and equal; of models the reference first.

    Raises:
        InputError: if there is no result, or two of one seed, or an evaluation cannot be read.
    """
    if not results:
        raise ArgumentError("results", "none", "nothing is evaluated yet; run the study first")
    for result in results:
        if result.equal not in (ITERATIONS, TIME) or result.on not in (CROSS_VALIDATION, TEST):
            raise ArgumentError(
                "results",
                f"{result.model}: equal {result.equal}, on {result.on}",
                f"must be {ITERATIONS} or {TIME}, on {CROSS_VALIDATION} or {TEST}",
            )
    found = {}
    for result in results:
        of_seeds = found.setdefault((result.dataset, result.on, result.equal, result.model), {})
        if result.seed in of_seeds:
            raise ArgumentError(
                "results", f"{result.dataset}, {result.model}, seed {result.seed}", "is there twice; name it once"
            )
        of_seeds[result.seed] = result
    groups = []
    for (dataset, on, equal, model), of_seeds in found.items():
        ordered = [of_seeds[seed] for seed in sorted(of_seeds, key=lambda seed: (seed is None, seed or 0))]
        name = model if equal == ITERATIONS else f"{model} at equal {equal}"
        evaluations = [read_evaluation(result.evaluation, f"{name}, seed {result.seed}") for result in ordered]
        groups.append(Group(dataset, on, equal, model, ordered, evaluations))
    datasets, models = (list(dict.fromkeys(getattr(result, key) for result in results)) for key in ("dataset", "model"))
    return sorted(
        groups,
        key=lambda group: (
            datasets.index(group.dataset),
            group.on == TEST,
            group.equal == TIME,
            group.model != reference,
            models.index(group.model),
        ),
    )


def metrics_of(groups: Sequence[Group], wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """The metrics to compare, by dataset: those wanted that were measured there.

    Raises:
        ArgumentError: if one was measured on no dataset.
    """
    measured = {}
    for group in groups:
        measured.setdefault(group.dataset, {}).update(group.definitions)
    wanted = wanted and choose_metrics(wanted, {name: {} for names in measured.values() for name in names})
    return {
        dataset: choose_metrics(None, names) if wanted is None else [name for name in wanted if name in names]
        for dataset, names in measured.items()
    }


def find_reference(group: Group, groups: Sequence[Group], reference: str) -> Group | None:
    """The reference's results that a model's are compared with: of equal time, or those of equal iterations."""
    found = {
        other.equal: other
        for other in groups
        if (other.dataset, other.on, other.model) == (group.dataset, group.on, reference)
    }
    return found.get(group.equal) or found.get(ITERATIONS)


def compare_groups(
    groups: Sequence[Group], reference: str, metrics: Mapping[str, Sequence[str]]
) -> list[ModelComparison]:
    """Compares every model with the reference: metric by metric, the mean over classes first, then class by class.

    Args:
        groups: see `group_results`.
        reference: name of the model.
        metrics: by dataset, see `metrics_of`.

    Raises:
        InputError: if two were evaluated differently, or trained on different folds.
    """
    rows = []
    for group in groups:
        other = find_reference(group, groups, reference)
        if other is None or group.model == reference:
            continue
        cases = _shared_cases([group, other])
        if not cases:
            continue
        folds = group.folds_of(cases)
        if (folds != other.folds_of(cases)).any():
            raise InputError(
                f"{group.dataset}: {group.model} and {reference} were trained on different folds; train both on one "
                "splits_final.json"
            )
        for metric in metrics[group.dataset]:
            values, reference_values = group.values(metric, cases), other.values(metric, cases)
            for of in sorted(values, key=lambda of: of != MEAN):
                rows.append(
                    ModelComparison(
                        group.dataset,
                        group.on,
                        group.equal,
                        group.model,
                        reference,
                        other.equal,
                        metric,
                        group.definitions[metric]["unit"],
                        of,
                        _better(metric, other.evaluations[0], np.stack([*values[of], *reference_values[of]])),
                        compare_trainings(values[of], reference_values[of], folds),
                        _by_seed(group, values[of], other, reference_values[of]),
                    )
                )
    order = list(dict.fromkeys((row.dataset, row.on, row.metric, row.of) for row in rows))
    rows.sort(key=lambda row: order.index((row.dataset, row.on, row.metric, row.of)))
    for metric in {row.metric for row in rows}:
        chosen = [index for index, row in enumerate(rows) if row.metric == metric]
        for index, p in zip(chosen, holm([rows[index].found.p for index in chosen]), strict=True):
            rows[index] = replace(rows[index], p_holm=p)
    return rows


def _shared_cases(groups: Sequence[Group]) -> list[str]:
    """The cases that all seeds of the groups have; none, where an unfinished study has no such case yet."""
    evaluations = [evaluation for group in groups for evaluation in group.evaluations]
    if not set.intersection(*(set(evaluation.values) for evaluation in evaluations)):
        return []
    return common_cases(evaluations)[0]


def _better(metric: str, evaluation: Evaluation, values: np.ndarray) -> int:
    """Which direction is better: where the ideal is an end of all values, towards it. Signed volumes have none."""
    known = {field.name for field in fields(Settings)}
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in evaluation.summary["settings"].items()
        if name in known
    }
    try:
        definition = measured_metrics(Settings(**settings)).get(metric)
    except (TypeError, ValueError):  # of a version with other settings
        return 0
    if definition is None or definition.ideal is None or np.isnan(values).all():
        return 0
    return int(np.nanmax(values) <= definition.ideal) - int(np.nanmin(values) >= definition.ideal)


def _by_seed(group: Group, values: np.ndarray, other: Group, reference: np.ndarray) -> dict[int | None, float]:
    defined = ~np.isnan(np.concatenate([values, reference])).any(axis=0)
    if not defined.any():
        return {}
    means, means_reference = (
        {result.seed: of_seed[defined].mean() for result, of_seed in zip(each.results, table, strict=True)}
        for each, table in ((group, values), (other, reference))
    )
    return {seed: float(means[seed] - means_reference[seed]) for seed in means if seed in means_reference}


def describe_groups(
    groups: Sequence[Group], metrics: Mapping[str, Sequence[str]], costs: Mapping[tuple[str, str], ModelCost]
) -> list[ModelSummary]:
    """Each model in one line: its means and what it cost.

    Args:
        groups: see `group_results`.
        metrics: by dataset, see `metrics_of`.
        costs: dataset and model to what the network costs.
    """
    rows = []
    for group in groups:
        means, stds = {}, {}
        for metric in metrics[group.dataset]:
            values = group.values(metric, group.cases)
            values = values[MEAN] if MEAN in values else next(iter(values.values()))
            defined = values[:, ~np.isnan(values).any(axis=0)]
            by_seed = defined.mean(axis=1) if defined.size else np.full(len(values), math.nan)
            means[metric] = float(by_seed.mean())
            stds[metric] = float(by_seed.std(ddof=1)) if len(by_seed) > 1 else math.nan
        rows.append(
            ModelSummary(
                group.dataset,
                group.on,
                group.equal,
                group.model,
                len(group.results),
                len(set.union(*(set(result.folds) for result in group.results))),
                len(group.cases),
                means,
                stds,
                {metric: group.definitions[metric]["unit"] for metric in means},
                _training(list(group.curves.values())),
                costs.get((group.dataset, group.model)),
            )
        )
    return rows


def _training(curves: Sequence[Curves]) -> Training:
    if not curves:
        return Training(0)
    seconds = np.concatenate([each.seconds for each in curves])
    known = seconds[~np.isnan(seconds)]
    return Training(
        len(curves),
        float(np.mean([len(each.seconds) for each in curves])),
        float(np.mean([each.seconds.sum() for each in curves])) / 3600,
        float(known.min()) if len(known) else math.nan,
        float(np.median(known)) if len(known) else math.nan,
    )


def find_limits(groups: Sequence[Group], rows: Sequence[ModelComparison], reference: str) -> list[str]:
    """What a reader must know before believing the comparisons: what is not compared, and what intervals leave out."""
    limits = []
    for dataset, on in dict.fromkeys((group.dataset, group.on) for group in groups):
        of_cases = [group for group in groups if (group.dataset, group.on) == (dataset, on)]
        where = f"{dataset}, {on}"
        if not any(group.model == reference for group in of_cases):
            limits.append(f"{where}: {reference} has no result, so nothing is compared with it.")
        for group in of_cases:
            other = find_reference(group, groups, reference)
            if other is None or group.model == reference:
                continue
            name = f"{where}: {group.model} at equal {group.equal}"
            kept = _shared_cases([group, other])
            evaluated = set.union(*(set(each.values) for each in [*group.evaluations, *other.evaluations]))
            if not kept:
                limits.append(f"{name} is not compared with {reference}: no case is there with all seeds of both.")
            elif len(kept) < len(evaluated):
                limits.append(
                    f"{name} is compared with {reference} on {len(kept)} of {len(evaluated)} cases, those that all "
                    "seeds of both have."
                )
            lacking = [each.model for each in (group, other) if len(each.results) < 2]
            if lacking:
                limits.append(
                    f"{name}: {' and '.join(lacking)} {'have' if lacking[1:] else 'has'} one seed. The interval covers "
                    f"cases, not what another training of {'them' if lacking[1:] else 'it'} would change."
                )
    for metric in dict.fromkeys(row.metric for row in rows):
        count = sum(row.metric == metric for row in rows)
        if count * SMALLEST_P >= LEVEL:
            limits.append(
                f"{metric}: corrected for {count} comparisons, no p can fall below {LEVEL}; compare less in one report."
            )
    undefined = {}
    for row in rows:
        undefined.setdefault((row.dataset, row.on, row.metric, row.of), []).append(row.found.undefined)
    for (dataset, on, metric, of), counts in undefined.items():
        if not any(counts):
            continue
        count = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
        limits.append(f"{dataset}, {on}: {metric}, {of}: {count} cases are left out, in which a value is undefined.")
    return limits
