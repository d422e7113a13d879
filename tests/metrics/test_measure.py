import math

import numpy as np
import pytest

from nnunet_deconver.errors import InputError
from nnunet_deconver.metrics.definitions import PRACTICES, Settings, like
from nnunet_deconver.metrics.lesions import BRATS_PENALTY_MM
from nnunet_deconver.metrics.measure import measure
from nnunet_deconver.metrics.measurements import metrics
from nnunet_deconver.metrics.probability import probability_metrics

CLASSES = {"organ": (1,), "lesion": (2,)}
ALL = {"lesions": True, "brats": "MET", "tolerances": (0.5, 2.0), "far": (1.0, 5.0), "panoptic": 0.5}


def by_metric(values, name):
    return {value.metric: value.value for value in values if value.name == name}


def labels(**spans):
    image = np.zeros((10, 10, 12), np.int32)
    for label, (start, stop) in spans.items():
        image[2:6, 2:6, start:stop] = int(label[1:])
    return image


def test_every_metric_of_every_class_in_the_order_of_definitions():
    for rank, settings in [(3, Settings(**ALL)), (2, Settings(**ALL, unit="px")), (3, Settings(surface="voxels"))]:
        image = labels(_1=(2, 6))
        image = image if rank == 3 else image[3]
        values = measure(image, image, (1.0,) * rank, CLASSES, None, settings)
        expected = [(name, metric) for name in CLASSES for metric in metrics(settings, rank)]
        assert [(value.name, value.metric) for value in values] == expected


def test_a_perfect_prediction_has_the_ideal_values():
    image = labels(_1=(2, 6))
    found = by_metric(measure(image, image, (1, 2, 3), CLASSES, None, Settings(**ALL)), "organ")
    ideals = {name: metric.ideal for name, metric in metrics(Settings(**ALL)).items() if metric.ideal is not None}
    assert {name: found[name] for name in ideals} == ideals


def test_both_empty():
    image = labels(_1=(2, 6))
    table = metrics(Settings(**ALL))
    undefined = by_metric(measure(image, image, (1, 1, 1), CLASSES, None, Settings(**ALL)), "lesion")
    for name, value in undefined.items():
        counted = table[name].unit in ("mm^3", "lesions", "voxels") or name.startswith("brats")
        assert math.isnan(value) is not counted, name
    best = by_metric(measure(image, image, (1, 1, 1), CLASSES, None, Settings(empty="best", **ALL)), "lesion")
    assert best == {name: 0 if metric.ideal is None else metric.ideal for name, metric in table.items()}


@pytest.mark.parametrize(
    ("one_empty", "distance"), [("diagonal", math.hypot(10, 10, 24)), ("nan", math.nan), (374.0, 374.0)]
)
@pytest.mark.parametrize("empty", ["nan", "best"])
def test_one_empty(one_empty, distance, empty):
    settings = Settings(one_empty=one_empty, empty=empty, **ALL)
    for pair, note in [((labels(_2=(2, 6)), labels()), "prediction"), ((labels(), labels(_2=(2, 6))), "reference")]:
        values = [value for value in measure(*pair, (1, 1, 2), CLASSES, None, settings) if value.name == "lesion"]
        assert {value.note for value in values} == {f"{note} empty"}
        found = by_metric(values, "lesion")
        for name, metric in metrics(settings).items():
            if metric.is_distance:
                assert found[name] == pytest.approx(distance, nan_ok=True), name
        assert [found[name] for name in ("dice", "jaccard", "nsd_0.5mm", "lesion_dice")] == [0, 0, 0, 0]
        undefined = "sensitivity" if note == "reference" else "precision"
        assert math.isnan(found[undefined])
        assert found["brats_hd95"] == BRATS_PENALTY_MM


def test_measured_in_a_box_as_in_the_whole_image():
    rng = np.random.default_rng(0)
    small = [np.pad(rng.integers(0, 3, (6, 5, 7)), 1).astype(np.int32) for _ in range(2)]
    large = [np.pad(image, ((9, 3), (0, 6), (2, 8))) for image in small]
    found = [measure(*pair, (1.5, 1, 0.5), CLASSES, None, Settings(**ALL)) for pair in (small, large)]
    for one, other in zip(*found, strict=True):
        assert one[:2] == other[:2]
        assert one.value == pytest.approx(other.value, nan_ok=True), one.metric


def test_regions_are_unions_of_labels():
    reference, prediction = labels(_1=(2, 4), _2=(4, 8)), labels(_1=(4, 8), _2=(2, 4))
    values = measure(reference, prediction, (1, 1, 1), {"whole": (1, 2), "core": (2,)}, None, Settings())
    assert by_metric(values, "whole")["dice"] == 1
    assert by_metric(values, "core")["dice"] == 0


