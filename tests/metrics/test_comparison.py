import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from nnunet_deconver.metrics.cases import EvaluationError
from nnunet_deconver.metrics.comparison import (
    MEAN,
    Evaluation,
    case_values,
    common_cases,
    compare,
    holm,
    wilcoxon,
)
from nnunet_deconver.metrics.definitions import like


def evaluation(name, classes=("organ",), settings=None, **cases):
    """Values of the metric "m" of each class, by case."""
    values = {
        case: {(of, "m"): value for of, value in zip(classes, np.atleast_1d(numbers), strict=True)}
        for case, numbers in cases.items()
    }
    return Evaluation(
        name, values, {"classes": {of: [1] for of in classes}, "settings": settings, "ignore_label": None}
    )


def over_cases(name, values, **options):
    return evaluation(name, **{f"case_{index:02}": value for index, value in enumerate(values)}, **options)


def test_differences_by_hand():
    first, second = over_cases("a", [1.0, 2.0, 3.0, math.nan]), over_cases("b", [2.0, 2.0, 7.0, 1.0])
    (found,) = compare([first, second], common_cases([first, second])[0], ["m"])
    assert (found.metric, found.of, found.first, found.second, found.n) == ("m", "organ", "a", "b", 3)
    assert (found.mean_first, found.difference, found.median) == pytest.approx((2, 5 / 3, 1))
    assert found.mean_second == pytest.approx(11 / 3)
    assert found.low <= found.difference <= found.high


def test_pairing_sees_what_means_hide():
    """A small gain in every case is certain, however much cases differ."""
    values = np.random.default_rng(0).uniform(0.3, 0.9, 30)
    first, second = over_cases("a", values), over_cases("b", values + 0.01)
    (found,) = compare([first, second], sorted(first.values), ["m"])
    assert found.p < 1e-4
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))


def test_wilcoxon_by_hand():
    """Of five differences of one sign, the two-sided exact p is 2 / 2^5; of six, 2 / 2^6."""
    assert wilcoxon(np.arange(1.0, 6)) == pytest.approx(2 / 32)
    assert wilcoxon(-np.arange(1.0, 7)) == pytest.approx(2 / 64)
    assert wilcoxon(np.zeros(9)) == 1


def test_wilcoxon_takes_rounding_for_no_difference():
    assert wilcoxon(np.full(9, 1e-17)) == 1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert holm([0.6, 0.5]) == [1, 1]


def test_the_correction_is_for_all_comparisons_of_a_metric():
    classes = ("organ", "lesion")
    rng = np.random.default_rng(1)
    evaluations = [over_cases(name, rng.normal(size=(12, 2)), classes=classes) for name in "abc"]
    found = compare(evaluations, sorted(evaluations[0].values), ["m"])
    assert [(row.of, row.first, row.second) for row in found] == [
        (of, *pair) for of in (*classes, MEAN) for pair in ("ab", "ac", "bc")
    ]
    smallest = min(found, key=lambda row: row.p)
    assert smallest.p_holm == pytest.approx(min(1, 9 * smallest.p))


def test_the_mean_over_classes_is_of_each_case():
    found = case_values(evaluation("a", ("x", "y"), c=[1.0, 3.0], d=[math.nan, 5.0], e=[math.nan] * 2), "cde", "m")
    np.testing.assert_array_equal(found[MEAN], [2, 5, math.nan])
    assert list(case_values(evaluation("a", c=[1.0]), "c", "m")) == ["organ"]


def test_only_common_cases_count():
    cases, left_out = common_cases([evaluation("a", c=1, d=1, e=1), evaluation("b", d=1, e=1)])
    assert (cases, left_out) == (["d", "e"], {"a": ["c"]})
    with pytest.raises(EvaluationError, match="a, b: have no case in common"):
        common_cases([evaluation("a", c=1), evaluation("b", d=1)])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (evaluation("b", ("liver",), c=1), "a and b were evaluated with different classes"),
        (
            evaluation("b", settings={"surface": "voxels"}, c=1),
            "different settings: {'surface': 'area'} and {'surface': 'voxels'}",
        ),
    ],
)
def test_what_was_measured_differently_is_not_compared(other, message):
    with pytest.raises(EvaluationError, match=message):
        common_cases([evaluation("a", c=1), other])


def test_evaluations_of_an_earlier_version_and_those_like_a_paper_are_compared():
    earlier = evaluation("a", settings={"surface": "voxels", "empty": "best"}, c=1)
    now = evaluation("b", settings=json.loads(json.dumps(asdict(like("deconver")))), c=1)
    assert common_cases([earlier, now])[0] == ["c"]


def test_a_class_that_no_case_defines():
    first, second = over_cases("a", [math.nan, math.nan]), over_cases("b", [1.0, 1.0])
    (found,) = compare([first, second], sorted(first.values), ["m"])
    assert found.n == 0
    assert math.isnan(found.p_holm)
