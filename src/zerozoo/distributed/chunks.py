"""The book of who writes what: batches of prompts cut into chunks, each counted once whoever writes it how often."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # torch comes with them, which a simulation has no use for
    from zerozoo.language.samplers.interface import Decoding, Samples

CHUNKS_PER_WORKER = 4  # a slow worker holds up the others by a quarter of its share at most
TRIES = 4  # workers that may die of one chunk


@dataclass(frozen=True)
class Chunk:
    """Some groups of a batch, and all that their responses depend on besides the weights.

    Attributes:
        prompts: token ids.
        samples: responses to each.
        decoding: how they are drawn.
        uniforms: (prompts x samples, max_new_tokens) float64, the random numbers of the rows.
        model, weights: what has to be written with; the serial number and a reference into the object store.
        version: what the learner calls these weights.
        begun: (prompts, B) int64, first tokens of responses that are written already; see `NativeSampler.write`.
    """

    prompts: Sequence[Sequence[int]]
    samples: int
    decoding: Decoding
    uniforms: np.ndarray
    model: Parcel
    weights: Parcel
    version: int
    begun: np.ndarray | None = None


@dataclass(frozen=True)
class Parcel:
    """Something in the object store.

    Attributes:
        serial: no two contents have the same.
        reference: a list of one reference. Ray resolves references among the arguments of a call, but none in a list:
            who has the content already does not fetch it.
    """

    serial: int
    reference: list[Any]


def groups_per_chunk(prompts: int, samples: int, workers: int, rows_at_once: int) -> int:
    """How many groups a chunk has: enough chunks for all workers, and not more rows than are written side by side."""
    even = -(-prompts // (CHUNKS_PER_WORKER * workers))
    return max(1, min(even, rows_at_once // samples))


class Job:
    """The chunks of one batch and what has been written of them."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = list(chunks)
        self.tries = [0] * len(self.chunks)
        self.written: list[Samples | None] = [None] * len(self.chunks)
        self.error: BaseException | None = None
        self._ended = threading.Event()

    def result(self) -> list[Samples]:
        """Wait for all of them, in the order of the prompts. Raises what went wrong."""
        self._ended.wait()
        if self.error is not None:
            raise self.error
        return [part for part in self.written if part is not None]

    def fail(self, error: BaseException) -> None:
        """Nobody will write the rest."""
        self.error = error
        self._ended.set()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def _put(self, index: int, samples: Samples) -> None:
        if self.written[index] is None:
            self.written[index] = samples
        if all(part is not None for part in self.written):
            self._ended.set()


@dataclass(frozen=True)
class Ticket:
    """One chunk that somebody writes now."""

    job: Job
    index: int

    @property
    def chunk(self) -> Chunk:
        return self.job.chunks[self.index]


class Book:
    """All chunks that wait, oldest batch first. Methods may be called from several threads."""

    def __init__(self) -> None:
        self._waiting: deque[Ticket] = deque()
        self._jobs: list[Job] = []
        self._lock = threading.Lock()

    def add(self, chunks: Sequence[Chunk]) -> Job:
        """A batch to be written."""
        job = Job(chunks)
        with self._lock:
            self._jobs = [one for one in self._jobs if not one.ended] + [job]
            self._waiting.extend(Ticket(job, index) for index in range(len(job.chunks)))
        return job

    def take(self) -> Ticket | None:
        """The next chunk to write, or None."""
        with self._lock:
            while self._waiting:
                ticket = self._waiting.popleft()
                if not ticket.job.ended:
                    return ticket
        return None

    def finish(self, ticket: Ticket, samples: Samples) -> None:
        """A chunk is written; what was written before stays."""
        ticket.job._put(ticket.index, samples)

    def give_back(self, ticket: Ticket) -> bool:
        """Who had it is gone; False when it has cost too many workers already and its batch is given up."""
        with self._lock:
            ticket.job.tries[ticket.index] += 1
            if ticket.job.tries[ticket.index] >= TRIES:
                return False
            self._waiting.appendleft(ticket)
            return True

    def fail(self, error: BaseException) -> None:
        """Nothing that waits or is under way will be written."""
        with self._lock:
            self._waiting.clear()
            for job in self._jobs:
                if not job.ended:
                    job.fail(error)
