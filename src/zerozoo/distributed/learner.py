"""A process that trains: one rank of a run, as torchrun would start it, in a Ray actor."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zerozoo.distributed.named_samplers import offer_samplers
from zerozoo.distributed.pulse import Activity, State
from zerozoo.runs.errors import InUseError, UserError
from zerozoo.runs.interrupts import stop_after_step
from zerozoo.runs.run import Run, remove_unused
from zerozoo.runs.sinks import make_sink

RELEASE_SECONDS = 30.0  # until the learner before has let go of the run directory


@dataclass(frozen=True)
class Assignment:
    """The run that the learners train, the same for all of them.

    Attributes:
        slug, config, train, extendable: of the recipe.
        directory: absolute path of the run directory, on a disk that all learners see.
        sinks: names of metrics sinks.
        workers: rollout workers; 0: the learners write themselves.
        resources: of a rollout worker, as options of a Ray actor.
        writers: what a worker writes with, in place of or beside `ray_engine.WRITERS`.
        patience: seconds after which a worker that does not answer counts as lost.
        restarted: whether learners before these were killed a moment ago and may still hold the run directory.
    """

    slug: str
    config: Any
    train: Callable[[Any, Run], dict[str, float]]
    directory: str
    extendable: tuple[str, ...] = ()
    sinks: tuple[str, ...] = ()
    workers: int = 1
    resources: Mapping[str, Any] = field(default_factory=dict)
    writers: Mapping[str, Any] | None = None
    patience: float = 120.0
    restarted: bool = False

    @property
    def seed(self) -> int:
        return int(getattr(self.config, "seed", 0))


@dataclass(frozen=True)
class Place:
    """Where a learner is, and a free port there."""

    node: str
    address: str
    port: int


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        kind: "done", "interrupted" (a checkpoint was saved) or "refused" (the user can mend it).
        message: of the refusal.
        metrics: what the recipe returned.
    """

    kind: str
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class News:
    """What a learner tells whoever asks.

    Attributes:
        states: what it does, and what its rollout workers do.
        events: ("say", text), ("show", rows) and ("log", (step, metrics)) since it was asked last, in order.
        opened: whether it holds the run directory.
    """

    states: Sequence[State]
    events: Sequence[tuple[str, Any]]
    opened: bool


class Relay:
    """A metrics sink, and what `Run.say` and `Run.show` call, that keeps everything for the next question."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []
        self._lock = threading.Lock()

    def _add(self, kind: str, content: Any) -> None:
        with self._lock:
            self._events.append((kind, content))

    def say(self, text: str) -> None:
        self._add("say", text)

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._add("show", list(rows))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._add("log", (step, dict(metrics)))

    def close(self) -> None:
        """Nothing to close."""

    def take(self) -> list[tuple[str, Any]]:
        """All since the last call."""
        with self._lock:
            events, self._events = self._events, []
        return events


class Learner:
    """One of `size` processes that train together. `pulse` and `stop` are called from another thread than `train`."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.relay = Relay()
        self.activity = Activity(f"learner {rank}")
        self.engine: Any = None
        self.opened = False

    def place(self) -> Place:
        """Where the learners meet, should this be the first."""
        import ray

        with closing(socket.socket()) as listener:
            listener.bind(("", 0))
            port = listener.getsockname()[1]
        return Place(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), port)

    def sees(self, directory: str) -> bool:
        """Whether a run directory that the first learner has made is there."""
        return (Path(directory) / "config.json").exists()

    def train(self, assignment: Assignment, meeting: Place) -> Outcome:
        """Train to the end; every error that is not meant for the user is raised."""
        os.environ |= rank_environment(self.rank, self.size, meeting, gpu=bool(assignment.resources.get("num_gpus")))
        try:
            with self.activity.working():
                return Outcome("done", metrics=self._train(assignment))
        except UserError as error:
            return Outcome("refused", str(error))
        except KeyboardInterrupt:
            return Outcome("interrupted")

    def pulse(self) -> News:
        """What it does now and what has happened since the last call."""
        workers = self.engine.states() if self.engine is not None else []
        return News([self.activity.state(), *workers], self.relay.take(), self.opened)

    def stop(self) -> None:
        """End after this step, with a checkpoint."""
        stop_after_step()

    def _train(self, assignment: Assignment) -> dict[str, float]:
        existed = Path(assignment.directory).exists()
        run = self._open(assignment)
        try:
            with run:
                self.opened = True
                return self._train_with_engine(assignment, run)
        except UserError:
            if run.writes:
                remove_unused(run, existed)
            raise

    def _train_with_engine(self, assignment: Assignment, run: Run) -> dict[str, float]:
        offer_samplers()
        if not assignment.workers:
            return assignment.train(assignment.config, run)
        from zerozoo.distributed.ray_engine import RayEngine
        from zerozoo.language.engine import use_engine

        self.engine = RayEngine(
            assignment.workers,
            self.rank == 0,
            assignment.resources,
            run.say,
            assignment.patience,
            assignment.writers,
        )
        with closing(self.engine), use_engine(self.engine):
            return assignment.train(assignment.config, run)

    def _open(self, assignment: Assignment) -> Run:
        values = asdict(assignment.config)
        directory = Path(assignment.directory)
        if self.rank:
            return Run.follow(directory, assignment.slug, values, assignment.seed)
        deadline = time.monotonic() + (RELEASE_SECONDS if assignment.restarted else 0.0)
        while True:
            try:
                run = Run.start(directory, assignment.slug, values, assignment.seed, extendable=assignment.extendable)
                break
            except InUseError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        run.sinks += [make_sink(name, directory, directory.name, values) for name in assignment.sinks]
        run.sinks.append(self.relay)
        run.say, run.show = self.relay.say, self.relay.show
        return run


def rank_environment(rank: int, size: int, meeting: Place, gpu: bool) -> dict[str, str]:
    """What torchrun would have put into the environment; nothing for a single process.

    Ray shows every process its own GPU alone, which is the first that it sees.
    """
    if size == 1:
        return {}
    place = {"MASTER_ADDR": meeting.address, "MASTER_PORT": str(meeting.port)}
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0" if gpu else str(rank), **place}
