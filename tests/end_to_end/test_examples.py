"""The example that trains, predicts and measures from Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAINERS = Path(__file__).parent / "tiny_trainers"
EXAMPLE = Path(__file__).parents[2] / "examples" / "train_predict_evaluate.py"


@pytest.mark.slow
def test_train_predict_evaluate(tmp_path):
    command = [sys.executable, EXAMPLE, tmp_path / "out", "nnUNetTrainerDeconverTiny"]
    # Each process imports nnU-Net.
    few = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment = os.environ | few | {"nnUNet_extTrainer": str(TRAINERS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "evaluation" / "summary.json").is_file()
    assert "Dice" in done.stdout
