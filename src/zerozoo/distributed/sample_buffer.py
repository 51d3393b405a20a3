"""Samples on their way into an update: which comes first, which is too old, and the batch that is prepared ahead."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zerozoo.distributed.messages import Message, concatenate
from zerozoo.distributed.streams import SampleReceiver

ORIGIN = "origin"  # who made a sample; not part of a batch


@dataclass(order=True)
class Entry:
    """A sample in the buffer; sorts by uses left, then by arrival."""

    reuses_left: int
    arrival: int
    sample: Message = field(compare=False)
    used: int = field(default=0, compare=False)

    @property
    def oldest(self) -> int:
        """The lowest version that chose one of its actions. An average would hide a mix."""
        return int(self.sample["version"].min())

    @property
    def frames(self) -> int:
        """T * N."""
        return int(self.sample["version"].size)


class SampleBuffer:
    """A priority queue of samples: first those with most uses left, and among them the newest.

    A full buffer drops from the other end: what has been used most, and among that the oldest. A sample that was taken
    comes back until it was used `reuses` times, unless the buffer is full by then.

    Attributes:
        overflow: samples that were dropped because there was no room.
        stale: samples that were dropped because they were too old.
        weightless: samples that were dropped because no weights had been there yet (a version below 0).
        received: samples that came in.

    Source: SRL, arXiv 2306.16688, and base/buffer.py of its code (PriorityQueueBuffer, max_size 16, reuses 1).
    """

    def __init__(self, max_size: int, reuses: int = 1) -> None:
        if max_size < 1 or reuses < 1:
            raise ValueError(f"max_size and reuses must be at least 1, but are {max_size} and {reuses}")
        self.max_size, self.reuses = max_size, reuses
        self.overflow, self.stale, self.weightless, self.received = 0, 0, 0, 0
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, sample: Message) -> None:
        """Takes in a sample."""
        entry = Entry(self.reuses, self.received, sample)
        self.received += 1
        if entry.oldest < 0:
            self.weightless += 1
            return
        self._insert(entry)

    def drop_stale(self, version: int, preemption_steps: float) -> None:
        """Drops samples with version - oldest > preemption_steps."""
        kept = [entry for entry in self._entries if version - entry.oldest <= preemption_steps]
        self.stale += len(self._entries) - len(kept)
        self._entries = kept

    def take(self, count: int) -> list[Entry] | None:
        """The `count` entries that come first, each used once more; None if there are fewer."""
        if len(self._entries) < count:
            return None
        taken = [self._entries.pop() for _ in range(count)]
        for entry in taken:
            entry.used += 1
            entry.reuses_left -= 1
            if entry.reuses_left > 0 and len(self._entries) < self.max_size:
                bisect.insort(self._entries, entry)
        return taken

    def give_back(self, entries: Sequence[Entry]) -> None:
        """Undoes `take` for entries that were not learned from after all."""
        for entry in entries:
            self._entries = [other for other in self._entries if other is not entry]
            entry.used -= 1
            entry.reuses_left += 1
            self._insert(entry)

    def _insert(self, entry: Entry) -> None:
        bisect.insort(self._entries, entry)
        while len(self._entries) > self.max_size:
            self._entries.pop(0)
            self.overflow += 1

    def state(self) -> Message:
        """All entries and counts."""
        counts = np.array([self.overflow, self.stale, self.weightless, self.received])
        entries = {
            str(place): {"numbers": np.array([entry.reuses_left, entry.arrival, entry.used]), "sample": entry.sample}
            for place, entry in enumerate(self._entries)
        }
        return {"counts": counts, "entries": entries}

    def load_state(self, state: Message) -> None:
        """Goes back to `state`."""
        self.overflow, self.stale, self.weightless, self.received = state["counts"].tolist()
        kept = sorted(state.get("entries", {}).items(), key=lambda item: int(item[0]))
        self._entries = []
        for _, entry in kept:
            reuses_left, arrival, used = entry["numbers"].tolist()
            self._entries.append(Entry(reuses_left, arrival, entry["sample"], used))


@dataclass(frozen=True)
class Batch:
    """Samples side by side: arrays (T, sum of N, ...), and the entries that they came from.

    `first`: those of the entries that are learned from for the first time, for a frame counts once.
    """

    content: Message
    entries: list[Entry]
    first: list[Entry]

    @property
    def new_frames(self) -> int:
        """Frames that were not learned from before."""
        return sum(entry.frames for entry in self.first)

    def staleness(self, version: int) -> np.ndarray:
        """(samples,) version - oldest."""
        return np.array([version - entry.oldest for entry in self.entries])


class Intake:
    """Samples from the stream into the buffer, and batches out of it; with a thread also one batch ahead.

    With `start` a thread receives, sorts and stacks while the trainer computes; without it `receive` does. What was
    prepared ahead is checked again when it is used: versions went on in the meantime.
    """

    def __init__(
        self, receiver: SampleReceiver, buffer: SampleBuffer, batch_samples: int, preemption_steps: float
    ) -> None:
        if not 1 <= batch_samples <= buffer.max_size:
            raise ValueError(f"a batch of {batch_samples} samples does not come out of a buffer of {buffer.max_size}")
        self.receiver, self.buffer = receiver, buffer
        self.batch_samples, self.preemption_steps = batch_samples, preemption_steps
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._ready: Batch | None = None
        self._version = 0
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def receive(self, wait: float = 0.0) -> None:
        """Takes what has arrived into the buffer; waits up to `wait` seconds for the first."""
        samples = self.receiver.pull(wait)
        with self._lock:
            for sample in samples:
                self.buffer.put(sample)
            if samples:
                self._arrived.notify_all()

    def next(self, version: int, wait: float = 0.0) -> Batch | None:
        """A batch of samples that are not too old for this version; None if there is none within `wait` seconds."""
        with self._lock:
            batch = self._next(version)
            if batch is None and self._thread is not None:
                self._arrived.wait(wait)
                batch = self._next(version)
            if self._error is not None:
                raise self._error
            return batch

    def _next(self, version: int) -> Batch | None:
        self._version = version
        if self._ready is not None and (self._ready.staleness(version) > self.preemption_steps).any():
            self.buffer.give_back(self._ready.entries)
            self._ready = None
        self._prepare()
        batch, self._ready = self._ready, None
        return batch

    def _prepare(self) -> None:
        if self._ready is None:
            self.buffer.drop_stale(self._version, self.preemption_steps)
            entries = self.buffer.take(self.batch_samples)
            if entries is not None:
                columns = [{name: entry.sample[name] for name in entry.sample if name != ORIGIN} for entry in entries]
                first = [entry for entry in entries if entry.used == 1]
                self._ready = Batch(concatenate(columns, axis=1), entries, first)

    def start(self) -> None:
        """Receives and prepares in a thread from now on, if it does not do so already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="intake", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            while not self._stopped.is_set():
                self.receive(0.05)
                with self._lock:
                    self._prepare()
        except BaseException as error:  # it belongs to the trainer, who waits
            with self._lock:
                self._error = error
                self._arrived.notify_all()
