"""Aggregates over seeds and tasks with stratified bootstrap intervals, as rliable reports them. numpy only.

A score array holds R runs (seeds) of each of T tasks (environments): shape (R, T), or (R, T, F) with F points of the
learning curves. Scores of different tasks are put on one scale first (`normalise`). Every statistic below takes
(..., R, T) and reduces the last two axes, so one call serves all bootstrap resamples.

The bootstrap is stratified: every task redraws its own R runs, and the tasks stay. Its interval covers other seeds on
the same tasks; it says nothing about other tasks. With few runs it is too narrow, for a resample never leaves the
range of its task's runs (see the text of `statistics`).

Source: Agarwal et al. 2021, arXiv 2108.13264.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zerozoo.runs.statistics import Interval, block_sizes, check_level, interquartile_mean

Array = NDArray[np.float64]
Statistic = Callable[[Array], Any]

RESAMPLES = 2000


@dataclass(frozen=True)
class Band:
    """An estimate and its interval at each of F points: three arrays (F,)."""

    value: Array
    low: Array
    high: Array


def mean(scores: Array) -> Any:
    """Mean over tasks of the mean over runs. (..., R, T) -> (...)."""
    return scores.mean(axis=-2).mean(axis=-1)


def median(scores: Array) -> Any:
    """Median over tasks of the mean over runs. (..., R, T) -> (...)."""
    return np.median(scores.mean(axis=-2), axis=-1)


def iqm(scores: Array) -> Any:
    """Interquartile mean of all R T scores: without the best and the worst quarter. (..., R, T) -> (...)."""
    return interquartile_mean(scores.reshape(*scores.shape[:-2], -1))


def optimality_gap(scores: Array, target: float = 1.0) -> Any:
    """mean of max(0, target - s): how far from the target the runs stay; less is better. (..., R, T) -> (...)."""
    return np.maximum(target - scores, 0.0).mean(axis=(-2, -1))


AGGREGATES: Mapping[str, Statistic] = {"IQM": iqm, "mean": mean, "median": median, "optimality gap": optimality_gap}


def resample(scores: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Array]:
    """Blocks (B, R, T, ...) of resamples, `resamples` in all: every task redraws its own runs with replacement.

    A run of an array (R, T, F) is drawn as a whole curve. Raises ValueError for other shapes and non-finite scores.
    """
    array = _checked(scores)
    runs, tasks = array.shape[:2]
    random = np.random.default_rng(seed)
    for size in block_sizes(resamples, array.size):
        drawn = random.integers(runs, size=(size, runs, tasks))
        yield array[drawn, np.arange(tasks)]


def stratified_interval(
    scores: ArrayLike, statistic: Statistic, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of `statistic` from stratified resamples; (-inf, inf) for one run, which shows no spread.

    Shapes: scores (R, T). Raises ValueError for other shapes, non-finite scores and a level outside (0, 1).
    """
    array = _checked(scores, dimensions=2)
    low, high = _ends(_resampled(array, statistic, resamples, seed), level, len(array))
    return Interval(float(statistic(array)), float(low), float(high))


