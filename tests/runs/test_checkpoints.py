"""Checkpoints: bit-exact, and safe against kills at any point, damage, and a full disk."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from zerozoo.runs import checkpoints
from zerozoo.runs.checkpoints import is_disk_full, load_newest, replace_file, save_checkpoint
from zerozoo.runs.errors import UserError

AWKWARD = {
    "float32": torch.tensor([0.1, -0.0, math.inf, -math.inf, math.nan, 1e-45]),
    "float64": torch.tensor([0.1, 5e-324], dtype=torch.float64),
    "bfloat16": torch.tensor([0.1, -3.0, math.nan], dtype=torch.bfloat16),
    "float16": torch.tensor([[0.1], [6e-8]], dtype=torch.float16),
    "int64": torch.tensor([2**63 - 1, -(2**63), 2**53 + 1]),
    "int32": torch.tensor([-1], dtype=torch.int32),
    "uint8": torch.arange(256, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "odd name/with.dots and spaces": torch.ones(1),
}


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    flat = tensor.detach().contiguous().reshape(-1)
    return tensor.dtype, tuple(tensor.shape), bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""


def numbered(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((50,), float(step)), "moment": torch.full((3, 4), step)}


def save(root: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        save_checkpoint(root, step, numbered(step), {"step": step}, keep)


def check(root: Path, *allowed: int) -> int:
    """The newest checkpoint is one of the allowed, and all of one piece."""
    checkpoint = load_newest(root)
    assert checkpoint is not None
    assert checkpoint.step in allowed
    assert checkpoint.state == {"step": checkpoint.step}
    for name, tensor in numbered(checkpoint.step).items():
        assert torch.equal(checkpoint.tensors[name], tensor)
    return checkpoint.step


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path):
    save_checkpoint(tmp_path, 3, AWKWARD, {})
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert list(loaded.tensors) == list(AWKWARD)
    assert {name: bits(tensor) for name, tensor in loaded.tensors.items()} == {
        name: bits(tensor) for name, tensor in AWKWARD.items()
    }
    assert (loaded.step, loaded.warnings) == (3, ())


def test_views_parameters_and_strides(tmp_path: Path):
    flat = torch.arange(12.0)
    tensors = {
        "first half": flat[:6],
        "second half": flat[6:],
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "expanded": torch.tensor([2.0]).expand(4),
        "parameter": torch.nn.Parameter(torch.tensor([1.5])),
    }
    save_checkpoint(tmp_path, 0, tensors, {})
    loaded = load_newest(tmp_path)
    assert loaded is not None
    for name, tensor in tensors.items():
        assert bits(loaded.tensors[name]) == bits(tensor), name
        assert not loaded.tensors[name].requires_grad


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path: Path):
    save_checkpoint(tmp_path, 1, {"a": torch.ones(1000)}, {})
    loaded = load_newest(tmp_path)
    assert loaded is not None
    file = tmp_path / "step-000001" / "tensors.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    loaded.tensors["a"][0] = 2.0  # writable as well
    assert loaded.tensors["a"].tolist() == [2.0] + [1.0] * 999


def test_state_comes_back_exactly(tmp_path: Path):
    state = {
        "best": -math.inf,
        "none": None,
        "list": [1, 2.5, "é\u2028"],
        "nested": {"a": {"b": True}},
        "pcg": 2**127 + 1,
        "third": 1 / 3,
    }
    save_checkpoint(tmp_path, 1, {}, {**state, "nan": math.nan})
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert math.isnan(loaded.state.pop("nan"))
    assert loaded.state == state


@pytest.mark.parametrize("state", [{1: "a"}, {"a": [{"b": {2: 3}}]}, {"a": torch.ones(1)}, {"a": {1, 2}}])
def test_state_that_json_would_change_is_refused_before_anything_is_written(tmp_path: Path, state: dict[str, Any]):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "root", 1, {}, state)
    assert not (tmp_path / "root").exists()


def test_tied_tensors_are_refused_and_leave_nothing(tmp_path: Path):
    weight = torch.ones(3)
    with pytest.raises(RuntimeError, match="share memory"):
        save_checkpoint(tmp_path, 1, {"a": weight, "b": weight}, {})
    assert names(tmp_path) == []


def test_only_the_newest_are_kept(tmp_path: Path):
    save(tmp_path, 1, 2, 10, 1_000_000)
    assert names(tmp_path) == ["step-000010", "step-1000000"]
    check(tmp_path, 1_000_000)
    save(tmp_path, 1_000_001, keep=1)
    assert names(tmp_path) == ["step-1000001"]
    with pytest.raises(ValueError, match="keep"):
        save(tmp_path, 2, keep=0)


def test_going_back_removes_the_abandoned_future(tmp_path: Path):
    save(tmp_path, 10, 20, 30)
    save(tmp_path, 25)
    assert names(tmp_path) == ["step-000020", "step-000025"]
    check(tmp_path, 25)


def test_saving_a_step_again_replaces_it(tmp_path: Path):
    save(tmp_path, 10)
    save_checkpoint(tmp_path, 10, {"other": torch.ones(2)}, {"again": True})
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert (loaded.state, list(loaded.tensors)) == ({"again": True}, ["other"])
    assert names(tmp_path) == ["step-000010"]


def test_nothing_there(tmp_path: Path):
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "missing") is None


def flip_first(path: Path) -> None:
    flip(path, 0)


def flip_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def flip(path: Path, index: int) -> None:
    data = bytearray(path.read_bytes())
    data[index] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def clear(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "checksum.json"])
@pytest.mark.parametrize("damage", [flip_first, flip_middle, halve, clear, Path.unlink])
def test_a_damaged_file_falls_back_to_the_older_one_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
):
    save(tmp_path, 10, 20)
    damage(tmp_path / "step-000020" / name)
    with caplog.at_level(logging.WARNING):
        loaded = load_newest(tmp_path)
    assert loaded is not None
    assert loaded.step == 10
    assert torch.equal(loaded.tensors["weight"], numbered(10)["weight"])
    assert len(loaded.warnings) == 1
    assert "step-000020 is damaged" in loaded.warnings[0]
    assert loaded.warnings[0] in caplog.text


def test_a_flipped_bit_anywhere_in_the_tensors_is_found(tmp_path: Path):
    save(tmp_path, 10, 20)
    file = tmp_path / "step-000020" / "tensors.safetensors"
    for index in range(0, file.stat().st_size, 37):
        flip(file, index)
        check(tmp_path, 10)
        flip(file, index)
    check(tmp_path, 20)


def test_a_checkpoint_under_another_name_is_not_used(tmp_path: Path):
    save(tmp_path, 10, 20)
    (tmp_path / "step-000020").rename(tmp_path / "step-000099")
    check(tmp_path, 10)


def test_all_damaged_is_an_error_and_not_a_new_beginning(tmp_path: Path):
    save(tmp_path, 10, 20)
    for folder in tmp_path.iterdir():
        halve(folder / "tensors.safetensors")
    with pytest.raises(UserError, match="none of the checkpoints .* step-000020 .* step-000010 .* delete that folder"):
        load_newest(tmp_path)


def test_reading_leaves_another_process_s_work_alone_and_writing_clears_it(tmp_path: Path):
    save(tmp_path, 10)
    unfinished = tmp_path / ".temporary-000020"
    unfinished.mkdir()
    (unfinished / "tensors.safetensors").write_bytes(b"half")
    check(tmp_path, 10)
    assert unfinished.exists()
    save(tmp_path, 30)
    assert names(tmp_path) == ["step-000010", "step-000030"]


def test_reader_looks_again_when_the_writer_prunes_under_its_eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 10)
    original, calls = checkpoints._read_folder, []

    def read_after_writer(folder: Path) -> Any:
        calls.append(folder.name)
        if len(calls) == 1:
            save(tmp_path, 20, keep=1)
        return original(folder)

    monkeypatch.setattr(checkpoints, "_read_folder", read_after_writer)
    check(tmp_path, 20)
    assert calls == ["step-000010", "step-000020"]


def kill_at_call(number: int) -> None:
    """From now on the `number`-th call that changes the disk kills this process with SIGKILL instead."""
    count = 0

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return function(*arguments, **options)

        return guarded

    for module, name in [(os, "mkdir"), (os, "rename"), (os, "fsync"), (os, "unlink"), (os, "rmdir")]:
        setattr(module, name, guard(getattr(module, name)))
    checkpoints.save_file = guard(checkpoints.save_file)
    Path.write_bytes = guard(Path.write_bytes)  # type: ignore[method-assign]
    Path.write_text = guard(Path.write_text)  # type: ignore[method-assign]


@pytest.mark.parametrize("step", [30, 20, 15])
def test_a_kill_at_every_single_step_of_a_save(tmp_path: Path, step: int):
    """The old or the new checkpoint is there, whole, wherever the kill falls; 20 replaces itself, 15 goes back."""
    outcomes = []
    for number in range(100):
        root = tmp_path / str(number)
        save(root, 10, 20)
        child = os.fork()
        if child == 0:
            try:
                kill_at_call(number)
                save_checkpoint(root, step, {"new": torch.ones(3)}, {"new": True})
                os._exit(0)
            finally:
                os._exit(1)  # an error must not run on as a second pytest
        _, status = os.waitpid(child, 0)
        loaded = load_newest(root)
        assert loaded is not None
        assert loaded.warnings == ()
        new = loaded.state == {"new": True}
        if new:
            assert loaded.step == step
            assert torch.equal(loaded.tensors["new"], torch.ones(3))
        else:
            check(root, 20)
        outcomes.append(new)
        save(root, 40)
        assert not [name for name in names(root) if not name.startswith("step-")]
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
    assert outcomes == sorted(outcomes)  # once it is there it stays
    assert not outcomes[0]
    assert outcomes[-1]
    assert len(outcomes) > 10


KILLS = """
import os, random, signal, sys, time
import torch
from pathlib import Path
from zerozoo.runs.checkpoints import load_newest, save_checkpoint
torch.set_num_threads(1)
root, rng, last, inside = Path(sys.argv[1]), random.Random(5), 0, 0
for kill in range(25):
    child = os.fork()
    if child == 0:
        step = last
        while True:
            step += 1
            tensors = {"a": torch.full((20_000,), step), "b": torch.full((7,), float(step))}
            save_checkpoint(root, step, tensors, {"s": step})
    # Any later step: on a busy machine the child has saved and pruned several before this process looks again.
    while not any(int(path.name[5:11]) > last for path in root.glob("step-*")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the saving process ended by itself"
        time.sleep(0.0005)
    time.sleep(rng.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    inside += bool(list(root.glob(".temporary-*")))
    found = load_newest(root)
    assert found.warnings == () and found.step > last, found
    assert found.state == {"s": found.step}
    assert (found.tensors["a"] == found.step).all() and (found.tensors["b"] == found.step).all()
    last = found.step
print("kills inside a save:", inside)
"""


def test_kills_at_random_times_never_lose_a_run(tmp_path: Path):
    """kill -9 of a process that does nothing but save."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert result.returncode == 0, result.stderr
    print(result.stdout)


def test_too_little_space_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 10)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1_500_000))
    monkeypatch.setattr(checkpoints, "save_file", None)
    with pytest.raises(
        UserError, match=r"step 20 .* needs 5.0 MB and 1.5 MB are free; the checkpoint of step 10 is kept"
    ):
        save_checkpoint(tmp_path, 20, {"a": torch.zeros(1_000_000)}, {})
    assert names(tmp_path) == ["step-000010"]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The operating system refuses to let a file grow beyond `size` bytes: a full disk that needs no root."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("big", ["tensors", "state"])
