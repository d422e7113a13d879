"""`nnunet-deconver splits`: stratified folds of a dataset."""

import argparse
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from nnunet_deconver.cli.tables import table
from nnunet_deconver.errors import InputError
from nnunet_deconver.integration.datasets import dataset_name, variable_folder
from nnunet_deconver.integration.installation import require_nnunetv2
from nnunet_deconver.integration.plans import read_dataset_json


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand `splits`."""
    parser = subparsers.add_parser(
        "splits",
        help="make stratified folds for a cross-validation",
        description="Writes nnUNet_preprocessed/DATASET/splits_final.json, which nnU-Net's trainers read: folds in "
        "which the volume of the foreground, or a column of a CSV file, is distributed as in the whole dataset. "
        "nnU-Net itself makes random folds with the first training, so run this before. Folds that models were trained "
        "on are never replaced.",
    )
    parser.add_argument("-d", "--dataset", required=True, metavar="D", help="number or name of the dataset")
    parser.add_argument(
        "--by",
        default="volume",
        metavar="WHAT",
        help="volume, or a CSV file whose first column has the cases; default: volume",
    )
    parser.add_argument("--column", metavar="NAME", help="of the CSV file; default: its second")
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--seed", type=int, default=12345, metavar="N", help="default: 12345, as nnU-Net's")
    parser.add_argument("--overwrite", action="store_true", help="replace other folds that no model was trained on")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Makes the folds and shows them."""
    from tqdm import tqdm

    require_nnunetv2()
    from nnunet_deconver.integration.splits import (
        foreground_volumes,
        read_values,
        stratified_splits,
        training_cases,
        write_splits,
    )

    if args.by == "volume" and args.column is not None:
        raise InputError(f"--column {args.column} goes with --by FILE.csv")
    raw, preprocessed = variable_folder("nnUNet_raw"), variable_folder("nnUNet_preprocessed")
    name = dataset_name(args.dataset)
    if not (preprocessed / name).is_dir():
        raise InputError(
            f"{preprocessed / name}: no such folder; run: nnUNetv2_extract_fingerprint -d {int(name[7:10])}"
        )
    dataset_json = read_dataset_json(raw / name / "dataset.json", "it is the raw dataset's")
    labels = training_cases(raw / name, dataset_json)
    if args.by == "volume":
        values = foreground_volumes(labels, dataset_json, lambda cases: tqdm(cases, unit="case", leave=False))
    else:
        values = read_values(Path(args.by), labels, args.column)
    splits = stratified_splits(values, args.folds, args.seed)
    results = os.environ.get("nnUNet_results")
    try:
        written = write_splits(splits, preprocessed / name, Path(results) / name if results else None, args.overwrite)
    except FileExistsError as error:
        raise InputError(f"{error}; add --overwrite") from error
    print(f"{'wrote' if written else 'unchanged:'} {preprocessed / name / 'splits_final.json'}\n")
    print(report(splits, values, "volume" if args.by == "volume" else args.column or "value"))


def report(splits: list[dict[str, list[str]]], values: Mapping[str, float | str], what: str) -> str:
    """The table of the folds: how many cases, and which values those for validation have."""
    from nnunet_deconver.integration.splits import are_measured

    rows = []
    for fold, split in enumerate(splits):
        chosen = [values[case] for case in split["val"]]
        if are_measured(values.values(), len(splits)):
            described = f"{sum(map(float, chosen)) / len(chosen):.4g} on average"
        else:
            counts = Counter(value if isinstance(value, str) else f"{value:g}" for value in chosen)
            described = ", ".join(f"{value}: {count}" for value, count in sorted(counts.items()))
        rows.append(
            {
                "fold": str(fold),
                "training": str(len(split["train"])),
                "validation": str(len(split["val"])),
                f"{what} in validation": described,
            }
        )
    return table(rows)
