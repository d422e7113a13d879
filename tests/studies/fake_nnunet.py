"""Stands in for nnU-Net's commands: writes what they would, at once, of numbers that depend on the arguments alone.

FAKE_SECONDS lengthens each epoch; FAKE_FAILS is a word of the command line with which it fails. Each training appends
a line to FAKE_LOG when it begins and when it ends.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def main():
    """Trains, validates or predicts."""
    command, *arguments = sys.argv[1:]
    fails = os.environ.get("FAKE_FAILS")
    if fails and any(fails in word for word in arguments):
        print("this one fails")
        sys.exit(3)
    if command == "nnUNetv2_predict":
        return predict(arguments)
    dataset, configuration, fold = arguments[:3]
    trainer, plans = (arguments[arguments.index(option) + 1] for option in ("-tr", "-p"))
    folder = Path(os.environ["nnUNet_results"], dataset, f"{trainer}__{plans}__{configuration}", f"fold_{fold}")
    if "--val" not in arguments:
        train(folder, dataset, plans, trainer, "--c" in arguments)
    validate(folder, dataset, trainer)
    return None


def train(folder: Path, dataset: str, plans: str, trainer: str, goes_on: bool):
    """Writes a log epoch by epoch, and checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    latest = folder / "checkpoint_latest.pth"
    assert goes_on == latest.exists(), f"--c {goes_on}, checkpoint {latest.exists()}"
    preprocessed = Path(os.environ["nnUNet_preprocessed"], dataset)
    for name in (f"{plans}.json", "dataset.json"):
        target = "dataset.json" if name == "dataset.json" else "plans.json"
        (folder.parent / target).write_text((preprocessed / name).read_text())
    epochs = int(re.search(r"_(\d+)epoch", trainer)[1])
    (folder / "debug.json").write_text(json.dumps({"num_epochs": str(epochs), "num_iterations_per_epoch": "10"}))
    # As nnU-Net's loaders, it outlives a training that is killed.
    loader = subprocess.Popen(["sleep", "1000"])
    said(f"begin {folder}")
    log = folder / f"training_log_{time.time_ns()}.txt"
    begin = int(zipfile.ZipFile(latest).read("epoch")) if goes_on else 0
    for epoch in range(begin, epochs):
        time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
        seconds = 2.0 if "Deconver" in trainer else 1.0
        with log.open("a") as file:
            file.write(f"Epoch {epoch}\ntrain_loss -0.5\nval_loss -0.4\nPseudo dice [0.5]\nEpoch time: {seconds} s\n")
        checkpoint(latest, epoch + 1)
    checkpoint(folder / "checkpoint_final.pth", epochs)
    latest.unlink(missing_ok=True)
    said(f"end {folder}")
    loader.kill()


def checkpoint(path: Path, epoch: int):
    """A zip file, as torch's are; not written whole, as nnU-Net's are not."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("epoch", str(epoch))


def validate(folder: Path, dataset: str, trainer: str):
    """The truth, of which some voxels are turned by chance."""
    splits = json.loads(Path(os.environ["nnUNet_preprocessed"], dataset, "splits_final.json").read_text())
    cases = splits[int(folder.name.removeprefix("fold_"))]["val"]
    truths = Path(os.environ["nnUNet_preprocessed"], dataset, "gt_segmentations")
    segment(truths, cases, folder / "validation", trainer)
    (folder / "validation" / "summary.json").write_text(json.dumps({"mean": {}}))


def predict(arguments: list[str]):
    """Segments the test images likewise."""
    images, out, dataset = (Path(arguments[arguments.index(option) + 1]) for option in ("-i", "-o", "-d"))
    truths = Path(os.environ["nnUNet_raw"], dataset.name, "labelsTs")
    segment(truths, [path.name[:-12] for path in images.iterdir()], out, arguments[arguments.index("-tr") + 1])


def segment(truths: Path, cases: list[str], out: Path, trainer: str):
    """Writes segmentations of cases."""
    out.mkdir(parents=True, exist_ok=True)
    for case in cases:
        truth = sitk.ReadImage(str(truths / f"{case}.nii.gz"))
        array = sitk.GetArrayFromImage(truth)
        seed = int.from_bytes(hashlib.sha256(f"{case} {trainer}".encode()).digest()[:4], "little")
        array[np.random.default_rng(seed).random(array.shape) < 0.05] = 1
        prediction = sitk.GetImageFromArray(array)
        prediction.CopyInformation(truth)
        sitk.WriteImage(prediction, str(out / f"{case}.nii.gz"))


def said(line: str):
    """Appends a line to the log of all trainings."""
    if os.environ.get("FAKE_LOG"):
        with open(os.environ["FAKE_LOG"], "a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
