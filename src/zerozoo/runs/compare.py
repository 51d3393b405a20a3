"""Arms of runs side by side: which runs count, final scores, aggregates with intervals, efficiency, profiles.

The final score of a run is the mean of its last `window` logged points, but of no more than a tenth of its points, so
that a metric that is logged seldom is not averaged over the whole training. All runs of a panel (one environment) are
compared over the steps that every one of them has. An arm has as many runs in every panel as in the panel where it has
fewest. Whatever is not used is in `discarded`, with the reason.

Source: Huang et al. 2024, arXiv 2402.03046; Agarwal et al. 2021, arXiv 2108.13264.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zerozoo.runs import aggregates
from zerozoo.runs.aggregates import AGGREGATES, RESAMPLES, Array, Band
from zerozoo.runs.errors import UserError
from zerozoo.runs.queries import Arm
from zerozoo.runs.records import Record, Series
from zerozoo.runs.statistics import Interval, summarise

Load = Callable[[Sequence[Record], str, str], Sequence[Series]]
FEW = 5  # runs of an arm, below which a bootstrap interval is too narrow
ATARI_V4, ATARI_V5 = "NoFrameskip-v4", "-v5"


@dataclass(frozen=True)
class Settings:
    """How to compare. `reference` has (score of a random policy, score of the reference) by environment.

    Raises UserError for numbers that make no comparison.
    """

    window: int = 100  # logged points in a final score, at most
    subsamples: int = 20  # points of an efficiency curve
    resamples: int = RESAMPLES
    level: float = 0.95
    thresholds: int = 81  # points of a performance profile
    highest: float | None = None  # threshold of a profile; None: 1, with references 8
    normalisation: str = "max-min"  # over the runs compared; or none, reference
    reference: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    efficiency: str = "median"  # aggregate of the efficiency curves
    unfinished: bool = False  # count runs that are still running or were stopped
    seed: int = 0  # of the resamples

    def __post_init__(self) -> None:
        if self.resamples < RESAMPLES:
            raise UserError(f"{self.resamples} resamples give intervals that change by seed: take {RESAMPLES} or more")
        if min(self.window, self.subsamples - 1, self.thresholds - 1) < 1:
            raise UserError("a window needs 1 point, efficiency curves and profiles need 2")
        if self.efficiency not in AGGREGATES:
            raise UserError(f"unknown aggregate {self.efficiency!r}: choose from {', '.join(AGGREGATES)}")
        if self.normalisation not in ("max-min", "none", "reference"):
            raise UserError(f"unknown normalisation {self.normalisation!r}: choose from max-min, none, reference")
        if not 0.0 < self.level < 1.0:
            raise UserError(f"the level of an interval lies between 0 and 1, unlike {self.level}")


@dataclass(frozen=True)
class Curve:
    """A run that counts, and its metric."""

    record: Record
    series: Series


Runs = Mapping[str, Sequence[Curve]]  # of one arm, by panel
Span = tuple[float, float]


@dataclass(frozen=True)
class Gathered:
    """The runs that count, by arm and panel, and a sentence for each that does not."""

    curves: Mapping[str, Runs]
    metrics: Mapping[str, str]
    discarded: Sequence[str]

    @property
    def panels(self) -> list[str]:
        return list(dict.fromkeys(panel for by_panel in self.curves.values() for panel in by_panel))


@dataclass(frozen=True)
class Efficiency:
    """Curves by arm. `at` has steps or seconds if all panels share their range (`shared`), else shares of a range."""

    at: Array
    shared: bool
    bands: Mapping[str, Band]


@dataclass(frozen=True)
class Comparison:
    """What came out. `scores` are the normalised final scores (runs, panels); `table` is in the metric's own unit."""

    panels: Sequence[str]
    table: Mapping[str, Mapping[str, Mapping[str, float]]]
    scores: Mapping[str, Array]
    aggregates: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Interval]]  # arm - first arm
    improvement: Mapping[str, Mapping[str, Interval]]  # P(arm > other arm)
    efficiency: Mapping[str, Efficiency]  # over "steps", and over "seconds" if there were clocks
    profiles: Mapping[str, Band]
    thresholds: Array
    reference: Mapping[str, tuple[float, float]]
    metrics: Mapping[str, str]
    discarded: Sequence[str]
    notes: Sequence[str]
    settings: Settings

    @property
    def arms(self) -> list[str]:
        return list(self.aggregates)


