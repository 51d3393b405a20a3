"""Aggregates against closed forms, hand numbers and rliable (an independent reference; not a dependency)."""

from __future__ import annotations

import importlib
import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import scipy.stats

from zerozoo.runs import statistics
from zerozoo.runs.aggregates import (
    AGGREGATES,
    difference_interval,
    efficiency,
    improvement,
    iqm,
    max_min,
    mean,
    median,
    normalise,
    optimality_gap,
    profile,
    resample,
    stratified_interval,
)
from zerozoo.runs.statistics import Interval

WHY = "rliable is a reference for developers: pip install rliable"
SCORES = np.array([[0.1, 0.9, 0.4], [0.3, 1.2, 0.5], [0.2, 0.6, 0.9], [0.7, 0.8, 0.3]])  # (4 runs, 3 tasks)
OTHER = np.array([[0.2, 0.5, 0.4], [0.1, 0.9, 0.1], [0.6, 0.7, 0.2]])  # (3 runs, 3 tasks)


def test_aggregates_by_hand() -> None:
    assert mean(SCORES) == pytest.approx(6.9 / 12)
    # task means 0.325, 0.875, 0.525; the 12 scores without their lowest and highest three: 0.3 0.4 0.5 0.6 0.7 0.8
    assert median(SCORES) == pytest.approx(0.525)
    assert iqm(SCORES) == pytest.approx(3.3 / 6)
    # only 1.2 reaches the target of 1: (12 - 6.9 + 0.2) / 12
    assert optimality_gap(SCORES) == pytest.approx(5.3 / 12)
    assert optimality_gap(SCORES, target=0.5) == pytest.approx((0.4 + 0.2 + 0.3 + 0.1 + 0.2) / 12)


def test_aggregates_of_many_resamples_at_once() -> None:
    block = np.stack([SCORES, SCORES[::-1] + 1.0])
    for statistic in AGGREGATES.values():
        assert statistic(block).shape == (2,)
        assert statistic(block)[0] == pytest.approx(statistic(SCORES))
    assert [mean(block)[1], median(block)[1], iqm(block)[1]] == pytest.approx([1.575, 1.525, 1.55])


def test_closed_forms_of_synthetic_runs() -> None:
    """0 to 1 evenly in every task: mean and median 1/2, IQM 1/2, gap 1/2; squares have their integrals as n grows."""
    even = np.repeat(np.linspace(0.0, 1.0, 8)[:, None], 5, axis=1)
    for name in AGGREGATES:
        assert AGGREGATES[name](even) == pytest.approx(0.5, abs=1e-12)
    n = 4000
    squares = (((np.arange(n) + 0.5) / n) ** 2)[:, None]
    assert mean(squares) == pytest.approx(1 / 3, abs=1e-7)
    assert iqm(squares) == pytest.approx((0.75**3 - 0.25**3) / 1.5, abs=1e-7)  # mean of x^2 over [1/4, 3/4]


def test_every_task_redraws_its_own_runs() -> None:
    blocks = np.concatenate(list(resample(SCORES, 500, seed=3)))
    assert blocks.shape == (500, 4, 3)
    for task in range(3):
        assert set(np.unique(blocks[:, :, task])) == set(SCORES[:, task])
    # The runs of a resample are not rows of the array: tasks draw apart.
    rows = {tuple(row) for row in SCORES}
    assert any(tuple(row) not in rows for row in blocks.reshape(-1, 3))
    # A mean over all resamples comes back to the mean.
    assert blocks.mean(axis=(0, 1)) == pytest.approx(SCORES.mean(axis=0), abs=0.02)


def test_a_curve_is_drawn_as_a_whole() -> None:
    curves = np.stack([SCORES, SCORES + 10.0], axis=-1)
    (block,) = resample(curves, 50)
    assert np.array_equal(block[..., 1], block[..., 0] + 10.0)


def test_resamples_do_not_depend_on_the_size_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resample(SCORES, 101, seed=1)))
    monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 30)
    blocks = list(resample(SCORES, 101, seed=1))
    assert len(blocks) > 1
    assert np.array_equal(np.concatenate(blocks), whole)


