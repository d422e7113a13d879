"""From data to a segmented image with nnU-Net's own commands.

Without a dataset the data is synthetic (see `phantom`), and two CPU cores do in minutes.

`dataset` reads the user's data and `phantom` makes the synthetic; `training` takes it through nnU-Net, with plans of
`small_plans` on a CPU, by `commands`; `dice` measures, `report` writes the table and the picture; `output_folder` knows
all files that come of it.
"""

import shutil
import time
from pathlib import Path

from nnunet_deconver.demo import TRAINER
from nnunet_deconver.demo.commands import minutes
from nnunet_deconver.demo.dataset import RawData, read_dataset
from nnunet_deconver.demo.dice import best_threshold_dice, read_dice
from nnunet_deconver.demo.output_folder import (
    INTERMEDIATE,
    LOG,
    MODEL,
    PICTURE,
    TABLE,
    check_output,
    prepare_output,
)
from nnunet_deconver.demo.report import draw_held_out, format_table, table_rows, write_table
from nnunet_deconver.demo.training import train_and_predict
from nnunet_deconver.errors import ArgumentError, InputError
from nnunet_deconver.models.trainer import find_trainer

PHANTOM = "Dataset990_Phantom"
PHANTOM_TRAINING, PHANTOM_HELD_OUT = 30, 8


def run_demo(
    out: Path = Path("demo_output"),
    *,
    dataset: Path | None = None,
    held_out: int | None = None,
    trainer: str = TRAINER,
    device: str | None = None,
    overwrite: bool = False,
    keep: bool = False,
) -> None:
    """Trains, predicts, measures and draws, telling what it does; `nnunet-deconver demo`, whose options these are.

    Args:
        out: folder to write to.
        dataset: a raw dataset of nnU-Net, which is only read; None for a synthetic one.
        held_out: number of its cases to measure with instead of training; None for a fifth, 20 at most.
        trainer: name.
        device: "cpu" or "cuda"; None for the best there is.
        overwrite: write into `out` even if it holds other things than a former demo.
        keep: keep the intermediate folders.

    Raises:
        InputError: if something does not fit, before the first byte is written, or if a command of nnU-Net's fails.
    """
    start = time.monotonic()
    if dataset is None and held_out is not None:
        raise ArgumentError("held_out", held_out, "needs --dataset; leave it out, or name a dataset")
    chosen = read_dataset(dataset, held_out) if dataset is not None else None
    device = choose_device(device)
    check_trainer(trainer)
    check_output(out, overwrite, dataset)

    prepare_output(out)
    raw = out / "raw" / (chosen.name if chosen else PHANTOM)
    if chosen:
        chosen.link(raw)
    else:
        from nnunet_deconver.demo import phantom

        phantom.write_dataset(raw, training=PHANTOM_TRAINING, held_out=PHANTOM_HELD_OUT)
    data = RawData(raw)
    kind = "" if chosen else ", synthetic"
    print(f"Data: {data.name}{kind}, {len(data.cases('Tr'))} cases to train with and {len(data.cases('Ts'))} held out.")

    model = train_and_predict(data, out, trainer, device)
    dice = read_dice(out / "predictions" / "summary.json", data)
    baseline = best_threshold_dice(data)
    write_table(out / TABLE, dice, baseline)
    (*_, (_, ours, threshold)) = table_rows(dice, baseline)
    title = f"{trainer}: mean Dice {ours:.2f} on {len(data.cases('Ts'))} held-out cases; thresholds: {threshold:.2f}"
    draw_held_out(data, out / "predictions", dice, out / PICTURE, title)

    if not keep:
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
        InputError: if it is unknown or missing here.
    """
    import torch

    cuda = torch.cuda.is_available()
    if requested is None:
        return "cuda" if cuda else "cpu"
    if requested not in ("cpu", "cuda"):
        raise ArgumentError("device", requested, "must be cpu or cuda")
    if requested == "cuda" and not cuda:
        raise InputError("--device cuda: PyTorch finds no CUDA device here; take cpu, or leave the option out")
    return requested


def check_trainer(name: str) -> None:
    """Looks for a trainer of this package, or any that nnU-Net finds.

    Raises:
        InputError: if there is none of that name.
    """
    try:
        find_trainer(name)
    except InputError as error:
        raise ArgumentError(
            "trainer", name, "neither this package nor nnU-Net has it; `nnunet-deconver list` shows this package's"
        ) from error