def difference_interval(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Statistic,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """statistic(a) - statistic(b) for independent arms: both are resampled, each with a generator of its own.

    Shapes: a (R, T), b (S, T). Raises ValueError as `stratified_interval`, and for different tasks.
    """
    first, second = _pair(a, b)
    drawn = _resampled(first, statistic, resamples, seed) - _resampled(second, statistic, resamples, seed + 1)
    low, high = _ends(drawn, level, min(len(first), len(second)))
    return Interval(float(statistic(first)) - float(statistic(second)), float(low), float(high))


def improvement(a: ArrayLike, b: ArrayLike, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean over tasks of P(A > B) + P(A = B) / 2 for independent runs: Mann-Whitney's U / (R S) of every task.

    0.5 means no difference; it says how often A is better, not by how much. Shapes: a (R, T), b (S, T). Raises
    ValueError as `difference_interval`.
    """
    first, second = _pair(a, b)
    wins = (np.sign(first[:, None] - second[None]) + 1.0) / 2.0  # (R, S, T): 1 better, 0.5 equal, 0 worse
    tasks = np.arange(wins.shape[2])
    random = np.random.default_rng(seed)
    resampled = []
    for size in block_sizes(resamples, wins.size):
        rows = random.integers(len(first), size=(size, len(first), 1, len(tasks)))
        columns = random.integers(len(second), size=(size, 1, len(second), len(tasks)))
        resampled.append(wins[rows, columns, tasks].mean(axis=(1, 2, 3)))
    low, high = _ends(np.concatenate(resampled), level, min(len(first), len(second)))
    return Interval(float(wins.mean()), float(low), float(high))


def efficiency(
    curves: ArrayLike, statistic: Statistic, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Band:
    """`statistic` at every point of the learning curves, with pointwise intervals. Shapes: curves (R, T, F)."""
    return _band(curves, lambda block: statistic(np.moveaxis(block, -1, -3)), level, resamples, seed, dimensions=3)


def profile(
    scores: ArrayLike, thresholds: ArrayLike, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Band:
    """Performance profile F(tau): the share of all R T runs that score above tau, with pointwise intervals.

    Shapes: scores (R, T), thresholds (F,).
    """
    taus = np.asarray(thresholds, dtype=np.float64)

    def shares(block: Array) -> Array:
        return np.stack([(block > tau).mean(axis=(-2, -1)) for tau in taus], axis=-1)

    return _band(scores, shares, level, resamples, seed, dimensions=2)


def max_min(arms: Mapping[str, ArrayLike]) -> tuple[Array, Array]:
    """(T,) lowest and (T,) highest score of every task over all arms, runs and points.

    They depend on which runs are compared: keep them, and use them again where two comparisons must agree.
    """
    arrays = [_checked(scores) for scores in arms.values()]
    flat = np.concatenate([np.moveaxis(array, 1, 0).reshape(array.shape[1], -1) for array in arrays], axis=1)
    return flat.min(axis=1), flat.max(axis=1)


def normalise(scores: ArrayLike, low: ArrayLike, high: ArrayLike) -> Array:
    """(s - low) / (high - low), task by task; 0 for a task whose `low` equals its `high`.

    `low` and `high` are the scores of a random and of a reference policy (human-normalised scores), or `max_min`.
    Shapes: scores (R, T) or (R, T, F), low and high (T,).
    """
    array = _checked(scores)
    shape = (1, -1) + (1,) * (array.ndim - 2)
    bottom = np.asarray(low, dtype=np.float64).reshape(shape)
    room = np.asarray(high, dtype=np.float64).reshape(shape) - bottom
    return np.where(room == 0.0, 0.0, (array - bottom) / np.where(room == 0.0, 1.0, room))


def _band(scores: ArrayLike, statistic: Statistic, level: float, resamples: int, seed: int, dimensions: int) -> Band:
    array = _checked(scores, dimensions)
    low, high = _ends(_resampled(array, statistic, resamples, seed), level, len(array))
    return Band(np.asarray(statistic(array)), low, high)


def _resampled(array: Array, statistic: Statistic, resamples: int, seed: int) -> Array:
    """(resamples, ...) values of the statistic."""
    return np.concatenate([np.asarray(statistic(block)) for block in resample(array, resamples, seed)])


def _ends(resampled: Array, level: float, runs: int) -> tuple[Array, Array]:
    """The two percentiles over the first axis; nothing bounds what a single run shows."""
    check_level(level)
    tail = (1.0 - level) / 2.0
    if runs == 1:
        return np.full(resampled.shape[1:], -np.inf), np.full(resampled.shape[1:], np.inf)
    low, high = np.quantile(resampled, [tail, 1.0 - tail], axis=0)
    return low, high


def _checked(scores: ArrayLike, dimensions: int | None = None) -> Array:
    array = np.asarray(scores, dtype=np.float64)
    wanted = (2, 3) if dimensions is None else (dimensions,)
    if array.ndim not in wanted or array.size == 0:
        raise ValueError(f"scores must be of shape (runs, tasks) or (runs, tasks, points), not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("scores must be finite")
    return array


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Array, Array]:
    first, second = _checked(a, 2), _checked(b, 2)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"both arms need the same tasks: {first.shape[1]} against {second.shape[1]}")
    return first, second
