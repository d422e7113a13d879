import math

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from nnunet_deconver.metrics.lesions import (
    BRATS_PENALTY_MM,
    BratsRule,
    brats_metrics,
    detection_metrics,
    panoptic_metrics,
)


def image(*spans, shape=(7, 7, 60)):
    """Bars in the middle of an image, by start and stop along its last axis."""
    mask = np.zeros(shape, bool)
    for start, stop in spans:
        mask[3, 3, start:stop] = True
    return mask


def test_detection_by_hand():
    """Three lesions: one found in two pieces, two found by one piece; and one piece that is nothing."""
    reference = image((0, 10), (20, 24), (26, 30))
    prediction = image((0, 2), (5, 7), (22, 28), (40, 42), (50, 51))
    tpr, ppv = 3 / 3, 3 / 5
    assert detection_metrics(reference, prediction) == pytest.approx(
        {
            "lesion_tpr": tpr,
            "lesion_ppv": ppv,
            "lesion_fpr": 2 / 5,
            "lesion_dice": 2 * tpr * ppv / (tpr + ppv),
            "lesion_f1": 2 * 3 / (2 * 3 + 0 + 2),
            "nerd_lesion_dice": 2 * 3 / (3 + 5),
            "nerd_lesion_ppv": 3 / 5,
            "lesions_reference": 3,
            "lesions_prediction": 5,
            "lesions_missed": 0,
            "lesions_false": 2,
            "lesion_count_difference": 2,
        }
    )


def test_one_that_bridges_two():
    found = detection_metrics(image((0, 10), (20, 30)), image((5, 25)))
    assert (found["lesion_tpr"], found["lesion_ppv"], found["lesion_dice"], found["lesion_f1"]) == (1, 1, 1, 1)
    assert (found["nerd_lesion_dice"], found["nerd_lesion_ppv"]) == (pytest.approx(2 * 2 / 3), 2)
    assert found["lesion_count_difference"] == 1
    found = detection_metrics(image((5, 25)), image((0, 10), (20, 30)))
    assert (found["lesion_f1"], found["nerd_lesion_dice"], found["nerd_lesion_ppv"]) == (1, pytest.approx(2 / 3), 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_detection_as_simpleitk_counts(seed):
    """The challenge's definitions once more, with another labelling: its components, fully connected."""
    rng = np.random.default_rng(seed)
    masks = [rng.random((12, 13, 14)) < 0.06 for _ in range(2)]
    filters = [sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True) for mask in masks]
    reference, prediction = (sitk.GetArrayFromImage(image) for image in filters)
    found = detection_metrics(*masks)
    hit = len({*reference[masks[1]].tolist()} - {0})
    true = len({*prediction[masks[0]].tolist()} - {0})
    assert (found["lesions_reference"], found["lesions_prediction"]) == (reference.max(), prediction.max())
    assert found["lesion_tpr"] == pytest.approx(hit / reference.max())
    assert found["lesion_ppv"] == pytest.approx(true / prediction.max())
    assert 0 < hit < reference.max()
    false = prediction.max() - true
    assert found["lesion_f1"] == pytest.approx(hit / (hit + (reference.max() - hit + false) / 2))
    assert found["nerd_lesion_dice"] == pytest.approx(2 * hit / (reference.max() + prediction.max()))
    assert found["nerd_lesion_ppv"] == pytest.approx(hit / prediction.max())
    assert found["lesion_count_difference"] == abs(int(reference.max()) - int(prediction.max()))


def test_panoptic_quality_by_hand():
    """Intersections over unions of 8/10 and 2/18: from 0.5 on one lesion is recognised, from 0.1 on two."""
    reference, prediction = image((0, 10), (20, 30)), image((0, 8), (28, 38), (50, 51))
    found = panoptic_metrics(reference, prediction, 0.5)
    assert found == pytest.approx(
        {"recognition_quality": 2 / 5, "segmentation_quality": 0.8, "panoptic_quality": 2 * 0.8 / 5}
    )
    found = panoptic_metrics(reference, prediction, 0.1)
    assert found["recognition_quality"] == pytest.approx(4 / 5)
    assert found["segmentation_quality"] == pytest.approx((0.8 + 2 / 18) / 2)


