"""Whether a run that was repeated from its config is the same run: its metrics number by number, and what made it.

Times and memory are no part of that: the columns `time`, `_runtime` and `_timestamp`, metrics below `seconds/` and
`memory/`, and those that end in `_per_second`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Rows = Sequence[Mapping[str, Any]]

CLOCKS = ("time", "_runtime", "_timestamp")
MACHINE = ("cpu", "cores", "memory_gb", "platform")


@dataclass(frozen=True)
class Difference:
    """Where a metric first differs: None stands for a value that was not finite, "-" for one that is not there."""

    metric: str
    step: float
    before: float | str | None
    after: float | str | None
    largest: float  # over all steps; infinite where only one side has a number


@dataclass(frozen=True)
class Repetition:
    """The comparison of the metrics: `values` numbers at `rows` rows; `last_step` is the last that both runs have."""

    differences: Sequence[Difference]
    rows: int
    values: int
    last_step: float | None
    longer: str = ""  # a sentence if one run has steps after the last of the other
    ignored: Sequence[str] = ()
    made_with: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # (before, after) of what differs

    @property
    def identical(self) -> bool:
        return self.values > 0 and not self.differences

    @property
    def largest(self) -> float:
        """The largest difference of all numbers; 0 for identical runs."""
        return max((difference.largest for difference in self.differences), default=0.0)


def compare_runs(
    before: Rows, after: Rows, versions_before: Mapping[str, Any], versions_after: Mapping[str, Any]
) -> Repetition:
    """Compares up to the last step that both have: a run that was killed is repeated as far as it went."""
    ends = [max((float(row["step"]) for row in rows), default=-math.inf) for rows in (before, after)]
    last = min(ends)
    old, new = ([row for row in rows if row["step"] <= last] for rows in (before, after))
    names = dict.fromkeys(name for row in [*old, *new] for name in row if name != "step")
    ignored = sorted(name for name in names if is_clock(name))
    compared = [name for name in names if not is_clock(name)]
    differences = [found for name in compared if (found := _difference(name, old, new))]
    longer = ""
    if ends[0] != ends[1] and math.isfinite(last):
        which = "the stored run" if ends[0] > ends[1] else "the repetition"
        longer = f"only {which} goes on after step {last:.15g}, to step {max(ends):.15g}"
    return Repetition(
        differences=differences,
        rows=len(old),
        values=sum(name in row for row in old for name in compared),
        last_step=last if math.isfinite(last) else None,
        longer=longer,
        ignored=ignored,
        made_with=compare_versions(versions_before, versions_after),
    )


def is_clock(name: str) -> bool:
    """Whether a metric measures the machine and not the training."""
    return name in CLOCKS or name.startswith(("seconds/", "memory/")) or name.endswith("_per_second")


def compare_versions(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(before, after) of every entry of versions.json that differs; of a resumed run the last entries count."""
    old, new = ({**stored} for stored in (before, after))
    for stored in (old, new):
        for changed in stored.pop("resumed", []):
            stored |= changed
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _difference(name: str, before: Rows, after: Rows) -> Difference | None:
    """Compares the points one by one, in the order in which they were logged."""
    old, new = ([(float(row["step"]), row[name]) for row in rows if name in row] for rows in (before, after))
    if old == new:
        return None
    first: Difference | None = None
    largest = 0.0
    for place in range(max(len(old), len(new))):
        one = old[place] if place < len(old) else None
        two = new[place] if place < len(new) else None
        if one == two:
            continue
        gap = _gap(one, two)
        largest = max(largest, gap)
        if first is None:
            step = (one or two or (0.0, None))[0]
            first = Difference(name, step, one[1] if one else "-", two[1] if two else "-", gap)
    return Difference(first.metric, first.step, first.before, first.after, largest) if first else None


def _gap(one: tuple[float, Any] | None, two: tuple[float, Any] | None) -> float:
    if one is None or two is None or one[0] != two[0]:
        return math.inf
    numbers = isinstance(one[1], (int, float)) and isinstance(two[1], (int, float))
    return abs(float(one[1]) - float(two[1])) if numbers else math.inf
