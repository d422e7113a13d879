"""A comparison of models as figures: case by case, quality against cost, training curves."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_deconver.errors import ArgumentError
from nnunet_deconver.figures.plots import draw_cases, draw_cost, draw_training
from nnunet_deconver.files import check_is_file
from nnunet_deconver.metrics.comparison import (
    Comparison,
    Evaluation,
    case_values,
    compare_evaluations,
    name_models,
    read_evaluations,
    write_comparison,
)
from nnunet_deconver.models.training_log import Curves, read_curves

# What is counted of a network, see `plans.cost`; FLOPs with the convolutions inside deconvolution updates.
PARAMETERS, FLOPS = "parameters / M", "kFLOPs / voxel"


def compare_models(
    models: Sequence[Path],
    out: Path,
    *,
    names: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    costs: Path | None = None,
    problems: dict[str, str] | None = None,
    trust: bool = False,
) -> tuple[Comparison, list[Path]]:
    """Compares models case by case: comparison.csv, comparison.json and figures; `nnunet-deconver compare`.

    Args:
        models: at least two folders: what `metrics.evaluation.evaluate` wrote, or model folders of nnU-Net.
        out: folder to write to.
        names: of the models; None for the shortest ends of their paths that differ.
        metrics: to compare; None for Dice, HD95, surface Dice and lesion scores, as far as they were measured.
        costs: CSV with a column model and one of numbers for each kind of cost; None to count parameters and FLOPs.
        problems: gets, by model, why its network could not be counted.
        trust: whether to build networks of any package that the models' plans name, see `networks.trust`.

    Returns:
        The comparison, and the files written.

    Raises:
        InputError: if the models cannot be compared, or `out` cannot be written.
    """
    names = name_models(models, names)
    named = read_costs(costs, names) if costs else {}
    evaluations = read_evaluations(models, names, out)
    comparison = compare_evaluations(evaluations, metrics)
    drawn = merge_costs(count_costs(evaluations, named, {} if problems is None else problems, trust), named)
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures = draw_comparison(comparison, drawn, out)
        return comparison, [*write_comparison(comparison, out, drawn), *figures]
    except OSError as error:
        raise ArgumentError("out", out, f"cannot be written ({error}); choose another folder") from error


def draw_comparison(comparison: Comparison, costs: Mapping[str, Mapping[str, float]], out: Path) -> list[Path]:
    """Draws every metric case by case, the first one against costs, and the training curves that are known.

    Args:
        comparison: to draw.
        costs: kind of cost to model to number.
        out: folder.

    Returns:
        The files written.
    """
    evaluations, metrics = comparison.evaluations, comparison.metrics
    labels = {metric: axis_label(metric, comparison.definitions) for metric in metrics}
    figures = []
    for metric in metrics:
        by_model = {each.name: case_values(each, comparison.cases, metric) for each in evaluations}
        by_class = {
            name: {model: values[name] for model, values in by_model.items()} for name in next(iter(by_model.values()))
        }
        figures += draw_cases(by_class, labels[metric], out / f"cases_{metric}")
    if costs:
        quality = {each.name: mean_quality(each.summary, metrics[0]) for each in evaluations}
        figures += draw_cost(quality, costs, labels[metrics[0]], out / f"cost_{metrics[0]}")
    runs = training_runs(evaluations)
    return figures + (draw_training(runs, out / "training") if runs else [])


def read_costs(path: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Reads costs of models: kind of cost to model to number.

    Raises:
        ArgumentError: if the file does not hold that.
    """
    check_is_file(path, "--costs takes a CSV file")
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:  # a binary file, an endless field
        reason = error.strerror if isinstance(error, OSError) else f"not CSV: {error}"
        raise ArgumentError("costs", path, f"cannot be read ({reason})") from error
    kinds = [column for column in (rows[0] if rows else []) if column != "model"]
    if not kinds or "model" not in rows[0]:
        raise ArgumentError("costs", path, "must have a column model and at least one of numbers, with a header")
    unknown = [row["model"] for row in rows if row["model"] not in names]
    if unknown:
        raise ArgumentError("costs", path, f"model {', '.join(unknown)} must be among {', '.join(names)}")
    costs = {kind: {} for kind in kinds}
    for row in rows:
        for kind in kinds:
            try:
                number = float(row[kind])
            except (TypeError, ValueError):
                number = -1
            if not 0 < number < math.inf:
                raise ArgumentError(
                    "costs", path, f"{kind} of {row['model']} must be a positive number, got {row[kind]}"
                )
            costs[kind][row["model"]] = number
    return costs


def count_costs(
    evaluations: Sequence[Evaluation],
    named: Mapping[str, Mapping[str, float]],
    problems: dict[str, str],
    trust: bool = False,
) -> dict[str, dict[str, float]]:
    """Counts what the networks of models cost whose folder is known: kind of cost to model to number.

    Args:
        evaluations: of the models.
        named: costs that the user named; models that have all of them are not counted.
        problems: gets, by model, why its network could not be counted.
        trust: see `compare_models`.
    """
    costs = {PARAMETERS: {}, FLOPS: {}}
    for evaluation in evaluations:
        folder = (evaluation.summary.get("source") or {}).get("model")
        if folder is None or (named and all(evaluation.name in of_models for of_models in named.values())):
            continue
        try:
            # Counting imports torch and nnU-Net, which evaluations without a model do without.
            from nnunet_deconver.models.cost import of_trained_model

            cost, voxels = of_trained_model(Path(folder), trust)
        except Exception as error:  # of a trainer that is not ours, any
            problems[evaluation.name] = " ".join(str(error).split())[:300]
            continue
        costs[PARAMETERS][evaluation.name] = cost.parameters / 1e6
        costs[FLOPS][evaluation.name] = cost.flops / voxels / 1e3
    return {kind: of_models for kind, of_models in costs.items() if of_models}


def merge_costs(
    counted: Mapping[str, Mapping[str, float]], named: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """The costs to draw: the kinds that the user named, with what was counted of them; all that was, if none."""
    return {kind: {**counted.get(kind, {}), **named.get(kind, {})} for kind in named or counted}


def mean_quality(summary: Mapping, metric: str) -> tuple[float, float, float]:
    """The mean over classes of a metric, and the ends of its interval."""
    found = summary["foreground_mean"][metric]
    mean, low, high = (math.nan if value is None else float(value) for value in (found["mean"], *found["ci95"]))
    return mean, low, high


def training_runs(evaluations: Sequence[Evaluation]) -> dict[str, list[Curves]]:
    """The curves of the folds of those models whose folder is known and has some."""
    runs = {}
    for evaluation in evaluations:
        model = (evaluation.summary.get("source") or {}).get("model")
        folds = sorted(Path(model).glob("fold_*")) if model else []
        curves = [found for found in map(read_curves, folds) if found is not None]
        if curves:
            runs[evaluation.name] = curves
    return runs


def axis_label(metric: str, definitions: Mapping[str, dict]) -> str:
    """A metric's name as papers print it, with its unit."""
    if metric.startswith("nsd_"):
        return f"surface Dice at {metric.removeprefix('nsd_')}"
    words = {"dice": "Dice", "brats": "BraTS", **{name: name.upper() for name in ("hd", "hd95", "assd", "asd")}}
    unit = definitions[metric]["unit"]
    return " ".join(words.get(word, word) for word in metric.split("_")) + (f" [{unit}]" if unit else "")