def test_of_two_matches_the_better_counts():
    """10 voxels of the reference, found in pieces of 6 and 3: both would match, one may."""
    found = panoptic_metrics(image((0, 10)), image((0, 6), (7, 10)), 0.1)
    assert found["segmentation_quality"] == pytest.approx(0.6)
    assert found["recognition_quality"] == pytest.approx(2 / 3)


# Of panoptica 2.1.7: Panoptica_Evaluator(InputType.SEMANTIC, ConnectedComponentsInstanceApproximator(),
# NaiveThresholdMatching(Metric.IOU, threshold)), by seed and threshold: numbers of lesions, and qualities.
PANOPTICA = {
    (0, 0.1): (39, 40, 0.734177, 0.436464, 0.320442),
    (0, 0.5): (39, 40, 0.253165, 0.687143, 0.17396),
    (1, 0.1): (41, 37, 0.769231, 0.41051, 0.315777),
    (1, 0.5): (41, 37, 0.205128, 0.632761, 0.129797),
    (2, 0.1): (37, 30, 0.597015, 0.443476, 0.264762),
    (2, 0.5): (37, 30, 0.238806, 0.62566, 0.149411),
    (3, 0.1): (35, 34, 0.637681, 0.393595, 0.250988),
    (3, 0.5): (35, 34, 0.144928, 0.656598, 0.095159),
}


@pytest.mark.parametrize(("seed", "threshold"), PANOPTICA)
def test_panoptic_quality_as_panoptica_has_it(seed, threshold):
    rng = np.random.default_rng(seed)
    base = gaussian_filter(rng.standard_normal((24, 26, 28)), 1.5)
    masks = [base + gaussian_filter(rng.standard_normal(base.shape), 1.5) * 0.35 > 0.13 for _ in range(2)]
    numbers = detection_metrics(*masks)
    found = panoptic_metrics(*masks, threshold)
    values = [numbers["lesions_reference"], numbers["lesions_prediction"], *found.values()]
    assert values == pytest.approx(PANOPTICA[seed, threshold], abs=1e-6)


def test_panoptic_quality_in_empty_masks():
    assert all(math.isnan(value) for value in panoptic_metrics(image(), image(), 0.5).values())
    for pair in ((image((0, 3)), image()), (image(), image((0, 3)))):
        found = panoptic_metrics(*pair, 0.5)
        assert math.isnan(found["segmentation_quality"])
        assert (found["recognition_quality"], found["panoptic_quality"]) == (0, 0)


def test_missed_lesions():
    found = detection_metrics(image((0, 2), (10, 12), (20, 22), (30, 32)), image((10, 11)))
    assert found["lesion_tpr"] == 1 / 4
    assert found["lesions_missed"] == 3
    assert found["lesion_dice"] == pytest.approx(2 * 0.25 / 1.25)


def test_lesions_that_touch_by_a_corner_are_one():
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 1, 0] = True
    assert detection_metrics(mask, mask)["lesions_reference"] == 1


def test_nearness_is_no_match():
    found = detection_metrics(image((0, 5)), image((5, 9)))
    assert (found["lesion_tpr"], found["lesion_ppv"], found["lesion_fpr"], found["lesion_dice"]) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    ("reference", "prediction", "defined"),
    [
        (image(), image(), {"lesion_count_difference": 0}),
        (image((0, 3)), image(), {"lesion_tpr": 0, "lesion_dice": 0, "lesion_f1": 0, "lesion_count_difference": 1}),
        (
            image(),
            image((0, 3)),
            {"lesion_ppv": 0, "lesion_fpr": 1, "lesion_dice": 0, "lesion_f1": 0, "lesion_count_difference": 1},
        ),
    ],
    ids=["both empty", "prediction empty", "reference empty"],
)
def test_detection_in_empty_masks(reference, prediction, defined):
    found = detection_metrics(reference, prediction)
    ratios = {name: value for name, value in found.items() if name.startswith("lesion_")}
    assert {name: value for name, value in ratios.items() if not math.isnan(value)} == defined


