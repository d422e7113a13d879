"""`nnunet-deconver compare`: several models on the same cases, with tests and figures."""

import argparse
import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from nnunet_deconver.cli.errors import CommandError
from nnunet_deconver.cli.evaluations import add_arguments, name_models, read_evaluations
from nnunet_deconver.cli.tables import table

TABLE, SUMMARY = "comparison.csv", "comparison.json"
# What is counted of a network, see `plans.cost`; FLOPs with the convolutions inside deconvolution updates.
PARAMETERS, FLOPS = "parameters / M", "kFLOPs / voxel"
# What is compared unless --metrics says otherwise, as far as it was measured; surface Dice at each tolerance besides.
METRICS = ("dice", "hd95", "lesion_dice", "brats_dice", "brats_hd95")


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `compare`."""
    parser = subparsers.add_parser(
        "compare",
        help="compare models case by case: differences, tests, figures",
        description="Compares models on the cases that all of them have segmented: paired differences with bootstrap "
        "intervals and Wilcoxon's test, corrected after Holm, in comparison.csv, comparison.json and on the terminal; "
        "figures as PNG and SVG.",
    )
    add_arguments(parser, "at least two")
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help="default: dice, hd95, nsd and lesion scores")
    parser.add_argument(
        "--costs",
        type=Path,
        metavar="FILE.csv",
        help="of models whose folder is not known, or other costs: a column model, of the names, and a column of "
        "numbers for each kind to draw; default: parameters and FLOPs per voxel of the models' networks",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    """Compares, writes, draws and prints."""
    if len(args.models) < 2:
        raise CommandError(f"{args.models[0]} alone cannot be compared; name at least two folders")
    names = name_models(args.models, args.names)
    from nnunet_deconver.evaluation.cases import EvaluationError
    from nnunet_deconver.evaluation.comparison import METHODS, case_values, common_cases, compare
    from nnunet_deconver.evaluation.figures import draw_cases, draw_cost, draw_training

    named_costs = read_costs(args.costs, names) if args.costs else {}
    try:
        evaluations = read_evaluations(args.models, names, args.out)
        cases, left_out = common_cases(evaluations)
        definitions = evaluations[0].summary["definitions"]
        metrics = choose_metrics(args.metrics, definitions)
        differences = compare(evaluations, cases, metrics)
        costs = merge_costs(count_costs(evaluations, named_costs), named_costs)
        args.out.mkdir(parents=True, exist_ok=True)
        figures = []
        for metric in metrics:
            by_model = {evaluation.name: case_values(evaluation, cases, metric) for evaluation in evaluations}
            by_class = {of: {name: by_model[name][of] for name in names} for of in by_model[names[0]]}
            figures += draw_cases(by_class, axis_label(metric, definitions), args.out / f"cases_{metric}")
        if costs:
            quality = {evaluation.name: mean_quality(evaluation.summary, metrics[0]) for evaluation in evaluations}
            figures += draw_cost(quality, costs, axis_label(metrics[0], definitions), args.out / f"cost_{metrics[0]}")
        runs = training_runs(evaluations)
        if runs:
            figures += draw_training(runs, args.out / "training")
        write(args.out, differences, METHODS, evaluations, cases, left_out, costs)
    except EvaluationError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"--out {args.out}: cannot be written ({error}); choose another folder") from error
    print(render(differences, definitions))
    print(f"\n{len(cases)} common cases; p: Wilcoxon's signed-rank test, corrected after Holm within each metric")
    for name, cases_left in left_out.items():
        print(f"{name}: {len(cases_left)} cases left out, which not all models have: {', '.join(cases_left[:5])} ...")
    print(f"wrote {', '.join(str(path) for path in (args.out / TABLE, args.out / SUMMARY, *figures))}")


def choose_metrics(wanted: Sequence[str] | None, measured: Mapping[str, dict]) -> list[str]:
    """The metrics to compare.

    Raises:
        CommandError: if one was not measured.
    """
    if wanted is None:
        return [name for name in measured if name in METRICS or name.startswith("nsd_")]
    unknown = [name for name in wanted if name not in measured]
    if unknown:
        raise CommandError(f"--metrics {' '.join(unknown)}: must be among what was measured, {', '.join(measured)}")
    return list(dict.fromkeys(wanted))


def read_costs(path: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Reads costs of models: kind of cost to model to number.

    Raises:
        CommandError: if the file does not hold that.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise CommandError(f"--costs {path}: cannot be read ({error.strerror})") from error
    kinds = [column for column in (rows[0] if rows else []) if column != "model"]
    if not kinds or "model" not in rows[0]:
        raise CommandError(f"--costs {path}: must have a column model and at least one of numbers, with a header")
    unknown = [row["model"] for row in rows if row["model"] not in names]
    if unknown:
        raise CommandError(f"--costs {path}: model {', '.join(unknown)} must be among {', '.join(names)}")
    costs = {kind: {} for kind in kinds}
    for row in rows:
        for kind in kinds:
            try:
                number = float(row[kind])
            except (TypeError, ValueError):
                number = -1
            if not 0 < number < math.inf:
                raise CommandError(
                    f"--costs {path}: {kind} of {row['model']} must be a positive number, got {row[kind]}"
                )
            costs[kind][row["model"]] = number
    return costs


def count_costs(evaluations: Sequence, named: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Counts what the networks of models cost whose folder is known: kind of cost to model to number.

    Args:
        evaluations: of the models.
        named: costs that the user named; models that have all of them are not counted.
    """
    costs = {PARAMETERS: {}, FLOPS: {}}
    for evaluation in evaluations:
        folder = (evaluation.summary.get("source") or {}).get("model")
        if folder is None or (named and all(evaluation.name in of_models for of_models in named.values())):
            continue
        try:
            cost, voxels = network_cost(Path(folder))
        except Exception as error:  # of a trainer that is not ours, any
            reason = " ".join(str(error).split())[:300]
            print(f"{evaluation.name}: its network cannot be built here, so its cost is not drawn: {reason}")
            continue
        costs[PARAMETERS][evaluation.name] = cost.parameters / 1e6
        costs[FLOPS][evaluation.name] = cost.flops / voxels / 1e3
    return {kind: of_models for kind, of_models in costs.items() if of_models}


