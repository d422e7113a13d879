"""`nnunet-deconver demo`: from data to a segmented image with nnU-Net's own commands, in one go.

Without `--dataset` the data is synthetic (see `phantom`), and two CPU cores do in minutes.

`dataset` reads the user's data and `phantom` makes the synthetic; `training` takes it through nnU-Net, with plans of
`small_plans` on a CPU, by `commands`; `dice` measures, `report` writes the table and the picture; `output_folder` knows
all files that come of it.
"""

import argparse
import shutil
import time
from pathlib import Path

from nnunet_deconver.cli.demo.commands import minutes
from nnunet_deconver.cli.demo.dataset import RawData, read_dataset
from nnunet_deconver.cli.demo.dice import best_threshold_dice, read_dice
from nnunet_deconver.cli.demo.output_folder import (
    INTERMEDIATE,
    LOG,
    MODEL,
    PICTURE,
    TABLE,
    check_output,
    prepare_output,
)
from nnunet_deconver.cli.demo.report import draw_cases, format_table, table_rows, write_table
from nnunet_deconver.cli.demo.training import train_and_predict
from nnunet_deconver.cli.errors import CommandError
from nnunet_deconver.cli.nnunet import require_nnunetv2
from nnunet_deconver.cli.status import find_trainer

TRAINER = "nnUNetTrainerDeconverDemo"
PHANTOM = "Dataset990_Phantom"
PHANTOM_TRAINING, PHANTOM_HELD_OUT = 30, 8


def add_parser(subparsers: argparse._SubParsersAction):
    """Adds the subcommand `demo`."""
    parser = subparsers.add_parser(
        "demo",
        help="train, predict and show the result, in minutes on a CPU",
        description="Makes a small synthetic dataset, or takes yours; runs nnU-Net's commands on it with a trainer of "
        "this package; measures and draws the result on cases that were held out.",
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="FOLDER",
        help="a raw dataset of nnU-Net (DatasetXXX_NAME), which is only read; default: a synthetic one",
    )
    parser.add_argument(
        "--held-out",
        type=int,
        metavar="N",
        help="number of cases of --dataset to measure with instead of training; default: a fifth, 20 at most",
    )
    parser.add_argument("--trainer", default=TRAINER, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda if there is one")
    parser.add_argument(
        "--out", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: ./%(default)s"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="write into --out even if it holds other things than a former demo"
    )
    parser.add_argument(
        "--keep", action="store_true", help=f"keep the intermediate folders ({', '.join(INTERMEDIATE)})"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace):
    """Runs the demo."""
    start = time.monotonic()
    # All checks before the first byte is written.
    require_nnunetv2()
    if args.dataset is None and args.held_out is not None:
        raise CommandError(f"--held-out {args.held_out} goes with --dataset; leave it out, or name a dataset")
    dataset = read_dataset(args.dataset, args.held_out) if args.dataset is not None else None
    device = choose_device(args.device)
    check_trainer(args.trainer)
    check_output(args.out, args.overwrite, args.dataset)

    out = args.out
    prepare_output(out)
    raw = out / "raw" / (dataset.name if dataset else PHANTOM)
    if dataset:
        dataset.link(raw)
    else:
        from nnunet_deconver.cli.demo import phantom

        phantom.write_dataset(raw, training=PHANTOM_TRAINING, held_out=PHANTOM_HELD_OUT)
    data = RawData(raw)
    kind = "" if dataset else ", synthetic"
    print(f"Data: {data.name}{kind}, {len(data.cases('Tr'))} cases to train with and {len(data.cases('Ts'))} held out.")

    model = train_and_predict(data, out, args.trainer, device)
    dice = read_dice(out / "predictions" / "summary.json", data)
    baseline = best_threshold_dice(data)
    write_table(out / TABLE, dice, baseline)
    (*_, (_, ours, threshold)) = table_rows(dice, baseline)
    title = (
        f"{args.trainer}: mean Dice {ours:.2f} on {len(data.cases('Ts'))} held-out cases; thresholds: {threshold:.2f}"
    )
    draw_cases(data, out / "predictions", dice, out / PICTURE, title)

    if not args.keep:
        shutil.move(model, out / MODEL)
        model = out / MODEL
        for name in INTERMEDIATE:
            shutil.rmtree(out / name)
    print(f"\n{format_table(dice, baseline)}\n")
    print(f"Picture: {out / PICTURE}\nTable:   {out / TABLE}\nLog:     {out / LOG}\nModel:   {model}")
    print(f"Took {minutes(time.monotonic() - start)}.")


def choose_device(requested: str | None) -> str:
    """The device to train on, "cuda" or "cpu".

    Args:
        requested: by the user; None for the best there is.

    Raises:
        CommandError: if it is unknown or missing here.
    """
    import torch

    cuda = torch.cuda.is_available()
    if requested is None:
        return "cuda" if cuda else "cpu"
    if requested not in ("cpu", "cuda"):
        raise CommandError(f"--device {requested}: must be cpu or cuda")
    if requested == "cuda" and not cuda:
        raise CommandError("--device cuda: PyTorch finds no CUDA device here; take cpu, or leave the option out")
    return requested


def check_trainer(name: str):
    """Looks for a trainer of this package, or any that nnU-Net finds.

    Raises:
        CommandError: if there is none of that name.
    """
    from nnunet_deconver import trainers

    if name not in trainers.__all__ and isinstance(find_trainer(name), Exception):
        raise CommandError(
            f"--trainer {name}: neither this package nor nnU-Net has it; `nnunet-deconver list` shows this package's"
        )