def test_ignored_voxels_do_not_count():
    reference, prediction = labels(_1=(2, 6)), labels(_1=(2, 10))
    ignored = reference.copy()
    ignored[:, :, 6:] = 3
    assert by_metric(measure(reference, prediction, (1, 1, 1), CLASSES, 3, Settings(**ALL)), "organ")["dice"] < 1
    found = by_metric(measure(ignored, prediction, (1, 1, 1), CLASSES, 3, Settings(**ALL)), "organ")
    assert (found["dice"], found["hd"], found["volume_difference"], found["brats_dice"]) == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surface": "mesh"}, "surface: must be one of area, voxels, got mesh"),
        ({"empty": "zero"}, "empty: must be one of nan, best, got zero"),
        ({"brats": "WT"}, "brats: must be one of None, GLI, SSA, PED, MEN, MET, got WT"),
        ({"tolerances": (1.0, -1.0)}, "tolerance: must be a number of at least 0, got -1.0"),
        ({"tolerances": (math.nan,)}, "tolerance: must be a number of at least 0, got nan"),
        ({"panoptic": 0.0}, "panoptic: must be above 0 and at most 1, got 0.0"),
        ({"like": "x"}, "like: must be one of None, deconver, nerd"),
        ({"far": (-1.0,)}, "far: must be a number of at least 0, got -1.0"),
        ({"one_empty": "worst"}, "one_empty: must be diagonal, nan or a number, got worst"),
        ({"one_empty": -3.0}, "one_empty: must be a number of at least 0, got -3.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changes)


def test_probabilities_are_measured_over_all_voxels_that_count():
    reference, prediction = labels(_1=(2, 6), _3=(8, 12)), labels(_1=(2, 4))
    rng = np.random.default_rng(0)
    probabilities = {name: rng.random(reference.shape) for name in CLASSES}
    settings = Settings(probabilities=True)
    values = measure(reference, prediction, (1, 1, 1), CLASSES, 3, settings, probabilities)
    counts = reference != 3
    for name, (label,) in CLASSES.items():
        expected = probability_metrics((reference == label)[counts], probabilities[name][counts])
        found = by_metric(values, name)
        assert {metric: found[metric] for metric in expected} == pytest.approx(expected, nan_ok=True)
    # Even where nothing is, how sure a model is of that counts.
    assert by_metric(values, "lesion")["brier"] > 0.3
    assert math.isnan(by_metric(values, "lesion")["average_precision"])


@pytest.mark.parametrize("practice", PRACTICES)
def test_practices_are_settings(practice):
    settings = like(practice, far=(5.0,))
    assert settings.like == practice and settings.far == (5.0,)
    assert {name: getattr(settings, name) for name in PRACTICES[practice].settings} == PRACTICES[practice].settings


def test_a_practice_can_be_changed():
    assert like("deconver", surface="area") == Settings(surface="area", empty="best", like="deconver")
    with pytest.raises(InputError, match="like: must be one of None, deconver"):
        like("nobody")


def test_far_false_positives_are_counted_by_hand():
    """Along a line of voxels 1.5 mm apart: distances to any foreground, in mm, beyond and not at the limit."""
    reference = np.zeros((1, 1, 12), np.int32)
    reference[..., 0], reference[..., 1] = 1, 2
    prediction = np.zeros_like(reference)
    prediction[..., [1, 2, 4, 11]] = 1  # 0, 1.5, 4.5 and 15 mm from label 2
    prediction[..., 6] = 2
    settings = Settings(far=(0.0, 1.5, 4.5, 14.0))
    found = measure(reference, prediction, (1, 1, 1.5), CLASSES, None, settings)
    for name, counts in (("organ", (3, 2, 1, 1)), ("lesion", (1, 1, 1, 0))):
        values = by_metric(found, name)
        assert [values[f"false_positives_beyond_{limit}mm"] for limit in ("0", "1.5", "4.5", "14")] == list(counts)
        assert {metric for metric in values if "beyond" in metric} <= set(metrics(settings))
    assert not [
        value
        for value in measure(reference, prediction, (1, 1, 1.5), CLASSES, None, Settings())
        if "beyond" in value.metric
    ]


def test_without_a_reference_all_false_positives_are_far():
    reference, prediction = np.zeros((4, 4, 4), np.int32), np.zeros((4, 4, 4), np.int32)
    prediction[1, 1, 1:3] = 1
    found = by_metric(measure(reference, prediction, (1, 1, 1), CLASSES, None, Settings(far=(100.0,))), "organ")
    assert found["false_positives_beyond_100mm"] == 2


def test_an_ignored_label_is_no_foreground():
    reference, prediction = np.zeros((1, 1, 12), np.int32), np.zeros((1, 1, 12), np.int32)
    reference[..., 0], reference[..., 8:] = 1, 3
    prediction[..., 6] = prediction[..., 10] = 1
    found = by_metric(measure(reference, prediction, (1, 1, 1), CLASSES, 3, Settings(far=(3.0,))), "organ")
    assert found["false_positives_beyond_3mm"] == 1
