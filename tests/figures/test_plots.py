import math

import numpy as np
import pytest

from nnunet_deconver.figures.plots import COLUMN, draw_cases, draw_cost, draw_training, point_style, save
from nnunet_deconver.models.training_log import Curves

MODELS = ("nnUNetTrainer", "nnUNetTrainerDeconver_lr1e3_5epochs")


@pytest.mark.parametrize(("classes", "columns"), [(1, 1), (4, 1), (5, 2)])
def test_cases(check, tmp_path, classes, columns):
    rng = np.random.default_rng(0)
    values = {f"class {index}": {name: rng.random(9) for name in MODELS} for index in range(classes)}
    values["class 0"][MODELS[0]] = np.full(9, math.nan)
    paths = draw_cases(values, "HD95 [mm]", tmp_path / "cases.x")
    assert [path.name for path in paths] == ["cases.x.png", "cases.x.svg"]
    check(paths, COLUMN * columns, "HD95 [mm]", *MODELS, *values)


def test_cost(check, tmp_path):
    quality = {"a": (0.8, 0.7, 0.9), "b": (0.85, 0.8, 0.9), "c": (0.5, math.nan, math.nan)}
    costs = {"parameters": {"a": 10.0, "b": 30.0}, "FLOPs/voxel": {"a": 1.0, "b": 100.0, "c": 2.0}}
    check(draw_cost(quality, costs, "Dice", tmp_path / "cost"), COLUMN, "parameters", "FLOPs/voxel", "Dice", "a", "c")


def test_models_are_told_apart_by_marker_and_color():
    styles = [tuple(point_style(index).values()) for index in range(18)]
    assert len(set(styles)) == len(styles)


@pytest.mark.parametrize("epochs", [1, 5, 150])
def test_training(check, tmp_path, epochs):
    rng = np.random.default_rng(0)
    runs = {
        MODELS[0]: [Curves(*rng.random((4, epochs)))],
        MODELS[1]: [Curves(*rng.random((4, epochs + fold))) for fold in range(3)],
    }
    check(draw_training(runs, tmp_path / "training"), COLUMN, "training loss", "epoch", *MODELS)


def test_a_figure_that_cannot_be_finished_leaves_no_part_of_itself(tmp_path):
    class Figure:
        def savefig(self, file, **_):
            file.write(b"half")
            raise OSError("no space left")

    (tmp_path / "a.png").write_bytes(b"an earlier one")
    with pytest.raises(OSError, match="no space left"):
        save(Figure(), tmp_path / "a")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"an earlier one")]
