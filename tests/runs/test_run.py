"""The run directory: configuration, metrics, samples, exact resume, lock."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zerozoo.runs import run as run_module
from zerozoo.runs import versions as versions_module
from zerozoo.runs.checkpoints import Checkpoint
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run, remove_unused
from zerozoo.runs.versions import commit, machine, versions

CONFIG = {"learning_rate": 1e-3, "steps": 10, "model": "tiny", "stops": ("a", "b"), "target": None}


def start(
    directory: Path, config: Mapping[str, Any] = CONFIG, recipe: str = "demo", seed: int = 0, **options: Any
) -> Run:
    return Run.start(directory, recipe, config, seed, **options)


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


class Memory:
    """A sink that remembers: the protocol, and nothing more."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed += 1


def test_start_records_config_and_versions(tmp_path: Path):
    run = start(tmp_path / "deep" / "run", seed=3)
    stored = json.loads(run.path("config.json").read_text())
    assert stored == {"recipe": "demo", "seed": 3, "config": {**CONFIG, "stops": ["a", "b"]}}
    assert json.loads(run.path("versions.json").read_text())["torch"] == torch.__version__
    assert run.streams.seed == 3
    again = Run.open(run.directory)
    assert (again.recipe, again.seed, again.config) == ("demo", 3, stored["config"])


def test_config_values_of_every_kind_compare_equal_to_themselves(tmp_path: Path):
    class Mode(Enum):
        FAST = "fast"

    config = {
        "path": Path("a/b"),
        "mode": Mode.FAST,
        "clip": math.inf,
        "none": math.nan,
        "n": np.float64(0.1),
        "s": {2, 1},
    }
    start(tmp_path, config)
    run = start(tmp_path, config)
    stored = Run.open(tmp_path).config
    assert {key: stored[key] for key in ("path", "mode", "clip", "n", "s")} == {
        "path": "a/b",
        "mode": "fast",
        "clip": math.inf,
        "n": 0.1,
        "s": [1, 2],
    }
    assert math.isnan(run.config["none"])


def test_another_configuration_is_refused_with_every_difference(tmp_path: Path):
    start(tmp_path / "run").close()
    before = (tmp_path / "run" / "config.json").read_bytes()
    config = {**CONFIG, "learning_rate": 0.01, "stops": ["a"], "new": True}
    del config["target"]
    with pytest.raises(UserError) as error:
        start(tmp_path / "run", config, recipe="other", seed=1)
    text = str(error.value)
    for difference in (
        'recipe ("demo" -> "other")',
        "seed (0 -> 1)",
        "learning_rate (0.001 -> 0.01)",
        'stops (["a", "b"] -> ["a"])',
        "new (absent -> true)",
        "target (null -> absent)",
    ):
        assert difference in text
    assert "steps" not in text
    assert "model" not in text
    assert text.endswith("use another --directory or delete it")
    assert (tmp_path / "run" / "config.json").read_bytes() == before


@pytest.mark.parametrize(("old", "new"), [(1, True), (1, 1.0), ("1", 1), (0, False), ([], {})])
def test_values_that_python_calls_equal_or_that_look_alike_still_differ(tmp_path: Path, old: Any, new: Any):
    start(tmp_path, {"x": old})
    with pytest.raises(UserError, match="x "):
        start(tmp_path, {"x": new})


def test_extendable_fields_may_change_and_are_recorded(tmp_path: Path):
    start(tmp_path)
    run = start(tmp_path, {**CONFIG, "steps": 20}, extendable=("steps",))
    assert Run.open(tmp_path).config["steps"] == run.config["steps"] == 20
    with pytest.raises(UserError, match="steps .20 -> 10"):
        start(tmp_path)
    with pytest.raises(UserError) as error:
        start(tmp_path, {**CONFIG, "steps": 30, "model": "big"}, extendable=("steps",))
    assert "model" in str(error.value)
    assert "steps" not in str(error.value)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="neither empty nor a run"):
        start(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        start(tmp_path / "thesis.txt")
    with pytest.raises(UserError, match="not a run directory"):
        Run.open(tmp_path)


def test_an_empty_folder_and_a_start_that_was_killed_are_taken(tmp_path: Path):
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".temporary-config.json").write_text("{")
    start(tmp_path)
    assert Run.open(tmp_path).recipe == "demo"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"recipe": "demo"}'])
