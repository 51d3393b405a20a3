"""`zerozoo runs compare`: final metrics of runs side by side, and arms of runs with their intervals."""

from __future__ import annotations

import csv
import io
import json as json_text
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from tyro.conf import DisallowNone

from zerozoo.cli.runs_choice import Choice, print_sentences
from zerozoo.cli.runs_list import metric_text, shown_metrics, tracked_seconds, value_text
from zerozoo.cli.tables import console, duration, make_table, number, print_json, strict
from zerozoo.runs.aggregates import AGGREGATES, Band
from zerozoo.runs.compare import Comparison, compare
from zerozoo.runs.errors import UserError
from zerozoo.runs.records import METRICS, Record, read_rows, writing
from zerozoo.runs.statistics import Interval

MEASURED = ("heldout/", "evaluation/")  # metrics of problems and episodes that were not trained on
# Beside them, what a comparison shows of the training itself.
TRAINING = (
    "reward",
    "correct",
    "groups/informative",
    "episode/return",
    "episode/length",
    "policy/entropy",
    "policy/kl",
    "updates_per_second",
)
POINTS_SHOWN = 6  # of an efficiency curve or a profile


def compare_runs(
    choice: Choice,
    output: DisallowNone[Path | None] = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Final metrics of several runs side by side, and where their configs differ; with --metric or --filters: arms.

    An arm is compared by the interquartile mean, mean, median and optimality gap of its normalised final scores with
    stratified bootstrap intervals, by the probability of improvement, by sample efficiency and performance profiles.
    Which runs were left out, and why, stands at the end. Side by side, accuracies are in percent; their interval and
    that of a return are over the problems or episodes of the evaluation and say nothing about other seeds.

    Args:
        output: write the comparison of arms to NAME.md, NAME.csv and NAME.json.
        json: print the comparison of arms as JSON.
    """
    if not choice.filters and choice.metric is None:
        if output is not None or json:
            raise UserError("--output and --json are for arms: give --metric or --filters")
        return _side_by_side(choice.records())
    result = compare(choice.gather(), choice.settings())
    if output is not None:
        _write(result, output)
    if json:
        print_json(comparison_json(result))
    else:
        _print(console(), result)
    return 0


def comparison_json(result: Comparison) -> dict[str, Any]:
    """Everything as JSON can hold it; "reference" may be given to --normalise for a later comparison."""
    found = {
        "panels": result.panels,
        "metrics": result.metrics,
        "table": result.table,
        "scores": result.scores,
        "aggregates": result.aggregates,
        "differences_to_first": result.differences,
        "probability_of_improvement": result.improvement,
        "efficiency": result.efficiency,
        "profile": {"thresholds": result.thresholds, "arms": result.profiles},
        "reference": result.reference,
        "discarded": result.discarded,
        "notes": result.notes,
        "settings": result.settings,
    }
    return strict(_plain(found))


def _plain(value: Any) -> Any:
    """Without numpy and dataclasses."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(inner) for name, inner in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _side_by_side(records: Sequence[Record]) -> int:
    if len(records) < 2:
        raise UserError("give at least two run directories to compare; `zerozoo runs show` describes one")
    letters, out = [_letter(index) for index in range(len(records))], console()
    for letter, record in zip(letters, records, strict=True):
        out.print(f"{letter}  {record.directory}", soft_wrap=True)
    out.print()
    names = list(dict.fromkeys(name for record in records for name in shown_metrics(record.final)))
    measured = [name for name in names if name.startswith(MEASURED)]
    rows = [["steps", *(record.steps for record in records)]]
    for name in [*measured, *(name for name in TRAINING if name in names)] if measured else names:
        rows.append([name, *(metric_text(record.final, name) for record in records)])
    spent = [tracked_seconds(read_rows(record.directory / METRICS)[0]) for record in records]
    rows.append(["time", *map(duration, spent)])
    out.print(make_table(["final metric|", *letters], rows))
    differences = config_differences(records)
    out.print()
    if differences:
        out.print(make_table(["config|", *letters], differences))
    else:
        out.print("The configs are equal.")
    sentences = [f"{record.directory}: {note}" for record in records for note in record.notes]
    print_sentences(out, "Left out or not as it should be:", sentences)
    return 0


def config_differences(records: Sequence[Record]) -> list[list[str]]:
    """Rows (field, value in each run) of the fields that are not the same in all of them; "absent" where missing."""
    stored = [{"recipe": record.recipe, "seed": record.seed, **record.config} for record in records]
    rows = []
    for field in dict.fromkeys(field for config in stored for field in config):
        values = [value_text(config[field]) if field in config else "absent" for config in stored]
        if len(set(values)) > 1:
            rows.append([field, *values])
    return rows


def _letter(index: int) -> str:
    """A, B, ... Z, A2, B2, ..."""
    return chr(ord("A") + index % 26) + (str(index // 26 + 1) if index >= 26 else "")


def _tables(result: Comparison) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of every table."""
    level = f"{100 * result.settings.level:g} % interval"
    first = result.arms[0]
    tables = [
        (f"{_metric(result)}: mean ± deviation over runs (runs)", *_panel_table(result, _final_text)),
        ("Time: mean ± deviation over runs", *_panel_table(result, _time_text)),
        (f"Normalised final scores with {level}", ["arm|", *_columns(AGGREGATES)], _interval_rows(result.aggregates)),
    ]
    if result.differences:
        rows = _interval_rows(result.differences)
        tables.append((f"Difference to {first} with {level}", ["arm|", *_columns(AGGREGATES)], rows))
        pairs = [
            [f"{one} > {two}", _interval_text(result.improvement[one][two])]
            for place, one in enumerate(result.arms)
            for two in result.arms[place + 1 :]
        ]
        tables.append((f"Probability of improvement with {level}", ["a run of the first is better|", "P>"], pairs))
    for axis, curves in result.efficiency.items():
        unit = axis if curves.shared else f"share of the {axis}"
        title = f"Sample efficiency: {result.settings.efficiency} by {unit}"
        tables.append((title, *_band_table(curves.at, curves.bands)))
    tables.append(("Performance profile: share of runs above", *_band_table(result.thresholds, result.profiles)))
    return tables


def _metric(result: Comparison) -> str:
    return ", ".join(dict.fromkeys(result.metrics.values()))


def _panel_table(result: Comparison, text: Callable[[Mapping[str, float]], str]) -> tuple[list[str], list[list[str]]]:
    panels = list(dict.fromkeys(panel for by_panel in result.table.values() for panel in by_panel))
    rows = [[panel, *(text(result.table[arm].get(panel, {})) for arm in result.arms)] for panel in panels]
    return ["environment|", *(f"{arm}>" for arm in result.arms)], rows


def _final_text(cell: Mapping[str, float]) -> str:
    if not cell:
        return "-"
    spread = f" ± {number(cell['deviation'])}" if math.isfinite(cell["deviation"]) else ""
    return f"{number(cell['mean'])}{spread} ({cell['runs']:.0f})"


def _time_text(cell: Mapping[str, float]) -> str:
    if not cell:
        return "-"
    spread = f" ± {duration(cell['seconds_deviation'])}" if math.isfinite(cell["seconds_deviation"]) else ""
    return duration(cell["seconds"]) + spread


def _interval_text(interval: Interval) -> str:
    return f"{interval.value:.3f} [{_end(interval.low)}, {_end(interval.high)}]"


def _end(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _columns(names: Sequence[str] | Mapping[str, object]) -> list[str]:
    return [f"{name}>" for name in names]


def _interval_rows(by_arm: Mapping[str, Mapping[str, Interval]]) -> list[list[str]]:
    return [[arm, *(_interval_text(interval) for interval in found.values())] for arm, found in by_arm.items()]


def _band_table(at: Any, bands: Mapping[str, Band]) -> tuple[list[str], list[list[str]]]:
    """Some of the points; all of them are in the JSON."""
    shown = np.unique(np.linspace(0, len(at) - 1, POINTS_SHOWN).round().astype(int))
    rows = [
        [arm, *(_interval_text(Interval(band.value[i], band.low[i], band.high[i])) for i in shown)]
        for arm, band in bands.items()
    ]
    return ["arm|", *(f"{number(float(at[i]))}>" for i in shown)], rows


def _print(out: Console, result: Comparison) -> None:
    for title, columns, rows in _tables(result):
        out.print(title, style="bold", soft_wrap=True)
        out.print(make_table(columns, rows))
        out.print()
    settings = result.settings
    out.print(
        f"Final score: mean of the last {settings.window} logged points of a run, of a tenth of its points at most. "
        f"{settings.resamples} stratified resamples.",
        soft_wrap=True,
    )
    print_sentences(out, "Remarks:", result.notes)
    print_sentences(out, "Left out or not as it should be:", result.discarded)


def _write(result: Comparison, output: Path) -> None:
    markdown = []
    for title, columns, rows in _tables(result):
        heads = [column.rstrip(">|") for column in columns]
        lines = [heads, ["---"] * len(heads), *rows]
        texts = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
        cells = ["| " + " | ".join(line) + " |" for line in texts]
        markdown.append("\n".join([f"## {title}", "", *cells, ""]))
    for title, sentences in (("Remarks", result.notes), ("Left out", result.discarded)):
        if sentences:
            markdown.append("\n".join([f"## {title}", "", *(f"- {sentence}" for sentence in sentences), ""]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("runs", "mean", "deviation", "low", "high", "seconds", "seconds_deviation")
    writer.writerow(["environment", "arm", *names])
    for arm, by_panel in result.table.items():
        for panel, cell in by_panel.items():
            writer.writerow([panel, arm, *(cell[name] for name in names)])
    stored = json_text.dumps(comparison_json(result), indent=2, allow_nan=False) + "\n"
    for ending, content in ((".md", "\n".join(markdown)), (".csv", text.getvalue()), (".json", stored)):
        path = output.with_name(output.name + ending)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
