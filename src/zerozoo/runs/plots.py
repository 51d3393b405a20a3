"""Figures of a comparison for a publication: learning curves with intervals, aggregates, profiles, efficiency.

Written as PNG, SVG or PDF without the date, so that the same numbers give the same file. matplotlib is imported when
something is drawn, and without pyplot, as in `figures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zerozoo.runs.aggregates import AGGREGATES, Array, Band
from zerozoo.runs.compare import Comparison, Curve, Gathered, interpolate
from zerozoo.runs.errors import UserError
from zerozoo.runs.figures import COLOURS, GREY, STYLE, _plain
from zerozoo.runs.records import writing
from zerozoo.runs.statistics import student_quantile

FORMATS = ("png", "svg", "pdf")
LINES = ("-", "--", ":", "-.")
CURVE_POINTS = 10_000  # of the common grid
SMOOTHING = 100  # points of that grid in the moving average
DRAWN_POINTS = 1_000  # of the curve, more cannot be seen
COLUMNS, PANEL_SIZE, DPI = 3, (3.4, 2.5), 200  # panels side by side, their inches
FIXED: Any = {"svg.hashsalt": "zerozoo", "pdf.fonttype": 42}  # 42: text stays text


def curves_figure(gathered: Gathered, axis: str = "steps", level: float = 0.95, spread: str = "interval") -> Any:
    """Mean over the runs of an arm, one panel for every environment, over steps or seconds.

    The band is Student's t interval of the mean, or its standard deviation (`spread` "deviation"); one run has none.
    Every run is interpolated on a common grid from the last of the first to the first of the last points of its arm.
    """
    figure, all_axes = _grid(len(gathered.panels))
    for panel, axes in zip(gathered.panels, all_axes, strict=False):
        for number, (arm, by_panel) in enumerate(gathered.curves.items()):
            curves = by_panel.get(panel, ())
            if curves:
                at, band = mean_curve(curves, axis, level, spread)
                runs = "1 run" if len(curves) == 1 else f"{len(curves)} runs"
                _draw_band(axes, at, band, f"{arm} ({runs})" if len(gathered.panels) == 1 else arm, number)
        axes.set_title(_plain(panel))
        axes.set_xlabel({"steps": "step", "seconds": "seconds"}[axis])
    all_axes[0].set_ylabel(_plain(", ".join(dict.fromkeys(gathered.metrics.values()))))
    _legend(figure, all_axes)
    return figure


def mean_curve(curves: Sequence[Curve], axis: str, level: float, spread: str) -> tuple[Array, Band]:
    """Points (F,) of the common grid, and the mean over the runs with its band; NaN where nothing bounds it."""
    arrays = [getattr(curve.series, axis) for curve in curves]
    low, high = max(array.min() for array in arrays), min(array.max() for array in arrays)
    grid = np.linspace(low, max(low, high), CURVE_POINTS)
    smooth = np.stack([moving_average(interpolate(c.series, grid, axis), SMOOTHING) for c in curves])
    drawn = np.linspace(0, CURVE_POINTS - 1, DRAWN_POINTS).astype(int)
    smooth = smooth[:, drawn]
    mean, count = smooth.mean(axis=0), len(curves)
    half = np.full_like(mean, math.nan)
    if count > 1:
        half = smooth.std(axis=0, ddof=1)
        if spread == "interval":
            half = student_quantile(level, count - 1) * half / math.sqrt(count)
    return grid[drawn], Band(mean, mean - half, mean + half)


def moving_average(values: Array, width: int) -> Array:
    """Mean of each value and the up to `width` - 1 before it. (n,) -> (n,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def aggregates_figure(comparison: Comparison) -> Any:
    """One panel for every aggregate, one bar from low to high with its point for every arm."""
    figure, all_axes = _figure(1, len(AGGREGATES), height=0.35 * len(comparison.arms) + 1.1)
    for name, axes in zip(AGGREGATES, all_axes, strict=True):
        for number, arm in enumerate(comparison.arms):
            _draw_interval(axes, comparison.aggregates[arm][name], number)
        axes.set_title(name + (" (less is better)" if name == "optimality gap" else ""))
        axes.set_yticks(range(len(comparison.arms)), [])
        axes.invert_yaxis()
    all_axes[0].set_yticks(range(len(comparison.arms)), [_plain(arm) for arm in comparison.arms])
    figure.supxlabel(_scale(comparison), fontsize=10.0)
    return figure


def improvement_figure(comparison: Comparison) -> Any:
    """P(X > Y) of every pair of arms, each pair once. Raises UserError for one arm."""
    arms = comparison.arms
    pairs = [(first, second) for place, first in enumerate(arms) for second in arms[place + 1 :]]
    if not pairs:
        raise UserError("the probability of improvement needs two arms")
    figure, (axes,) = _figure(1, 1, height=0.4 * len(pairs) + 1.2, width=6.5)
    for number, (first, second) in enumerate(pairs):
        _draw_interval(axes, comparison.improvement[first][second], number)
    axes.axvline(0.5, color=GREY, linewidth=1.0, zorder=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_yticks(range(len(pairs)), [_plain(f"{first} > {second}") for first, second in pairs])
    axes.invert_yaxis()
    axes.set_xlabel("probability that a run of the first is better")
    return figure


def profile_figure(comparison: Comparison) -> Any:
    """Share of the runs above every threshold."""
    figure, (axes,) = _figure(1, 1, height=3.2, width=5.0)
    for number, (arm, band) in enumerate(comparison.profiles.items()):
        _draw_band(axes, comparison.thresholds, band, arm, number)
    axes.set_xlabel(_scale(comparison) + " above")
    axes.set_ylabel("share of the runs")
    axes.set_ylim(-0.02, 1.02)
    _legend(figure, [axes])
    return figure


def efficiency_figure(comparison: Comparison) -> Any:
    """An aggregate of the normalised scores over steps, and over seconds if there were clocks."""
    curves = comparison.efficiency
    figure, all_axes = _figure(1, len(curves), height=3.2, width=4.5 * len(curves))
    for (unit, efficiency), axes in zip(curves.items(), all_axes, strict=True):
        for number, (arm, band) in enumerate(efficiency.bands.items()):
            _draw_band(axes, efficiency.at, band, arm, number)
        axes.set_xlabel({"steps": "step", "seconds": "seconds"}[unit] if efficiency.shared else f"share of the {unit}")
    all_axes[0].set_ylabel(f"{comparison.settings.efficiency} of the\n{_scale(comparison)}")
    _legend(figure, all_axes)
    return figure


KINDS: Mapping[str, Callable[[Comparison], Any]] = {
    "aggregates": aggregates_figure,
    "improvement": improvement_figure,
    "profile": profile_figure,
    "efficiency": efficiency_figure,
}


def draw(make: Callable[[], Any], output: Path) -> list[Path]:
    """Writes the figure that `make` returns: as `output` says by its ending, or in all formats without one."""
    import matplotlib

    ending = output.suffix.lower().removeprefix(".")
    if ending and ending not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise UserError(f"a figure is written as {known}, or as all three without an ending, not as {output.name!r}")
    paths = [output] if ending else [output.with_name(f"{output.name}.{name}") for name in FORMATS]
    with matplotlib.rc_context({**STYLE, **FIXED}):
        figure = make()
        for path in paths:
            dates = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=DPI, metadata=dates[path.suffix.lower().removeprefix(".")])
    return paths


def _scale(comparison: Comparison) -> str:
    if comparison.settings.normalisation == "none":
        return _plain(", ".join(dict.fromkeys(comparison.metrics.values())))
    return "normalised score"


def _look(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def _draw_band(axes: Any, at: Array, band: Band, label: str, number: int) -> None:
    axes.plot(at, band.value, label=_plain(label), linewidth=1.8, **_look(number))
    if np.isfinite(band.low).any() and np.isfinite(band.high).any():
        axes.fill_between(at, band.low, band.high, color=COLOURS[number % len(COLOURS)], alpha=0.18, linewidth=0)


def _draw_interval(axes: Any, interval: Any, number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        axes.barh(number, interval.high - interval.low, 0.6, interval.low, color=colour, alpha=0.6)
    axes.plot([interval.value] * 2, [number - 0.3, number + 0.3], color="black", linewidth=1.6)


def _grid(panels: int) -> tuple[Any, list[Any]]:
    """A figure with that many panels, three in a row; the rest of the last row is empty."""
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    width, height = PANEL_SIZE if panels > 1 else (5.5, 3.2)
    figure, all_axes = _figure(rows, columns, height=height * rows, width=width * columns)
    for axes in all_axes[panels:]:
        axes.remove()
    return figure, all_axes[:panels]


def _figure(rows: int, columns: int, height: float, width: float | None = None) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width or 2.6 * columns + 1.0, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _legend(figure: Any, all_axes: Sequence[Any]) -> None:
    """One for all panels, below them."""
    entries: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=min(3, len(entries)))