def test_a_damaged_config_is_one_clear_sentence(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    for attempt in (lambda: start(tmp_path), lambda: Run.open(tmp_path)):
        with pytest.raises(UserError, match="config.json cannot be read"):
            attempt()


def test_a_directory_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        start(tmp_path / "file" / "run")


def test_log_writes_one_strict_json_line_at_once(tmp_path: Path):
    run = Run(tmp_path / "run")
    before = time.time()
    run.log(4, {"reward": np.float32(0.5), "loss": torch.tensor(2.0), "count": 3, "flag": True})
    lines = run.path("metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1
    assert lines[0].endswith(b"\n")
    row = json.loads(lines[0])
    assert before - 1 <= row.pop("time")
    assert row == {"step": 4, "reward": 0.5, "loss": 2.0, "count": 3, "flag": 1}
    assert run.history()[0]["reward"] == 0.5


def test_numbers_that_are_not_finite_keep_their_key_as_null(tmp_path: Path):
    sink = Memory()
    run = Run(tmp_path, sinks=[sink])
    run.log(1, {"a": math.nan, "b": math.inf, "c": torch.tensor(-math.inf), "d": 1e308})
    text = run.path("metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    row = run.history()[0]
    assert [row[key] for key in "abcd"] == [None, None, None, 1e308]
    assert math.isnan(sink.rows[0][1]["a"])  # sinks see the number itself


@pytest.mark.parametrize("name", ["step", "time"])
def test_reserved_columns(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match=name):
        Run(tmp_path).log(1, {name: 1.0})


def test_a_metric_that_is_no_number_is_named(tmp_path: Path):
    with pytest.raises(TypeError, match="'reward' must be a number"):
        Run(tmp_path).log(1, {"reward": "high"})  # type: ignore[dict-item]
    assert Run(tmp_path).history() == []


def test_samples_hold_any_text(tmp_path: Path):
    run = Run(tmp_path)
    texts = ["½ + é\n\u2028", "lone \ud800 surrogate", "\x00", '"quoted"']
    run.sample({"step": 1, "text": text, "score": math.nan, "ids": torch.tensor([1, 2])} for text in texts)
    run.sample([])
    assert [row["text"] for row in run.samples()] == texts
    assert run.samples()[0]["ids"] == [1, 2]
    assert run.samples()[0]["score"] is None
    assert run.path("samples.jsonl").read_bytes().count(b"\n") == 4
    assert "½ + é" in run.path("samples.jsonl").read_text()  # a person can read it


def test_a_half_written_last_row_is_ignored_and_then_cut_off(tmp_path: Path):
    run = start(tmp_path)
    for step in (1, 2):
        run.log(step, {"reward": step})
        run.sample([{"step": step, "text": "é"}])
    run.close()
    for name in ("metrics.jsonl", "samples.jsonl"):
        whole = (tmp_path / name).read_bytes()
        for cut in range(whole.index(b"\n") + 1, len(whole)):
            (tmp_path / name).write_bytes(whole[:cut])  # "cut" bytes of two rows: at least one row, never two
            assert steps(Run.open(tmp_path).history() if name.startswith("m") else Run.open(tmp_path).samples()) == [1]
    resumed = start(tmp_path)
    resumed.log(2, {"reward": 3})
    resumed.sample([{"step": 2}])
    assert [(row["step"], row["reward"]) for row in resumed.history()] == [(1, 1), (2, 3)]
    assert steps(resumed.samples()) == [1, 2]


def test_a_damaged_row_in_the_middle_is_named(tmp_path: Path):
    run = Run(tmp_path)
    run.log(1, {})
    with open(run.path("metrics.jsonl"), "ab") as file:
        file.write(b'{"step": 2, "rew\n')
    run.log(3, {})
    with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is damaged"):
        run.history()


def test_a_full_disk_leaves_no_half_row(tmp_path: Path):
    run = Run(tmp_path)
    run.log(1, {"a": 1})
    size = run.path("metrics.jsonl").stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 5):  # nothing fits; a part fits
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, old[1]))
        try:
            with pytest.raises(UserError, match="disk is full"):
                run.log(2, {"a": 1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert run.path("metrics.jsonl").stat().st_size == size
    run.log(2, {"a": 1})
    assert steps(run.history()) == [1, 2]


def test_rewind_drops_later_rows_only(tmp_path: Path):
    run = start(tmp_path)
    for step in range(1, 6):
        run.log(step, {"reward": 0.1 * step})
        run.log(step, {"heldout/greedy_accuracy": 1.0})
        run.sample([{"step": step, "text": "½"}])
    run.sample([{"note": "without a step"}])
    metrics = run.path("metrics.jsonl").read_bytes().splitlines(keepends=True)
    samples = run.path("samples.jsonl").read_bytes().splitlines(keepends=True)
    run.rewind(3)
    assert run.path("metrics.jsonl").read_bytes() == b"".join(metrics[:6])
    assert run.path("samples.jsonl").read_bytes() == b"".join([*samples[:3], samples[5]])
    run.rewind(3)
    run.log(4, {"reward": 9})
    assert steps(run.history()) == [1, 1, 2, 2, 3, 3, 4]
    Run(tmp_path / "empty").rewind(0)


def test_streams_travel_with_the_checkpoint(tmp_path: Path):
    run = start(tmp_path, seed=5)
    generator = run.stream("sampler")
    torch.rand(3, generator=generator)
    run.streams.python("data").random()
    run.save(1, {"w": torch.ones(2)}, {"cursor": 7})
    expected = torch.rand(4, generator=generator), run.streams.python("data").random()
    resumed = start(tmp_path, seed=5)
    checkpoint = resumed.load()
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state) == (1, {"cursor": 7})
    assert torch.equal(torch.rand(4, generator=resumed.stream("sampler")), expected[0])
    assert resumed.streams.python("data").random() == expected[1]
    with pytest.raises(ValueError, match="streams"):
        run.save(2, {}, {"streams": {}})


def test_load_of_a_new_run_is_none(tmp_path: Path):
    assert start(tmp_path).load() is None


def test_a_damaged_checkpoint_is_reported_by_load(tmp_path: Path):
    run = start(tmp_path)
    run.save(1, {}, {"n": 1})
    run.save(2, {}, {"n": 2})
    os.truncate(run.path("checkpoints", "step-000002", "state.json"), 3)
    checkpoint = run.load()
    assert checkpoint is not None
    assert checkpoint.state == {"n": 1}
    assert "step-000002" in checkpoint.warnings[0]


def steps_logged(run: Run) -> list[int]:
    return [row["step"] for row in run.history()]


def test_resume_gives_the_checkpoint_back_and_drops_later_rows(tmp_path: Path):
    run = start(tmp_path)
    assert run.kept() == "there was no checkpoint yet"
    for step in (1, 2, 3):
        run.log(step, {"loss": 1.0})
        if step < 3:
            run.save(step, {"w": torch.tensor([float(step)])}, {})
    assert run.saved == 2
    assert run.kept() == "the checkpoint of step 2 is kept"
    os.truncate(run.path("checkpoints", "step-000002", "state.json"), 3)
    run.close()
    resumed, given, said = start(tmp_path), [], []
    resumed.say = said.append
    assert resumed.resume(lambda checkpoint: given.append(checkpoint.tensors["w"].item())) == 1
    assert given == [1.0]
    assert steps_logged(resumed) == [1]
    assert resumed.saved == 1
    assert "step-000002" in said[0]
    assert said[1:] == ["Resuming after step 1."]


def test_a_checkpoint_that_is_refused_leaves_the_rows(tmp_path: Path):
    run = start(tmp_path)
    run.save(1, {}, {})
    for step in (1, 2):
        run.log(step, {"loss": 1.0})
    run.close()

    def refuse(checkpoint: Checkpoint) -> None:
        raise UserError("other data")

    resumed = start(tmp_path)
    with pytest.raises(UserError, match="other data"):
        resumed.resume(refuse)
    assert steps_logged(resumed) == [1, 2]
    assert resumed.saved == 0


def test_resume_of_a_run_without_checkpoint_drops_all_rows(tmp_path: Path):
    run = start(tmp_path)
    run.log(0, {"loss": 1.0})
    run.close()
    resumed = start(tmp_path)
    assert resumed.resume(lambda checkpoint: pytest.fail("there is none")) == 0
    assert steps_logged(resumed) == []


TRAIN = """
import os, signal, sys
import torch
from zerozoo.runs.run import Run, remove_unused

def train(directory, steps, kill_after):
    run = Run.start(directory, "toy", {"steps": steps}, seed=9, extendable=("steps",))
    weight, momentum, done = torch.zeros(3), torch.zeros(3), 0
    if checkpoint := run.load():
        weight, momentum, done = checkpoint.tensors["weight"], checkpoint.tensors["momentum"], checkpoint.step
    run.rewind(done)
    for step in range(done + 1, steps + 1):
        x = torch.randn(8, 3, generator=run.stream("data"))
        y = x.sum(1) + run.streams.python("noise").gauss(0, 0.1) + run.streams.numpy("noise").normal()
        error = x @ weight - y
        momentum = 0.9 * momentum + x.T @ error / 8
        weight = weight - 0.1 * momentum
        run.log(step, {"loss": error.square().mean(), "weight": weight[0]})
        run.sample([{"step": step, "x": x[0]}])
        if step % 4 == 0:
            run.save(step, {"weight": weight, "momentum": momentum}, {"consumed": 8 * step})
        if step == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
for job in sys.argv[2:]:  # each in a process of its own; forked, because importing torch takes seconds
    name, steps, kill_after = job.split(":")
    child = os.fork()
    if child == 0:
        train(os.path.join(sys.argv[1], name), int(steps), int(kill_after))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def train(directory: Path, *jobs: str) -> list[int]:
    """Runs jobs "folder:steps:kill after this step (0: never)" one after the other; their exit codes."""
    command = [sys.executable, "-c", TRAIN, str(directory), *jobs]
    return [int(line) for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def test_kill_and_resume_equals_an_uninterrupted_run_bit_for_bit(tmp_path: Path):
    """Traps 26 and 35: weights, optimizer state, random streams and logs all come back."""
    # The kill comes two steps after the checkpoint of step 4, so two steps are taken back and done again.
    codes = train(tmp_path, "whole:12:0", "parts:12:6", "parts:8:0", "parts:12:0")
    assert codes == [0, -signal.SIGKILL, 0, 0]
    whole, parts = Run.open(tmp_path / "whole"), Run.open(tmp_path / "parts")
    assert timeless(whole.history()) == timeless(parts.history())
    assert steps(parts.history()) == list(range(1, 13))
    assert whole.samples() == parts.samples()
    left, right = whole.load(), parts.load()
    assert left is not None
    assert right is not None
    assert left.step == right.step == 12
    assert left.state == right.state
    assert left.state == {"consumed": 96}
    assert all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def test_an_opened_run_cannot_be_written(tmp_path: Path):
    start(tmp_path).log(1, {"a": 1})
    before = sorted(tmp_path.rglob("*"))
    run = Run.open(tmp_path)
    for write in (
        lambda: run.log(2, {}),
        lambda: run.sample([{}]),
        lambda: run.rewind(0),
        lambda: run.save(1, {}, {}),
    ):
        with pytest.raises(RuntimeError, match="opened to be read"):
            write()
    assert sorted(tmp_path.rglob("*")) == before
    assert steps(run.history()) == [1]


HOLD = """
import sys, time
from zerozoo.runs.run import Run, remove_unused
run = Run.start(sys.argv[1], "demo", {}, 0)
print("ready", flush=True)
sys.stdin.read()
"""


def test_two_processes_cannot_write_one_run(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for attempt in (lambda: start(tmp_path, {}), lambda: Run(tmp_path).log(1, {})):
            with pytest.raises(UserError, match=f"is in use by process {child.pid}: .* another --directory"):
                attempt()
        assert Run.open(tmp_path).history() == []  # reading is free
    finally:
        child.kill()
        child.wait()
        assert child.stdin is not None
        child.stdin.close()
        child.stdout.close()
    start(tmp_path, {}).log(1, {})  # a kill frees the lock


def another_process_can_lock(directory: Path) -> bool:
    """Whether the lock file is free, asked through an open file of our own, which flock treats like another process."""
    with open(directory / ".lock") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_the_lock_is_shared_in_one_process_and_freed_with_its_last_run(tmp_path: Path):
    first, second = start(tmp_path), start(tmp_path)
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    first.close()
    assert not another_process_can_lock(tmp_path)
    with second:
        second.log(1, {})
    assert another_process_can_lock(tmp_path)
    first.log(2, {})  # takes the lock again
    assert not another_process_can_lock(tmp_path)
    del first
    assert another_process_can_lock(tmp_path)


def test_a_run_directory_that_was_deleted_is_locked_anew(tmp_path: Path):
    old = start(tmp_path / "run")
    os.rename(tmp_path / "run", tmp_path / "moved")
    start_again = start(tmp_path / "run")
    assert not another_process_can_lock(tmp_path / "run")
    assert not another_process_can_lock(tmp_path / "moved")
    old.close()
    start_again.close()


def test_a_forked_worker_neither_writes_nor_keeps_the_lock(tmp_path: Path):
    run = start(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run.log(1, {})
        except BaseException as error:  # nothing may run on as a second pytest
            os.write(writer, str(error).encode())
        else:
            os.write(writer, b"wrote")
        signal.pause()
        os._exit(0)
    try:
        assert f"in use by process {os.getpid()}" in os.read(reader, 1000).decode()
        run.close()
        assert another_process_can_lock(tmp_path)  # while the worker is still alive
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_module.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        start(tmp_path).log(1, {})
    assert "without locks" in caplog.text
    assert steps(Run.open(tmp_path).history()) == [1]


def test_starting_clears_up_after_a_killed_writer(tmp_path: Path):
    run = start(tmp_path)
    run.save(1, {}, {})
    run.close()
    (tmp_path / "checkpoints" / ".temporary-000002").mkdir()
    Run.open(tmp_path).load()
    assert (tmp_path / "checkpoints" / ".temporary-000002").exists()
    start(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_sinks_get_the_metrics_and_are_closed_once(tmp_path: Path):
    sink = Memory()
    with Run(tmp_path, sinks=[sink]) as run:
        run.log(1, {"a": torch.tensor(0.5)})
        run.log(2, {"a": 1})
    run.close()
    assert sink.rows == [(1, {"a": 0.5}), (2, {"a": 1})]
    assert sink.closed == 1


def test_a_failing_sink_is_dropped_with_a_warning_and_the_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    class Broken(Memory):
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            super().log(step, metrics)
            raise ConnectionError("the network is away")

    broken, good = Broken(), Memory()
    run = Run(tmp_path, sinks=[broken, good])
    with caplog.at_level(logging.WARNING):
        run.log(1, {"a": 1})
        run.log(2, {"a": 2})
    assert caplog.text.count("the network is away") == 1
    assert (len(broken.rows), len(good.rows), len(run.history())) == (1, 2, 2)


def test_paths(tmp_path: Path):
    run = Run(tmp_path / "run")
    assert run.path("model", "x.bin") == tmp_path / "run" / "model" / "x.bin"
    assert not run.directory.exists()  # nothing is written before the first write
    assert run.figures == tmp_path / "run" / "figures"
    assert run.figures.is_dir()


def test_versions_tell_what_matters():
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["torch_build"] == (torch.__version__.partition("+")[2] or None)
    assert {"zerozoo", "transformers", "commit", "dirty", *machine()} <= set(found)
    assert 1 <= machine()["cores"] <= (os.cpu_count() or 1)
    assert json.loads(json.dumps(found)) == found


def test_versions_import_nothing_heavy():
    code = "import sys, zerozoo.runs.versions as v; v.versions(); print({'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    result = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "src"
    package.mkdir()
    (package / "a.py").write_text("1")
    assert commit(package) == {"commit": None, "dirty": None}  # no repository
    git(tmp_path, "init", "-q")
    assert commit(package) == {"commit": None, "dirty": None}  # a repository that does not hold it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(package) == {"commit": head, "dirty": False}
    (tmp_path / "notes.txt").write_text("outside the package")
    assert commit(package) == {"commit": head, "dirty": False}
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as inside a hook of another repository
    (package / "new.py").write_text("untracked code is a difference too")
    assert commit(package) == {"commit": head, "dirty": True}


def test_a_resume_with_other_versions_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    start(tmp_path)
    first = json.loads((tmp_path / "versions.json").read_text())
    start(tmp_path)
    assert json.loads((tmp_path / "versions.json").read_text()) == first
    for number in ("99", "99", "100"):
        monkeypatch.setattr(run_module, "versions", lambda number=number: {**first, "torch": number})
        start(tmp_path)
    found = json.loads((tmp_path / "versions.json").read_text())
    assert found.pop("resumed") == [{"torch": "99"}, {"torch": "100"}]
    assert found == first


def test_a_machine_without_git_or_proc_still_answers(monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(versions_module.Path, "read_text", refuse)
    assert commit() == {"commit": None, "dirty": None}
    assert machine()["cpu"]


# --- what a failed run leaves behind


def test_a_failed_run_is_removed_unless_something_was_made(tmp_path: Path):
    for name in ("nothing", "rows", "inside"):
        with start(tmp_path / name) as run:
            if name == "rows":
                run.log(0, {"loss": 1.0})
            if name == "inside":  # what had to be trained first
                with Run(run.path("preparation", "first")) as first:
                    first.save(3, {"weight": torch.ones(1)}, {})
        remove_unused(run, existed=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "rows"]
    assert Run(tmp_path / "inside" / "preparation" / "first").load() is not None
    with start(tmp_path / "there") as run:
        remove_unused(run, existed=True)
    assert (tmp_path / "there").exists()
