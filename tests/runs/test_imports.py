"""Runs of Weights & Biases and TensorBoard, from files that those packages wrote."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zerozoo.runs.errors import UserError
from zerozoo.runs.event_files import parse_config, read_events
from zerozoo.runs.foreign import ForeignRun, write_run
from zerozoo.runs.imports import import_runs
from zerozoo.runs.records import read_record, read_rows, read_series
from zerozoo.runs.run import Run
from zerozoo.runs.wandb_files import BLOCK, log_records, read_wandb

# In a process of its own: wandb leaves threads and a service behind. The long config makes records of several blocks.
WANDB_SCRIPT = """
import sys, math, wandb
config = {"lr": 0.1, "exp_name": "ppo", "env_id": "CartPole-v1", "seed": 3, "net": {"width": 64}, "long": "x" * 70_000}
run = wandb.init(project="demo", entity="orlb", name="first run", dir=sys.argv[1], mode="offline", tags=["v1", "b c"],
                 config=config)
for step in range(5):
    loss = math.nan if step == 2 else 1.0
    row = {"charts/return": 0.1 * step, "loss": loss, "nested": {"a": step, "b": {"c": 2 * step}}, "note": "text"}
    run.log(row, step=10 * step)
run.log({"histogram": wandb.Histogram([1, 2, 3]), "done": True}, step=50)
run.log({"charts/return": math.inf}, step=60)
run.config.update({"late": [1, 2], "net": {"width": 128}}, allow_val_change=True)
run.finish()
"""


def wandb_file(folder: Path) -> Path:
    pytest.importorskip("wandb")
    environment = {**os.environ, "HOME": str(folder), "WANDB_SILENT": "true", "WANDB_MODE": "offline"}
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", WANDB_SCRIPT, str(folder)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return path


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wandb_file(tmp_path_factory.mktemp("wandb") / "made")


# --- Weights & Biases


def test_a_wandb_run_becomes_a_run_directory(tracked: Path, tmp_path: Path) -> None:
    imported = import_runs(tracked.parents[2], tmp_path / "runs", ("imported",))
    (directory,) = imported.directories
    run_id = tracked.stem.removeprefix("run-")
    assert directory == tmp_path / "runs" / f"first-run-{run_id}"
    assert imported.notes == [f"{directory}: not numbers and left out: histogram, note"]
    record = read_record(directory)
    assert (record.id, record.recipe, record.seed, record.environment) == (run_id, "ppo", 3, "CartPole-v1")
    assert (record.project, record.entity, record.tags) == ("demo", "orlb", ("v1", "b c", "imported"))
    assert (record.state, record.notes) == ("done", ())
    assert record.config["net"] == {"width": 128}
    assert record.config["late"] == [1, 2]
    assert len(record.config["long"]) == 70_000
    assert "_wandb" not in record.config
    assert record.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record.about["origin"] == f"wandb {tracked}"
    rows, _ = read_rows(directory / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 10, 20, 30, 40, 50, 60]
    assert [row.get("charts/return") for row in rows] == [0.0, 0.1, 0.2, 0.1 * 3, 0.4, None, None]
    assert [row["loss"] for row in rows[:5]] == [1.0, 1.0, None, 1.0, 1.0]
    assert [row["nested.b.c"] for row in rows[:5]] == [0, 2, 4, 6, 8]
    assert rows[5].keys() - {"_runtime"} == {"step", "time", "done"}
    series = read_series(record, "charts/return")
    assert series.steps.tolist() == [0, 10, 20, 30, 40]
    assert (series.seconds >= 0).all()
    assert Run.open(directory).history()[1]["charts/return"] == 0.1  # it is a run as any other


def test_how_a_wandb_run_ended(tracked: Path, tmp_path: Path) -> None:
    """The same records with another exit code, and without any."""
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    records = [protocol.Record.FromString(content) for content in log_records(tracked.read_bytes(), [])]
    for record in records:
        if record.WhichOneof("record_type") == "exit":
            assert record.exit.exit_code == 0
            record.exit.exit_code = 1
    path = tmp_path / "run-x.wandb"
    path.write_bytes(log(*(record.SerializeToString() for record in records)))
    failed = read_wandb(path)
    assert (failed.about["state"], failed.rows) == ("stopped", read_wandb(tracked).rows)
    kept = [record.SerializeToString() for record in records if record.WhichOneof("record_type") != "exit"]
    path.write_bytes(log(*kept))
    run = read_wandb(path)
    assert run.about["state"] == "stopped"
    assert "it does not say how the run ended, so the run counts as stopped" in run.notes


def test_a_wandb_file_that_is_half_written_or_damaged(tracked: Path, tmp_path: Path) -> None:
    data = tracked.read_bytes()
    whole = read_wandb(tracked)
    copy = tmp_path / "run-x.wandb"
    counts = []
    for end in range(len(data) - 1, len(data) // 2, -97):
        copy.write_bytes(data[:end])
        run = read_wandb(copy)
        counts.append(len(run.rows))
        assert run.rows == whole.rows[: len(run.rows)]
        assert run.about["state"] == "stopped" or run.rows == whole.rows
    assert counts == sorted(counts, reverse=True)
    assert {0, len(whole.rows)} <= set(counts)
    # A block in the middle of the long config is damaged: its record is lost, and all that follows is there.
    damaged = bytearray(data)
    damaged[BLOCK + 100] ^= 1
    copy.write_bytes(damaged)
    run = read_wandb(copy)
    assert run.rows == whole.rows
    assert "long" not in run.config
    assert "1 blocks of 32768 bytes are damaged; what followed in them was left out" in run.notes


def log(*records: bytes) -> bytes:
    """The log format written by hand, as LevelDB describes it."""
    data = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
    for record in records:
        left, kind = record, 1
        while True:
            room = BLOCK - len(data) % BLOCK
            if room < 7:
                data += bytes(room)
                continue
            piece, left = left[: room - 7], left[room - 7 :]
            first = kind == 1
            kind = (1 if not left else 2) if first else (4 if not left else 3)
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            if not left:
                break
    return data


@pytest.mark.parametrize("size", [0, 1, BLOCK - 14, BLOCK - 15, BLOCK - 20, BLOCK - 21, BLOCK, 3 * BLOCK + 5])
def test_records_of_every_size(size: int) -> None:
    notes: list[str] = []
    records = [b"first", bytes(range(256)) * (size // 256) + bytes(size % 256), b"", b"last"]
    assert list(log_records(log(*records), notes)) == records
    assert notes == []


def test_a_damaged_piece_costs_its_block() -> None:
    records = [b"a" * 100, b"b" * BLOCK, b"c" * 100, b"d" * BLOCK, b"e"]
    data = bytearray(log(*records))
    data[60] ^= 1
    notes: list[str] = []
    assert list(log_records(bytes(data), notes)) == [records[2], records[3], records[4]]
    assert notes == ["1 blocks of 32768 bytes are damaged; what followed in them was left out"]


@pytest.mark.parametrize("content", [b"", b":W&B", b"other file, long enough", b":W&B\x00\x00\x00rest"])
def test_what_is_no_wandb_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.wandb").write_bytes(content)
    imported_notes = "it is empty or no file of Weights & Biases"
    with pytest.raises(UserError, match=imported_notes):
        read_wandb(tmp_path / "x.wandb")


# --- TensorBoard


def writer(folder: Path, **options: Any) -> Any:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), **options)


def events(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A run as CleanRL logs it: the config in a table, several episodes at one step, pictures beside the numbers."""
    folder = tmp_path / "logs" / "CartPole-v1__ppo__1"
    with writer(folder) as board:
        table = "|param|value|\n|-|-|\n" + "\n".join(
            ["|env_id|CartPole-v1|", "|exp_name|ppo|", "|seed|1|", "|lr|0.00025|", "|anneal|True|", "|target_kl|None|"]
        )
        board.add_text("hyperparameters", table)
        for step in (10, 20, 20, 30):
            board.add_scalar("charts/return", float(step), step, walltime=1000.0 + step)
        board.add_scalar("losses/value", 0.5, 20, walltime=1020.0)
        board.add_scalar("losses/value", math.nan, 30, walltime=1030.0)
        board.add_scalar("new", 2.5, 30, new_style=True, walltime=1030.0)
        board.add_scalar("new", 3.5, 40, new_style=True, walltime=1040.0)
        board.add_histogram("weights", np.array([1.0, 2.0]), 10)
    return folder


