"""Folders of evaluations, for the commands that take several models: named, read, and made where there are none."""

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nnunet_deconver.cli import evaluate
from nnunet_deconver.cli.errors import CommandError

EVALUATIONS = "evaluations"


def add_arguments(parser: argparse.ArgumentParser, number: str):
    """Adds the arguments that `read_evaluations` takes; `number` says how many folders there must be."""
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help=f"{number}: what `evaluate` wrote, or a model folder of nnU-Net, whose cross-validation is evaluated "
        f"first, into OUT/{EVALUATIONS}",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder for the results")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the models; default: from their folders")


def read_evaluations(folders: Sequence[Path], names: Sequence[str], out: Path) -> list:
    """The evaluations of models, a `nnunet_deconver.evaluation.comparison.Evaluation` each.

    Args:
        folders: of evaluations or models.
        names: of the models, see `name_models`.
        out: the command's folder; what has to be evaluated first is written into OUT/evaluations.

    Raises:
        CommandError: if a folder is neither.
        EvaluationError: if an evaluation cannot be read.
    """
    from nnunet_deconver.evaluation.comparison import read_evaluation

    found = [evaluation_folder(path, name, out) for path, name in zip(folders, names, strict=True)]
    return [read_evaluation(folder, name) for folder, name in zip(found, names, strict=True)]


def name_models(folders: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """Names for models: those given, or the shortest ends of their paths that differ.

    Raises:
        CommandError: if there are not as many distinct names as models.
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
            raise CommandError("the same folder is named twice; compare different ones")
    if len(names) != len(folders) or len(set(names)) != len(names):
        raise CommandError(f"--names: must be {len(folders)} different names, one per folder, got {', '.join(names)}")
    return list(names)


def evaluation_folder(folder: Path, name: str, out: Path) -> Path:
    """The folder with the evaluation of a model, which is made here if there is only the model.

    Raises:
        CommandError: if the folder is neither.
    """
    if (folder / "metrics.csv").is_file():
        return folder
    if not (folder / "plans.json").is_file():
        raise CommandError(
            f"{folder}: is neither what `nnunet-deconver evaluate` wrote (it has no metrics.csv) nor a model folder of "
            "nnU-Net (it has no plans.json)"
        )
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    target = out / EVALUATIONS / file_name(name)
    summary = evaluate.measure(parser.parse_args(["--model", str(folder), "-o", str(target)]))
    evaluate.report_problems(summary["problems"], target)
    return target


def file_name(name: str) -> str:
    """A model's name as a part of a file's, without what shells and LaTeX stumble over."""
    return re.sub(r"[^\w.+-]+", "_", name)