def test_the_interval_of_two_runs_by_enumeration() -> None:
    """Two runs 0 and 1 of one task: the mean of a resample is 0, 1/2 or 1 with 1/4, 1/2, 1/4."""
    interval = stratified_interval([[0.0], [1.0]], mean, level=0.4)
    assert (interval.value, interval.low, interval.high) == (0.5, 0.5, 0.5)
    assert stratified_interval([[0.0], [1.0]], mean, level=0.6).low == 0.0


def test_the_interval_converges_to_the_exact_bootstrap() -> None:
    """Two runs of three tasks have 4^3 resamples, all as likely; their quantiles are known exactly."""
    scores = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]])
    exact = [
        sum(t * d for t, d in zip((1, 2, 4), draw, strict=True)) / 3 for draw in product((0, 0.5, 0.5, 1), repeat=3)
    ]
    interval = stratified_interval(scores, mean, level=0.9, resamples=40_000)
    ends = np.quantile(exact, [0.05, 0.95])
    assert (interval.low, interval.high) == pytest.approx(ends, abs=1e-9)


def test_tasks_that_differ_widen_nothing() -> None:
    """Stratified: between tasks there may be any distance, only the runs of one task are redrawn."""
    interval = stratified_interval(np.tile([[0.0, 100.0, 5.0]], (4, 1)), mean)
    assert interval.low == interval.high == pytest.approx(35.0)


def test_one_run_bounds_nothing() -> None:
    interval = stratified_interval([[0.3, 0.5]], iqm)
    assert (interval.value, interval.low, interval.high) == (0.4, -math.inf, math.inf)
    band = efficiency(np.zeros((1, 2, 3)), mean)
    assert not np.isfinite(band.low).any()


def test_intervals_are_the_same_every_time_and_grow_with_the_level() -> None:
    scores = np.random.default_rng(0).normal(size=(6, 5))
    first = stratified_interval(scores, iqm, seed=7)
    assert first == stratified_interval(scores, iqm, seed=7)
    assert first != stratified_interval(scores, iqm, seed=8)
    wide = stratified_interval(scores, iqm, level=0.999, seed=7)
    assert wide.low < first.low < first.value < first.high < wide.high


def test_difference_of_arms() -> None:
    found = difference_interval(SCORES, OTHER, mean, resamples=20_000)
    assert found.value == pytest.approx(SCORES.mean() - OTHER.mean())
    # Independent arms: the variance of the difference is the sum; each task's mean varies by its variance / runs.
    variance = sum(array.var(axis=0).sum() / len(array) / 9 for array in (SCORES, OTHER))
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.05)
    # Equal arms are drawn apart: the difference varies although its value is 0.
    same = difference_interval(SCORES, SCORES, mean)
    assert same.value == 0.0
    assert same.low < -0.05
    assert same.high > 0.05


def test_improvement_by_hand() -> None:
    # wins of 4 x 3 pairs, a tie is half a win: 6 and 2 ties, 8 and 1 tie, 10 and 1 tie
    a, b = SCORES, OTHER
    wins = [sum((x > y) + 0.5 * (x == y) for x in a[:, t] for y in b[:, t]) / 12 for t in range(3)]
    assert wins == pytest.approx([7 / 12, 8.5 / 12, 10.5 / 12])
    found = improvement(a, b)
    assert found.value == pytest.approx(26 / 36)
    assert found.low < found.value < found.high <= 1.0
    back = improvement(b, a)
    assert back.value == pytest.approx(1 - found.value)
    assert improvement(a, a).value == 0.5


def test_improvement_in_one_task_is_mann_whitneys_u() -> None:
    a, b = np.array([3.0, 5.0, 5.0, 8.0, 1.0]), np.array([2.0, 5.0, 4.0])
    expected = scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert improvement(a[:, None], b[:, None]).value == pytest.approx(expected)
    assert improvement([[2.0], [3.0]], [[0.0], [1.0]]) == Interval(1.0, 1.0, 1.0)
    assert improvement([[1.0], [1.0]], [[1.0], [1.0]]) == Interval(0.5, 0.5, 0.5)


def test_the_interval_of_an_improvement_by_enumeration() -> None:
    """0 and 2 against 1 and 1: the resamples 00, 02, 20, 22 give 0, 1/2, 1/2, 1 with 1/4 each."""
    assert improvement([[0.0], [2.0]], [[1.0], [1.0]]) == Interval(0.5, 0.0, 1.0)
    assert improvement([[0.0], [2.0]], [[1.0], [1.0]], level=0.4) == Interval(0.5, 0.5, 0.5)
    assert improvement([[0.0], [2.0]], [[1.0]]) == Interval(0.5, -math.inf, math.inf)  # one run shows no spread


