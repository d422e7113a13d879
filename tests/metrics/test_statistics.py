import math

import numpy as np
import pytest

from nnunet_deconver.metrics.statistics import RESAMPLES, bootstrap_means, interval, summarize


def cases(*columns):
    """Cases with a metric "m" of classes "a", "b" ... whose values over cases the columns are."""
    return [
        {name: {"m": value} for name, value in zip("ab", values, strict=False)} for values in zip(*columns, strict=True)
    ]


def test_statistics_by_hand():
    found = summarize(cases([1.0, 2.0, 6.0, math.nan]), ["a"], ["m"])[0]["a"]["m"]
    assert (found["mean"], found["median"], found["n"], found["undefined"]) == (3, 2, 3, 1)
    assert found["std"] == pytest.approx(math.sqrt(7))


def test_the_interval_is_that_of_the_mean():
    """For many cases, the bootstrap interval is 1.96 standard errors to each side."""
    values = np.random.default_rng(1).normal(0.8, 0.1, 400)
    low, high = summarize(cases(values), ["a"], ["m"])[0]["a"]["m"]["ci95"]
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_the_same_numbers_every_time():
    values = np.random.default_rng(2).random((9, 1, 1))
    np.testing.assert_array_equal(bootstrap_means(values), bootstrap_means(values))
    assert len(bootstrap_means(values)) == RESAMPLES


def test_the_foreground_mean_is_the_mean_of_class_means():
    _, foreground = summarize(cases([1.0, 3.0], [4.0, math.nan]), ["a", "b"], ["m"])
    assert foreground["m"]["mean"] == (2 + 4) / 2


def test_classes_of_a_case_are_drawn_together():
    """Where two classes mirror each other, their mean does not vary."""
    values = np.random.default_rng(3).random(20)
    by_class, foreground = summarize(cases(values, 1 - values), ["a", "b"], ["m"])
    assert foreground["m"]["ci95"] == pytest.approx([0.5, 0.5])
    low, high = by_class["a"]["m"]["ci95"]
    assert high - low > 0.1


def test_nothing_defined():
    by_class, foreground = summarize(cases([math.nan, math.nan]), ["a"], ["m"])
    found = by_class["a"]["m"]
    assert (found["n"], found["undefined"]) == (0, 2)
    assert math.isnan(found["mean"])
    assert np.isnan([*found["ci95"], foreground["m"]["mean"], *foreground["m"]["ci95"]]).all()
    assert np.isnan(interval(np.array([math.nan]))).all()
