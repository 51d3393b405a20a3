"""An index of every run below a folder, for questions about thousands of them. Needs DuckDB (extra `tracking`).

The run directories are the record; the index beside them (`INDEX`) is made from them, can be deleted at any time, and
is brought up to date whenever it is opened: a run is read again when the size or date of one of its files has changed.
Where the index cannot be written (read-only folder, full disk, another process), it is built in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from zerozoo.runs import records as records_module
from zerozoo.runs.errors import UserError
from zerozoo.runs.records import (
    ABOUT,
    CELL,
    CONFIG,
    METRICS,
    RUNTIME,
    VERSIONS,
    Record,
    Series,
    find_runs,
    flatten,
    read_record,
    read_series,
    text_of,
)

INDEX = ".zerozoo-runs.duckdb"
STAMPED = (CONFIG, VERSIONS, METRICS, ABOUT, CELL)
WAIT_SECONDS = 3.0  # for another process that refreshes the index
COLUMNS = ("path", "stamp", "recipe", "environment", "entity", "project", "user", "record")
JSON_NAMES = {"True": "true", "False": "false", "None": "null"}  # Python's words, for which a config has JSON's


class Store:
    """Every run below `root`. Use as a context manager; `notes` has a sentence for what is not as it should be."""

    def __init__(self, root: Path, connection: Any) -> None:
        self.root, self.connection = root, connection
        self.notes: list[str] = []

    @classmethod
    def open(cls, root: Path, wait: float = WAIT_SECONDS) -> Store:
        """The index of `root`, made or refreshed. Raises UserError without DuckDB or without the folder."""
        duckdb = load_duckdb()
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; `zerozoo runs list DIRECTORY` looks elsewhere")
        path, reason = root / INDEX, ""
        for _ in range(2):
            try:
                return cls._opened(root, _connect(duckdb, path, wait))
            except duckdb.Error as error:
                reason = str(error).splitlines()[0]
                if _is_lock(error) or not _removed(path):
                    break
        store = cls._opened(root, duckdb.connect(":memory:"))
        store.notes.insert(0, f"the index {path} cannot be used, so all runs were read again ({reason})")
        return store

    @classmethod
    def _opened(cls, root: Path, connection: Any) -> Store:
        store = cls(root, connection)
        try:
            store.refresh()
        except BaseException:
            connection.close()
            raise
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        try:
            self.connection.close()
        except load_duckdb().Error:  # the disk is full: the next one to open it makes it anew
            _removed(self.root / INDEX)

    def refresh(self) -> None:
        """Reads the runs that are new or have changed, and forgets those that are gone."""
        self._make_tables()
        known = dict(self.connection.execute("SELECT path, stamp FROM runs").fetchall())
        skipped: list[Path] = []
        stamps = {}
        for folder in find_runs(self.root, {self.root / path for path in known}, skipped):
            stamps[str(folder.relative_to(self.root))] = _stamp(folder)
        stale = [path for path, stamp in stamps.items() if known.get(path) != stamp]
        self.notes = [f"{folder} cannot be read and was left out" for folder in skipped]
        outdated = [path for path in known if path not in stamps or known[path] != stamps[path]]
        if not stale and not outdated:
            return
        found = [replace(read_record(self.root / path), directory=Path(path)) for path in stale]
        self.connection.execute("BEGIN")
        try:
            for table in ("runs", "fields", "tags"):
                gone = f"DELETE FROM {table} WHERE path IN (SELECT unnest(?::VARCHAR[]))"
                self.connection.execute(gone, [outdated])
            self._insert(found, stamps)
            self.connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(load_duckdb().Error):  # a COMMIT that failed has ended it already
                self.connection.execute("ROLLBACK")
            raise

    def select(
        self,
        recipes: Sequence[str] = (),
        environments: Sequence[str] = (),
        tags: Sequence[str] = (),
        users: Sequence[str] = (),
        fields: Mapping[str, Sequence[str]] | None = None,
        versions: Mapping[str, Sequence[str]] | None = None,
        entity: str = "",
        project: str = "",
    ) -> list[Record]:
        """Runs that meet every condition, in the order of their directories; all of them without a condition.

        A run has all of `tags`; of the other lists it has one value. `fields` are fields of the config by dotted keys
        (also recipe, seed, environment, id, name and state), `versions` entries of versions.json. Numbers are equal by
        value ("1e3" is 1000). Of runs with one id the first is the run; the others get it as `same_as`.
        """
        conditions: list[str] = ["true"]
        values: list[Any] = []
        columns = {"recipe": recipes, "environment": environments, "user": users}
        columns |= {"entity": [entity] if entity else [], "project": [project] if project else []}
        for column, wanted in columns.items():
            if wanted:
                conditions.append(f'list_contains(?::VARCHAR[], "{column}")')
                values.append(list(wanted))
        if tags:
            conditions.append(
                "path IN (SELECT path FROM tags WHERE list_contains(?::VARCHAR[], tag) "
                "GROUP BY path HAVING count(DISTINCT tag) = ?)"
            )
            values += [list(tags), len(set(tags))]
        for kind, by_key in (("config", fields), ("versions", versions)):
            for key, wanted in (by_key or {}).items():
                conditions.append(
                    "path IN (SELECT path FROM fields WHERE kind = ? AND key = ? "
                    "AND (list_contains(?::VARCHAR[], value) OR list_contains(?::DOUBLE[], number)))"
                )
                values += [kind, key, *_alternatives(wanted)]
        query = f"SELECT record FROM runs WHERE {' AND '.join(conditions)} ORDER BY path"
        return _mark_copies(self._record(text) for (text,) in self.connection.execute(query, values).fetchall())

    def series(self, records: Sequence[Record], metric: str, step: str = "step") -> list[Series]:
        """`read_series` of every record, read by DuckDB from the .jsonl files in parallel."""
        found: dict[Path, Series] = {}
        by_columns: dict[tuple[str, ...], list[Record]] = {}
        for record in records:
            runtime = (RUNTIME,) if RUNTIME in record.final else ()
            by_columns.setdefault((record.step_key(step), "time", *runtime, metric), []).append(record)
        for columns, group in by_columns.items():
            found |= self._read(columns, group)
        return [
            found[record.directory] if record.directory in found else read_series(record, metric, step)
            for record in records
        ]

    def _read(self, columns: Sequence[str], records: Sequence[Record]) -> dict[Path, Series]:
        """Series by directory; those are missing that DuckDB cannot read as they are."""
        files = {str((record.directory / METRICS).absolute()): record for record in records if record.rows}
        # Column names differ in more than their case, and a name with these signs would stand for many files.
        paths = [path for path in files if not set("*?[") & set(path)]
        if not paths or len({name.lower() for name in columns}) < len(columns):
            return {}
        types = ", ".join(f"{_quoted(name)}: 'DOUBLE'" for name in columns)
        step, metric, clock = columns[0], columns[-1], columns[-2]
        query = (
            f'SELECT filename AS file, "{_doubled(step)}" AS step, "{clock}" AS clock, "{_doubled(metric)}" AS value '
            f"FROM read_json([{', '.join(map(_quoted, paths))}], format = 'newline_delimited', columns = {{{types}}}, "
            "filename = true, ignore_errors = true) WHERE value IS NOT NULL AND step IS NOT NULL"
        )
        try:
            table = self.connection.execute(query).fetchnumpy()
        except load_duckdb().Error:
            return {}
        steps, clocks, values = (_plain(table[name]) for name in ("step", "clock", "value"))
        rows = _rows_by_file(np.asarray(table["file"]))
        nothing = np.empty(0, dtype=np.int64)
        found = {}
        for path in paths:
            record, chosen = files[path], rows.get(path, nothing)
            began = 0.0 if clock == RUNTIME else record.began
            seconds = np.zeros(len(chosen)) if began is None else np.nan_to_num(clocks[chosen] - began)
            found[record.directory] = Series.sorted(steps[chosen], seconds, values[chosen])
        return found

    def _make_tables(self) -> None:
        """Empty tables, unless the ones of this very program are there."""
        tables = {name for (name,) in self.connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if "program" in tables:
            row = self.connection.execute("SELECT version FROM program").fetchone()
            if row and row[0] == _program_version():
                return
        for name in tables:
            self.connection.execute(f'DROP TABLE "{_doubled(name)}"')
        self.connection.execute("CREATE TABLE program(version VARCHAR)")
        self.connection.execute("INSERT INTO program VALUES (?)", [_program_version()])
        columns = ", ".join(f'"{name}" VARCHAR' for name in COLUMNS)
        self.connection.execute(f"CREATE TABLE runs({columns})")
        fields = "path VARCHAR, kind VARCHAR, key VARCHAR, value VARCHAR, number DOUBLE"
        self.connection.execute(f"CREATE TABLE fields({fields})")
        self.connection.execute("CREATE TABLE tags(path VARCHAR, tag VARCHAR)")

    def _insert(self, found: Sequence[Record], stamps: Mapping[str, str]) -> None:
        rows, fields, tags = [], [], []
        for record in found:
            path = str(record.directory)
            text = json.dumps({**vars(record), "directory": path})
            names = (record.recipe, record.environment, record.entity, record.project, record.user)
            rows.append((path, stamps[path], *names, text))
            tags += [(path, tag) for tag in dict.fromkeys(record.tags)]
            for kind, values in (("config", record.fields()), ("versions", flatten(record.versions))):
                fields += [(path, kind, key, text_of(value), _number(value)) for key, value in values.items()]
        self._append("runs", rows, ["VARCHAR"] * len(COLUMNS))
        self._append("fields", fields, ["VARCHAR"] * 4 + ["DOUBLE"])
        self._append("tags", tags, ["VARCHAR"] * 2)

    def _append(self, table: str, rows: Sequence[Sequence[Any]], types: Sequence[str]) -> None:
        """All rows in one statement: one statement a row takes a thousand times as long."""
        if rows:
            columns = ", ".join(f"unnest(?::{kind}[])" for kind in types)
            self.connection.execute(f"INSERT INTO {table} SELECT {columns}", [list(c) for c in zip(*rows, strict=True)])

    def _record(self, text: str) -> Record:
        stored = json.loads(text)
        stored |= {"directory": self.root / stored["directory"], "notes": tuple(stored["notes"])}
        return Record(**stored)


def load_duckdb() -> Any:
    """The package; UserError says how to get it."""
    try:
        return importlib.import_module("duckdb")
    except ImportError as error:
        raise UserError(f"queries over runs need DuckDB ({error}): run `pip install 'zerozoo[store]'`") from error


def _mark_copies(found: Iterable[Record]) -> list[Record]:
    first: dict[str, Path] = {}
    marked = []
    for record in found:
        original = first.setdefault(record.id, record.directory)
        marked.append(record if original == record.directory else replace(record, same_as=original))
    return marked


def _connect(duckdb: Any, path: Path, wait: float) -> Any:
    """Waits for another process that has the file: DuckDB lets one at a time write."""
    deadline = time.monotonic() + wait
    while True:
        try:
            return duckdb.connect(str(path))
        except duckdb.Error as error:
            if not _is_lock(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _is_lock(error: BaseException) -> bool:
    return "set lock" in str(error).lower()


def _removed(path: Path) -> bool:
    """Deletes an index that cannot be read; False if there is none, or it cannot be deleted."""
    try:
        path.with_name(path.name + ".wal").unlink(missing_ok=True)
        path.unlink()
    except OSError:
        return False
    return True


def _stamp(folder: Path) -> str:
    """Changes when a file that makes the record does."""
    parts, prefix = [], f"{folder}{os.sep}"  # text: paths would take most of the time of a refresh
    for name in STAMPED:
        try:
            status = os.stat(prefix + name)
        except OSError:
            parts.append("-")
        else:
            parts.append(f"{status.st_mtime_ns}:{status.st_size}")
    return "|".join(parts)


def _program_version() -> str:
    """Of the files that make an index: another program may read a run otherwise."""
    content = b"".join(Path(str(path)).read_bytes() for path in (__file__, records_module.__file__))
    return hashlib.sha256(content).hexdigest()


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the floats is equal to itself as text
        return None
    return number if math.isfinite(number) else None


def _alternatives(wanted: Sequence[str]) -> tuple[list[str], list[float]]:
    """The texts and the numbers that one of `wanted` may be."""
    texts = [*wanted, *(JSON_NAMES[text] for text in wanted if text in JSON_NAMES)]
    numbers = []
    for text in wanted:
        try:
            numbers.append(float(text))
        except ValueError:
            continue
    return texts, numbers


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _doubled(text: str) -> str:
    return text.replace('"', '""')


def _rows_by_file(names: np.ndarray) -> dict[str, np.ndarray]:
    """Numbers of the rows of every file, in their order.

    The rows of a file follow one another, so that each is compared with one other, however many files there are.
    """
    if not len(names):
        return {}
    starts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
    parts: dict[str, list[np.ndarray]] = {}
    for start, rows in zip(starts, np.split(np.arange(len(names)), starts[1:]), strict=True):
        parts.setdefault(str(names[start]), []).append(rows)
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _plain(column: Any) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(column, dtype=np.float64), np.nan)
