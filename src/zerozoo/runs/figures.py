"""Figures of a run and of the arms of a claim, drawn from the rows of metrics.jsonl.

Every figure is a list of panels and every panel a list of curves, as data below: a metric that a recipe does not log
is left out, and a figure without any curve is not drawn. matplotlib is imported when something is drawn, for the
command line's sake, and without pyplot, so that no window system and no global state is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

History = Sequence[Mapping[str, Any]]
Series = tuple[np.ndarray, np.ndarray]  # steps (n,) and values (n,), NaN where a value was not finite

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLOURS, GREY, BLACK = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY), "#B4B4B4", "#303030"
WIDTH, PANEL_HEIGHT, DPI = 9.0, 2.9, 150  # inches; shown at 900 pixels the text is 15 pixels high
MANY = 40  # points, from which on there are no markers and a noisy metric gets a moving average
BARS = 120  # at most, in the figure of the time
SPIKE = 30.0  # an axis that may be logarithmic becomes so when its largest value exceeds this many medians
STYLE: Any = {
    "font.size": 11.0,
    "figure.titlesize": 13.0,
    "figure.titleweight": "bold",
    "axes.xmargin": 0.02,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#606060",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 10.0,
}


@dataclass(frozen=True)
class Curve:
    """A metric by its key; `low` and `high` are the keys of its interval, `noisy` asks for a moving average."""

    key: str
    label: str
    colour: str
    low: str = ""
    high: str = ""
    noisy: bool = True

    @property
    def drawn_keys(self) -> list[str]:
        return [key for key in (self.key, self.high) if key]


@dataclass(frozen=True)
class Panel:
    """Curves of one unit; `share` is shown in percent; `spikes` allows a logarithmic axis."""

    unit: str
    curves: tuple[Curve, ...]
    share: bool = False
    spikes: bool = False


def _heldout(mode: str, label: str, colour: str) -> Curve:
    low, high = f"heldout/{mode}_low", f"heldout/{mode}_high"
    return Curve(f"heldout/{mode}_accuracy", label, colour, low, high, noisy=False)


_RETURN = Curve("evaluation/return", "return", BLUE, "evaluation/low", "evaluation/high", noisy=False)

FIGURES: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "returns": (
        "evaluation",
        (
            Panel("return\nper episode", (_RETURN,)),
            Panel("of the episodes", (Curve("evaluation/success", "successful", GREEN, noisy=False),), share=True),
            Panel("return\nper episode", (Curve("episode/return", "of training, while exploring", ORANGE),)),
        ),
    ),
    "accuracy": (
        "accuracy and reward",
        (
            Panel(
                "held-out problems\nanswered right",
                (_heldout("greedy", "greedy", BLUE), _heldout("sampled", "sampled", ORANGE)),
                share=True,
            ),
            Panel("mean reward\nper response", (Curve("reward", "training problems", GREEN),)),
        ),
    ),
    "lengths": (
        "response length",
        (
            Panel(
                "tokens\nper response",
                (
                    Curve("response/length", "all responses", BLUE),
                    Curve("response/stopped_length", "those that stopped by themselves", ORANGE),
                ),
            ),
            Panel(
                "tokens\nper response",
                (
                    Curve("response/length_right", "right answers", GREEN),
                    Curve("response/length_wrong", "wrong answers", RED),
                ),
            ),
        ),
    ),
    "shares": (
        "responses and groups",
        (
            Panel(
                "of the responses",
                (
                    Curve("response/clip_ratio", "cut off at the limit", RED),
                    Curve("response/box_ratio", "with a \\boxed answer", BLUE),
                    Curve("response/repeat_ratio", "that repeat themselves", PURPLE),
                ),
                share=True,
            ),
            Panel(
                "of the groups",
                (
                    Curve("groups/informative", "informative: rewards differ", GREEN),
                    Curve("groups/all_right", "all right", SKY),
                    Curve("groups/all_wrong", "all wrong", ORANGE),
                ),
                share=True,
            ),
        ),
    ),
    "policy": (
        "policy",
        (
            Panel("entropy\n(nats per token)", (Curve("policy/entropy", "entropy", BLUE),)),
            Panel("KL from reference\n(nats per token)", (Curve("policy/kl", "KL", ORANGE),), spikes=True),
            Panel(
                "gradient norm\nbefore clipping", (Curve("policy/gradient_norm", "gradient norm", GREEN),), spikes=True
            ),
            Panel("tokens clipped\nby the loss", (Curve("policy/clip_fraction", "clip fraction", RED),), share=True),
        ),
    ),
}
PHASES = (
    Curve("seconds/sample", "sample", BLUE),
    Curve("seconds/score", "score", ORANGE),
    Curve("seconds/update", "update", GREEN),
)
STEP_TIME, EVALUATE_TIME = "seconds/step", "seconds/evaluate"


def training_figures(history: History, directory: Path | str, title: str) -> list[Path]:
    """Draws accuracy.png, lengths.png, shares.png, policy.png and time.png into `directory`; returns those drawn.

    `history`: rows with "step" and metrics by key; None is a gap. A figure of which no metric was logged is skipped.
    """
    import matplotlib

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        for name, (subject, panels) in FIGURES.items():
            shown = [panel for panel in panels if any(_logged(history, curve.key) for curve in panel.curves)]
            if shown:
                paths.append(_draw_panels(history, shown, f"{title}: {subject}", folder / f"{name}.png"))
        keys = [STEP_TIME, *(phase.key for phase in PHASES)]
        timed = [row for row in history if any(_number(row, key) > 0 for key in keys)]
        if timed:
            paths.append(_draw_time(history, timed, f"{title}: time of a training step", folder / "time.png"))
    return paths


def arms_figure(by_arm: Mapping[str, Sequence[History]], metric: str, path: Path | str) -> Path:
    """Draws `metric` over the steps for every arm: the median of its seeds thick, every seed thin; returns `path`.

    The median is taken at the steps that all seeds of the arm have. Raises ValueError if no arm logged the metric.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _figure(f"{metric}: median of the seeds thick, each seed thin", 1, 4.6)
        values = []
        for index, (arm, histories) in enumerate(by_arm.items()):
            seeds = [_series(history, metric) for history in histories if _logged(history, metric)]
            if not seeds:
                continue
            look = {"color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--", ":")[index // len(COLOURS) % 3]}
            for seed in seeds:
                axes.plot(*seed, linewidth=1.0, alpha=0.4, **look)
                values.append(seed[1])
            median = _median(seeds)
            seeds_text = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
            label = _plain(f"{arm} ({seeds_text})")
            axes.plot(*median, linewidth=2.6, label=label, **look, **_marker(median[0]))
        if not values:
            raise ValueError(f"no arm has logged {metric!r}")
        axes.set_ylabel(_plain(metric))
        axes.set_xlabel("training step")
        everything = np.concatenate(values)
        if np.nanmin(everything) >= 0 and np.nanmax(everything) <= 1:
            _share_axis(axes, np.nanmax(everything))
        _legend(axes)
        return _write(figure, Path(path))


def _draw_panels(history: History, panels: Sequence[Panel], title: str, path: Path) -> Path:
    figure, all_axes = _figure(title, len(panels), PANEL_HEIGHT if len(panels) < 3 else 2.1)
    everything = [curve for panel in panels for curve in panel.curves if curve.noisy]
    points = max((len(_series(history, curve.key)[0]) for curve in everything), default=0)
    # One width for the whole figure, also for a metric with fewer points, so that the axis can name it.
    width = max(3, points // 20 | 1) if points >= MANY else 1
    for panel, axes in zip(panels, all_axes, strict=True):
        curves = [curve for curve in panel.curves if _logged(history, curve.key)]
        for curve in curves:
            _draw_curve(axes, history, curve, width if curve.noisy else 1)
        axes.set_ylabel(panel.unit)
        values = np.concatenate([_series(history, key)[1] for curve in curves for key in curve.drawn_keys])
        if panel.share:
            _share_axis(axes, np.nanmax(values))
        elif panel.spikes and _spiky(values):
            axes.set_yscale("log")
        elif np.nanmin(values) >= 0:
            axes.set_ylim(bottom=0)
        if len(panel.curves) > 1:
            _legend(axes)
    note = f" (thin: as logged, thick: mean of {width} values)" if width > 1 else ""
    all_axes[-1].set_xlabel(f"training step{note}")
    return _write(figure, path)


def _draw_curve(axes: Any, history: History, curve: Curve, width: int) -> None:
    """Draws the curve with its interval; with a `width` over 1 a moving average, and the curve itself thin."""
    steps, values = _series(history, curve.key)
    label = curve.label
    if len(steps) <= 2 and len({row["step"] for row in history}) > 10:
        # A line between the first and the last step would say something about the steps in between.
        _draw_points(axes, history, curve)
        return
    if curve.low and _logged(history, curve.low) and _logged(history, curve.high):
        (at, low), (_, high) = _series(history, curve.low), _series(history, curve.high)
        if len(low) == len(high):
            axes.fill_between(at, low, high, color=curve.colour, alpha=0.18, linewidth=0)
            label += " with 95 % interval"
    if width > 1:
        axes.plot(steps, values, color=curve.colour, linewidth=0.8, alpha=0.4)
        values = _moving_average(values, width)
    axes.plot(steps, values, color=curve.colour, linewidth=2.2, label=label, **_marker(steps))


def _draw_points(axes: Any, history: History, curve: Curve) -> None:
    """Draws single measurements, with their intervals as bars."""
    steps, values = _series(history, curve.key)
    errors, label = None, curve.label
    if curve.low and _logged(history, curve.low) and _logged(history, curve.high):
        low, high = _series(history, curve.low)[1], _series(history, curve.high)[1]
        errors = [[v - a for v, a in zip(values, low, strict=True)], [b - v for v, b in zip(values, high, strict=True)]]
        label += " with 95 % interval"
    axes.errorbar(
        steps, values, yerr=errors, color=curve.colour, fmt="D", markersize=6, capsize=4, linewidth=1.6, label=label
    )


def _draw_time(history: History, rows: History, title: str, path: Path) -> Path:
    """Stacked bars of the phases; what a step took beyond them is "the rest"; evaluation stands apart from steps.

    `rows` are those of `history` that have the time of a step or of a phase.
    """
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    phases = [np.nan_to_num([_number(row, phase.key) for row in rows]) for phase in PHASES]
    whole = np.nan_to_num([_number(row, STEP_TIME) for row in rows])
    layers = [(p.label, p.colour, seconds) for p, seconds in zip(PHASES, phases, strict=True) if seconds.any()]
    layers.append(("the rest", GREY, np.maximum(whole - np.sum(phases, axis=0), 0.0)))
    total = sum(seconds.sum() for _, _, seconds in layers)

    figure, (axes,) = _figure(title, 1, 4.4)
    groups = np.array_split(np.arange(len(rows)), min(len(rows), BARS))
    at = np.array([steps[group].mean() for group in groups])
    spacing = np.median(np.diff(np.unique(steps))) if np.ptp(steps) > 0 else 1.0
    width = np.array([np.ptp(steps[group]) + spacing for group in groups]) * (0.9 if len(at) < MANY else 1.0)
    bottom = np.zeros(len(at))
    for label, colour, seconds in layers:
        height = np.array([seconds[group].mean() for group in groups])
        if height.any():
            axes.bar(at, height, width, bottom, color=colour, label=f"{label} {seconds.sum() / total:.0%}")
        bottom += height
    if _logged(history, EVALUATE_TIME):
        look = {"color": BLACK, "linestyle": "", "marker": "D", "markersize": 6.0}
        axes.plot(*_series(history, EVALUATE_TIME), label="an evaluation, apart", **look)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds")
    axes.set_xlabel("training step" if len(groups) == len(rows) else f"training step ({len(groups)} bars, means)")
    _legend(axes)
    return _write(figure, path)


def _figure(title: str, panels: int, panel_height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, panel_height * panels + 0.7), dpi=DPI, layout="constrained")
    figure.suptitle(_plain(title), x=0.01, horizontalalignment="left")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    return figure, list(axes)


def _write(figure: Any, path: Path) -> Path:
    from matplotlib.ticker import MaxNLocator

    figure.axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.savefig(path)
    return path


def _legend(axes: Any) -> None:
    """Above the panel, where it hides no curve: in one row if it fits, bars before lines."""
    handles, labels = axes.get_legend_handles_labels()
    entries = sorted(zip(handles, labels, strict=True), key=lambda entry: not hasattr(entry[0], "patches"))
    room = 105  # characters in a row; a handle and its spaces take about five
    fits = sum(len(label) + 5 for label in labels) <= room
    columns = len(labels) if fits else max(1, room // (max(map(len, labels)) + 5))
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": columns, "borderaxespad": 0.2}
    axes.legend(*zip(*entries, strict=True), handlelength=1.8, columnspacing=1.6, **place)


def _share_axis(axes: Any, largest: float) -> None:
    """In percent from 0; up to 100 % only if the values come near it."""
    from matplotlib.ticker import FuncFormatter

    top = min(1.0, max(1.15 * largest, 0.02))
    axes.set_ylim(-0.02 * top, 1.02 * top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def _marker(steps: np.ndarray) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4.5} if len(steps) < MANY else {}


def _plain(text: str) -> str:
    """A dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)


def _logged(history: History, key: str) -> bool:
    return any(math.isfinite(_number(row, key)) for row in history)


def _series(history: History, key: str) -> Series:
    """Steps and values of the rows that have `key`, in the order of the steps; of two rows of one step the later."""
    by_step = {float(row["step"]): _number(row, key) for row in history if key in row}
    steps = sorted(by_step)
    return np.array(steps), np.array([by_step[step] for step in steps])


def _median(seeds: Sequence[Series]) -> Series:
    shared = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in seeds)))
    columns = [[dict(zip(steps, values, strict=True))[step] for step in shared] for steps, values in seeds]
    return np.array(shared), np.median(np.array(columns), axis=0)


def _moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the finite values within `width` (odd) steps around each; windows are cut at the ends. (n,) -> (n,)."""
    finite = np.isfinite(values)
    window = np.ones(width)
    count = np.convolve(finite, window, "same")
    total = np.convolve(np.where(finite, values, 0.0), window, "same")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _spiky(values: np.ndarray) -> bool:
    positive = values[np.isfinite(values) & (values > 0)]
    return positive.size > 0 and float(positive.max()) > SPIKE * float(np.median(positive))