def network_cost(folder: Path) -> tuple:
    """What the network of a model folder costs, a `plans.cost.PredictionCost` for one patch, and the patch's voxels."""
    from nnunet_deconver.cli.model_folder import read_model_folder
    from nnunet_deconver.plans.cost import prediction_cost

    model = read_model_folder(folder)
    patch_size = model.configuration.patch_size
    return prediction_cost(model.build, model.input_channels, patch_size), math.prod(patch_size)


def merge_costs(
    counted: Mapping[str, Mapping[str, float]], named: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """The costs to draw: the kinds that the user named, with what was counted of them; all that was, if none."""
    return {kind: {**counted.get(kind, {}), **named.get(kind, {})} for kind in named or counted}


def mean_quality(summary: Mapping, metric: str) -> tuple[float, float, float]:
    """The mean over classes of a metric, and the ends of its interval."""
    found = summary["foreground_mean"][metric]
    return tuple(math.nan if value is None else value for value in (found["mean"], *found["ci95"]))


def training_runs(evaluations: Sequence) -> dict[str, list]:
    """The curves of the folds of those models whose folder is known and has some."""
    from nnunet_deconver.evaluation.training import read_curves

    runs = {}
    for evaluation in evaluations:
        model = evaluation.summary.get("source", {}).get("model")
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


def with_unit(metric: str, definitions: Mapping[str, dict]) -> str:
    """A metric's name with its unit, for headers."""
    unit = definitions[metric]["unit"]
    return f"{metric} [{unit}]" if unit else metric


def write(
    out: Path,
    differences: Sequence,
    methods: Mapping[str, str],
    evaluations: Sequence,
    cases: list,
    left_out: dict,
    costs: Mapping[str, Mapping[str, float]],
):
    """Writes the table, and as JSON the same with what it means."""
    rows = [asdict(row) for row in differences]
    with (out / TABLE).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)
    content = {
        "models": {evaluation.name: evaluation.summary.get("source") for evaluation in evaluations},
        "cases": cases,
        "left_out": left_out,
        "costs": costs,
        "methods": methods,
        "settings": evaluations[0].summary["settings"],
        "definitions": evaluations[0].summary["definitions"],
        "differences": [{key: None if value != value else value for key, value in row.items()} for row in rows],
    }
    (out / SUMMARY).write_text(json.dumps(content, indent=1) + "\n")


def render(differences: Sequence, definitions: Mapping[str, dict]) -> str:
    """The table for the terminal: a block per metric, a line per class and pair."""
    blocks = []
    for metric in dict.fromkeys(row.metric for row in differences):
        digits = 2 if definitions[metric]["unit"] else 4
        rows = [
            {
                with_unit(metric, definitions): row.of,
                "first": row.first,
                "second": row.second,
                "mean of first": f"{row.mean_first:.{digits}f}",
                "of second": f"{row.mean_second:.{digits}f}",
                "difference [95 %]": f"{row.difference:+.{digits}f} [{row.low:+.{digits}f}, {row.high:+.{digits}f}]",
                "p": "< 0.0001" if row.p_holm < 1e-4 else f"{row.p_holm:.4f}",
                "n": str(row.n),
            }
            for row in differences
            if row.metric == metric
        ]
        blocks.append(table(rows, left=3))
    return "\n\n".join(blocks)
