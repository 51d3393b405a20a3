"""`zerozoo runs list` and `show`."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, UseAppendAction

from zerozoo.cli.runs_choice import Filters, print_sentences
from zerozoo.cli.tables import console, duration, make_table, number, percent, percent_interval, print_json, size
from zerozoo.runs.records import LOCK, METRICS, Record, read_record, read_rows
from zerozoo.runs.statistics import Interval

# Columns of a list without --metric: head and metrics, of which the first that a run has is shown.
Columns = Mapping[str, tuple[str, ...]]
ACCURACIES: Columns = {"greedy %": ("heldout/greedy_accuracy",), "sampled %": ("heldout/sampled_accuracy",)}
RETURNS: Columns = {"return": ("evaluation/return", "episode/return")}
SECONDS = ("seconds/step", "seconds/train", "seconds/evaluate")


def list_runs(
    directory: Positional[Path] = Path("runs"),
    *,
    filters: Filters,
    metric: UseAppendAction[tuple[str, ...]] = (),
    limit: int = 100,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Every run below a folder, the newest first: recipe, state, last held-out accuracies or return, date.

    Args:
        directory: where to look, with all folders below.
        metric: show the last value of this metric in place of accuracies and return; may be given several times.
        limit: runs to show at most; 0 for all.
        json: print JSON in place of a table, with everything that is known about the runs.
    """
    records, notes = filters.runs(directory)
    records.sort(key=lambda record: record.changed, reverse=True)
    shown = records[:limit] if limit > 0 else records
    if json:
        print_json({"runs": [run_json(record) for record in shown], "notes": notes})
        return 0
    metrics: Columns = {name: (name,) for name in metric} or _logged_columns(shown)
    columns = ["run", "recipe|", "state|", *(f"{head}>" for head in metrics), "changed|"]
    rows = [_list_row(directory, record, metrics) for record in shown]
    for head, values in (("environment", [r.environment for r in shown]), ("tags", [", ".join(r.tags) for r in shown])):
        if any(values):
            columns.append(head)
            rows = [[*row, value] for row, value in zip(rows, values, strict=True)]
    out = console()
    out.print(make_table(columns, rows))
    if len(shown) < len(records):
        out.print(f"{len(records) - len(shown)} older runs are not shown; --limit 0 shows all")
    for record in shown:
        label = _label(directory, record)
        notes += [f"{label}: {note}" for note in record.notes]
        notes += [f"{label}: the same run as {record.same_as} (id {record.id})"] if record.same_as else []
    print_sentences(out, "Left out or not as it should be:", notes)
    return 0


def run_json(record: Record) -> dict[str, Any]:
    """A run as `--json` prints it."""
    about = {"tags": record.tags, "user": record.user, "project": record.project, "entity": record.entity}
    kept = {name: value for name, value in vars(record).items() if name != "about"}
    return {**kept, "state": record.status, **about}


def show_run(directory: Positional[Path], json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False) -> int:
    """One run: what it was, its last metrics, its files, and what is wrong with it.

    Args:
        directory: the run directory.
        json: print JSON in place of tables.
    """
    record = read_record(directory)
    if json:
        print_json(run_json(record))
        return 0
    rows, _ = read_rows(directory / METRICS)
    out = console()
    head = f"{directory}: {record.recipe}, seed {record.seed}, {record.status}, steps {record.steps}"
    out.print(head, soft_wrap=True)
    if record.began is not None:
        spent = tracked_seconds(rows)
        began = datetime.fromtimestamp(record.began).strftime("%Y-%m-%d %H:%M")
        out.print(f"began {began}, {duration(spent)} in training steps and evaluations")
    made = _versions(record.versions)
    if made:
        out.print(made, soft_wrap=True)
    if record.tags:
        out.print(f"tags {', '.join(record.tags)}", soft_wrap=True)
    if "origin" in record.about:
        out.print(f"imported from {record.about['origin']}", soft_wrap=True)
    out.print()
    out.print(make_table(["config|", "value"], [[name, value_text(value)] for name, value in record.config.items()]))
    if rows:
        out.print()
        names = shown_metrics(record.final)
        table = [[name, metric_text(record.final, name), _step_of(rows, name)] for name in names]
        out.print(make_table(["last value of|", "", "step"], table))
    out.print()
    out.print(make_table(["file|", "size>"], [[name, size(count)] for name, count in files_of(directory)]))
    print_sentences(out, "Left out or not as it should be:", record.notes)
    return 0


