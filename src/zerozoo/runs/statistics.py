"""Intervals for numbers from few seeds and many problems. numpy only; every interval is two-sided.

Which one to take:

- a share of right answers among n independent problems: `proportion_interval` (Wilson);
- a mean or a difference over 2 to about 10 seeds: `mean_interval`, `paired_difference` (Student's t);
- any statistic of many values (about 20 or more): `bootstrap_interval`;
- every problem answered under several seeds: `hierarchical_bootstrap`.

Why not the bootstrap for three seeds: three values have 10 distinct resamples, and each end of the range comes
up with probability (1/3)^3 = 3.7 %, more than the 2.5 % that a 95 % interval leaves out on its side. So the
percentile interval IS the range of the three values, and the range of three draws misses the median whenever all
three lie on one side of it: 2 (1/2)^3 = 25 % of the time instead of 5 %. No correction mends that, for no
resample leaves the range. Student's t pays for the unknown spread with a wide interval (4.30 standard errors for
three seeds) and is exact if the seeds' values are normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
NUMBERS_AT_ONCE = 4_000_000  # resamples are drawn in blocks of this many float64: 32 MB


@dataclass(frozen=True)
class Interval:
    """A point estimate and its two-sided interval, both ends included; infinite where nothing bounds it."""

    value: float
    low: float
    high: float

    def contains(self, point: float) -> bool:
        return self.low <= point <= self.high


def _checked(values: ArrayLike, name: str = "values") -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, not of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, not {array.tolist()}")
    return array


def check_level(level: float) -> None:
    """Raises ValueError for a level of an interval that is no share."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1 (for example 0.95), not {level}")


def _percentiles(value: float, resampled: Array, level: float) -> Interval:
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Interval(float(value), float(low), float(high))


