"""The report of a study: tables, figures, and one page that opens without network."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_deconver.errors import ArgumentError
from nnunet_deconver.figures.comparison import axis_label
from nnunet_deconver.figures.plots import draw_training
from nnunet_deconver.figures.studies import Estimate, draw_differences, draw_hours, plain
from nnunet_deconver.files import written_whole
from nnunet_deconver.metrics.comparison import MEAN, file_name
from nnunet_deconver.studies.page import Picture, difference_text, p_text, render_page, significant, times_text
from nnunet_deconver.studies.results import (
    Group,
    ModelComparison,
    ModelCost,
    ModelSummary,
    Result,
    compare_groups,
    describe_groups,
    find_limits,
    group_results,
    metrics_of,
)
from nnunet_deconver.studies.study import CROSS_VALIDATION, ITERATIONS, PAGE

COMPARISONS, MODELS, CASES, FIGURES = "comparison.csv", "models.csv", "cases.csv", "figures"
MOST_PANELS = 15  # of a figure; of more classes, it shows their mean alone


@dataclass(frozen=True)
class Report:
    """What was written, and what it says.

    Attributes:
        page: the HTML file.
        files: all that were written, the page first.
        reference: name of the model that the others are compared with.
        comparisons: of all datasets, see `compare_groups`.
        models: likewise, see `describe_groups`.
        limits: see `find_limits`.
        missing: what is not finished or failed.
    """

    page: Path
    files: Sequence[Path]
    reference: str
    comparisons: Sequence[ModelComparison]
    models: Sequence[ModelSummary]
    limits: Sequence[str]
    missing: Sequence[str]


def write_report(
    results: Sequence[Result],
    costs: Mapping[tuple[str, str], ModelCost],
    out: Path,
    *,
    reference: str,
    metrics: Sequence[str] | None = None,
    title: str,
    missing: Sequence[str] = (),
) -> Report:
    """Writes what evaluated predictions of several models, seeds and datasets come to.

    Every model is compared with the reference of its dataset, at equal iterations and at equal time, on the cases that
    all seeds of both have. Where the reference has no result at equal time, it is its result at equal iterations: it
    defines the time.

    Args:
        results: one for each model, seed, kind of training and kind of cases; more than one dataset may be among them.
        costs: dataset and model to what the network costs; models without are shown without.
        out: folder to write to: report.html, comparison.csv, models.csv, cases.csv, and `figures` as PNG and SVG.
        reference: name of the model that the others are compared with.
        metrics: to compare, the first of them in `answer`; None for Dice, HD95, surface Dice and lesion scores, as far
            as they were measured.
        title: of the page.
        missing: what is not finished or failed, a line each; the page begins with them.

    Raises:
        InputError: if there is no result, evaluations cannot be read or compared, a metric was not measured, or `out`
            cannot be written.
    """
    groups = group_results(results, reference)
    by_dataset = metrics_of(groups, metrics)
    comparisons = compare_groups(groups, reference, by_dataset)
    models = describe_groups(groups, by_dataset, costs)
    limits = find_limits(groups, comparisons, reference)
    try:
        (out / FIGURES).mkdir(parents=True, exist_ok=True)
        pictures = _draw(groups, comparisons, models, reference, out / FIGURES)
        _remove_others(out / FIGURES, pictures)
        tables = [
            _write_table(out / COMPARISONS, map(_comparison_row, comparisons)),
            _write_table(out / MODELS, _model_rows(models)),
            _write_table(out / CASES, _case_rows(groups, by_dataset)),
        ]
        files = [out / PAGE, *tables, *(path for picture in pictures for path in picture.paths)]
        report = Report(out / PAGE, files, reference, comparisons, models, limits, list(missing))
        content = render_page(title, answer(report), report.missing, limits, comparisons, models, pictures)
        with written_whole(out / PAGE, encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise ArgumentError("out", out, f"cannot be written ({error}); choose another folder") from error
    return report


def answer(report: Report) -> str:
    """Whether each model is better than the reference, by how much, and at what cost: three lines for each.

    They are about the first metric, in the mean over classes, and claim no more than corrected p and interval allow.

    Args:
        report: see `write_report`.
    """
    by_model = {}
    for row in headlines(report.comparisons):
        by_model.setdefault(row.model, []).append(row)
    if not by_model:
        return f"Nothing is compared with {report.reference} yet."
    return "\n\n".join("\n".join(_answer(model, rows, report)) for model, rows in by_model.items())


def headlines(comparisons: Sequence[ModelComparison]) -> list[ModelComparison]:
    """Of each model, dataset, kind of training and kind of cases: the first metric, in the mean over classes."""
    first = {}
    for row in comparisons:
        first.setdefault((row.dataset, row.on, row.equal, row.model), row)
    return list(first.values())


def _answer(model: str, rows: Sequence[ModelComparison], report: Report) -> list[str]:
    of = MEAN if any(row.of == MEAN for row in rows) else rows[0].of
    verdicts, by_place = {}, {}
    for row in rows:
        verdicts.setdefault(_verdict(row), {}).setdefault(_place(row), []).append(f"equal {row.equal}")
        by_place.setdefault(_place(row), []).append(row)
    found = "; ".join(
        f"{verdict} on {' and '.join(f'{place} ({_listed(kinds)})' for place, kinds in places.items())}"
        for verdict, places in verdicts.items()
    )
    differences = "; ".join(
        f"{_place(row)}, equal {row.equal}: {difference_text(row)}{f' {row.unit}' if row.unit else ''}, p "
        f"{p_text(row.p_holm)}"
        for row in rows
        if row.found.cases
    )
    limits = "; ".join(f"{place}: {_cost_and_limits(here, report)}" for place, here in by_place.items())
    metrics = _listed(list(dict.fromkeys(row.metric for row in rows)))
    return [
        f"{model} beside {report.reference}, {metrics} ({of}): {found}.",
        f"Difference, 95 % interval and corrected p: {differences or 'none is defined'}.",
        f"Cost (times that of {report.reference}) and limits: {limits}. {_covers(rows)}",
    ]


def _verdict(row: ModelComparison) -> str:
    if row.verdict == "no difference shown":
        return "no difference could be shown"
    # Of one training, nothing is known that holds for the next one.
    return row.verdict if row.covers_trainings or not row.found.cases else f"{row.verdict} with this one seed"


def _place(row: ModelComparison) -> str:
    return row.dataset if row.on == CROSS_VALIDATION else f"{row.dataset} ({row.on} cases)"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _cost_and_limits(rows: Sequence[ModelComparison], report: Report) -> str:
    """What a model cost on a dataset beside the reference, and what the comparisons rest on."""
    summaries = {(each.dataset, each.on, each.equal, each.model): each for each in report.models}
    parts = []
    for row in rows:
        model = summaries[row.dataset, row.on, row.equal, row.model]
        reference = summaries[row.dataset, row.on, row.reference_equal, row.reference]
        if row is rows[0]:
            parts += _network_cost(model, reference)
        parts.append(f"at equal {row.equal} {', '.join([*_training_cost(model, reference), *_limits(row, model)])}")
    return "; ".join(parts)


def _network_cost(model: ModelSummary, reference: ModelSummary) -> list[str]:
    if model.cost is None:
        return []
    known = reference.cost
    parameters = times_text(model.cost.parameters, known and known.parameters)
    flops = times_text(model.cost.flops_per_voxel, known and known.flops_per_voxel)
    return [
        f"{significant(model.cost.parameters / 1e6)} M parameters{parameters}, "
        f"{significant(model.cost.flops_per_voxel / 1e3)} kFLOPs per voxel{flops}"
    ]


def _training_cost(model: ModelSummary, reference: ModelSummary) -> list[str]:
    parts, training = [], model.training
    if not math.isnan(training.hours):
        parts.append(
            f"{significant(training.hours)} hours a training{times_text(training.hours, reference.training.hours)}"
        )
    if training.trainings:
        iterations = f"{training.epochs * model.cost.iterations_per_epoch:.0f} iterations in " if model.cost else ""
        parts.append(f"{iterations}{training.epochs:.4g} epochs")
    return parts


def _limits(row: ModelComparison, model: ModelSummary) -> list[str]:
    seeds = _count(row.found.seeds, "seed")
    if row.found.seeds != row.found.seeds_reference:
        seeds += f" ({row.reference}: {row.found.seeds_reference})"
    folds = row.found.folds if row.on == CROSS_VALIDATION else model.folds
    return [seeds, _count(folds, "fold"), _count(row.found.cases, "case")]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _covers(rows: Sequence[ModelComparison]) -> str:
    if all(row.covers_trainings for row in rows):
        return "Intervals cover other cases and other trainings like these."
    if any(row.covers_trainings for row in rows):
        return "Intervals cover other cases, and other trainings only where both models have several seeds."
    return "Intervals cover other cases, not other trainings: that takes several seeds."


def _draw(
    groups: Sequence[Group],
    comparisons: Sequence[ModelComparison],
    models: Sequence[ModelSummary],
    reference: str,
    out: Path,
) -> list[Picture]:
    pictures = []
    for dataset, on in dict.fromkeys((group.dataset, group.on) for group in groups):
        here = [group for group in groups if (group.dataset, group.on) == (dataset, on)]
        summaries = {
            (model.model, model.equal): model for model in models if (model.dataset, model.on) == (dataset, on)
        }
        rows = [row for row in comparisons if (row.dataset, row.on) == (dataset, on) and row.found.cases]
        name = file_name(dataset) + ("" if on == CROSS_VALIDATION else "_test")
        for metric in dict.fromkeys(row.metric for row in rows):
            of_metric = [row for row in rows if row.metric == metric]
            label = f"{axis_label(metric, here[0].definitions)}: difference to {plain(reference)}"
            side = {1: "; right is better", -1: "; left is better"}.get(of_metric[0].better, "")
            estimates = {}
            for row in of_metric:
                hours = summaries[row.model, row.equal].training.hours
                estimate = Estimate(row.found.difference, row.found.low, row.found.high, hours)
                estimates.setdefault(row.of, {}).setdefault(row.model, {})[f"equal {row.equal}"] = estimate
            first = next(iter(estimates))
            caption = f"{metric}: differences to {reference} with 95 % intervals"
            shown = estimates if len(estimates) <= MOST_PANELS else {first: estimates[first]}
            paths = draw_differences(shown, label + side, out / f"difference_{name}_{metric}")
            pictures.append(Picture(dataset, on, caption, paths))
            # At equal time, all take the reference's hours.
            by_hours = {
                model: kinds[f"equal {ITERATIONS}"]
                for model, kinds in estimates[first].items()
                if f"equal {ITERATIONS}" in kinds
            }
            own = summaries.get((reference, ITERATIONS))
            if metric == rows[0].metric and by_hours and own and not math.isnan(own.training.hours):
                caption = f"{metric}, {first}: differences to {reference} at equal iterations, and hours of a training"
                hours = own.training.hours
                paths = draw_hours(by_hours, (reference, hours), label, out / f"hours_{name}_{metric}")
                pictures.append(Picture(dataset, on, caption, paths))
        pictures += _draw_curves(here, reference, name, out)
    return pictures


def _remove_others(folder: Path, pictures: Sequence[Picture]) -> None:
    """Removes the pictures of an earlier report, of other metrics or datasets."""
    drawn = {path for picture in pictures for path in picture.paths}
    for path in folder.iterdir():
        if path.name.startswith(("difference_", "hours_", "training_")) and path not in drawn:
            path.unlink()


def _draw_curves(groups: Sequence[Group], reference: str, name: str, out: Path) -> list[Picture]:
    pictures = []
    for equal in dict.fromkeys(group.equal for group in groups):
        chosen = [group for group in groups if group.equal == equal]
        if not any(group.model == reference for group in chosen):
            chosen = [group for group in groups if group.model == reference] + chosen
        runs = {plain(group.model): list(group.curves.values()) for group in chosen if group.curves}
        if runs:
            caption = f"training at equal {equal}; thin: every seed and fold, thick: their mean"
            paths = draw_training(runs, out / f"training_{name}_{equal}")
            pictures.append(Picture(groups[0].dataset, groups[0].on, caption, paths))
    return pictures


def _comparison_row(row: ModelComparison) -> dict:
    found = row.found
    return {
        "dataset": row.dataset,
        "on": row.on,
        "equal": row.equal,
        "model": row.model,
        "reference": row.reference,
        "reference_equal": row.reference_equal,
        "metric": row.metric,
        "unit": row.unit,
        "class": row.of,
        "mean": found.mean,
        "mean_reference": found.mean_reference,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "p_holm": row.p_holm,
        "verdict": row.verdict,
        "seeds_std": found.seeds_std,
        "seeds_std_reference": found.seeds_std_reference,
        "difference_by_seed": "; ".join(f"{seed}: {value!r}" for seed, value in row.by_seed.items()),
        "cases": found.cases,
        "undefined": found.undefined,
        "folds": found.folds,
        "seeds": found.seeds,
        "seeds_reference": found.seeds_reference,
        "interval_covers": "cases and trainings" if row.covers_trainings else "cases",
    }


def _model_rows(models: Sequence[ModelSummary]) -> list[dict]:
    metrics = list(dict.fromkeys(metric for model in models for metric in model.means))
    return [
        {
            "dataset": model.dataset,
            "on": model.on,
            "equal": model.equal,
            "model": model.model,
            "seeds": model.seeds,
            "folds": model.folds,
            "cases": model.cases,
            **{metric: model.means.get(metric, math.nan) for metric in metrics},
            **{f"{metric}_seeds_std": model.seeds_stds.get(metric, math.nan) for metric in metrics},
            "parameters": model.cost.parameters if model.cost else math.nan,
            "flops_per_voxel": model.cost.flops_per_voxel if model.cost else math.nan,
            "memory_bytes": model.cost.memory_bytes if model.cost else math.nan,
            "trainings": model.training.trainings,
            "epochs": model.training.epochs,
            "hours": model.training.hours,
            "fastest_epoch_s": model.training.fastest,
            "median_epoch_s": model.training.median,
        }
        for model in models
    ]


def _case_rows(groups: Sequence[Group], metrics: Mapping[str, Sequence[str]]) -> Iterable[dict]:
    for group in groups:
        for result, evaluation in zip(group.results, group.evaluations, strict=True):
            for case, values in sorted(evaluation.values.items()):
                for (of, metric), value in values.items():
                    if metric in metrics[group.dataset]:
                        yield {
                            "dataset": group.dataset,
                            "on": group.on,
                            "equal": group.equal,
                            "model": group.model,
                            "seed": result.seed,
                            "fold": result.fold_of_case.get(case),
                            "case": case,
                            "class": of,
                            "metric": metric,
                            "value": value,
                        }


def _write_table(path: Path, rows: Iterable[dict]) -> Path:
    """Writes a CSV file in full precision; what is undefined is empty."""
    with written_whole(path, newline="", encoding="utf-8") as file:
        writer = None
        for row in rows:
            writer = writer or csv.DictWriter(file, row)
            if not file.tell():
                writer.writeheader()
            writer.writerow({key: "" if value != value else value for key, value in row.items()})
    return path