def test_event_files_become_a_run_directory(logged: Path, tmp_path: Path) -> None:
    imported = import_runs(tmp_path / "logs", tmp_path / "runs")
    (directory,) = imported.directories
    assert directory == tmp_path / "runs" / logged.name
    assert imported.notes == [f"{directory}: not numbers and left out: weights"]
    record = read_record(directory)
    config = {"env_id": "CartPole-v1", "exp_name": "ppo", "seed": 1, "lr": 0.00025, "anneal": True, "target_kl": None}
    assert record.config == config
    assert (record.recipe, record.environment, record.seed, record.state) == ("ppo", "CartPole-v1", 1, "done")
    assert (record.project, record.fields()["name"]) == ("logs", logged.name)
    rows, notes = read_rows(directory / "metrics.jsonl")
    assert notes == []
    assert rows == [
        {"step": 10, "time": 1010.0, "charts/return": 10.0},
        {"step": 20, "time": 1020.0, "charts/return": 20.0, "losses/value": 0.5},
        {"step": 20, "time": 1020.0, "charts/return": 20.0},
        {"step": 30, "time": 1030.0, "charts/return": 30.0, "losses/value": None, "new": 2.5},
        {"step": 40, "time": 1040.0, "new": 3.5},
    ]
    assert read_series(record, "charts/return").seconds.tolist() == [0.0, 10.0, 10.0, 20.0]