def block_sizes(resamples: int, numbers: int) -> list[int]:
    """Sizes of the blocks in which `resamples` resamples of `numbers` numbers each are drawn."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    size = max(1, NUMBERS_AT_ONCE // numbers)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _student_probability(theta: float, df: int) -> float:
    """P(|T| <= sqrt(df) tan(theta)) of Student's t: the sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    square = math.cos(theta) ** 2
    if df == 1:
        return 2.0 * theta / math.pi
    steps = np.arange(1, df // 2, dtype=np.float64)
    if df % 2:
        terms = np.cumprod(2 * steps / (2 * steps + 1) * square)
        return 2.0 / math.pi * (theta + math.sin(theta) * math.cos(theta) * (1.0 + float(terms.sum())))
    terms = np.cumprod((2 * steps - 1) / (2 * steps) * square)
    return math.sin(theta) * (1.0 + float(terms.sum()))


@cache
def student_quantile(level: float, df: int) -> float:
    """t with P(|T| <= t) = level for `df` degrees of freedom: 12.71, 4.30, 3.18 for level 0.95, df 1, 2, 3."""
    check_level(level)
    if df < 1:
        raise ValueError(f"df must be at least 1, not {df}")
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # each halves the bracket: down to the last bit of a float64
        middle = (low + high) / 2
        low, high = (middle, high) if _student_probability(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """mean +- t_(n-1) s / sqrt(n), s with n - 1.

    One value says nothing about the spread: its interval is (-inf, inf). Values without any spread give an
    interval of width 0.

    Shapes: values (n,). Raises ValueError for an empty or non-finite list. Source: Student 1908; for seeds of
    reinforcement learning: Colas et al. 2018, arXiv 1806.08295.
    """
    array = _checked(values)
    check_level(level)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, -math.inf, math.inf)
    # Equal values: their mean may be one unit in the last place off them, and the width would not be 0.
    if (array == array[0]).all():
        return Interval(float(array[0]), float(array[0]), float(array[0]))
    half = student_quantile(level, len(array) - 1) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Interval(mean, mean - half, mean + half)


def summarise(values: ArrayLike) -> dict[str, float]:
    """mean, low and high of `mean_interval`, and deviation: the standard deviation with n - 1.

    All NaN if a value is not finite; the deviation of one value is NaN. Shapes: values (n,).
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        return dict.fromkeys(("mean", "low", "high", "deviation"), math.nan)
    interval = mean_interval(array)
    deviation = float(array.std(ddof=1)) if array.size > 1 else math.nan
    return {"mean": interval.value, "low": interval.low, "high": interval.high, "deviation": deviation}


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of a_s - b_s over seeds s with Student's t interval (the module's text says why not a bootstrap).

    a[s] and b[s] come from the same seed (the same starting weights and data), so what a seed does to both
    arms cancels. Shapes: a (S,), b (S,) in the order of the seeds. Raises ValueError for different lengths.
    """
    first, second = _checked(a, "a"), _checked(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"paired values need the same seeds: {len(first)} values against {len(second)}")
    return mean_interval(first - second, level)


def proportion_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share; never leaves [0, 1] and is honest at 0 and n (Wald's is a point there).

    centre = (k + z^2/2) / (n + z^2);  half = z / (n + z^2) sqrt(k (n-k) / n + z^2/4)

    The n trials must be independent: for k samples of each of m problems take `hierarchical_bootstrap`.
    Raises ValueError unless 0 <= successes <= n and n >= 1. Source: Wilson 1927; Brown, Cai & DasGupta 2001.
    """
    check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a share needs 0 <= successes <= n and n >= 1, not {successes} of {n}")
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    low = 0.0 if successes == 0 else centre - half  # exactly 0 and 1 in the formula, not always in float64
    high = 1.0 if successes == n else centre + half
    return Interval(successes / n, low, high)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic of n independent values.

    Percentile and not BCa: BCa's correction for skew needs a jackknife, which is inconsistent for statistics
    that are not smooth (the median), divides by zero when all values are equal, and its gain over the percentile
    shrinks with n; with few values neither is to be trusted. The percentile keeps the range of the statistic and
    is what rliable reports for the interquartile mean, so the numbers compare.

    `statistic(array, axis=-1)` must reduce the last axis, as numpy's functions do.
    Shapes: values (n,). Raises ValueError for an empty or non-finite list.
    Source: Efron 1979; Agarwal et al. 2021, arXiv 2108.13264.
    """
    array = _checked(values)
    check_level(level)
    random = np.random.default_rng(seed)
    resampled = [
        np.asarray(statistic(array[random.integers(len(array), size=(size, len(array)))], axis=-1))
        for size in block_sizes(resamples, len(array))
    ]
    return _percentiles(float(statistic(array, axis=-1)), np.concatenate(resampled), level)


def hierarchical_bootstrap(
    values: Sequence[ArrayLike],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
    shared_items: bool = False,
) -> Interval:
    """Mean over seeds of the mean over items; resamples the seeds, then the items, both with replacement.

    shared_items=False: every seed drew its own items, so each drawn seed redraws them by itself (nested).
    shared_items=True: item j is the same held-out problem under every seed, so one draw of items serves all
    drawn seeds (crossed); a hard problem is hard for every seed, and more seeds do not average that away.

    With few seeds the spread that comes from the seeds is covered as poorly as the module's text says; use it
    where the items dominate. To compare two arms on the same problems give the differences per item.

    Shapes: values S rows of (n_s,); all of one length if shared. Raises ValueError otherwise.
    """
    rows = [_checked(row, f"row {index} of values") for index, row in enumerate(values)]
    check_level(level)
    if not rows:
        raise ValueError("values must hold at least one seed")
    if shared_items and len({len(row) for row in rows}) > 1:
        raise ValueError("shared items need equally many items in every seed")
    draw = _draw_crossed if shared_items else _draw_nested
    random = np.random.default_rng(seed)
    numbers = sum(len(row) for row in rows)
    resampled = [draw(rows, size, random) for size in block_sizes(resamples, numbers)]
    value = float(np.mean([row.mean() for row in rows]))
    return _percentiles(value, np.concatenate(resampled), level)


def _draw_nested(rows: list[Array], size: int, random: np.random.Generator) -> Array:
    """(size,) means; each of the S drawn seeds redraws its own items."""
    drawn = random.integers(len(rows), size=(size, len(rows)))
    means = np.empty(drawn.shape)
    for index, row in enumerate(rows):
        chosen = drawn == index
        items = random.integers(len(row), size=(int(chosen.sum()), len(row)))
        means[chosen] = row[items].mean(axis=-1)
    return means.mean(axis=-1)


def _draw_crossed(rows: list[Array], size: int, random: np.random.Generator) -> Array:
    """(size,) means; one draw of items for all drawn seeds."""
    table = np.stack(rows)  # (S, items)
    drawn = random.integers(len(rows), size=(size, len(rows)))
    items = random.integers(table.shape[1], size=(size, table.shape[1]))
    counts = np.stack([(drawn == index).sum(axis=-1) for index in range(len(rows))], axis=-1)  # (size, S)
    by_item = counts @ table / len(rows)  # (size, items): mean over the drawn seeds
    return np.take_along_axis(by_item, items, axis=-1).mean(axis=-1)


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Any:
    """Mean of what is left after floor(n / 4) values are cut from each end (a 25 % trimmed mean).

    Shapes: (..., n) -> (...); a float for a list. Needs at least 4 values to differ from the mean.
    Source: Agarwal et al. 2021, arXiv 2108.13264, section 4.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=axis)
    n = ordered.shape[axis]
    if n == 0:
        raise ValueError("the interquartile mean of nothing is not defined")
    cut = n // 4
    return np.take(ordered, range(cut, n - cut), axis=axis).mean(axis=axis)
