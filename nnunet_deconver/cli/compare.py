"""`nnunet-deconver compare`: several models on the same cases, with tests and figures."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_deconver.cli.evaluation_options import add_arguments, report_evaluated
from nnunet_deconver.cli.tables import table
from nnunet_deconver.errors import InputError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
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


def run(args: argparse.Namespace) -> None:
    """Compares, writes, draws and prints."""
    if len(args.models) < 2:
        raise InputError(f"{args.models[0]} alone cannot be compared; name at least two folders")
    from nnunet_deconver.figures.comparison import compare_models

    problems = {}
    comparison, paths = compare_models(
        args.models,
        args.out,
        names=args.names,
        metrics=args.metrics,
        costs=args.costs,
        problems=problems,
        trust=args.trust,
    )
    report_evaluated(comparison.evaluations, args.out)
    for name, problem in problems.items():
        print(f"{name}: its network cannot be built here, so its cost is not drawn: {problem}")
    print(render(comparison.differences, comparison.definitions))
    cases = len(comparison.cases)
    print(f"\n{cases} common cases; p: Wilcoxon's signed-rank test, corrected after Holm within each metric")
    for name, left in comparison.left_out.items():
        print(f"{name}: {len(left)} cases left out, which not all models have: {', '.join(left[:5])} ...")
    print(f"wrote {', '.join(map(str, paths))}")


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


def with_unit(metric: str, definitions: Mapping[str, dict]) -> str:
    """A metric's name with its unit, for headers."""
    unit = definitions[metric]["unit"]
    return f"{metric} [{unit}]" if unit else metric
