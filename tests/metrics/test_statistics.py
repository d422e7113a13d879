import math

import numpy as np
import pytest
from scipy import stats

from nnunet_deconver.metrics.statistics import (
    RESAMPLES,
    SMALLEST_P,
    bootstrap_means,
    compare_trainings,
    interval,
    summarize,
)


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


def trained(rng, seeds, folds, cases, *, of_case=0.0, of_training=0.0, of_both=0.0, base=None):
    """Values (seeds, cases) of a model: what a case adds, what a training adds to its fold, what both add together."""
    base = rng.normal(0, 1, folds * cases) if base is None else base
    training = np.repeat(rng.normal(0, of_training, (seeds, folds)), cases, axis=1)
    noise = rng.normal(0, of_both, (seeds, folds * cases))
    return base + rng.normal(0, of_case, folds * cases) + training + noise


def folds_of(folds, cases):
    return np.repeat(np.arange(folds), cases)


def test_trainings_are_compared_by_hand():
    values = np.array([[1.0, 2.0, 3.0, math.nan], [3.0, 2.0, 7.0, 5.0]])
    reference = np.array([[1.0, 1.0, 4.0, 2.0]])
    found = compare_trainings(values, reference, np.array([0, 0, 1, 2]))
    assert (found.cases, found.undefined, found.folds, found.seeds, found.seeds_reference) == (3, 1, 2, 2, 1)
    assert (found.mean, found.mean_reference, found.difference) == pytest.approx((3, 2, 1))
    assert found.seeds_std == pytest.approx(math.sqrt(2))  # of the means 2 and 4
    assert math.isnan(found.seeds_std_reference)
    assert found.low <= 1 <= found.high


def test_without_seeds_to_draw_it_is_the_paired_t_interval():
    rng = np.random.default_rng(4)
    first, second = trained(rng, 1, 1, 15), trained(rng, 1, 1, 15)
    differences = (first - second)[0]
    expected = stats.ttest_1samp(differences, 0)
    interval_of_t = expected.confidence_interval(0.95)
    found = compare_trainings(first, second, folds_of(1, 15))
    width = interval_of_t.high - interval_of_t.low
    assert found.low == pytest.approx(interval_of_t.low, abs=0.06 * width)
    assert found.high == pytest.approx(interval_of_t.high, abs=0.06 * width)
    assert found.p == pytest.approx(expected.pvalue, abs=0.03)


def test_two_cases_by_hand():
    """One of the two is drawn, 1 or 3, so the mean is off by 1; divided by |Z|, for its one degree of freedom."""
    found = compare_trainings(np.array([[1.0, 3.0]]), np.zeros((1, 2)), np.zeros(2, int))
    expected = 1 / stats.norm.ppf(0.525)
    assert (found.low, found.high) == pytest.approx((2 - expected, 2 + expected), rel=0.1)


def test_the_variance_is_that_of_cases_and_of_trainings():
    """With many seeds the interval is 1.96 standard errors to each side, of the sum of both variances."""
    rng, seeds, folds, cases = np.random.default_rng(5), 40, 5, 60
    base = rng.normal(0, 1, folds * cases)
    first, second = (trained(rng, seeds, folds, cases, of_case=0.1, of_training=0.3, base=base) for _ in range(2))
    found = compare_trainings(first, second, folds_of(folds, cases))
    differences = first.mean(axis=0) - second.mean(axis=0)
    of_cases = differences.var(ddof=1) / (folds * cases)
    of_fold = [model.reshape(seeds, folds, cases).mean(axis=2).var(axis=0, ddof=1) for model in (first, second)]
    of_trainings = sum(variances.sum() / folds**2 / seeds for variances in of_fold)
    assert of_trainings > 2 * of_cases  # so that either is seen
    error = math.sqrt(of_cases + of_trainings)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.04)


def test_of_two_seeds_the_variance_is_not_halved():
    """The mean of two seeds varies by half the variance between them, which is half of their squared difference."""
    first = np.random.default_rng(6).random(50) < 0.5  # which of a fold's two seeds has the 1, the other has a 0
    values = np.stack([first, ~first])[:, folds_of(50, 8)].astype(float)
    found = compare_trainings(values, np.zeros((1, 400)), folds_of(50, 8))
    # The mean of each fold has the variance 1/4, their mean a fiftieth of it; one degree of freedom a fold.
    expected = stats.t.ppf(0.975, 50) * math.sqrt(1 / 4 / 50)
    assert (found.low, found.high) == pytest.approx((0.5 - expected, 0.5 + expected), rel=0.05)


