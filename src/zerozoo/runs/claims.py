"""A paper's central claim as an experiment that can fail: arms, seeds, and the rule that turns numbers into a verdict.

`cells` runs it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zerozoo.runs.errors import UserError
from zerozoo.runs.statistics import Interval, paired_difference

Verdict = Literal["HOLDS", "FAILS", "INCONCLUSIVE"]
HOLDS: Verdict = "HOLDS"
FAILS: Verdict = "FAILS"
INCONCLUSIVE: Verdict = "INCONCLUSIVE"
WORST_FIRST: tuple[Verdict, ...] = (FAILS, INCONCLUSIVE, HOLDS)


class NotFiniteError(ValueError):
    """A measured number that a verdict needs is NaN or infinite."""


@dataclass(frozen=True)
class Judgement:
    """What the numbers say about a statement. `valid` is False when a precondition was not met."""

    verdict: Verdict
    effect: Interval
    threshold: float
    reason: str
    valid: bool = True


@dataclass(frozen=True)
class ArmResults:
    """Final values by arm and seed: of the claim's metric, and of every other number that `train` returned."""

    metric: str
    values: Mapping[str, Mapping[int, float]]
    secondary: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)

    def array(self, arm: str, metric: str | None = None) -> NDArray[np.float64]:
        """(seeds,) values of one arm, in the claim's order of seeds. UserError for an unknown arm or metric."""
        if arm not in self.values:
            raise UserError(f"the claim asks for the arm {arm!r}, but its arms are {', '.join(self.values)}")
        name = metric or self.metric
        if name == self.metric:
            found: list[float] = list(self.values[arm].values())
        else:
            rows = list(self.secondary.get(arm, {}).values())
            if not rows or any(name not in row for row in rows):
                known = sorted({self.metric, *(key for row in rows for key in row)})
                raise UserError(f"the claim asks for {name!r} of {arm}, but train returned {', '.join(known)}")
            found = [row[name] for row in rows]
        if not np.isfinite(found).all():
            raise NotFiniteError(f"{name} of {arm} is not finite under every seed: {found}")
        return np.asarray(found, dtype=np.float64)

    def mean(self, arm: str, metric: str | None = None) -> float:
        return float(self.array(arm, metric).mean())


Condition = Callable[[ArmResults], Judgement]
Precondition = Callable[[ArmResults], str | None]  # None when it is met, else what was found instead


@dataclass(frozen=True)
class Claim:
    """`holds` judges `metric`, a key of what the recipe's `train` returns, over arms (config overrides) x seeds.

    The config of a cell is base, then `smoke` for --smoke, then the arm's overrides: what makes the arm is never
    overridden. `budget` says in words what the experiment costs; `curve` names the key of metrics.jsonl that is drawn
    by arm. Raises ValueError for no arms, names that cannot be folders, missing or repeated seeds, and a seed among
    the overrides.
    """

    statement: str
    arms: Mapping[str, Mapping[str, Any]]
    metric: str
    holds: Condition
    seeds: tuple[int, ...]
    budget: str
    base: Mapping[str, Any] = field(default_factory=dict)
    smoke: Mapping[str, Any] = field(default_factory=dict)
    name: str = "main"
    curve: str | None = None

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("a claim needs at least one arm")
        for name in (self.name, *self.arms):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
                raise ValueError(f"{name!r} names a folder: use letters, digits and . _ + - only")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"a claim needs seeds, each once, not {self.seeds}")
        if any("seed" in self.overrides(arm, smoke=True) for arm in self.arms):
            raise ValueError("the seed of a cell comes from the claim's seeds, not from its overrides")

    def overrides(self, arm: str, smoke: bool = False) -> dict[str, Any]:
        return {**self.base, **(self.smoke if smoke else {}), **self.arms[arm]}


