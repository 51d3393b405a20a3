"""Tracked runs: one directory read whatever is wrong with it, and the index over many of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zerozoo.runs import records as records_module
from zerozoo.runs import run as run_module
from zerozoo.runs import store as store_module
from zerozoo.runs.errors import UserError
from zerozoo.runs.records import (
    Record,
    Series,
    find_runs,
    in_use,
    label_runs,
    read_record,
    read_rows,
    read_series,
    write_about,
)
from zerozoo.runs.run import Run
from zerozoo.runs.store import INDEX, Store

CONFIG = {"environment": "CartPole-v1", "steps": 4, "learning_rate": 0.001, "net": {"width": 64}, "norm": True}
duckdb = pytest.importorskip("duckdb")


def make_run(
    directory: Path,
    recipe: str = "ppo",
    seed: int = 0,
    values: Sequence[float | None] = (1.0, 2.0, 3.0, 4.0),
    about: Mapping[str, Any] | None = None,
    versions: Mapping[str, Any] | None = None,
    **config: Any,
) -> Path:
    """A run directory as `Run` writes it, without torch and at fixed times."""
    directory.mkdir(parents=True)
    stored = {"recipe": recipe, "seed": seed, "config": {**CONFIG, "seed": seed, **config}}
    (directory / "config.json").write_text(json.dumps(stored))
    (directory / "versions.json").write_text(json.dumps(versions or {"torch": "2.6.0", "commit": "abc"}))
    if about:
        (directory / "about.json").write_text(json.dumps(about))
    start = 1000.0 + 100 * seed + 7 * len(str(directory))
    rows = [{"step": n, "time": start + n, "return": value} for n, value in enumerate(values, start=1)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def append(directory: Path, text: str) -> None:
    with open(directory / "metrics.jsonl", "a") as file:
        file.write(text)


def names(found: Sequence[Record]) -> list[str]:
    return [record.directory.name for record in found]


# --- one run


def test_the_names_of_the_files_are_those_that_a_run_writes(tmp_path: Path) -> None:
    assert (records_module.CONFIG, records_module.VERSIONS) == (run_module.CONFIG, run_module.VERSIONS)
    assert records_module.LOCK == run_module.LOCK
    with Run.start(tmp_path / "run", "ppo", {"steps": 2, "env_id": "Pong"}, 3) as run:
        run.log(1, {"return": 1.5})
        run.log(2, {"return": float("nan"), "loss": 2})
        assert in_use(run.directory)
        record = read_record(run.directory)
        assert record.status == "done"  # all its steps are there
    assert (record.recipe, record.seed, record.environment, record.state) == ("ppo", 3, "Pong", "done")
    assert (record.final, record.last_step, record.rows, record.notes) == ({"return": None, "loss": 2}, 2, 2, ())
    assert record.versions["torch"]
    assert record.user == Path(tmp_path).owner()


def test_torch_is_not_needed_to_look_at_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    code = (
        "import sys, pathlib; from zerozoo.runs.store import Store;"
        f"store = Store.open(pathlib.Path({str(tmp_path)!r}));"
        "print(len(store.select()), 'torch' in sys.modules, 'matplotlib' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "False", "False"]


@pytest.mark.parametrize(
    ("steps", "planned", "state"),
    [
        ([1, 2, 3, 4], 4, "done"),
        ([1, 2, 3], 4, "stopped"),
        ([2048, 4096], 6000, "done"),  # the next row would lie beyond the plan
        ([2048, 4096], 6144, "stopped"),
        ([3], 4, "stopped"),
        ([1, 2], None, "done"),
        ([], 4, "empty"),
    ],
)
def test_state(tmp_path: Path, steps: list[int], planned: int | None, state: str) -> None:
    run = make_run(tmp_path / "run", values=[], steps=planned)
    append(run, "".join(json.dumps({"step": step, "time": 0.0, "return": 1.0}) + "\n" for step in steps))
    assert read_record(run).state == state
    assert read_record(run).steps == (f"{steps[-1] if steps else '-'}" + (f"/{planned}" if planned else ""))


def test_a_finished_cell_of_a_claim_is_done(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=100)
    assert read_record(run).state == "stopped"
    (run / "cell.json").write_text("{}")
    assert read_record(run).state == "done"


def test_the_rest_of_a_damaged_run_is_read_and_what_is_missing_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    append(
        run, '{"step": 5, "return"\n\n[1]\n{"return": 1.0}\n{"step": 6, "time": 9e9, "return": 6.0}\n{"step": 7, "ret'
    )
    (run / "versions.json").unlink()
    (run / "about.json").write_text('{"tags": "one"}')
    record = read_record(run)
    assert (record.rows, record.final, record.last_step) == (5, {"return": 6.0}, 6)
    assert record.notes == (
        "versions.json is missing",
        "the tags in about.json are not a list of texts and were left out",
        "3 lines of metrics.jsonl, the first is line 5, cannot be read and were left out",
        "the last row of metrics.jsonl is half-written and was left out",
    )
    assert read_series(record, "return").values.tolist() == [1.0, 2.0, 3.0, 4.0, 6.0]


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (None, "config.json is missing"),
        ("{", "config.json is damaged (Expecting property name"),
        ("[]", "config.json is damaged (not a JSON object)"),
        ('{"recipe": "ppo", "seed": 0, "config": 5}', "config.json is not a run's"),
    ],
)
def test_a_run_without_a_readable_config_is_damaged_but_there(tmp_path: Path, content: str | None, note: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.json").unlink()
    if content is not None:
        (run / "config.json").write_text(content)
    record = read_record(run)
    assert (record.state, record.rows, record.final) == ("damaged", 4, {"return": 4.0})
    assert record.notes[0].startswith(note)
    assert list(find_runs(tmp_path)) == [run]


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run directory"):
        read_record(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a run directory: it has no config\.json"):
        read_record(tmp_path)


def test_two_writers_are_noticed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    append(run, '{"step": 2, "time": 5.0, "return": 9.0}\n{"step": 5, "time": 6.0, "return": 9.0}\n')
    (note,) = read_record(run).notes
    assert note == "the steps of metrics.jsonl go back 1 times: two writers, or a resume that did not rewind"


def test_rows_of_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    assert read_rows(tmp_path / "metrics.jsonl") == ([], ["metrics.jsonl cannot be read (Is a directory)"])
    assert read_rows(tmp_path / "missing.jsonl") == ([], [])


def test_the_id_stays_when_a_run_is_moved_and_grows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    before = read_record(run).id
    append(run, '{"step": 5, "time": 6.0}\n')
    assert read_record(run.rename(tmp_path / "b")).id == before
    assert read_record(make_run(tmp_path / "c", seed=1)).id != before


def test_about_is_merged_and_a_damaged_one_is_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", about={"name": "first", "tags": ["a"]})
    assert write_about(run, {"tags": ["b"]}) == {"name": "first", "tags": ["b"]}
    assert (read_record(run).tags, read_record(run).fields()["name"]) == (("b",), "first")
    (run / "about.json").write_text("{")
    with pytest.raises(UserError, match=r"about\.json is damaged .* mend or delete it first"):
        write_about(run, {"tags": ["b"]})
    (run / "about.json").unlink()
    (run / "about.json").mkdir()
    with pytest.raises(UserError, match=r"about\.json"):
        write_about(run, {"tags": ["b"]})


def test_series_over_other_steps_and_clocks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", values=[])
    rows = [
        {"step": 0, "time": 50.0, "other": 1.0},
        {"step": 1, "time": 51.0, "global_step": 30, "return": 3.0},
        {"step": 2, "time": 52.0, "global_step": 10, "return": 1.0},
        {"step": 3, "time": 53.0, "global_step": 20, "return": None},
        {"step": 4, "time": 54.0, "return": 4.0},
    ]
    append(run, "".join(json.dumps(row) + "\n" for row in rows))
    record = read_record(run)
    series = read_series(record, "return", "global_step")
    assert (series.steps.tolist(), series.values.tolist()) == ([10, 30], [1.0, 3.0])
    assert series.seconds.tolist() == [2.0, 1.0]  # since the run's first row
    assert read_series(record, "return", "no_such_step").steps.tolist() == [1, 2, 4]  # then its own steps
    assert len(read_series(record, "nothing")) == 0


def test_labels_are_as_long_as_needed(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a" / "seed-0"),
        make_run(tmp_path / "b" / "seed-0"),
        make_run(tmp_path / "b" / "seed-1"),
    ]
    assert label_runs([read_record(run) for run in runs]) == ["a/seed-0", "b/seed-0", "b/seed-1"]
    assert label_runs([read_record(runs[0])]) == ["seed-0"]


# --- many runs


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """Six runs in folders of different depth, and a model, whose config.json is not a run's."""
    root = tmp_path / "runs"
    make_run(root / "a", seed=1, about={"tags": ["v1", "pr-7"], "user": "ann", "project": "cleanrl", "entity": "orlb"})
    make_run(root / "b", seed=2, about={"tags": ["v1"], "user": "bob", "project": "cleanrl", "entity": "orlb"})
    make_run(root / "c", seed=3, about={"tags": ["pr-7"], "user": "ann"}, versions={"torch": "2.7.0"})
    make_run(root / "deep" / "er" / "d", recipe="sac", environment="Hopper-v5", net={"width": 256}, norm=False)
    make_run(root / "deep" / "e", recipe="sac", seed=5, learning_rate=1, about={"tags": ["v1", "pr-7", "more"]})
    make_run(root / "deep" / "f", recipe="td3", seed=6, environment="Hopper-v5", note='say "50%", it\'s')
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text('{"model_type": "llama"}')
    return root


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, "abefdc"),
        ({"recipes": ["sac"]}, "de"),
        ({"recipes": ["sac", "td3"]}, "def"),
        ({"environments": ["Hopper-v5"]}, "df"),
        ({"tags": ["v1"]}, "abe"),
        ({"tags": ["v1", "pr-7"]}, "ae"),  # both, on whatever row they stand
        ({"tags": ["pr-7", "v1", "pr-7"]}, "ae"),
        ({"tags": ["v1", "absent"]}, ""),
        ({"users": ["ann"]}, "ac"),
        ({"users": ["ann", "bob"]}, "abc"),
        ({"recipes": ["ppo"], "users": ["bob"], "tags": ["v1"]}, "b"),  # the user does not replace the rest
        ({"recipes": ["sac"], "users": ["ann"]}, ""),
        ({"entity": "orlb"}, "ab"),
        ({"project": "cleanrl"}, "ab"),
        ({"project": "zerozoo"}, "cdef"),
        ({"fields": {"seed": ["1", "3"]}}, "ac"),
        ({"fields": {"seed": ["1.0"]}}, "a"),
        ({"fields": {"learning_rate": ["1e-3"]}}, "abcdf"),
        ({"fields": {"learning_rate": ["1"]}}, "e"),
        ({"fields": {"net.width": ["256"]}}, "d"),
        ({"fields": {"norm": ["True"]}}, "abcef"),
        ({"fields": {"norm": ["false"]}}, "d"),
        ({"fields": {"norm": ["1"]}}, ""),  # true is no number
        ({"fields": {"note": ['say "50%", it\'s']}}, "f"),
        ({"fields": {"recipe": ["td3"], "environment": ["Hopper-v5"]}}, "f"),
        ({"fields": {"absent'); DROP TABLE runs; --": ["x"]}}, ""),
        ({"versions": {"torch": ["2.7.0"]}}, "c"),
        ({"versions": {"torch": ["2.6.0"]}, "fields": {"seed": ["2"]}}, "b"),
    ],
)
def test_filters(zoo: Path, conditions: dict[str, Any], expected: str) -> None:
    with Store.open(zoo) as store:
        assert sorted(names(store.select(**conditions))) == sorted(expected)
        assert store.notes == []