def tracked_seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of training and of evaluations, as far as they were logged."""
    return float(sum(row.get(name) or 0.0 for row in rows for name in SECONDS))


def value_text(value: Any) -> str:
    """A value of a config on one line; an empty text as "" with its quotes."""
    return value if isinstance(value, str) and value else json_text.dumps(value)


def shown_metrics(final: Mapping[str, object]) -> list[str]:
    """Names of the metrics to show: ends of intervals stand beside their value and have no row of their own."""
    ends = {end for name in final for end in interval_ends(name) or ()}
    names = [name for name in final if name not in ends]
    measured = ("heldout/", "evaluation/")
    return sorted(names, key=lambda name: (not name.startswith(measured), interval_ends(name) is None, name))


def interval_ends(name: str) -> tuple[str, str] | None:
    """Metrics that hold the low and the high end of the interval of `name`; None if it has none."""
    if name == "evaluation/return":
        return "evaluation/low", "evaluation/high"
    stem = name.removesuffix("accuracy")
    return (f"{stem}low", f"{stem}high") if name.endswith("_accuracy") else None


def metric_text(final: Mapping[str, float | None], name: str) -> str:
    """A value as people read it: with its interval, accuracies in percent."""
    value, share = final.get(name), name.endswith("_accuracy")
    if value is None:
        return number(value)
    low, high = (final.get(end) for end in interval_ends(name) or ("", ""))
    if low is None or high is None:
        return f"{percent(value)} %" if share else number(value)
    return (
        f"{percent_interval(Interval(value, low, high))} %"
        if share
        else f"{number(value)} [{number(low)}, {number(high)}]"
    )


def files_of(directory: Path) -> list[tuple[str, int]]:
    """Files of the run directory and its folders with their sizes in bytes."""
    found = []
    for path in sorted(directory.iterdir()):
        if path.name == LOCK:
            continue
        if path.is_dir():
            count = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            found.append((f"{path.name}/", count))
        else:
            found.append((path.name, path.stat().st_size))
    return found


def _logged_columns(records: Sequence[Record]) -> Columns:
    """Columns of the kinds of runs that there are: of language runs, of control runs, or of both."""
    logged = {name for record in records for name in record.final}
    columns: dict[str, tuple[str, ...]] = {}
    for kind in (ACCURACIES, RETURNS):
        if any(logged.intersection(names) for names in kind.values()):
            columns |= kind
    return columns


def _list_row(root: Path, record: Record, metrics: Columns) -> list[object]:
    when = datetime.fromtimestamp(record.changed)
    text = when.strftime("%d %b %H:%M" if when.year == datetime.now().year else "%d %b %Y")
    cells = []
    for head, names in metrics.items():
        value = next((record.final[name] for name in names if name in record.final), None)
        cells.append(percent(value) if head in ACCURACIES else number(value))
    status = record.status
    state = status if status == "damaged" else f"{record.steps} {status}"
    return [_label(root, record), record.recipe, state, *cells, text]


def _label(root: Path, record: Record) -> str:
    return str(record.directory.relative_to(root)) if record.directory != root else str(root)


def _versions(stored: Mapping[str, Any]) -> str:
    """One line about what the run was made with."""
    commit = str(stored.get("commit") or "")[:10]
    parts = [f"{name} {stored[name]}" for name in ("zerozoo", "torch", "transformers", "python") if stored.get(name)]
    parts += [f"commit {commit}{' with changes' if stored.get('dirty') else ''}"] if commit else []
    parts += [str(stored["cpu"])] if stored.get("cpu") else []
    return "made with " + ", ".join(parts) if parts else ""


def _step_of(rows: Sequence[Mapping[str, Any]], name: str) -> int:
    return next(int(row["step"]) for row in reversed(rows) if name in row)