def difference_claim(
    arm: str,
    control: str,
    threshold: float = 0.0,
    precondition: Precondition | None = None,
    metric: str | None = None,
) -> Condition:
    """arm - control > threshold, by the 95 % Student's t interval of the paired difference over seeds.

    HOLDS if the whole interval lies above the threshold, FAILS if all of it lies below, INCONCLUSIVE if it contains
    the threshold (its ends included) or the precondition is not met. Where smaller is better swap arm and control.
    """

    def holds(results: ArmResults) -> Judgement:
        effect = paired_difference(results.array(arm, metric), results.array(control, metric))
        interval = f"[{effect.low:+.4g}, {effect.high:+.4g}]"
        found = f"{metric or results.metric}: {arm} - {control} = {effect.value:+.4g} {interval}"
        unmet = precondition(results) if precondition else None
        if unmet:
            return Judgement(INCONCLUSIVE, effect, threshold, f"precondition not met: {unmet}; {found}", False)
        if effect.low > threshold:
            return Judgement(HOLDS, effect, threshold, f"{found} is above {threshold:.4g}")
        if effect.high < threshold:
            return Judgement(FAILS, effect, threshold, f"{found} is below {threshold:.4g}")
        return Judgement(INCONCLUSIVE, effect, threshold, f"{found} contains {threshold:.4g}")

    return holds


Combine = Callable[[ArmResults], NDArray[np.float64]]  # (seeds,) values, in the claim's order of seeds


def on_combined(condition: Condition, metric: str | None = None, **combined: Combine) -> Condition:
    """A condition that may also name arms which are computed from the claim's, seed by seed, as values of `metric`."""

    def holds(results: ArmResults) -> Judgement:
        values, secondary = dict(results.values), dict(results.secondary)
        seeds = next(iter(values.values()))
        for name, combine in combined.items():
            values[name] = dict(zip(seeds, combine(results).tolist(), strict=True))
            secondary[name] = {seed: {metric or results.metric: value} for seed, value in values[name].items()}
        return condition(ArmResults(results.metric, values, secondary))

    return holds


def at_most(
    arm: str,
    ceiling: float,
    of: str | None = None,
    precondition: Precondition | None = None,
    metric: str | None = None,
) -> Condition:
    """arm < ceiling, or with `of` arm < ceiling x that arm: as `difference_claim` of the limit and the arm."""
    name, limit = _limit(ceiling, of, metric)
    return on_combined(difference_claim(name, arm, 0.0, precondition, metric), metric, **{name: limit})


def at_least(
    arm: str, floor: float, of: str | None = None, precondition: Precondition | None = None, metric: str | None = None
) -> Condition:
    """arm > floor, or with `of` arm > floor x that arm: as `difference_claim` of the arm and the limit."""
    name, limit = _limit(floor, of, metric)
    return on_combined(difference_claim(arm, name, 0.0, precondition, metric), metric, **{name: limit})


def _limit(factor: float, of: str | None, metric: str | None) -> tuple[str, Combine]:
    """Name and values of a number that is the same for every seed, or of a multiple of an arm."""
    if of is None:
        return f"{factor:g}", lambda results: np.full(len(next(iter(results.values.values()))), factor)
    return f"{factor:g} x {of}", lambda results: factor * results.array(of, metric)


def require_mean(arm: str, low: float = -math.inf, high: float = math.inf, metric: str | None = None) -> Precondition:
    """The mean over seeds of one arm must lie in [low, high]."""

    def met(results: ArmResults) -> str | None:
        mean = results.mean(arm, metric)
        if low <= mean <= high:
            return None
        return f"mean {metric or results.metric} of {arm} is {mean:.4g}, not within [{low:.4g}, {high:.4g}]"

    return met


def all_of(first: Condition, *others: Condition) -> Condition:
    """Every condition must hold: the worst verdict, with the effect and threshold of the first condition.

    One that fails makes the whole fail, except that an unmet precondition anywhere makes it INCONCLUSIVE: then the
    experiment was not the one the statement speaks of.
    """

    def holds(results: ArmResults) -> Judgement:
        judged = [condition(results) for condition in (first, *others)]
        valid = all(judgement.valid for judgement in judged)
        worst = min((judgement.verdict for judgement in judged), key=WORST_FIRST.index)
        reason = "; ".join(judgement.reason for judgement in judged)
        return Judgement(worst if valid else INCONCLUSIVE, judged[0].effect, judged[0].threshold, reason, valid)

    return holds


def judge(claim: Claim, results: ArmResults) -> Judgement:
    """The claim's verdict; INCONCLUSIVE without an effect if a number that it needs is not finite."""
    try:
        return claim.holds(results)
    except NotFiniteError as error:
        return Judgement(INCONCLUSIVE, Interval(math.nan, math.nan, math.nan), math.nan, str(error), False)
