import numpy as np
import pytest

from nnunet_deconver.metrics.probability import BINS, probability_metrics


def test_by_hand():
    """Four voxels; the curve of precision over recall has the points (1/2, 1), (1/2, 1/2) and (1, 2/3)."""
    found = probability_metrics(np.array([True, False, True, False]), np.array([0.9, 0.6, 0.5, 0.1]))
    assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.25 + 0.01) / 4)
    # Each voxel is alone in its interval.
    assert found["calibration_error"] == pytest.approx((0.1 + 0.6 + 0.5 + 0.1) / 4)


def test_probabilities_that_are_true_are_calibrated():
    rng = np.random.default_rng(0)
    probability = rng.random((40, 50, 60))
    found = probability_metrics(rng.random(probability.shape) < probability, probability)
    assert found["calibration_error"] < 0.01
    assert found["brier"] == pytest.approx(1 / 6, abs=0.005)  # the mean of p (1 - p)
    too_sure = probability_metrics(rng.random(probability.shape) < probability, probability.round())
    assert too_sure["calibration_error"] == pytest.approx(0.25, abs=0.01)


def test_as_counted_threshold_by_threshold():
    """The definition of average precision once more, and that of the calibration error bin by bin."""
    rng = np.random.default_rng(1)
    truth, probability = rng.random(500) < 0.3, rng.integers(0, 21, 500) / 20
    average, recall = 0.0, 0.0
    for threshold in np.unique(probability)[::-1]:
        chosen = probability >= threshold
        now = (chosen & truth).sum() / truth.sum()
        average += (now - recall) * (chosen & truth).sum() / chosen.sum()
        recall = now
    error = 0.0
    for index in range(BINS):
        upper = probability <= 1 if index == BINS - 1 else probability * BINS < index + 1
        inside = (probability * BINS >= index) & upper
        if inside.any():
            error += inside.sum() * abs(probability[inside].mean() - truth[inside].mean())
    found = probability_metrics(truth, probability)
    assert found["average_precision"] == pytest.approx(average)
    assert found["calibration_error"] == pytest.approx(error / 500)


def test_without_reference_and_without_voxels():
    found = probability_metrics(np.zeros(10, bool), np.full(10, 0.5, np.float32))
    assert np.isnan(found["average_precision"]) and found["brier"] == 0.25 and found["calibration_error"] == 0.5
    assert all(np.isnan(value) for value in probability_metrics(np.zeros(0, bool), np.zeros(0)).values())


def test_another_shape():
    with pytest.raises(ValueError, match="shapes differ"):
        probability_metrics(np.zeros(3, bool), np.zeros(4))