@pytest.mark.parametrize(
    ("seeds", "folds", "cases", "noise"),
    [
        (2, 5, 12, {"of_case": 0.3, "of_training": 0.3}),
        (2, 5, 12, {"of_case": 0.3, "of_training": 0.2, "of_both": 0.3}),
        (2, 1, 40, {"of_case": 0.3, "of_training": 0.3}),
        (3, 1, 40, {"of_case": 0.3, "of_training": 0.3}),
    ],
    ids=["folds", "and noise of cases", "one ensemble a seed", "three"],
)
def test_the_interval_covers_other_cases_and_trainings(seeds, folds, cases, noise):
    rng, studies = np.random.default_rng(7), 800
    covered = with_one = 0
    for _ in range(studies):
        base = rng.normal(0, 1, folds * cases)
        first, second = (trained(rng, seeds, folds, cases, base=base, **noise) for _ in range(2))
        found = compare_trainings(first, second, folds_of(folds, cases), resamples=500)
        covered += found.low <= 0 <= found.high
        one = compare_trainings(first[:1], second[:1], folds_of(folds, cases), resamples=500)
        with_one += one.low <= 0 <= one.high
    assert 0.925 <= covered / studies <= 0.985
    assert with_one / studies < 0.85  # cases alone miss what trainings add


def test_p_is_uniform_where_models_are_alike():
    rng, ps = np.random.default_rng(8), []
    for _ in range(400):
        base = rng.normal(0, 1, 60)
        noise = {"of_case": 0.3, "of_training": 0.3, "base": base}
        ps.append(
            compare_trainings(*(trained(rng, 2, 5, 12, **noise) for _ in range(2)), folds_of(5, 12), resamples=500).p
        )
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(ps) <= level) == pytest.approx(level, abs=0.3 * level + 0.02)


def test_cases_are_paired():
    rng = np.random.default_rng(9)
    base = rng.normal(0, 1, 50)
    first = trained(rng, 2, 5, 10, of_both=0.01, base=base)
    second = trained(rng, 2, 5, 10, of_both=0.01, base=base) - 0.02
    paired = compare_trainings(first, second, folds_of(5, 10))
    assert paired.p == SMALLEST_P
    assert paired.high - paired.low < 0.02
    shuffled = compare_trainings(first, second[:, rng.permutation(50)], folds_of(5, 10))
    assert shuffled.difference == pytest.approx(paired.difference)
    assert shuffled.p > 0.5
    assert shuffled.high - shuffled.low > 20 * (paired.high - paired.low)


def test_alike_models_do_not_differ():
    values = trained(np.random.default_rng(10), 1, 5, 10)
    found = compare_trainings(values, values + 1e-16, folds_of(5, 10))
    assert (found.difference, found.low, found.high, found.p) == (pytest.approx(0, abs=1e-12), 0, 0, 1)
    several = trained(np.random.default_rng(10), 3, 5, 10, of_training=0.1)
    found = compare_trainings(several, several, folds_of(5, 10))
    assert found.difference == 0
    assert found.low < 0 < found.high  # alike by chance: other trainings of them may differ
    assert found.p > 0.9


def test_swapping_the_models_mirrors_the_difference():
    rng = np.random.default_rng(11)
    first, second = trained(rng, 2, 5, 10, of_training=0.1), trained(rng, 3, 5, 10, of_training=0.2)
    found, swapped = (compare_trainings(*pair, folds_of(5, 10)) for pair in ((first, second), (second, first)))
    assert swapped.difference == -found.difference
    assert (swapped.seeds, swapped.seeds_reference) == (found.seeds_reference, found.seeds)
    assert swapped.high == pytest.approx(-found.low, rel=0.1)
    assert swapped.p == pytest.approx(found.p, abs=0.05)


def test_the_order_of_seeds_matters_no_more_than_chance():
    rng = np.random.default_rng(12)
    first, second = (trained(rng, 3, 5, 10, of_training=0.2) for _ in range(2))
    found = compare_trainings(first, second, folds_of(5, 10))
    other = compare_trainings(first[::-1], second[[2, 0, 1]], folds_of(5, 10))
    assert other.difference == pytest.approx(found.difference)
    assert (other.low, other.high) == pytest.approx((found.low, found.high), abs=0.05 * (found.high - found.low))


def test_too_few_cases_have_no_interval():
    one = compare_trainings(np.array([[1.0], [2.0]]), np.array([[0.0]]), np.zeros(1, int))
    assert (one.cases, one.difference) == (1, 1.5)
    assert np.isnan([one.low, one.high, one.p]).all()
    none = compare_trainings(np.array([[math.nan]]), np.array([[0.0]]), np.zeros(1, int))
    assert (none.cases, none.undefined) == (0, 1)
    assert math.isnan(none.difference)