def test_improvement_does_not_depend_on_the_size_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In value; the two sides draw in turn, so the resamples are others."""
    whole = improvement(SCORES, OTHER, resamples=4000)
    monkeypatch.setattr(statistics, "NUMBERS_AT_ONCE", 4000)
    parts = improvement(SCORES, OTHER, resamples=4000)
    assert parts.value == whole.value
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.03)


def test_a_profile_is_the_share_above_each_threshold() -> None:
    band = profile(SCORES, [0.0, 0.3, 0.5, 1.2])
    assert band.value == pytest.approx([1.0, 8 / 12, 6 / 12, 0.0])  # strictly above: 0.3 is not above 0.3
    assert (band.low <= band.value).all()
    assert (band.value <= band.high).all()
    assert (band.low[0], band.high[0], band.low[-1], band.high[-1]) == (1.0, 1.0, 0.0, 0.0)


def test_efficiency_is_the_aggregate_at_every_point() -> None:
    curves = np.stack([SCORES * scale for scale in (0.0, 0.5, 1.0)], axis=-1)
    for statistic in AGGREGATES.values():
        band = efficiency(curves, statistic, resamples=2000)
        assert band.value == pytest.approx([float(statistic(SCORES * scale)) for scale in (0.0, 0.5, 1.0)])
        last = stratified_interval(SCORES, statistic)
        assert (band.low[-1], band.high[-1]) == pytest.approx((last.low, last.high))


def test_normalisation() -> None:
    low, high = np.array([0.1, 0.6, 0.0]), np.array([0.7, 1.2, 1.0])
    scaled = normalise(SCORES, low, high)
    assert scaled[:, 0] == pytest.approx([0.0, 1 / 3, 1 / 6, 1.0])
    assert scaled[:, 2] == pytest.approx(SCORES[:, 2])
    curves = normalise(np.stack([SCORES, SCORES], axis=-1), low, high)
    assert np.array_equal(curves[..., 1], scaled)
    assert np.array_equal(normalise(SCORES, [0.1, 0.5, 0.0], [0.7, 0.5, 1.0])[:, 1], np.zeros(4))


def test_max_min_is_over_all_arms_runs_and_points() -> None:
    a = np.zeros((2, 2, 3))
    b = np.ones((3, 2, 3))
    a[0, 1, 2], b[2, 0, 0] = -5.0, 7.0
    low, high = max_min({"a": a, "b": b})
    assert (low.tolist(), high.tolist()) == ([0.0, -5.0], [7.0, 1.0])


@pytest.mark.parametrize(
    "scores", [[0.1, 0.2], np.zeros((0, 3)), np.zeros((2, 2, 2, 2)), [[math.nan, 1.0]], [[1.0, math.inf]]]
)
def test_scores_that_make_no_aggregate(scores: Any) -> None:
    with pytest.raises(ValueError, match="scores must be"):
        stratified_interval(scores, mean)


def test_arms_with_other_tasks_and_senseless_numbers() -> None:
    with pytest.raises(ValueError, match="the same tasks: 3 against 2"):
        improvement(SCORES, OTHER[:, :2])
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        stratified_interval(SCORES, mean, level=95)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        stratified_interval(SCORES, mean, resamples=0)


# --- agreement to 1e-9 with plain sums in float64, written down from the definitions, on fixed data


def plain_mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def plain_statistic(name: str, table: list[list[float]]) -> float:
    """Of rows of runs, as Agarwal et al. define it."""
    flat = sorted(score for row in table for score in row)
    cut = len(flat) // 4
    by_task = sorted(plain_mean([row[task] for row in table]) for task in range(len(table[0])))
    middle = len(by_task) // 2
    return {
        "IQM": plain_mean(flat[cut : len(flat) - cut]),
        "mean": plain_mean(flat),
        "median": by_task[middle] if len(by_task) % 2 else (by_task[middle - 1] + by_task[middle]) / 2,
        "optimality gap": plain_mean([max(0.0, 1.0 - score) for score in flat]),
    }[name]


def plain_percentile(values: list[float], share: float) -> float:
    """Linear between the order statistics."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize("name", AGGREGATES)
