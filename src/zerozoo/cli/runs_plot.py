"""`zerozoo runs plot`: figures of one run, and of arms of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tyro.conf import DisallowNone

from zerozoo.cli.runs_choice import Choice, print_sentences
from zerozoo.cli.tables import console
from zerozoo.runs.errors import UserError
from zerozoo.runs.records import METRICS, Record, read_rows


def plot_runs(
    choice: Choice,
    kind: Literal["curves", "aggregates", "improvement", "profile", "efficiency"] = "curves",
    axis: Literal["steps", "seconds"] = "steps",
    spread: Literal["interval", "deviation"] = "interval",
    output: DisallowNone[Path | None] = None,
) -> int:
    """Draw figures: all those of one run, or one figure of arms.

    Runs whose configs differ in seed and environment alone are one arm, drawn as the mean over its runs with a band.

    Args:
        kind: what of the arms; the kinds but curves show normalised final scores.
        axis: curves over steps or over seconds of training.
        spread: band of the curves: Student's t interval of the mean, or the standard deviation over runs.
        output: file ending in .png, .svg or .pdf; without an ending all three are written. By default a PNG file named
            after the metric, in the current folder.
    """
    from zerozoo.runs.compare import compare
    from zerozoo.runs.plots import KINDS, curves_figure, draw

    out = console()
    if not choice.filters and choice.metric is None and output is None and kind == "curves":
        records = choice.records()
        if len(records) == 1:
            return _plot_one(records[0])
    settings, gathered = choice.settings(), choice.gather()
    metric = next(iter(gathered.metrics.values()))
    name = metric if kind == "curves" else f"{metric}-{kind}"
    target = output or Path(f"{name.replace('/', '-')}.png")
    if kind == "curves":
        paths = draw(lambda: curves_figure(gathered, axis, settings.level, spread), target)
    else:
        result = compare(gathered, settings)
        paths = draw(lambda: KINDS[kind](result), target)
    for path in paths:
        out.print(path, soft_wrap=True)
    print_sentences(out, "Left out or not as it should be:", gathered.discarded)
    return 0


def _plot_one(record: Record) -> int:
    from zerozoo.runs.figures import training_figures

    rows, notes = read_rows(record.directory / METRICS)
    if not rows:
        raise UserError(f"{record.directory} has no metrics yet, so there is nothing to draw")
    out = console()
    paths = training_figures(rows, record.directory / "figures", f"{record.recipe}, seed {record.seed}")
    if not paths:
        known = ", ".join(sorted(record.final))
        raise UserError(f"no figure shows what {record.directory} has logged: give --metric; it has: {known}")
    for path in paths:
        out.print(path, soft_wrap=True)
    print_sentences(out, "Left out:", notes)
    return 0
