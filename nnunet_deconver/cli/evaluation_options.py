"""The options of subcommands that take evaluations or models."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunet_deconver.cli.tables import report_problems

# As nnunet_deconver.metrics.comparison has it, which imports numpy; a test compares.
EVALUATIONS = "evaluations"


def add_arguments(parser: argparse.ArgumentParser, number: str) -> None:
    """Adds what `metrics.comparison.read_evaluations` takes; `number` says how many folders there must be."""
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help=f"{number}: what `evaluate` wrote, or a model folder of nnU-Net, whose cross-validation is evaluated "
        f"first, into OUT/{EVALUATIONS}",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    add_trust(parser)
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the models; default: from their folders")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the option of commands that build networks of models or read their checkpoints."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import what the models' plans name and unpickle their checkpoints, as nnU-Net itself does: somebody "
        "else's files can run any code then; default: only networks of known packages, and nothing is unpickled",
    )


def report_evaluated(evaluations: Sequence, out: Path) -> None:
    """Names on stderr the cases that could not be measured where a model was evaluated on the way."""
    for evaluation in evaluations:
        if evaluation.folder.parent == out / EVALUATIONS:
            report_problems(evaluation.summary["problems"], evaluation.folder)