def test_the_sinks_of_a_run_can_be_imported(tmp_path: Path) -> None:
    """What `--sink tensorboard` wrote, config included."""
    pytest.importorskip("tensorboard")
    from zerozoo.runs.sinks import make_sink

    config = {"environment": "Hopper-v5", "seed": 4, "html": "<b>&", "rates": [1, 2]}
    sink = make_sink("tensorboard", tmp_path / "run", "name", config)
    with Run.start(tmp_path / "run", "sac", config, 4, sinks=[sink]) as run:
        run.log(1, {"return": 1.5})
    (directory,) = import_runs(tmp_path / "run", tmp_path / "imported").directories
    record = read_record(directory)
    assert record.config == {"name": "name", **config}
    assert (record.seed, record.environment, record.final) == (4, "Hopper-v5", {"return": 1.5})


def test_hyperparameters_of_the_plugin(tmp_path: Path) -> None:
    with writer(tmp_path / "logs") as board:
        board.add_hparams({"lr": 0.5, "algo": "sac", "flag": True}, {"score": 3.0}, run_name=".")
    (directory,) = import_runs(tmp_path / "logs", tmp_path / "runs").directories
    record = read_record(directory)
    assert (record.config, record.recipe) == ({"lr": 0.5, "algo": "sac", "flag": True}, "sac")
    assert record.final["score"] == 3.0


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    for number, steps in enumerate((range(5), range(3, 8))):
        with writer(tmp_path / "logs", filename_suffix=f".{number}") as board:
            for step in steps:
                board.add_scalar("return", 10.0 * number + step, step, walltime=100.0 * number + step)
            if number == 0:
                board.add_scalar("only_first", 1.0, 4, walltime=4.0)
    run = read_events(events(tmp_path / "logs"))
    values = [(row["step"], row["return"]) for row in run.rows if "return" in row]
    assert values == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0), (5, 15.0), (6, 16.0), (7, 17.0)]
    assert [row["step"] for row in run.rows if "only_first" in row] == [4]
    assert run.notes == ["2 values were logged again by a later file, which counts"]


