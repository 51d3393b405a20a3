"""Parquet files, read back by DuckDB and by pyarrow."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from zerozoo.runs import exports
from zerozoo.runs.errors import UserError
from zerozoo.runs.exports import export_runs
from zerozoo.runs.records import Record, find_runs, read_record
from zerozoo.runs.store import Store

duckdb = pytest.importorskip("duckdb")


def make_run(directory: Path, seed: int, rows: list[dict[str, Any]], about: dict[str, Any] | None = None) -> Path:
    directory.mkdir(parents=True)
    config = {"env_id": "Pong", "seed": seed, "steps": 3, "layers": [1, 2]}
    (directory / "config.json").write_text(json.dumps({"recipe": "ppo", "seed": seed, "config": config}))
    (directory / "versions.json").write_text('{"torch": "2.6.0"}')
    (directory / "about.json").write_text(json.dumps(about or {}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "it's runs"
    first = [{"step": 0, "time": 5.0, "return": 0.1}, {"step": 3, "time": 6.0, "return": None, "a/b": 2}]
    make_run(root / "a", 1, first, {"tags": ["x", "y"], "name": "A", "user": "ann"})
    make_run(root / "b", 2**70, [{"step": 1, "return": 1e-300}])
    return root


def records(root: Path) -> list[Record]:
    return [read_record(folder) for folder in find_runs(root)]


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    return duckdb.connect().execute("SELECT * FROM read_parquet(?)", [str(path)]).fetchall()


def test_every_value_and_every_run_is_there(runs: Path, tmp_path: Path) -> None:
    found = records(runs)
    exported = export_runs(found, tmp_path / "out's")
    assert (exported.runs, exported.values, exported.notes) == (2, 4, [])
    assert [path.name for path in exported.paths] == ["runs.parquet", "metrics.parquet"]
    a, b = found
    assert rows_of(exported.paths[1]) == [
        (a.id, 0, 0.0, 5.0, "return", 0.1),
        (a.id, 1, 3.0, 6.0, "return", None),
        (a.id, 1, 3.0, 6.0, "a/b", 2.0),
        (b.id, 0, 1.0, None, "return", 1e-300),
    ]
    one, two = rows_of(exported.paths[0])
    assert one[:7] == (a.id, str(runs / "a"), "ppo", "Pong", 1, "done", ["x", "y"])
    assert one[7:15] == ("A", "zerozoo", "", "ann", 2, 3.0, 5.0, 6.0)
    assert [json.loads(text) for text in one[15:]] == [a.config, a.versions, {"return": None, "a/b": 2}]
    assert two[4] is None  # beyond 64 bits; the config has it
    assert json.loads(two[15])["seed"] == 2**70
    assert not list((tmp_path / "out's").glob(".*"))


def test_other_readers_can_read_it(runs: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = export_runs(records(runs), tmp_path / "out").paths
    table = parquet.read_table(paths[1])
    assert table.column_names == ["run", "row", "step", "time", "metric", "value"]
    assert table.column("value").to_pylist() == [0.1, None, 2.0, 1e-300]
    assert parquet.read_table(paths[0]).column("tags").to_pylist() == [["x", "y"], []]


def test_many_values_go_through_in_parts(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_of(export_runs(records(runs), tmp_path / "whole").paths[1])
    monkeypatch.setattr(exports, "VALUES_AT_ONCE", 1)
    assert rows_of(export_runs(records(runs), tmp_path / "parts").paths[1]) == whole


def test_damage_is_said_and_copies_are_left_out(runs: Path, tmp_path: Path) -> None:
    with open(runs / "b" / "metrics.jsonl", "a") as file:
        file.write('{broken\n{"step": 2, "return": 7.0}\n{"ste')
    shutil.copytree(runs / "a", runs / "copy")
    with Store.open(runs) as store:
        exported = export_runs(store.select(), tmp_path / "out")
    assert (exported.runs, exported.values) == (2, 5)
    assert exported.notes == [
        f"{runs / 'copy'}: left out, a copy of {runs / 'a'}",
        f"{runs / 'b'}: line 2 of metrics.jsonl cannot be read and was left out",
        f"{runs / 'b'}: the last row of metrics.jsonl is half-written and was left out",
    ]


def test_runs_without_a_value_are_still_in_the_table_of_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "new", 0, [])
    exported = export_runs(records(tmp_path / "runs"), tmp_path / "out")
    assert len(rows_of(exported.paths[0])) == 1
    assert rows_of(exported.paths[1]) == []


def test_an_export_that_fails_leaves_the_older_one(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    before = [path.read_bytes() for path in export_runs(records(runs), target).paths]

    def full(connection: Any, tables: Any) -> None:
        raise duckdb.IOException("IO Error: No space left on device\nmore")

    monkeypatch.setattr(exports, "_copy", full)
    with pytest.raises(UserError, match=r"out cannot be written: IO Error: No space left on device$"):
        export_runs(records(runs)[:1], target)
    monkeypatch.undo()
    # The second file cannot be put in its place: neither is half there, and nothing is left behind.
    (target / "metrics.parquet").unlink()
    (target / "metrics.parquet").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        export_runs(records(runs)[:1], target)
    assert sorted(path.name for path in target.iterdir()) == ["metrics.parquet", "runs.parquet"]
    assert before


def test_nothing_to_export_and_no_duckdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no run to export"):
        export_runs([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written"):
        export_runs([Record(tmp_path, "x")], tmp_path / "file")
    monkeypatch.setitem(sys.modules, "duckdb", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pip install"):
        export_runs([], tmp_path)