def test_values_and_intervals_are_those_of_plain_sums(name: str, fixed: dict[str, np.ndarray]) -> None:
    for scores in fixed.values():
        runs, tasks = scores.shape
        drawn = np.random.default_rng(5).integers(runs, size=(300, runs, tasks)).tolist()
        resampled = [
            plain_statistic(name, [[float(scores[row[task], task]) for task in range(tasks)] for row in draw])
            for draw in drawn
        ]
        found = stratified_interval(scores, AGGREGATES[name], level=0.9, resamples=300, seed=5)
        ends = [plain_percentile(resampled, share) for share in (0.05, 0.95)]
        expected = [plain_statistic(name, scores.tolist()), *ends]
        assert [found.value, found.low, found.high] == pytest.approx(expected, abs=1e-9)


def test_profiles_and_improvements_are_those_of_plain_sums(fixed: dict[str, np.ndarray]) -> None:
    ours, theirs = fixed["ours"], fixed["theirs"]
    taus = np.linspace(0.0, 1.5, 81)
    shares = [plain_mean([float(score > tau) for score in ours.flatten()]) for tau in taus]
    assert profile(ours, taus).value == pytest.approx(shares, abs=1e-9)
    wins = [
        plain_mean([1.0 if x > y else 0.5 if x == y else 0.0 for x in ours[:, task] for y in theirs[:, task]])
        for task in range(ours.shape[1])
    ]
    assert improvement(ours, theirs).value == pytest.approx(plain_mean(wins), abs=1e-9)


# --- agreement with rliable to 1e-9, on the same data, where it is installed


def reference(module: str) -> Any:
    try:
        return importlib.import_module(f"rliable.{module}")
    except Exception as error:  # its own dependencies break with newer packages
        pytest.skip(f"{WHY} ({error})")


@pytest.fixture(scope="module")
def fixed() -> dict[str, np.ndarray]:
    random = np.random.default_rng(20240206)
    return {"ours": random.normal(0.6, 0.4, (5, 7)), "theirs": random.normal(0.5, 0.3, (4, 7)).round(1)}


def test_values_are_rliables(fixed: dict[str, np.ndarray]) -> None:
    metrics = reference("metrics")
    for scores in fixed.values():
        assert mean(scores) == pytest.approx(metrics.aggregate_mean(scores), abs=1e-9)
        assert median(scores) == pytest.approx(metrics.aggregate_median(scores), abs=1e-9)
        assert iqm(scores) == pytest.approx(metrics.aggregate_iqm(scores), abs=1e-9)
        assert optimality_gap(scores) == pytest.approx(metrics.aggregate_optimality_gap(scores), abs=1e-9)
    for a, b in (("ours", "theirs"), ("theirs", "ours"), ("ours", "ours")):
        expected = metrics.probability_of_improvement(fixed[a], fixed[b])
        assert improvement(fixed[a], fixed[b]).value == pytest.approx(expected, abs=1e-9)


def test_profiles_are_rliables(fixed: dict[str, np.ndarray]) -> None:
    library = reference("library")
    taus = np.linspace(0.0, 1.5, 81)
    for scores in fixed.values():
        expected = library.score_distributions(scores, taus)
        assert profile(scores, taus).value == pytest.approx(expected, abs=1e-9)


def test_intervals_are_rliables_with_the_same_draws(
    fixed: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """rliable draws from a generator of its own; given our draws it must come to the same percentiles."""
    library = reference("library")
    random: list[np.random.Generator] = []

    def update_indices(self: Any) -> tuple[np.ndarray, ...]:
        return (random[0].integers(self._num_items, size=self._args_shape), *self._strata_indices)

    monkeypatch.setattr(library.StratifiedBootstrap, "update_indices", update_indices)
    for name, statistic in AGGREGATES.items():
        for scores in fixed.values():
            random[:] = [np.random.default_rng(5)]
            try:
                points, intervals = library.get_interval_estimates(
                    {name: scores}, lambda array, s=statistic: np.array([s(array)]), reps=2000
                )
            except TypeError as error:
                pytest.skip(f"rliable 1.2 needs an older arch, which has random_state: pip install 'arch<8' ({error})")
            found = stratified_interval(scores, statistic, resamples=2000, seed=5)
            expected = [points[name][0], *intervals[name][:, 0]]
            assert [found.value, found.low, found.high] == pytest.approx(expected, abs=1e-9)