RULE = BratsRule(dilation=1, volume=2)


def test_brats_by_hand():
    """One lesion half found, one missed, one false positive, one lesion too small to count."""
    reference = image((0, 8), (20, 26), (40, 42))
    prediction = image((0, 4), (54, 55))
    found = brats_metrics(reference, prediction, (1, 1, 1), RULE)
    assert found["brats_dice"] == pytest.approx((2 * 4 / 12 + 0 + 0) / 3)
    # The half that is not found is 0 to 4 mm away, its far end less than 5 % of the surface.
    assert found["brats_hd95"] == pytest.approx((3 + BRATS_PENALTY_MM + BRATS_PENALTY_MM) / 3)
    assert (found["brats_found"], found["brats_missed"], found["brats_false"]) == (1, 1, 1)


def test_brats_joins_lesions_that_meet_when_dilated():
    reference, prediction = image((0, 4), (6, 10)), image((0, 4))
    joined = brats_metrics(reference, prediction, (1, 1, 1), BratsRule(1, 2))
    assert (joined["brats_found"], joined["brats_dice"]) == (1, pytest.approx(8 / 12))
    apart = brats_metrics(image((0, 4), (8, 12)), prediction, (1, 1, 1), BratsRule(1, 2))
    assert (apart["brats_found"], apart["brats_missed"], apart["brats_dice"]) == (1, 1, 0.5)


def test_brats_matches_what_touches_the_dilation():
    """A piece beside the lesion is no false positive, and counts as its segmentation."""
    reference = image((10, 20))
    near = brats_metrics(reference, image((10, 19), (20, 21)), (1, 1, 1), RULE)
    assert (near["brats_false"], near["brats_dice"]) == (0, pytest.approx(2 * 9 / (10 + 10)))
    far = brats_metrics(reference, image((10, 19), (22, 23)), (1, 1, 1), RULE)
    assert (far["brats_false"], far["brats_dice"]) == (1, pytest.approx(2 * 9 / 19 / 2))


def test_brats_dilates_by_faces_and_edges():
    lesion, beside, corner = (np.zeros((7, 7, 7), bool) for _ in range(3))
    lesion[3, 3, 3] = beside[3, 4, 4] = corner[4, 4, 4] = True
    rule = BratsRule(dilation=1, volume=0)
    assert brats_metrics(lesion, beside, (1, 1, 1), rule)["brats_false"] == 0
    assert brats_metrics(lesion, corner, (1, 1, 1), rule)["brats_false"] == 1


def test_what_touches_a_lesion_too_small_to_count_is_no_false_positive():
    found = brats_metrics(image((10, 12)), image((10, 30)), (1, 1, 1), RULE)
    assert found == {"brats_dice": 1, "brats_hd95": 0, "brats_found": 0, "brats_missed": 0, "brats_false": 0}


def test_brats_thresholds_volume_not_voxels():
    found = brats_metrics(image((10, 12)), image(), (1, 1, 1.5), RULE)
    assert (found["brats_missed"], found["brats_dice"], found["brats_hd95"]) == (1, 0, BRATS_PENALTY_MM)


def test_brats_of_nothing_is_perfect():
    found = brats_metrics(image(), image(), (1, 1, 1), RULE)
    assert (found["brats_dice"], found["brats_hd95"]) == (1, 0)
    found = brats_metrics(image(), image((0, 3)), (1, 1, 1), RULE)
    assert (found["brats_dice"], found["brats_hd95"], found["brats_false"]) == (0, BRATS_PENALTY_MM, 1)


def test_brats_in_2d():
    reference, prediction = image((0, 8), (20, 26))[3], image((0, 8))[3]
    assert brats_metrics(reference, prediction, (1, 1), RULE)["brats_dice"] == 0.5