def test_a_disk_that_fills_up_while_writing_keeps_the_old_checkpoint(tmp_path: Path, big: str):
    save(tmp_path, 10)
    tensors = {"a": torch.zeros(100_000 if big == "tensors" else 1)}
    state = {"text": "x" * (400_000 if big == "state" else 1)}
    refused = pytest.raises(UserError, match="step 20 .* became full .* step 10 is kept")
    with files_up_to(200_000), refused:
        save_checkpoint(tmp_path, 20, tensors, state)
    assert names(tmp_path) == ["step-000010"]
    check(tmp_path, 10)


def test_other_errors_while_writing_are_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: Any) -> None:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(checkpoints, "save_file", broken)
    with pytest.raises(PermissionError):
        save(tmp_path, 10)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (OSError(5, "Input/output error"), False),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError('IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'), True),
        (SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)"), False),
        (ValueError("28"), False),
    ],
)
def test_what_counts_as_a_full_disk(error: Exception, full: bool):
    assert is_disk_full(error) is full


def test_replace_file_keeps_the_old_content_on_a_full_disk(tmp_path: Path):
    path = tmp_path / "config.json"
    replace_file(path, b"old")
    with files_up_to(10), pytest.raises(UserError, match="disk is full: .*config.json"):
        replace_file(path, b"n" * 100)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["config.json"]


def test_the_checksums_are_plain_sha256(tmp_path: Path):
    save(tmp_path, 10)
    folder = tmp_path / "step-000010"
    listed = subprocess.run(["sha256sum", *checkpoint_files(folder)], capture_output=True, text=True, check=True)
    sums = [line.split()[0] for line in listed.stdout.splitlines()]
    assert json.loads((folder / "checksum.json").read_text()) == dict(
        zip(["tensors.safetensors", "state.json"], sums, strict=True)
    )


def checkpoint_files(folder: Path) -> list[str]:
    return [str(folder / name) for name in ("tensors.safetensors", "state.json")]


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a power cut would show, and a kill does not: the order of the flushes."""
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def recorded_rename(old: Path, new: Path) -> None:
        events.append(f"rename to {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    save(tmp_path / "root", 10)
    files = ["tensors.safetensors", "state.json", "checksum.json"]
    assert events == [*files, ".temporary-000010", "rename to step-000010", "root"]
