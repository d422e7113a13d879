"""The examples run, and say what they should."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).parents[1]


def run(name, *arguments) -> str:
    command = [sys.executable, ROOT / "examples" / f"{name}.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_add_upsampling():
    assert run("add_upsampling") == "PixelShuffle: logits (1, 2, 64, 64)\n"


def test_evaluate_and_compare(tmp_path):
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    for shift, folder in enumerate(("labels", "a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dataset.json").write_text(json.dumps(content))
        for case in range(8):
            voxels = np.zeros((6, 12, 12), np.uint8)
            voxels[1:4, 2:8, 2 + shift : 8 + shift] = 1
            sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / folder / f"case_{case}.nii.gz"))
    told = run("evaluate_and_compare", *(tmp_path / name for name in ("labels", "a", "b", "out")))
    assert "a, organ: Dice 0.833, HD95 1.0" in told
    assert "organ: -0.1667 [-0.1667, -0.1667], p = 0.00" in told
    assert (tmp_path / "out" / "comparison" / "comparison.json").is_file()


def test_look_into_a_model(trained_model):
    told = run("look_into_a_model", trained_model(trainer="nnUNetTrainerDTC"))
    assert "nnUNetTrainerDTC: " in told
    assert "last upsampling: DeformableTransposedConvolution" in told
    assert "displacement: mean " in told
