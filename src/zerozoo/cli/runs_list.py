"""`zerozoo runs list` and `show`."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, UseAppendAction

from zerozoo.cli.runs_choice import GREEDY, SAMPLED, Filters, print_sentences
from zerozoo.cli.tables import console, duration, make_table, number, percent, percent_interval, print_json, size
from zerozoo.runs.records import LOCK, METRICS, Record, read_record, read_rows
from zerozoo.runs.statistics import Interval


def list_runs(
    directory: Positional[Path] = Path("runs"),
    *,
    filters: Filters,
    metric: UseAppendAction[tuple[str, ...]] = (),
    limit: int = 100,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Every run below a folder, the newest first: recipe, state, last held-out accuracies in percent, date.

    Args:
        directory: where to look, with all folders below.
        metric: show the last value of this metric in place of the accuracies; may be given several times.
        limit: runs to show at most; 0 for all.
        json: print JSON in place of a table, with everything that is known about the runs.
    """
    records, notes = filters.runs(directory)
    records.sort(key=lambda record: record.changed, reverse=True)
    shown = records[:limit] if limit > 0 else records
    if json:
        print_json({"runs": [run_json(record) for record in shown], "notes": notes})
        return 0
    names = metric or (GREEDY, SAMPLED)
    heads = metric or ("greedy %", "sampled %")
    columns = ["run", "recipe|", "state|", *(f"{head}>" for head in heads), "changed|"]
    rows = [_list_row(directory, record, names) for record in shown]
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
        spent = sum(tracked_seconds(rows).values())
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


def tracked_seconds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of all steps and of all evaluations."""
    names = ("seconds/step", "seconds/evaluate")
    return {name: sum(row.get(name) or 0.0 for row in rows) for name in names}


def value_text(value: Any) -> str:
    """A value of a config on one line; an empty text as "" with its quotes."""
    return value if isinstance(value, str) and value else json_text.dumps(value)


def shown_metrics(final: Mapping[str, object]) -> list[str]:
    """Names of the metrics to show: ends of intervals stand beside their value and have no row of their own."""
    ends = {
        name for name in final if name.endswith(("_low", "_high")) and f"{name.rpartition('_')[0]}_accuracy" in final
    }
    names = [name for name in final if name not in ends]
    return sorted(names, key=lambda name: (not name.startswith("heldout/"), "accuracy" not in name, name))


def metric_text(final: Mapping[str, float | None], name: str) -> str:
    """A value as people read it: accuracies in percent with their interval."""
    value = final.get(name)
    if value is None or not name.endswith("_accuracy"):
        return number(value)
    low, high = (final.get(f"{name.removesuffix('accuracy')}{end}") for end in ("low", "high"))
    if low is None or high is None:
        return f"{percent(value)} %"
    return f"{percent_interval(Interval(value, low, high))} %"


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


def _list_row(root: Path, record: Record, metrics: Sequence[str]) -> list[object]:
    when = datetime.fromtimestamp(record.changed)
    text = when.strftime("%d %b %H:%M" if when.year == datetime.now().year else "%d %b %Y")
    finals = [record.final.get(name) for name in metrics]
    cells = [
        percent(value) if name in (GREEDY, SAMPLED) else number(value)
        for name, value in zip(metrics, finals, strict=True)
    ]
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
