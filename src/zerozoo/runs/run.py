"""The run directory: everything that a run makes, and all that is needed to go on with it after a kill.

    config.json      recipe, seed, config            metrics.jsonl   one row per call of `log`
    versions.json    what it was made with           samples.jsonl   tasks, responses and their scores
    checkpoints/     see checkpoints.py              figures/        drawn from metrics.jsonl

config.json keeps NaN and infinity as Python writes them; the .jsonl files are strict JSON for any reader.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from zerozoo.runs.checkpoints import (
    TEMPORARY,
    Checkpoint,
    load_newest,
    remove_leftovers,
    replace_file,
    save_checkpoint,
    save_together,
)
from zerozoo.runs.errors import InUseError, UserError
from zerozoo.runs.parts import Rows, Team
from zerozoo.runs.sinks import JsonLines, Sink, json_safe
from zerozoo.runs.streams import Streams
from zerozoo.runs.versions import versions

CONFIG, VERSIONS, LOCK = "config.json", "versions.json", ".lock"

log = logging.getLogger(__name__)


class Run:
    """One run. `Run(directory)` needs no config and suits tests and scripts; `start` and `open` are for tracked runs.

    The directory is made and locked at the first write, so that two processes never write one run. It stays locked
    until `close` (or the end of a `with` block), or until the run is forgotten or its process ends.
    """

    def __init__(self, directory: Path | str, seed: int = 0, sinks: Sequence[Sink] = ()) -> None:
        self.directory = Path(directory)
        self.seed = seed
        self.streams = Streams(seed)
        self.recipe = ""
        self.config: dict[str, Any] = {}
        self.sinks = list(sinks)
        self._metrics = JsonLines(self.path("metrics.jsonl"))
        self._samples = JsonLines(self.path("samples.jsonl"))
        self.say: Callable[[str], None] = log.info  # one line for the person who watches; the command line replaces it
        self.show: Callable[[Sequence[Mapping[str, Any]]], None] = _ignore  # rows of samples.jsonl, for the same person
        self._lock: _Lock | None = None
        self._read_only = False
        self.writes = True  # False in the processes beside the one that writes the run
        self.saved = 0  # step of the newest checkpoint that was written or gone on from; 0: none

    @classmethod
    def start(
        cls,
        directory: Path | str,
        recipe: str,
        config: Mapping[str, Any],
        seed: int,
        sinks: Sequence[Sink] = (),
        extendable: Sequence[str] = (),
    ) -> Run:
        """A new run, or the same run again: then `load` and `rewind` bring it back to its newest checkpoint.

        An existing directory must hold the same recipe, seed and config, except for the fields in `extendable`, which
        do not define the run's mathematics (such as the number of steps): their new values go into config.json.
        Raises UserError if it differs, is not a run, is in use by another process or cannot be written.
        """
        run = cls(directory, seed, sinks)
        run.recipe, run.config = recipe, json_safe(config)
        wanted = {"recipe": recipe, "seed": seed, "config": run.config}
        _refuse_foreign(run.directory)
        run._claim_directory()
        path = run.path(CONFIG)
        if path.exists():
            stored = _read_config(run.directory)
            _compare(run.directory, stored, wanted, extendable)
        if not path.exists() or _text(stored) != _text(wanted):
            _write_json(path, wanted)
        _record_versions(run.path(VERSIONS))
        return run

    @classmethod
    def follow(cls, directory: Path | str, recipe: str, config: Mapping[str, Any], seed: int) -> Run:
        """The run that another process writes, for one that trains along with it (see `processes`).

        It reads checkpoints and has the same random streams; what it is given to write is dropped.
        """
        run = cls(directory, seed)
        run.recipe, run.config, run.writes = recipe, json_safe(config), False
        return run

    @classmethod
    def open(cls, directory: Path | str) -> Run:
        """An existing run to look at: nothing is locked, and every write raises RuntimeError."""
        stored = _read_config(Path(directory))
        run = cls(directory, stored["seed"])
        run.recipe, run.config = stored["recipe"], stored["config"]
        run._read_only = True
        return run

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the sinks and lets another process write this run."""
        sinks, self.sinks, self._lock = self.sinks, [], None
        for sink in sinks:
            sink.close()

    @property
    def figures(self) -> Path:
        """Folder of the figures, made when asked for."""
        folder = self.path("figures")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def path(self, *parts: str) -> Path:
        """A path inside the run directory; nothing is made."""
        return self.directory.joinpath(*parts)

    def stream(self, name: str) -> torch.Generator:
        """The torch stream `name`; `streams` has Python's and numpy's as well."""
        return self.streams.torch(name)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends {"step", "time" (seconds since 1970), **metrics} to metrics.jsonl and tells the sinks.

        Numbers may be Python's, numpy's or tensors of one element. Several rows may have the same step.
        """
        if not self.writes:
            return
        for name in ("step", "time"):
            if name in metrics:
                raise ValueError(f"a metric cannot be called {name!r}: the row has a column of that name")
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        self._claim_directory()
        self._metrics.append([{"step": int(step), "time": time.time(), **numbers}])
        for sink in list(self.sinks):
            try:
                sink.log(int(step), numbers)
            except Exception as error:  # a dashboard that is away must not end the training
                log.warning("%s failed and gets no more metrics: %s", type(sink).__name__, error)
                self.sinks.remove(sink)

    def sample(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows to samples.jsonl. Give each a "step": `rewind` keeps rows without one."""
        if not self.writes:
            return
        self._claim_directory()
        rows = list(rows)
        self._samples.append(rows)
        self.show(rows)

    def history(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; None stands for a number that was not finite. A half-written last row is left out."""
        return self._metrics.rows()

    def samples(self) -> list[dict[str, Any]]:
        """Rows of samples.jsonl, read like `history`."""
        return self._samples.rows()

    def rewind(self, step: int) -> None:
        """Drops the rows of later steps from metrics.jsonl and samples.jsonl, so that a resume doubles none."""
        if not self.writes:
            return
        self._claim_directory()
        self._metrics.rewind(step)
        self._samples.rewind(step)

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        """Writes a checkpoint with the random streams in it; see `save_checkpoint` for what it takes and raises."""
        state = self._with_streams(state)
        if self.writes:
            self._claim_directory()
            save_checkpoint(self.path("checkpoints"), step, tensors, state)
        self.saved = step

    def save_together(
        self,
        step: int,
        tensors: Mapping[str, torch.Tensor],
        parts: Mapping[str, Rows],
        state: Mapping[str, Any],
        team: Team,
    ) -> None:
        """`save` by all processes of a team, also those that follow the run; see `checkpoints.save_together`."""
        state = self._with_streams(state)
        if self.writes:
            self._claim_directory()
        save_together(self.path("checkpoints"), step, tensors, parts, state, team)
        self.saved = step

    def _with_streams(self, state: Mapping[str, Any]) -> dict[str, Any]:
        if "streams" in state:
            raise ValueError("'streams' is the run's own entry in the state of a checkpoint")
        return {**state, "streams": self.streams.state()}

    def load(self) -> Checkpoint | None:
        """The newest undamaged checkpoint, as it was given to `save`, or None; puts the random streams back."""
        checkpoint = load_newest(self.path("checkpoints"))
        if checkpoint is None:
            return None
        state = dict(checkpoint.state)
        self.streams.load_state(state.pop("streams"))
        return replace(checkpoint, state=state)

    def resume(self, restore: Callable[[Checkpoint], None]) -> int:
        """Goes back to the newest undamaged checkpoint, which `restore` is given; its step, 0 where there is none.

        What `restore` raises leaves the rows of later steps where they are; otherwise they are dropped.
        """
        checkpoint = self.load()
        if checkpoint is None:
            self.rewind(-1)
            return 0
        for warning in checkpoint.warnings:
            self.say(warning)
        restore(checkpoint)
        self.rewind(checkpoint.step)
        self.say(f"Resuming after step {checkpoint.step}.")
        self.saved = checkpoint.step
        return checkpoint.step

    def kept(self) -> str:
        """What an error that ends the training leaves behind, as the end of a sentence."""
        return f"the checkpoint of step {self.saved} is kept" if self.saved else "there was no checkpoint yet"

    def _claim_directory(self) -> None:
        """Makes and locks the directory and clears up after a killed writer, unless this has been done."""
        if self._read_only:
            raise RuntimeError(f"{self.directory} was opened to be read: use Run.start to write")
        if self._lock is not None and self._lock.held:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = _lock_directory(self.directory)
        except OSError as error:
            raise UserError(f"the run directory {self.directory} cannot be written: {error.strerror}") from error
        remove_leftovers(self.path("checkpoints"))
        self._metrics.cut_half_line()
        self._samples.cut_half_line()


def remove_unused(run: Run, existed: bool) -> None:
    """Removes the directory of a run that failed before anything was made.

    Left behind, it would refuse the mended config as another one. The checkpoint of a run inside it (of what
    has to be trained first) is something made.
    """
    if not existed and not run.history() and not any(run.directory.glob("*/**/checkpoints/step-*")):
        shutil.rmtree(run.directory, ignore_errors=True)


class _Lock:
    """An flock, held by an open file; freed when the last run that holds it is closed or forgotten."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.held = True

    def release(self) -> None:
        if self.held:
            self.held = False
            os.close(self.descriptor)

    __del__ = release


# By device and inode of the lock file: the runs of one process share a lock, other processes are kept out.
_locks: weakref.WeakValueDictionary[tuple[int, int], _Lock] = weakref.WeakValueDictionary()


def _leave_locks_to_parent() -> None:
    # A forked worker that outlives its killed parent would otherwise keep the run locked.
    for lock in list(_locks.values()):
        lock.release()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def _lock_directory(directory: Path) -> _Lock:
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    status = os.fstat(descriptor)
    key = (status.st_dev, status.st_ino)
    shared = _locks.get(key)
    if shared is not None and shared.held:
        os.close(descriptor)
        return shared
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "(unknown)"
        os.close(descriptor)
        raise InUseError(
            f"the run directory {directory} is in use by process {owner}: wait for its end or use another --directory"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            os.close(descriptor)
            raise
        log.warning("%s is on a file system without locks: let only one process write it", directory)
    else:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    lock = _Lock(descriptor)
    _locks[key] = lock
    return lock


def _number(name: str, value: Any) -> int | float:
    if isinstance(value, (bool, int)):
        return int(value)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metric {name!r} must be a number, not {value!r}") from error


def _write_json(path: Path, value: Any) -> None:
    replace_file(path, (json.dumps(value, indent=2) + "\n").encode())


def _text(value: Any) -> str:
    """For comparisons: NaN equals itself, and 1 differs from 1.0 and from true."""
    return json.dumps(value, sort_keys=True)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.exists():
        raise UserError(f"{directory} is not a run directory: it has no {CONFIG}")
    try:
        stored = json.loads(path.read_bytes())
        return {"recipe": stored["recipe"], "seed": stored["seed"], "config": dict(stored["config"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it or use another --directory") from error


def _ignore(_: Sequence[Mapping[str, Any]]) -> None:
    """Nobody watches."""


def _refuse_foreign(directory: Path) -> None:
    """A folder with other things in it is not ours to fill."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: use another --directory")
    names = {path.name for path in directory.iterdir()}
    # A run that was killed while it started has these two only.
    if CONFIG not in names and names - {LOCK, TEMPORARY + CONFIG}:
        raise UserError(f"{directory} is neither empty nor a run (no {CONFIG}): use another --directory")


def _compare(directory: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any], extendable: Sequence[str]) -> None:
    old = {"recipe": stored["recipe"], "seed": stored["seed"], **stored["config"]}
    new = {"recipe": wanted["recipe"], "seed": wanted["seed"], **wanted["config"]}
    changes = []
    for name in dict.fromkeys([*new, *old]):
        before, after = (_text(fields[name]) if name in fields else "absent" for fields in (old, new))
        if before != after and name not in extendable:
            changes.append(f"{name} ({before} -> {after})")
    if changes:
        raise UserError(
            f"{directory} holds a run with another configuration: {', '.join(changes)}; "
            f"use another --directory or delete it"
        )


def _record_versions(path: Path) -> None:
    """versions.json tells what the run began with; what differs at a resume is added under "resumed"."""
    now = versions()
    try:
        first = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        _write_json(path, now)
        return
    latest = dict(first)
    for changed in first.get("resumed", []):
        latest.update(changed)
    changed = {key: value for key, value in now.items() if latest.get(key) != value}
    if changed:
        _write_json(path, {**first, "resumed": [*first.get("resumed", []), changed]})
