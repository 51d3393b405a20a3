"""Nodes, a native writer that a test can slow down, hold up or break while it writes, and the processes of actors."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from zerozoo.distributed.rollout_worker import NativeWriter
from zerozoo.distributed.weights import Blueprint
from zerozoo.language.samplers.interface import Samples
from zerozoo.runs.errors import DivergedError

# A simulated node. Its cores only count who may start.
NODE: dict[str, Any] = {"num_cpus": 4, "object_store_memory": 200_000_000, "include_dashboard": False}


def die(config: Any, run: Any) -> dict[str, float]:
    """A training that takes its process with it."""
    os._exit(7)


class MoodyWriter(NativeWriter):
    """Before every chunk: sleeps `delay` seconds, then waits for the lock of its worker, then fails if it shall."""

    def __init__(self, folder: str, delay: float, blueprint: Blueprint, worker: int) -> None:
        super().__init__(blueprint, worker)
        self.folder, self.delay, self.worker = Path(folder), delay, worker

    def write(self, *arguments: Any, **options: Any) -> Samples:
        time.sleep(self.delay)
        with open(self.folder / f"worker-{self.worker}", "a") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        if (self.folder / "broken").exists():
            raise DivergedError("The model is broken.")
        return super().write(*arguments, **options)


def moody(folder: Path, delay: float = 0.0) -> Any:
    """Makes such writers, in processes that cannot import this module."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return partial(MoodyWriter, str(folder), delay)


@contextmanager
def held_up(folder: Path, workers: Sequence[int]) -> Iterator[None]:
    """Context in which these workers stop before their next chunk."""
    with ExitStack() as stack:
        for worker in workers:
            file = stack.enter_context(open(folder / f"worker-{worker}", "a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def actor_processes(name: str, below: int | None = None, but: Sequence[psutil.Process] = ()) -> list[psutil.Process]:
    """Living processes of the actors of a class below a process: this one, which has started the cluster, or another.

    but: processes that are left out.
    """
    found = []
    for process in psutil.Process(below).children(recursive=True):
        try:
            command = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if command and command[0].startswith(f"ray::{name}") and process not in but:
            found.append(process)
    return found
