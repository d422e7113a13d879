import math

import numpy as np
import pytest

from nnunet_deconver.metrics.overlap import overlap_metrics, volume_metrics


def masks():
    reference, prediction = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    reference[0, :4] = True  # 4 voxels
    prediction[0, 2:] = True  # 3 voxels, 2 of them common
    return reference, prediction


def test_overlap_by_hand():
    found = overlap_metrics(*masks())
    assert found == pytest.approx({"dice": 4 / 7, "jaccard": 2 / 5, "sensitivity": 2 / 4, "precision": 2 / 3})


def test_volumes_by_hand():
    reference, prediction = masks()
    assert volume_metrics(reference, prediction, (0.5, 3)) == pytest.approx(
        {
            "volume_reference": 6,
            "volume_prediction": 4.5,
            "volume_difference": -1.5,
            "absolute_volume_difference": 1.5,
            "relative_volume_difference": -25,
            "absolute_relative_volume_difference": 25,
        }
    )


@pytest.mark.parametrize(
    ("reference", "prediction", "defined"),
    [
        (False, False, {}),
        (True, False, {"dice": 0, "jaccard": 0, "sensitivity": 0}),
        (False, True, {"dice": 0, "jaccard": 0, "precision": 0}),
    ],
    ids=["both empty", "prediction empty", "reference empty"],
)
def test_a_ratio_of_zeros_is_undefined(reference, prediction, defined):
    found = overlap_metrics(np.full((2, 2), reference), np.full((2, 2), prediction))
    assert {name: value for name, value in found.items() if not math.isnan(value)} == defined


def test_relative_volume_of_an_empty_reference_is_undefined():
    found = volume_metrics(np.zeros((2, 2), bool), np.ones((2, 2), bool), (1, 1))
    assert math.isnan(found["relative_volume_difference"])
    assert found["volume_difference"] == 4


def test_what_is_no_pair_of_masks_is_refused():
    with pytest.raises(ValueError, match=r"prediction: must have the reference's shape \(2, 2\), got \(2, 3\)"):
        overlap_metrics(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="reference: must be of dtype bool, got int64"):
        overlap_metrics(np.zeros((2, 2), np.int64), np.zeros((2, 2), bool))
