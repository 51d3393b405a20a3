"""Statistics against closed forms, hand numbers and scipy (an independent reference; not a dependency)."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from zerozoo.runs.statistics import (
    Interval,
    bootstrap_interval,
    hierarchical_bootstrap,
    interquartile_mean,
    mean_interval,
    paired_difference,
    proportion_interval,
    student_quantile,
)

scipy_stats = pytest.importorskip("scipy.stats")


def test_interval_contains_both_ends() -> None:
    interval = Interval(0.5, 0.0, 1.0)
    assert interval.contains(0.0)
    assert interval.contains(1.0)
    assert not interval.contains(-1e-12)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 8, 9, 30, 31, 1000])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_student_quantile_is_scipys(df: int, level: float) -> None:
    assert student_quantile(level, df) == pytest.approx(scipy_stats.t.ppf((1 + level) / 2, df), rel=1e-10)


def test_student_quantile_closed_forms() -> None:
    # df 1 is Cauchy: tan(pi level / 2). df 2: level = t / sqrt(t^2 + 2), solved for t.
    assert student_quantile(0.95, 1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-10)
    assert student_quantile(0.95, 2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-10)


def test_mean_interval_by_hand() -> None:
    # mean 2, s = 1, t_2 = 4.30265: half width 4.30265 / sqrt(3) = 2.48414
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.value == 2.0
    assert interval.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert interval.high == pytest.approx(2 + 2.484138, abs=1e-6)


def test_mean_interval_is_scipys() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=12)
    low, high = scipy_stats.t.interval(0.9, 11, values.mean(), scipy_stats.sem(values))
    interval = mean_interval(values, level=0.9)
    assert (interval.low, interval.high) == pytest.approx((low, high))


def test_one_value_bounds_nothing() -> None:
    assert mean_interval([0.7]) == Interval(0.7, -math.inf, math.inf)


def test_equal_values_have_width_zero() -> None:
    # 0.1 + 0.1 + 0.1 is not 0.3 in binary: the mean must not drift off the value.
    assert mean_interval([0.1] * 3) == Interval(0.1, 0.1, 0.1)


def test_paired_difference_is_scipys_paired_test() -> None:
    a, b = np.array([0.71, 0.64, 0.69, 0.75]), np.array([0.62, 0.61, 0.55, 0.70])
    reference = scipy_stats.ttest_rel(a, b).confidence_interval(0.95)
    interval = paired_difference(a, b)
    assert interval.value == pytest.approx(0.0775)
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high))


def test_pairing_cancels_what_the_seed_does_to_both() -> None:
    seed_effect = np.array([0.0, 10.0, -20.0])
    interval = paired_difference(seed_effect + 1.0, seed_effect)
    assert interval == Interval(1.0, 1.0, 1.0)


def test_three_seeds_bootstrap_covers_75_percent_and_student_95() -> None:
    """The reason why the claims use Student's t: closed form 1 - 2 (1/2)^3 against the nominal level."""
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    covered = [mean_interval(row).contains(0.0) for row in draws]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # four standard errors
    for row in draws[:3]:
        interval = bootstrap_interval(row, resamples=2000)
        assert (interval.low, interval.high) == pytest.approx((row.min(), row.max()))
    in_range = (draws.min(axis=1) <= 0) & (draws.max(axis=1) >= 0)
    assert np.mean(in_range) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (417, 500), (1, 1)])
def test_proportion_is_scipys_wilson(successes: int, n: int) -> None:
    reference = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    interval = proportion_interval(successes, n)
    assert interval.value == successes / n
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_proportion_at_the_ends() -> None:
    # k = 0: the upper end is z^2 / (n + z^2) with z^2 = 3.841459
    interval = proportion_interval(0, 10)
    assert interval.low == 0.0
    assert interval.high == pytest.approx(3.841459 / 13.841459, abs=1e-6)
    assert proportion_interval(500, 500).high == 1.0


def test_bootstrap_is_the_exact_one_on_a_small_sample() -> None:
    """All 4^4 resamples of four values, counted out, against the drawn ones."""
    values = np.array([0.0, 1.0, 3.0, 7.0])
    exact = np.array([np.mean(choice) for choice in product(values, repeat=4)])
    interval = bootstrap_interval(values, level=0.8, resamples=40_000)
    assert interval.value == values.mean()
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(exact, [0.1, 0.9])), abs=0.25)