def gather(arms: Sequence[Arm], load: Load, unfinished: bool = False) -> Gathered:
    """Reads the metric of every run that counts. Raises UserError if no run of an arm does."""
    curves: dict[str, dict[str, list[Curve]]] = {}
    discarded: list[str] = []
    for arm in arms:
        curves[arm.name] = {}
        for panel, records in arm.runs.items():
            usable = []
            for record in records:
                reason = _refusal(record, arm.metric, unfinished)
                if reason:
                    discarded.append(f"{record.directory} ({arm.name}): {reason}")
                else:
                    usable.append(record)
            usable.sort(key=lambda record: (record.seed, str(record.directory)))
            counted = curves[arm.name].setdefault(panel, [])
            for record, series in zip(usable, load(usable, arm.metric, arm.step_key), strict=True):
                if len(series):
                    counted.append(Curve(record, series))
                    discarded += [f"{record.directory}: {note}" for note in record.notes]
                else:
                    discarded.append(f"{record.directory} ({arm.name}): no value of {arm.metric} is finite")
        if not any(curves[arm.name].values()):
            own = [line for line in discarded if f"({arm.name}): " in line]
            why = f": {'; '.join(own[:3])}" if own else ", for no run meets its conditions"
            raise UserError(f"the arm {arm.name!r} has no run that counts{why}")
    return Gathered(curves, {arm.name: arm.metric for arm in arms}, discarded)


def compare(gathered: Gathered, settings: Settings) -> Comparison:
    """The whole comparison. Raises UserError if there is no panel that all arms have, or none with common steps."""
    kept, discarded, notes = _same_counts(gathered)
    panels = list(next(iter(kept.values())))
    spans = {"steps": {panel: _common_steps(panel, kept, notes) for panel in panels}}
    seconds = {panel: _common(kept, panel, "seconds") for panel in panels}
    if all(low < high for low, high in seconds.values()):  # there were clocks
        spans["seconds"] = seconds
    curves = {axis: _tensors(kept, by_panel, settings.subsamples, axis) for axis, by_panel in spans.items()}
    reference = _reference(settings, panels, curves["steps"], notes)
    low, high = np.array([reference[panel] for panel in panels]).T
    final = {arm: _finals(by_panel, spans["steps"], settings.window) for arm, by_panel in kept.items()}
    scores = {arm: aggregates.normalise(values, low, high) for arm, values in final.items()}
    normalised = {
        axis: {arm: aggregates.normalise(tensor, low, high) for arm, tensor in by_arm.items()}
        for axis, by_arm in curves.items()
    }
    few = min(len(values) for values in scores.values())
    if few < FEW:
        runs = "1 run of an arm there is no interval" if few == 1 else f"{few} runs of an arm an interval is too narrow"
        notes.append(f"with {runs}: take {FEW} or more")
    options: dict[str, Any] = {"level": settings.level, "resamples": settings.resamples, "seed": settings.seed}
    thresholds = _thresholds(settings, scores)
    return Comparison(
        panels=panels,
        table=_table(gathered, spans["steps"], settings.window),
        scores=scores,
        aggregates=_aggregates(scores, options),
        differences=_differences(scores, options),
        improvement={
            arm: {other: aggregates.improvement(a, b, **options) for other, b in scores.items() if other != arm}
            for arm, a in scores.items()
        },
        efficiency={
            axis: _efficiency(normalised[axis], by_panel, settings, options) for axis, by_panel in spans.items()
        },
        profiles={arm: aggregates.profile(values, thresholds, **options) for arm, values in scores.items()},
        thresholds=thresholds,
        reference=reference,
        metrics=gathered.metrics,
        discarded=[*gathered.discarded, *discarded],
        notes=notes,
        settings=settings,
    )