def test_event_files_that_are_half_written_or_damaged(logged: Path) -> None:
    (path,) = events(logged)
    whole = read_events([path])
    data = path.read_bytes()
    starts = [0]
    while starts[-1] < len(data):
        starts.append(starts[-1] + 16 + struct.unpack_from("<Q", data, starts[-1])[0])
    assert starts[-1] == len(data)
    last = starts[-2]
    for end in (last + 1, last + 11, last + 12, len(data) - 1):
        path.write_bytes(data[:end])
        assert f"the last record of {path.name} is half-written and was left out" in read_events([path]).notes
    third = starts[3]  # the second number
    damaged = bytearray(data)
    damaged[third + 14] ^= 1
    path.write_bytes(damaged)
    run = read_events([path])
    assert f"1 records of {path.name} are damaged and were left out" in run.notes
    assert sum("charts/return" in row for row in run.rows) == sum("charts/return" in row for row in whole.rows) - 1
    damaged = bytearray(data)
    damaged[third] ^= 1
    path.write_bytes(damaged)
    run = read_events([path])
    assert run.notes == [f"{path.name} is damaged at byte {third}; the last {len(data) - third} bytes were left out"]
    assert [row["step"] for row in run.rows] == [10]


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("|param|value|\n|-|-|\n|a|1|\n|b c|x y|\n|d|[1, 2]|\n|e||\n", {"a": 1, "b c": "x y", "d": [1, 2], "e": ""}),
        ("|param|value|\n|-|-|\n|f|__import__('os')|", {"f": "__import__('os')"}),  # a text, never run
        ("|param|value|\n|-|-|\n|g|a|b|", {"g": "a|b"}),
        ("<pre>{&quot;a&quot;: [1]}</pre>", {"a": [1]}),
        ("<pre>{broken</pre>", {}),
        ("<pre>[1]</pre>", {}),
        ("nothing", {}),
    ],
)
def test_texts_that_hold_a_config(text: str, config: dict[str, Any]) -> None:
    assert parse_config(text) == config


# --- both


def test_what_cannot_be_imported_is_said_and_the_rest_is(logged: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    (logs / "bad.wandb").write_bytes(b"no")
    (logs / "empty").mkdir()
    (logs / "empty" / "events.out.tfevents.1.x").write_bytes(b"")
    first = import_runs(logs, tmp_path / "runs")
    assert len(first.directories) == 1
    assert first.notes[:2] == [
        f"{logs / 'bad.wandb'} was left out: it is empty or no file of Weights & Biases",
        f"{first.directories[0]}: not numbers and left out: weights",
    ]
    assert first.notes[2] == f"{logs / 'empty'} was left out: it has no numbers"
    again = import_runs(logs, tmp_path / "runs")
    assert again.directories == []
    assert f"{first.directories[0]} is there already; delete it to import it again" in again.notes[1]


def test_one_file_may_be_given(logged: Path, tmp_path: Path) -> None:
    imported = import_runs(events(logged)[0], tmp_path / "runs")
    assert [path.name for path in imported.directories] == [logged.name]


def test_nothing_to_import(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        import_runs(tmp_path / "nowhere", tmp_path / "runs")
    with pytest.raises(UserError, match=r"neither a \.wandb file nor an events\.out\.tfevents\.\* file"):
        import_runs(tmp_path, tmp_path / "runs")
    (tmp_path / "x.txt").write_text("x")
    notes = import_runs(tmp_path / "x.txt", tmp_path / "runs").notes
    assert notes == [f"{tmp_path / 'x.txt'} was left out: it is neither a .wandb file nor an event file"]


@pytest.mark.parametrize(
    ("module", "name"), [("wandb.proto.wandb_internal_pb2", "wandb"), ("tensorboard.util.tensor_util", "tensorboard")]
)
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    file = "x.wandb" if name == "wandb" else "events.out.tfevents.1"
    (tmp_path / file).write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"need .*pip install {name}"):
        import_runs(tmp_path, tmp_path / "runs")


def test_a_full_disk_leaves_no_half_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = Path.write_text

    def full(path: Path, *arguments: Any, **options: Any) -> int:
        if path.name == "metrics.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    run = ForeignRun("test", rows=[{"step": 1, "x": 1.0}])
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        write_run(run, tmp_path / "runs" / "a")
    assert list((tmp_path / "runs").iterdir()) == []
    monkeypatch.undo()
    write_run(run, tmp_path / "runs" / "a")
    assert json.loads((tmp_path / "runs" / "a" / "config.json").read_text())["recipe"] == "imported"
    shutil.rmtree(tmp_path / "runs")