def test_a_record_from_the_index_is_the_record_from_the_directory(zoo: Path) -> None:
    append(zoo / "a", "{broken\n")
    with Store.open(zoo) as store:
        for record in store.select():
            assert record == read_record(record.directory)
    assert (zoo / INDEX).exists()


def test_only_what_has_changed_is_read_again(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def spy(directory: Path) -> Record:
        read.append(directory.name)
        return read_record(directory)

    monkeypatch.setattr(store_module, "read_record", spy)

    def opened() -> list[str]:
        read.clear()
        with Store.open(zoo) as store:
            store.select()
        return sorted(read)

    assert opened() == list("abcdef")
    assert opened() == []
    append(zoo / "b", '{"step": 9, "time": 1.0, "return": 9.0}\n')
    make_run(zoo / "new")
    shutil.rmtree(zoo / "c")
    (zoo / "a").rename(zoo / "moved")
    assert opened() == ["b", "moved", "new"]
    with Store.open(zoo) as store:
        assert names(store.select(fields={"seed": ["1", "2", "3"]})) == ["b", "moved"]
        assert store.select(tags=["pr-7"], users=["ann"])[0].directory == zoo / "moved"
        assert [record.final["return"] for record in store.select() if record.directory.name == "b"] == [9.0]


def test_the_index_may_be_deleted_at_any_time(zoo: Path) -> None:
    with Store.open(zoo) as store:
        before = store.select()
    (zoo / INDEX).unlink()
    with Store.open(zoo) as store:
        assert store.select() == before


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_a_damaged_index_is_made_anew(zoo: Path, content: bytes) -> None:
    (zoo / INDEX).write_bytes(content)
    with Store.open(zoo) as store:
        assert (len(store.select()), store.notes) == (6, [])
    with Store.open(zoo) as store:
        assert len(store.select()) == 6


def test_the_index_of_another_program_version_is_made_anew(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(zoo).close()
    monkeypatch.setattr(store_module, "_program_version", lambda: "other")
    monkeypatch.setattr(store_module, "read_record", lambda directory: Record(directory, "x", recipe="read again"))
    with Store.open(zoo) as store:
        assert {record.recipe for record in store.select()} == {"read again"}


def test_a_second_process_works_without_the_index(zoo: Path) -> None:
    """DuckDB lets one process write: the other waits a little, then reads the runs into memory and says so."""
    code = (
        "import sys, pathlib; from zerozoo.runs.store import Store;"
        f"store = Store.open(pathlib.Path({str(zoo)!r})); print('ready', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with Store.open(zoo, wait=0.1) as store:
            assert len(store.select(tags=["v1"])) == 3
            (note,) = store.notes
            assert "cannot be used, so all runs were read again" in note
            assert "lock" in note
    finally:
        other.communicate("")
    with Store.open(zoo) as store:
        assert store.notes == []


def test_an_index_that_cannot_be_written_is_built_in_memory(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(duckdb_: Any, path: Path, wait: float) -> Any:
        raise duckdb.IOException('IO Error: Could not write file "x": No space left on device\nmore')

    monkeypatch.setattr(store_module, "_connect", full)
    with Store.open(zoo) as store:
        assert len(store.select()) == 6
        assert store.notes[0].endswith('(IO Error: Could not write file "x": No space left on device)')
    assert not (zoo / INDEX).exists()


def test_a_disk_that_is_full_while_the_index_is_written(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_rows, calls = Store._append, []

    def full(store: Store, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) <= 2:
            raise duckdb.IOException("IO Error: No space left on device")
        append_rows(store, *arguments)

    monkeypatch.setattr(Store, "_append", full)
    with Store.open(zoo) as store:
        assert len(store.select()) == 6
        assert "No space left on device" in store.notes[0]


def test_copies_of_a_run_are_marked(zoo: Path) -> None:
    shutil.copytree(zoo / "b", zoo / "b-copy")
    make_run(zoo / "x", about={"id": "same"})
    make_run(zoo / "y", seed=9, about={"id": "same"})
    with Store.open(zoo) as store:
        found = {record.directory.name: record.same_as for record in store.select()}
        assert {name: path.name for name, path in found.items() if path} == {"b-copy": "b", "y": "x"}
        # Alone in a selection it is the run.
        assert [record.same_as for record in store.select(fields={"seed": ["9"]})] == [None]


def test_the_root_may_be_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with Store.open(run) as store:
        assert [record.directory for record in store.select()] == [run]


def test_no_folder_and_no_duckdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        Store.open(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "duckdb", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"need DuckDB .*pip install 'zerozoo\[store\]'"):
        Store.open(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_said(zoo: Path) -> None:
    (zoo / "deep").chmod(0)
    try:
        with Store.open(zoo) as store:
            assert names(store.select()) == ["a", "b", "c"]
            assert store.notes == [f"{zoo / 'deep'} cannot be read and was left out"]
    finally:
        (zoo / "deep").chmod(0o755)


def same(a: Series, b: Series) -> bool:
    return all(np.array_equal(getattr(a, part), getattr(b, part)) for part in ("steps", "seconds", "values"))


def test_series_read_by_duckdb_are_those_read_by_python(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", values=[0.1, None, 3, -2.5e-300])
    bad = make_run(tmp_path / "bad")
    append(bad, '{"step": 5, "return": "text"}\n{broken\n{"step": 6, "return": 1}\n{"step": 7, "return": 0.')
    odd = make_run(tmp_path / "odd [1]*?")  # signs that stand for many files elsewhere
    empty = make_run(tmp_path / "empty", values=[])
    tracked = make_run(tmp_path / "tracked", values=[])
    quoted = 'it\'s "100"% ünï'
    append(tracked, json.dumps({"step": 8, "_runtime": 2.5, "global_step": 80, "return": 1.0, quoted: 5}) + "\n")
    append(tracked, json.dumps({"step": 9, "_runtime": 3.5, "global_step": 90, quoted: 6}, ensure_ascii=False) + "\n")
    with Store.open(tmp_path) as store:
        found = store.select()
        assert len(found) == 5
        for metric in ("return", quoted, "absent", "Step", "global_step", "time"):
            for step in ("step", "global_step"):
                for record, series in zip(found, store.series(found, metric, step), strict=True):
                    expected = read_series(record, metric, step)
                    assert same(series, expected), (record.directory, metric, step, series, expected)
        by_name = dict(zip(names(found), store.series(found, "return"), strict=True))
    assert by_name[plain.name].values.tolist() == [0.1, 3.0, -2.5e-300]
    assert by_name[bad.name].values.tolist() == [1.0, 2.0, 3.0, 4.0, 1.0]
    assert len(by_name[odd.name]) == 4
    assert len(by_name[empty.name]) == 0
    assert by_name[tracked.name].seconds.tolist() == [2.5]


def test_rows_of_many_files_are_told_apart_in_one_pass() -> None:
    files = np.array(["b", "b", "a", "b", "c", "c", "c"], dtype=object)
    rows = store_module._rows_by_file(files)
    assert {name: found.tolist() for name, found in rows.items()} == {"b": [0, 1, 3], "a": [2], "c": [4, 5, 6]}
    assert store_module._rows_by_file(files[:0]) == {}


def test_thousands_of_runs_cost_one_look_at_their_dates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock here: a refresh reads no file of a known run, and a query decodes only what it finds."""
    for number in range(300):
        make_run(tmp_path / f"run-{number}", seed=number)
    Store.open(tmp_path).close()
    monkeypatch.setattr(store_module, "read_record", None)
    monkeypatch.setattr(records_module, "is_run", None)
    decoded: list[str] = []
    original = Store._record
    monkeypatch.setattr(Store, "_record", lambda store, text: decoded.append(text) or original(store, text))
    with Store.open(tmp_path) as store:
        assert names(store.select(fields={"seed": ["7", "123"]})) == ["run-123", "run-7"]
    assert len(decoded) == 2