def final_score(series: Series, window: int, end: float = np.inf) -> float:
    """Mean of the last `window` points up to step `end`, but of a tenth of them at most; NaN if there are none."""
    values = series.values[series.steps <= end]
    if not len(values):
        return math.nan
    return float(values[-min(window, max(1, len(values) // 10)) :].mean())


def interpolate(series: Series, grid: Array, axis: str = "steps") -> Array:
    """Linear between the points; points of one step count as their mean. grid (F,) -> (F,)."""
    at, place = np.unique(getattr(series, axis), return_inverse=True)
    means = np.bincount(place, series.values) / np.bincount(place)
    return np.interp(grid, at, means)


def read_reference(path: Path) -> dict[str, tuple[float, float]]:
    """{"ENVIRONMENT": [random, reference]} from a JSON file, or what `compare --output` wrote."""
    try:
        stored = json.loads(path.read_bytes())
        pairs = stored.get("reference", stored)
        return {str(name): (float(low), float(high)) for name, (low, high) in pairs.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is not of the form {{"ENVIRONMENT": [random, reference]}} ({error})') from error


def _refusal(record: Record, metric: str, unfinished: bool) -> str:
    status = record.status
    if record.same_as is not None:
        return f"a copy of {record.same_as} (id {record.id})"
    if status in ("empty", "damaged"):
        return f"is {status}" + (f": {record.notes[0]}" if record.notes else "")
    if status in ("running", "stopped") and not unfinished:
        return f"{'still running' if status == 'running' else 'was stopped'} at step {record.steps}"
    return "" if metric in record.final else f"has not logged {metric}"


def _same_counts(gathered: Gathered) -> tuple[dict[str, Runs], list[str], list[str]]:
    """As many runs in every panel, and only the panels that all arms have; what was left out for that, and notes."""
    discarded, notes = [], []
    panels = []
    for panel in gathered.panels:
        without = [arm for arm, by_panel in gathered.curves.items() if not by_panel.get(panel)]
        if without:
            notes.append(f"{panel} is not in the aggregates, for it has no run of {', '.join(without)}")
        else:
            panels.append(panel)
    if not panels:
        raise UserError(f"there is no environment in which every arm has a run: {'; '.join(notes)}")
    kept: dict[str, Runs] = {}
    for arm, by_panel in gathered.curves.items():
        count = min(len(by_panel[panel]) for panel in panels)
        kept[arm] = {panel: list(by_panel[panel][:count]) for panel in panels}
        fewest = next(panel for panel in panels if len(by_panel[panel]) == count)
        discarded += [
            f"{curve.record.directory} ({arm}): not in the aggregates, for {fewest} has only {count} of this arm"
            for panel in panels
            for curve in by_panel[panel][count:]
        ]
    return kept, discarded, notes


def _common(kept: Mapping[str, Runs], panel: str, axis: str) -> Span:
    arrays = [getattr(curve.series, axis) for by_panel in kept.values() for curve in by_panel[panel]]
    return float(max(array.min() for array in arrays)), float(min(array.max() for array in arrays))


def _common_steps(panel: str, kept: Mapping[str, Runs], notes: list[str]) -> Span:
    low, high = _common(kept, panel, "steps")
    if high < low:
        raise UserError(f"the runs of {panel} have no steps in common: one ends at {high:g}, another begins at {low:g}")
    longest = max(float(c.series.steps[-1]) for by_panel in kept.values() for c in by_panel[panel])
    if longest > high + 0.01 * abs(high):
        end = f"step {high:.15g}, where the shortest run ends"
        notes.append(f"{panel} is compared up to {end}; the longest has {longest:.15g}")
    return low, high


def _tensors(kept: Mapping[str, Runs], spans: Mapping[str, Span], count: int, axis: str) -> dict[str, Array]:
    """(runs, panels, count) by arm."""
    grids = {panel: np.linspace(*span, count) for panel, span in spans.items()}
    tensors = {}
    for arm, by_panel in kept.items():
        columns = [[interpolate(c.series, grid, axis) for c in by_panel[panel]] for panel, grid in grids.items()]
        tensors[arm] = np.array(columns).swapaxes(0, 1)
    return tensors


def _reference(
    settings: Settings, panels: Sequence[str], curves: Mapping[str, Array], notes: list[str]
) -> dict[str, tuple[float, float]]:
    if settings.normalisation == "none":
        return dict.fromkeys(panels, (0.0, 1.0))
    if settings.normalisation == "max-min":
        pairs = zip(*(ends.tolist() for ends in aggregates.max_min(curves)), strict=True)
        found = dict(zip(panels, pairs, strict=True))
        notes.append("scores are normalised by these very runs (max-min): do not set them beside other reports")
    else:
        found = {panel: _looked_up(settings.reference, panel) for panel in panels}
    flat = [panel for panel, (low, high) in found.items() if low == high]
    if flat:
        notes.append(f"all scores of {', '.join(flat)} are equal, so they are 0 after normalisation")
    return found


def _looked_up(reference: Mapping[str, tuple[float, float]], panel: str) -> tuple[float, float]:
    """The same Atari game has two names; both have one score."""
    other = panel.removesuffix(ATARI_V4) + ATARI_V5 if panel.endswith(ATARI_V4) else panel
    if panel not in reference and other not in reference:
        raise UserError(f"the reference scores have no {panel}; they have {', '.join(reference)}")
    return reference[panel] if panel in reference else reference[other]


def _thresholds(settings: Settings, scores: Mapping[str, Array]) -> Array:
    low, high = 0.0, settings.highest
    if high is None and settings.normalisation == "none":
        low = min(float(values.min()) for values in scores.values())
        high = max(float(values.max()) for values in scores.values())
    elif high is None:
        high = 8.0 if settings.normalisation == "reference" else 1.0
    return np.linspace(low, high, settings.thresholds)


def _finals(by_panel: Runs, spans: Mapping[str, Span], window: int) -> Array:
    """(runs, panels)."""
    columns = [[final_score(c.series, window, spans[panel][1]) for c in curves] for panel, curves in by_panel.items()]
    return np.array(columns).T


def _aggregates(scores: Mapping[str, Array], options: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    return {
        arm: {name: aggregates.stratified_interval(values, s, **options) for name, s in AGGREGATES.items()}
        for arm, values in scores.items()
    }


def _differences(scores: Mapping[str, Array], options: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    (_, first), *others = scores.items()
    return {
        arm: {name: aggregates.difference_interval(values, first, s, **options) for name, s in AGGREGATES.items()}
        for arm, values in others
    }


def _efficiency(
    tensors: Mapping[str, Array], spans: Mapping[str, Span], settings: Settings, options: Mapping[str, Any]
) -> Efficiency:
    shared = len(set(spans.values())) == 1
    ends = next(iter(spans.values())) if shared else (0.0, 1.0)
    statistic = AGGREGATES[settings.efficiency]
    bands = {arm: aggregates.efficiency(tensor, statistic, **options) for arm, tensor in tensors.items()}
    return Efficiency(np.linspace(*ends, settings.subsamples), shared, bands)


def _table(gathered: Gathered, spans: Mapping[str, Span], window: int) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and spread over all runs of an arm, panel by panel: final scores as logged, and seconds of training."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for arm, by_panel in gathered.curves.items():
        table[arm] = {}
        for panel, curves in by_panel.items():
            if not curves:
                continue
            end = spans[panel][1] if panel in spans else np.inf
            final = summarise([final_score(curve.series, window, end) for curve in curves])
            spent = summarise([curve.series.seconds[-1] for curve in curves])
            seconds = {"seconds": spent["mean"], "seconds_deviation": spent["deviation"]}
            table[arm][panel] = {"runs": float(len(curves)), **final, **seconds}
    return table