@pytest.mark.parametrize("statistic", [np.mean, interquartile_mean])
def test_bootstrap_agrees_with_scipy(statistic) -> None:
    values = np.random.default_rng(3).exponential(size=60)
    reference = scipy_stats.bootstrap(
        (values,), statistic, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    interval = bootstrap_interval(values, statistic, resamples=20_000)
    assert interval.value == pytest.approx(statistic(values))
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=0.02)


def test_bootstrap_of_a_median_is_the_exact_one() -> None:
    """The median of 15 draws is at most the k-th smallest value iff at least 8 draws are: a binomial."""
    values = np.random.default_rng(7).permutation(np.arange(15.0))
    below = scipy_stats.binom.sf(7, 15, np.arange(1, 16) / 15)  # P(median <= k-th smallest), k = 1..15
    interval = bootstrap_interval(values, np.median, level=0.9, resamples=20_000)
    assert interval.value == 7.0
    assert (interval.low, interval.high) == (np.searchsorted(below, 0.05), np.searchsorted(below, 0.95))


def test_bootstrap_is_deterministic_and_seeded() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


def test_bootstrap_in_blocks_has_all_resamples(monkeypatch) -> None:
    monkeypatch.setattr("zerozoo.runs.statistics.NUMBERS_AT_ONCE", 7)
    interval = bootstrap_interval([0.0, 1.0, 2.0], level=0.9, resamples=1001)
    assert (interval.low, interval.high) == pytest.approx((1 / 3, 5 / 3))


def test_hierarchical_nested_spread_is_the_closed_form() -> None:
    """Var = var_seeds / S + mean var_items / (S n), both with divisor n, as the bootstrap's own moments."""
    random = np.random.default_rng(2)
    table = random.normal(size=(6, 1)) + random.normal(size=(6, 40))
    seeds, items = table.shape
    variance = table.mean(axis=1).var() / seeds + table.var(axis=1).mean() / (seeds * items)
    interval = hierarchical_bootstrap(list(table), level=0.6827, resamples=40_000)
    assert interval.value == pytest.approx(table.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(math.sqrt(variance), rel=0.04)


def test_hierarchical_shared_items_do_not_average_away() -> None:
    """Four seeds with the same right and wrong answers carry no more than one of them."""
    answers = np.array([1.0] * 30 + [0.0] * 20)
    same = [answers] * 4
    shared = hierarchical_bootstrap(same, shared_items=True)
    nested = hierarchical_bootstrap(same)
    one = bootstrap_interval(answers)
    assert (shared.low, shared.high) == pytest.approx((one.low, one.high), abs=0.021)  # one item is 0.02
    assert nested.high - nested.low == pytest.approx((one.high - one.low) / 2, abs=0.03)


def test_hierarchical_shared_spread_without_items_is_the_seeds() -> None:
    rows = [[0.2] * 5, [0.4] * 5, [0.9] * 5]
    shared = hierarchical_bootstrap(rows, shared_items=True)
    assert (shared.low, shared.high) == pytest.approx((0.2, 0.9))
    assert shared == hierarchical_bootstrap(rows, shared_items=True)


def test_hierarchical_takes_ragged_seeds_with_equal_weight() -> None:
    assert hierarchical_bootstrap([[1.0], [0.0] * 99]).value == 0.5
    with pytest.raises(ValueError, match="equally many"):
        hierarchical_bootstrap([[1.0], [0.0, 0.0]], shared_items=True)
    with pytest.raises(ValueError, match="at least one seed"):
        hierarchical_bootstrap([])


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
def test_interquartile_mean_is_scipys_trimmed_mean(n: int) -> None:
    values = np.random.default_rng(n).normal(size=(3, n))
    assert interquartile_mean(values) == pytest.approx(scipy_stats.trim_mean(values, 0.25, axis=-1))


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean([100.0, 1.0, 2.0, -50.0]) == 1.5
    assert interquartile_mean([[0.0, 4.0], [2.0, 8.0]], axis=0) == pytest.approx([1.0, 6.0])
    with pytest.raises(ValueError, match="nothing"):
        interquartile_mean([])


@pytest.mark.parametrize("function", [mean_interval, bootstrap_interval])
@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [1.0, float("inf")], [[1.0]]])
def test_bad_values_are_refused(function, values) -> None:
    with pytest.raises(ValueError, match="values must be"):
        function(values)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="successes"):
        proportion_interval(3, 2)
    with pytest.raises(ValueError, match="level"):
        mean_interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="df"):
        student_quantile(0.95, 0)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_interval([1.0, 2.0], resamples=0)
