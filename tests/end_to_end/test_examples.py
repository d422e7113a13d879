"""The example that trains, predicts and measures from Python."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_predict_evaluate.py"


@pytest.mark.slow
def test_train_predict_evaluate(tmp_path):
    done = subprocess.run([sys.executable, EXAMPLE, tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "evaluation" / "summary.json").is_file()
    assert "Dice" in done.stdout
