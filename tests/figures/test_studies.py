import math

import pytest

from nnunet_deconver.figures.plots import COLUMN
from nnunet_deconver.figures.studies import Estimate, draw_differences, draw_hours

MODELS = ("nnUNetTrainerDeconver_lr1e3_5epochs", "a $b$", *(f"model {index}" for index in range(6)))


@pytest.mark.parametrize(
    ("classes", "columns", "kinds"),
    [(1, 1, ("equal iterations", "equal time")), (3, 2, ("equal time",)), (7, 2, ("equal iterations", "equal time"))],
)
def test_differences(check, tmp_path, classes, columns, kinds):
    estimates = {
        f"class {index}": {model: {kind: Estimate(0.01 * index, -0.01, 0.02) for kind in kinds} for model in MODELS}
        for index in range(classes)
    }
    # A model that has one kind alone, and one without an interval.
    estimates["class 0"][MODELS[0]] = {kinds[0]: Estimate(0.03, math.nan, math.nan)}
    paths = draw_differences(estimates, "Dice: difference to nnunet; right is better", tmp_path / "a")
    check(paths, COLUMN * columns, "Dice: difference to nnunet; right is better", *MODELS, *estimates, *kinds)


def test_differences_that_are_all_zero(check, tmp_path):
    paths = draw_differences({"class": {"model": {"equal time": Estimate(0.0, 0.0, 0.0)}}}, "Dice", tmp_path / "a")
    check(paths, COLUMN, "Dice", "0.5")


@pytest.mark.parametrize(("scale", "unit"), [(1.0, "hours"), (0.1, "minutes")])
def test_hours(check, tmp_path, scale, unit):
    estimates = {model: Estimate(0.01, -0.01, 0.02, scale * (index + 1)) for index, model in enumerate(MODELS)}
    estimates["unknown"] = Estimate(0.01, -0.01, 0.02)
    paths = draw_hours(estimates, ("nnunet", 2.0 * scale), "HD95 [mm]: difference to nnunet", tmp_path / "a")
    check(paths, COLUMN, f"{unit} of a training", "HD95 [mm]: difference to nnunet", "nnunet", *MODELS)
    assert ">unknown<" not in paths[1].read_text()
