"""Runs as Parquet files, which pandas, Polars, DuckDB and R read. Needs DuckDB (extra `tracking`).

    runs.parquet       one row a run: run (its id), directory, recipe, environment, seed, state, tags, name, project,
                       entity, user, rows, last_step, began, changed; config, versions and final as JSON
    metrics.parquet    one row a value: run, row (its number in metrics.jsonl), step, time, metric, value

A value that was not finite is NULL, and so is a time that was not logged. The same ids stand in both files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerozoo.runs.errors import UserError
from zerozoo.runs.records import METRICS, Record, read_rows
from zerozoo.runs.store import load_duckdb

RUNS = {
    "run": "VARCHAR",
    "directory": "VARCHAR",
    "recipe": "VARCHAR",
    "environment": "VARCHAR",
    "seed": "BIGINT",
    "state": "VARCHAR",
    "tags": "VARCHAR[]",
    "name": "VARCHAR",
    "project": "VARCHAR",
    "entity": "VARCHAR",
    "user": "VARCHAR",
    "rows": "BIGINT",
    "last_step": "DOUBLE",
    "began": "DOUBLE",
    "changed": "DOUBLE",
    "config": "VARCHAR",
    "versions": "VARCHAR",
    "final": "VARCHAR",
}
METRIC_COLUMNS = {
    "run": "VARCHAR",
    "row": "BIGINT",
    "step": "DOUBLE",
    "time": "DOUBLE",
    "metric": "VARCHAR",
    "value": "DOUBLE",
}
VALUES_AT_ONCE = 200_000


@dataclass(frozen=True)
class Exported:
    """What was written, and a sentence for everything that was left out."""

    paths: list[Path]
    runs: int
    values: int
    notes: list[str]


def export_runs(records: Sequence[Record], target: Path) -> Exported:
    """Writes runs.parquet and metrics.parquet into the folder `target`, in place of older ones.

    Copies of a run are left out. Raises UserError without DuckDB, without a run, and for a folder that cannot be
    written; after a full disk the older files are as they were.
    """
    duckdb = load_duckdb()
    kept = [record for record in records if record.same_as is None]
    if not kept:
        raise UserError("there is no run to export")
    notes = [f"{record.directory}: left out, a copy of {record.same_as}" for record in records if record.same_as]
    paths = [target / "runs.parquet", target / METRICS.replace("jsonl", "parquet")]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(":memory:") as connection:
            _make(connection, "runs", RUNS)
            _make(connection, "metrics", METRIC_COLUMNS)
            _append(connection, "runs", RUNS, [_run_row(record) for record in kept])
            values = 0
            for rows in _value_rows(kept, notes):
                _append(connection, "metrics", METRIC_COLUMNS, rows)
                values += len(rows)
            _copy(connection, [("runs", paths[0]), ("metrics", paths[1])])
    except (OSError, duckdb.Error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{target} cannot be written: {reason}") from error
    return Exported(paths, len(kept), values, notes)


def _run_row(record: Record) -> tuple[Any, ...]:
    about = (record.about.get("name", record.directory.name), record.project, record.entity, record.user)
    numbers = (record.rows, record.last_step, record.began, record.changed)
    texts = (json.dumps(value) for value in (record.config, record.versions, record.final))
    seed = record.seed if -(2**63) <= record.seed < 2**63 else None  # Parquet has no larger whole numbers
    place = (str(record.directory), record.recipe, record.environment, seed, record.state)
    return (record.id, *place, list(record.tags), *about, *numbers, *texts)


def _value_rows(records: Sequence[Record], notes: list[str]) -> Iterator[list[tuple[Any, ...]]]:
    """The values of all runs, in lists of at least VALUES_AT_ONCE but for the last."""
    waiting: list[tuple[Any, ...]] = []
    for record in records:
        rows, damage = read_rows(record.directory / METRICS)
        notes += [f"{record.directory}: {note}" for note in damage]
        for number, row in enumerate(rows):
            for name, value in row.items():
                if name not in ("step", "time") and (value is None or isinstance(value, (int, float))):
                    waiting.append((record.id, number, row["step"], row.get("time"), name, value))
            if len(waiting) >= VALUES_AT_ONCE:
                yield waiting
                waiting = []
    if waiting:
        yield waiting


def _make(connection: Any, table: str, columns: dict[str, str]) -> None:
    fields = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
    connection.execute(f"CREATE TABLE {table}({fields})")


def _append(connection: Any, table: str, columns: dict[str, str], rows: Sequence[Sequence[Any]]) -> None:
    values = ", ".join(f"unnest(?::{kind}[])" for kind in columns.values())
    connection.execute(f"INSERT INTO {table} SELECT {values}", [list(column) for column in zip(*rows, strict=True)])


def _copy(connection: Any, tables: Sequence[tuple[str, Path]]) -> None:
    """Both files or none: they are renamed when both are complete."""
    temporary = [path.with_name(f".{path.name}.{os.getpid()}") for _, path in tables]
    try:
        for (table, _), path in zip(tables, temporary, strict=True):
            quoted = str(path).replace("'", "''")
            connection.execute(f"COPY {table} TO '{quoted}' (FORMAT parquet, COMPRESSION zstd)")
        for (_, path), source in zip(tables, temporary, strict=True):
            os.replace(source, path)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
