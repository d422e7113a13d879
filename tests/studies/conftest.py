"""Two small datasets as nnU-Net's preprocessing leaves them, and what stands in for nnU-Net's commands."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_deconver.integration import commands

FAKE = Path(__file__).with_name("fake_nnunet.py")
CASES = [f"case_{number}" for number in range(6)]
SPLITS = [
    {"train": [case for case in CASES if case not in held_out], "val": held_out}
    for held_out in (CASES[:2], CASES[2:4], CASES[4:])
]


def write_cube(path: Path):
    """A label map: a cube that is half of each axis, moved by the number in its name."""
    array = np.zeros((8, 8, 8), np.uint8)
    start = int(path.name.partition(".")[0][-1]) % 4
    array[2:6, start : start + 4, 2:6] = 1
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


@pytest.fixture
def folders(tmp_path, monkeypatch, make_plans) -> Path:
    """nnU-Net's folders with the datasets 910 (with test images) and 911; both have the plans `testPlans`."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", "")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    for dataset in ("Dataset910_Test", "Dataset911_Other"):
        raw, preprocessed = tmp_path / "raw" / dataset, tmp_path / "preprocessed" / dataset
        data, truths = preprocessed / "testPlans_test", preprocessed / "gt_segmentations"
        for folder in (raw, data, truths):
            folder.mkdir(parents=True)
        for folder in (raw, preprocessed):
            (folder / "dataset.json").write_text(json.dumps(description))
        plans = make_plans(3, "SimpleITKIO", 1) | {"dataset_name": dataset}
        (preprocessed / "testPlans.json").write_text(json.dumps(plans))
        fingerprint = {"shapes_after_crop": [[20, 30, 40]] * 6, "spacings": [[2.0, 1.0, 1.0]] * 6}
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        (preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
        for case in CASES:
            (data / f"{case}.pkl").touch()
            write_cube(truths / f"{case}.nii.gz")
    raw = tmp_path / "raw" / "Dataset910_Test"
    for name, file in (("imagesTs", "case_9_0000.nii.gz"), ("labelsTs", "case_9.nii.gz")):
        (raw / name).mkdir()
        write_cube(raw / name / file)
    return tmp_path


@pytest.fixture
def fake(folders, monkeypatch):
    """nnU-Net's commands are those of fake_nnunet.py; returns the log of what was trained."""
    log = folders / "trainings.log"
    monkeypatch.setenv("FAKE_LOG", str(log))
    for name in ("nnUNetv2_train", "nnUNetv2_predict"):
        program = folders / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(FAKE), name])} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setattr(commands, "program_folders", lambda: (str(folders / "bin"),))
    return log


@pytest.fixture
def content() -> dict:
    """The fields of a study of two trainers, one dataset, three folds and two seeds."""
    return {
        "datasets": [910],
        "trainers": ["nnUNetTrainer", {"name": "ours", "trainer": "nnUNetTrainerDeconver"}],
        "plans": ["testPlans"],
        "configurations": ["test"],
        "folds": [0, 1, 2],
        "seeds": [0, 1],
        "device": "cpu",
        "epochs": 4,
        "iterations": 2,
    }
