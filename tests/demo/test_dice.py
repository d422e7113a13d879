import math

import numpy as np
import pytest

from nnunet_deconver.demo.dice import best_threshold_dice, interval_dice, mean_dice


def means(dice):
    return {name: mean_dice(cases.values()) for name, cases in dice.items()}


TWO_CLASSES = {"background": 0, "a": 1, "b": 2}


def test_thresholds_solve_what_intensity_tells(raw_data, tmp_path):
    rng = np.random.default_rng(0)
    truths = [rng.integers(0, 3, (6, 8, 10)) for _ in range(2)]
    # In the second channel, shifted and stretched per case: found only after standardisation.
    images = [(rng.normal(size=t.shape), 100 * i + (i + 1) * np.array([0, 7, 3])[t]) for i, t in enumerate(truths)]
    dice = best_threshold_dice(raw_data(tmp_path / "Dataset001_A", images, truths, labels=TWO_CLASSES))
    assert list(dice["a"]) == ["c0", "c1"]
    assert means(dice) == pytest.approx({"a": 1, "b": 1}, abs=0.1)


def test_thresholds_do_not_solve_what_it_does_not_tell(raw_data, tmp_path):
    rng = np.random.default_rng(0)
    truths = [(rng.random((8, 16, 16)) < 0.2).astype(int) for _ in range(3)]
    images = [(rng.normal(size=t.shape),) for t in truths]
    labels = {"background": 0, "a": 1}
    dice = means(best_threshold_dice(raw_data(tmp_path / "Dataset001_A", images, truths, labels=labels)))
    # Calling everything foreground is the best: 2 x 0.2 / (1 + 0.2).
    assert dice["a"] == pytest.approx(1 / 3, abs=0.03)


def test_thresholds_know_regions_ignored_voxels_and_absent_classes(raw_data, tmp_path):
    truth = np.repeat([0, 1, 2, 4], 100).reshape(4, 10, 10)
    image = np.repeat([0, 5, 6, 5], 100).reshape(4, 10, 10)
    labels = {"background": 0, "both": [1, 2], "two": 2, "three": 3, "ignore": 4}
    data = raw_data(
        tmp_path / "Dataset001_A", [(image,)] * 2, [truth] * 2, labels=labels, regions_class_order=[1, 2, 3]
    )
    dice = means(best_threshold_dice(data))
    assert dice["both"] == dice["two"] == 1
    assert math.isnan(dice["three"]) or dice["three"] == 0


def test_interval_dice_is_the_best_of_all():
    rng = np.random.default_rng(0)
    all_voxels, hits = rng.integers(5, 50, (3, 12)), rng.integers(0, 5, (3, 12))
    below, hits_below = (np.pad(counts, ((0, 0), (1, 0))).cumsum(axis=1) for counts in (all_voxels, hits))
    every = [
        2 * hits[:, low:high].sum(1) / (all_voxels[:, low:high].sum(1) + hits.sum(1))
        for low in range(12)
        for high in range(low + 1, 13)
    ]
    expected = max(every, key=np.mean)
    np.testing.assert_allclose(interval_dice(below, hits_below), expected)
