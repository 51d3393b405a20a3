"""Rollout workers on Ray: hands chunks to whoever is free, and puts another worker in the place of one that is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from zerozoo.distributed.chunks import Book, Chunk, Job, Ticket
from zerozoo.distributed.pulse import State
from zerozoo.distributed.ray_actors import actor_class, aside, reason_of
from zerozoo.distributed.rollout_worker import MakeWriter, RolloutWorker
from zerozoo.runs.errors import UserError

TICK = 0.05  # seconds between two looks at who is free
PULSE_EVERY = 1.0  # seconds between two questions what a worker does
LOSSES = 6  # workers that may be lost one after another while nothing is written


@dataclass
class Seat:
    """The place of one worker, whoever sits there.

    Attributes:
        worker: the actor; None before the first and between two.
        there: whether it has answered yet.
        ticket, writing: what it writes and the reference of what comes of it.
        asked: the reference of a question under way, and when it was asked.
        state: its last answer.
    """

    number: int
    worker: Any = None
    there: bool = False
    ticket: Ticket | None = None
    writing: Any = None
    question: Any = None
    asked: float = 0.0
    state: State | None = None

    @property
    def name(self) -> str:
        return f"rollout worker {self.number}"

    @property
    def free(self) -> bool:
        return self.there and self.ticket is None


class WorkerPool:
    """`workers` actors and a thread that keeps them busy.

    Args:
        make_writer: what each writes with, see `RolloutWorker`.
        resources: of one worker, as options of a Ray actor.
        say: one line for the person who watches.
        patience: seconds after which a worker that does not answer counts as lost.
    """

    def __init__(
        self,
        workers: int,
        make_writer: MakeWriter,
        resources: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda text: None,
        patience: float = 120.0,
    ) -> None:
        self.make_writer, self.say, self.patience = make_writer, say, patience
        self.options = {"num_cpus": 1, **(resources or {}), "scheduling_strategy": "SPREAD"}
        self.seats = [Seat(number) for number in range(workers)]
        self.written: Counter[int] = Counter()  # chunks by the number of the seat
        self.lost = 0  # workers
        self._lost_in_a_row = 0
        self._book = Book()
        self._wake, self._closed = threading.Event(), threading.Event()
        for seat in self.seats:
            self._fill(seat)
        self._thread = threading.Thread(target=self._run, name="rollout workers", daemon=True)
        self._thread.start()

    def submit(self, chunks: Sequence[Chunk]) -> Job:
        """Begin to write them."""
        job = self._book.add(chunks)
        self._wake.set()
        return job

    def states(self) -> list[State]:
        """The last answer of every worker."""
        waiting = "starting, or waiting for a place in the cluster"
        return [seat.state or State(seat.name, waiting, waits=True) for seat in self.seats]

    def close(self) -> None:
        """End all workers."""
        self._closed.set()
        self._wake.set()
        self._thread.join()
        for seat in self.seats:
            ray.kill(seat.worker)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._hand_out()
                self._wait()
                for seat in self.seats:
                    self._collect(seat)
                    self._listen(seat)
        except BaseException as error:  # whoever waits for responses must hear of it
            self._book.fail(error)
            raise

    def _hand_out(self) -> None:
        for seat in self.seats:
            if seat.free:
                seat.ticket = self._book.take()
                if seat.ticket is None:
                    return
                seat.writing = seat.worker.write.remote(seat.ticket.chunk)

    def _wait(self) -> None:
        writing = [seat.writing for seat in self.seats if seat.writing is not None]
        if writing:
            ray.wait(writing, timeout=TICK)
        else:
            self._wake.wait(TICK if not all(seat.there for seat in self.seats) else PULSE_EVERY)
            self._wake.clear()

    def _collect(self, seat: Seat) -> None:
        """Take what a worker has written, when it is there."""
        if seat.writing is None or not ray.wait([seat.writing], timeout=0)[0]:
            return
        assert seat.ticket is not None
        try:
            written = ray.get(seat.writing)
        except RayTaskError as error:  # the worker lives and has raised something
            self._book.fail(error.cause)
            seat.ticket = seat.writing = None
        except RayError as error:  # it is gone, or the node that held its answer
            self._lose(seat, error)
        else:
            self._book.finish(seat.ticket, written)
            seat.ticket = seat.writing = None
            self.written[seat.number] += 1
            self._lost_in_a_row = 0

    def _listen(self, seat: Seat) -> None:
        """Take the answer to the question what a worker does, or ask the next one."""
        now = time.monotonic()
        if seat.question is None:
            if now - seat.asked >= PULSE_EVERY or not seat.there:
                seat.question, seat.asked = aside(seat.worker.pulse), now
        elif ray.wait([seat.question], timeout=0)[0]:
            try:
                seat.state = ray.get(seat.question)
            except RayTaskError as error:  # its constructor has failed: every other one would fail likewise
                self._book.fail(error.cause)
                self._lose(seat, error)
            except RayError as error:
                self._lose(seat, error)
            else:
                seat.there, seat.question = True, None
        elif seat.there and now - seat.asked > self.patience:
            self._lose(seat, TimeoutError(f"it has not answered for {self.patience:.0f} s"))

    def _fill(self, seat: Seat) -> None:
        actor = actor_class(RolloutWorker).options(**self.options)
        seat.worker = actor.remote(seat.number, self.make_writer)
        seat.there, seat.state, seat.question = False, None, None

    def _lose(self, seat: Seat, error: Exception) -> None:
        """What it wrote goes back, and another worker is asked for."""
        ticket, seat.ticket, seat.writing = seat.ticket, None, None
        ray.kill(seat.worker)
        self.lost += 1
        self._lost_in_a_row += 1
        reason = reason_of(error)
        self.say(f"{seat.name[0].upper()}{seat.name[1:]} was lost ({reason}); another one takes its place.")
        if self._lost_in_a_row > LOSSES or (ticket is not None and not self._book.give_back(ticket)):
            self._book.fail(UserError(f"Rollout workers were lost one after another; the last one because {reason}."))
            self._lost_in_a_row = 0
        self._fill(seat)
