"""From raw data to predictions with nnU-Net's commands, and the progress bar meanwhile."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_deconver.demo.commands import run_command
from nnunet_deconver.demo.dataset import RawData
from nnunet_deconver.demo.output_folder import LOG
from nnunet_deconver.demo.small_plans import choose_plans
from nnunet_deconver.integration.trainers import external_folders, shim_folder
from nnunet_deconver.models.training_log import noted_number

if TYPE_CHECKING:
    from tqdm import tqdm

# Taken from the training cases. nnU-Net watches it while it trains and segments it afterwards, in all mirrorings: one,
# because that takes time, and the held-out cases are the ones that count.
VALIDATION_CASES = 1


def train_and_predict(data: RawData, out: Path, trainer: str, device: str) -> Path:
    """Plans, preprocesses, trains, predicts the held-out cases and evaluates the prediction.

    Args:
        data: in `out`/raw.
        out: the demo's folder.
        trainer: name of the nnU-Net trainer.
        device: "cpu" or "cuda".

    Returns:
        The trained model's folder. The predictions and their summary.json are in `out`/predictions.

    Raises:
        InputError: if a command fails.
    """
    variables = {
        "nnUNet_raw": out.resolve() / "raw",
        "nnUNet_preprocessed": out.resolve() / "preprocessed",
        "nnUNet_results": out.resolve() / "results",
        "nnUNet_extTrainer": os.pathsep.join(map(str, (shim_folder(), *external_folders()))),
        "nnUNet_n_proc_DA": 2 if device == "cpu" else min(8, os.cpu_count() or 1),
        "nnUNet_def_n_proc": 2,
        "nnUNet_compile": "f",  # takes minutes itself, more than it saves here
        "nnUNet_wandb_enabled": 0,
        # Beside other work on the same cores, threads that spin while they wait make a training step of the synthetic
        # data take 40 s and more instead of 1.2 s (two cores beside another training, torch 2.15).
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(str(value))}")
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}, "PYTHONUNBUFFERED": "1"}

    def nnunet(*command: object, on_line: Callable[[str], None] | None = None) -> None:
        run_command([str(word) for word in command], environment, out / LOG, on_line)

    configuration = "2d" if data.is_2d else "3d_fullres"
    nnunet("nnUNetv2_plan_and_preprocess", "-d", data.number, "-c", configuration, "-npfp", 2, "-np", 2)
    preprocessed = out / "preprocessed" / data.name
    plans = choose_plans(preprocessed, configuration, device)
    cases = data.cases("Tr")
    split = {"train": cases[:-VALIDATION_CASES], "val": cases[-VALIDATION_CASES:]}
    (preprocessed / "splits_final.json").write_text(json.dumps([split], indent=2))

    model = out / "results" / data.name / f"{trainer}__{plans}__{configuration}"
    chosen = ("-tr", trainer, "-p", plans, "-device", device)
    with TrainingBar(model / "fold_0") as bar:
        nnunet("nnUNetv2_train", data.number, configuration, 0, *chosen, on_line=bar)
    # Without a GPU, mirroring would take 8 times as long, and worker processes start longer than these cases last.
    short = ("--disable_tta", "-npp", 0, "-nps", 0) if device == "cpu" else ()
    where = ("-i", data.folder / "imagesTs", "-o", out / "predictions")
    nnunet("nnUNetv2_predict", "-d", data.number, "-c", configuration, "-f", 0, *where, *chosen, *short)
    described = ("-djfile", model / "dataset.json", "-pfile", model / "plans.json")
    nnunet("nnUNetv2_evaluate_folder", data.folder / "labelsTs", out / "predictions", *described)
    return model


class TrainingBar:
    """A progress bar over the epochs of nnU-Net's training, fed with the lines it prints.

    Args:
        fold: nnU-Net's folder of the training.
    """

    def __init__(self, fold: Path) -> None:
        self.fold = fold
        self.bar: tqdm | None = None

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, line: str) -> None:
        """Moves on with a line of nnU-Net's output."""
        from tqdm import tqdm

        if self.bar is None and re.search(r": Epoch \d+$", line):
            # Where nobody looks on, a bar is lines in a file.
            self.bar = tqdm(
                total=noted_number(self.fold, "num_epochs"),
                unit="epoch",
                mininterval=0.1 if sys.stderr.isatty() else 20,
                miniters=1,
            )
        elif self.bar is not None and "Pseudo dice" in line:
            values = [float(value) for value in re.findall(r"\d\.\d+", line.partition("Pseudo dice")[2])]
            if values:
                self.bar.set_postfix_str(f"validation patches: Dice {sum(values) / len(values):.2f}", refresh=False)
        elif self.bar is not None and "Epoch time" in line:
            self.bar.update()
        elif self.bar is not None and "Training done" in line:
            self.bar.close()
            print("  trained; nnU-Net segments its validation case", flush=True)
