"""What docs/accuracy.md rests on: metrics by hand, fair splits, numbers that a command printed."""

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def load(path):
    """A script as a module; scripts find each other in their own folder."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


accuracy = load(BENCHMARKS / "accuracy.py")


def test_metrics_of_a_case_by_hand():
    truth, prediction = (np.zeros((20, 20, 20), int) for _ in range(2))
    truth[2:6, 2:6, 2:6] = 1
    prediction[2:6, 2:6, 2:6] = 1
    prediction[15, 15, 10:13] = 1  # far, and 4 voxels and more from every border
    prediction[18, 10, 10] = 2  # far, near the border
    prediction[2, 2, 9] = 1  # 4 voxels from the truth: not far
    found = accuracy.measure_case(truth, prediction, (1.0, 1.0, 1.0), [1, 2])
    assert found["dice_1"] == pytest.approx(2 * 64 / (64 + 68))
    assert found["dice_largest_1"] == 1
    assert found["dice_2"] == 0
    assert found["dice"] == pytest.approx(found["dice_1"] / 2)
    assert found["far_false_positives"] == 4
    assert found["near_border"] == 1 / 4
    # Nothing to be found, something found: as far as the image reaches.
    assert found["hd95_2"] == pytest.approx(20 * 3**0.5)


def test_splits_hold_out_cases_by_seed(tmp_path, monkeypatch):
    folder = tmp_path / "Dataset900_Test"
    (folder / "gt_segmentations").mkdir(parents=True)
    for case in range(10):
        (folder / "gt_segmentations" / f"case_{case}.nii.gz").touch()
    arch_kwargs = {"n_stages": 3, "n_conv_per_stage_decoder": [2, 2]}
    arch_kwargs |= {key: [1, 2, 3] for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage")}
    plan = {"patch_size": [8, 8], "batch_size": 4, "architecture": {"arch_kwargs": arch_kwargs}}
    plans = {"plans_name": "nnUNetPlans", "configurations": {"2d": plan, "other": plan}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    chosen = {"patch": [4, 4], "batch": None, "stages": 2, "features": 8, "test": 3, "plans": "smallPlans"}
    accuracy.prepare(argparse.Namespace(dataset="Dataset900_Test", configuration="2d", **chosen))
    splits = json.loads((folder / "splits_final.json").read_text())
    assert all(len(split["val"]) == 3 and not {*split["train"]} & {*split["val"]} for split in splits)
    assert all(len({*split["train"], *split["val"]}) == 10 for split in splits)
    assert splits[0]["val"] != splits[1]["val"]
    written = json.loads((folder / "smallPlans.json").read_text())["configurations"]
    assert list(written) == ["2d"]
    assert (written["2d"]["patch_size"], written["2d"]["batch_size"]) == ([4, 4], 4)
    network = written["2d"]["architecture"]["arch_kwargs"]
    assert network["features_per_stage"] == [8, 16]
    assert [len(network[key]) for key in ("kernel_sizes", "strides", "n_conv_per_stage_decoder")] == [2, 2, 1]


def test_every_table_of_numbers_in_the_document_is_generated():
    text = (ROOT / "docs" / "accuracy.md").read_text()
    assert "| ---" in text
    assert "| ---" not in re.sub(r"<!-- generated: .*?<!-- end -->", "", text, flags=re.DOTALL)
