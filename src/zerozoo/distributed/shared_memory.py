"""Streams between the processes of one machine: messages lie in shared memory, semaphores only wake who sleeps.

Nothing here is locked, so a process can be killed at any moment without harm. Each piece of memory has one writer; a
message carries its number and a checksum, and whoever meets one that is being written takes it for not there yet. A
wake-up that is lost costs the wait that the caller asked for, no more.

The process that makes a stream owns its memory and gives it back in `close`; if it is killed, Python's resource tracker
does that. Other processes get the stream as an argument when they are spawned.
"""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

from zerozoo.distributed.messages import ALIGNMENT, Layout, Message
from zerozoo.distributed.streams import Requests, first_rows
from zerozoo.runs.errors import UserError

WORD = 8  # bytes
_MEMORY = Path("/dev/shm")


class Region:
    """A piece of shared memory; a copy that was sent to another process is the same memory there."""

    def __init__(self, size: int) -> None:
        free = shutil.disk_usage(_MEMORY).free if _MEMORY.is_dir() else size
        if size > free:  # writing to it would end the process with a bus error, much later
            raise UserError(
                f"The streams need {size / 1e6:.0f} MB of shared memory and {free / 1e6:.0f} MB are free:"
                " lower queue_size, copies or sample_steps."
            )
        self.size, self._owner = size, True
        self._attach(SharedMemory(create=True, size=size))

    def _attach(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._views: list[memoryview] = []

    def view(self, start: int, size: int) -> memoryview:
        """Bytes from `start` on."""
        assert self._memory.buf is not None
        self._views.append(self._memory.buf[start : start + size])
        return self._views[-1]

    def words(self, start: int, count: int) -> memoryview:
        """64-bit integers from byte `start` on; each is read and written in one go."""
        self._views.append(self.view(start, count * WORD).cast("q"))
        return self._views[-1]

    def close(self) -> None:
        """Gives the memory back; its views cannot be used any more."""
        for view in reversed(self._views):
            view.release()
        self._views.clear()
        self._memory.close()
        if self._owner:
            self._owner = False
            self._memory.unlink()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self._memory.name, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.size, self._owner = state["size"], False
        self._attach(SharedMemory(state["name"]))


class Cell:
    """Room for one message with its number (from 1 on) and a time; one process writes, others read."""

    HEADER = ALIGNMENT

    def __init__(self, region: Region, start: int, layout: Layout) -> None:
        self.layout = layout
        self._header = region.words(start, 3)  # number, checksum, time
        self._payload = region.view(start + self.HEADER, layout.size)

    @classmethod
    def size(cls, layout: Layout) -> int:
        """Bytes that a cell takes."""
        return cls.HEADER + layout.size

    @property
    def number(self) -> int:
        """Of the message that was written last, 0 before the first."""
        return self._header[0]

    @property
    def time(self) -> int:
        """What the writer gave with it."""
        return self._header[2]

    def write(self, number: int, message: Message, when: int = 0) -> None:
        """Replaces the message."""
        self.layout.write(message, self._payload)
        self._header[1] = zlib.crc32(self._payload, number & 0xFFFFFFFF)
        self._header[2] = when
        self._header[0] = number

    def read(self) -> tuple[int, Message] | None:
        """The number and a copy of the message; None if there is none, or if it is being written."""
        number = self._header[0]
        content = bytearray(self._payload)
        if number == 0 or zlib.crc32(content, number & 0xFFFFFFFF) != self._header[1]:
            return None
        return number, self.layout.read(content)


class SharedInference:
    """An inference stream of all actors: for each place a cell for its request and one for the reply.

    A request is unanswered while its number is above that of the reply; so a policy worker that is started in the place
    of a killed one finds all that is open. The actor's number modulo `servers` says which worker answers it.
    """

    def __init__(
        self, actors: int, ring_size: int, servers: int, request: Layout, reply: Layout, context: BaseContext
    ) -> None:
        self.actors, self.ring_size, self.servers = actors, ring_size, servers
        self._layouts = request, reply
        self._wake_servers = [context.Semaphore(0) for _ in range(servers)]
        self._wake_actors = [context.Semaphore(0) for _ in range(actors)]
        self._region = Region(actors * ring_size * (Cell.size(request) + Cell.size(reply)))
        self._open()

    def _open(self) -> None:
        request, reply = self._layouts
        both = Cell.size(request) + Cell.size(reply)
        places = range(self.actors * self.ring_size)
        self._requests = [Cell(self._region, place * both, request) for place in places]
        self._replies = [Cell(self._region, place * both + Cell.size(request), reply) for place in places]

    def post(self, place: int, request: Message) -> None:
        cell = self._requests[place]
        cell.write(max(cell.number, self._replies[place].number) + 1, request, time.monotonic_ns())
        self._wake_servers[self._server_of(place)].release()

    def poll(self, place: int, wait: float = 0.0) -> Message | None:
        until = time.monotonic() + wait
        while True:
            reply = self._replies[place].read() if self._answered(place) else None
            if reply is not None:
                return reply[1]
            left = until - time.monotonic()
            if left <= 0:
                return None
            sleep_until_woken(self._wake_actors[place // self.ring_size], left)

    def server(self, number: int) -> SharedServer:
        """The end of policy worker `number`."""
        places = [place for place in range(len(self._requests)) if self._server_of(place) == number]
        return SharedServer(self, number, places)

    def close(self) -> None:
        """Gives the memory back."""
        self._region.close()

    def _server_of(self, place: int) -> int:
        return place // self.ring_size % self.servers

    def _answered(self, place: int) -> bool:
        return self._replies[place].number >= self._requests[place].number

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_requests", "_replies")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()


class SharedServer:
    """The end of one policy worker of a `SharedInference`."""

    def __init__(self, stream: SharedInference, number: int, places: Sequence[int]) -> None:
        self._stream, self._number, self._places = stream, number, places
        self._numbers: dict[int, int] = {}  # of the requests that were taken and not answered yet

    def receive(self, cap: int, wait: float = 0.0) -> Requests:
        found = self._pending()
        if not found and wait > 0:
            sleep_until_woken(self._stream._wake_servers[self._number], wait)
            found = self._pending()
        chosen = first_rows(found, cap)
        self._numbers = {place: self._numbers[place] for place, _ in chosen}
        return chosen

    def answer(self, place: int, reply: Message) -> None:
        self._stream._replies[place].write(self._numbers.pop(place), reply)
        self._stream._wake_actors[place // self._stream.ring_size].release()

    def _pending(self) -> Requests:
        """First come first served."""
        stream = self._stream
        open_places = [place for place in self._places if not stream._answered(place)]
        found = []
        for place in sorted(open_places, key=lambda place: stream._requests[place].time):
            request = stream._requests[place].read()
            if request is not None:
                self._numbers[place] = request[0]
                found.append((place, request[1]))
        return found


class SharedSamples:
    """A sample stream: a ring of `queue_size` cells for each actor, which waits when its ring is full."""

    def __init__(self, actors: int, queue_size: int, sample: Layout, context: BaseContext) -> None:
        self.actors, self.queue_size = actors, queue_size
        self._layout = sample
        self._wake_trainer = context.Semaphore(0)
        self._wake_actors = [context.Semaphore(0) for _ in range(actors)]
        self._region = Region(actors * self._ring_bytes())
        self._open()

    def _ring_bytes(self) -> int:
        return 2 * ALIGNMENT + self.queue_size * Cell.size(self._layout)

    def _open(self) -> None:
        starts = [actor * self._ring_bytes() for actor in range(self.actors)]
        self._produced = [self._region.words(start, 1) for start in starts]
        self._consumed = [self._region.words(start + ALIGNMENT, 1) for start in starts]
        self._cells = [
            [
                Cell(self._region, start + 2 * ALIGNMENT + place * Cell.size(self._layout), self._layout)
                for place in range(self.queue_size)
            ]
            for start in starts
        ]

    def sender(self, actor: int) -> SharedSender:
        """The end of one actor."""
        return SharedSender(self, actor)

    def pull(self, wait: float = 0.0) -> list[Message]:
        found = self._pull()
        if not found and wait > 0:
            sleep_until_woken(self._wake_trainer, wait)
            found = self._pull()
        return found

    def _pull(self) -> list[Message]:
        found = []
        for actor in range(self.actors):
            while self._consumed[actor][0] < self._produced[actor][0]:
                wanted = self._consumed[actor][0] + 1
                sample = self._cells[actor][(wanted - 1) % self.queue_size].read()
                if sample is None or sample[0] != wanted:
                    break  # its memory has not arrived on this core yet
                found.append(sample[1])
                self._consumed[actor][0] = wanted
                self._wake_actors[actor].release()
        return found

    def close(self) -> None:
        """Gives the memory back."""
        self._region.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_produced", "_consumed", "_cells")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()


class SharedSender:
    """The end of one actor of a `SharedSamples`."""

    def __init__(self, stream: SharedSamples, actor: int) -> None:
        self._stream, self._actor = stream, actor

    def push(self, sample: Message, wait: float = 0.0) -> bool:
        stream, actor = self._stream, self._actor
        produced = stream._produced[actor][0]
        if produced - stream._consumed[actor][0] >= stream.queue_size and wait > 0:
            sleep_until_woken(stream._wake_actors[actor], wait)
        if produced - stream._consumed[actor][0] >= stream.queue_size:
            return False
        stream._cells[actor][produced % stream.queue_size].write(produced + 1, sample)
        stream._produced[actor][0] = produced + 1
        stream._wake_trainer.release()
        return True


class SharedWeights:
    """A weights stream. Two cells in turn: a version can be read while the next one is written."""

    def __init__(self, weights: Layout) -> None:
        self._layout = weights
        self._region = Region(2 * Cell.size(weights))
        self._open()

    def _open(self) -> None:
        size = Cell.size(self._layout)
        self._cells = [Cell(self._region, place * size, self._layout) for place in range(2)]

    def publish(self, version: int, weights: Message) -> None:
        oldest = min(self._cells, key=lambda cell: cell.number)
        oldest.write(version + 1, weights)

    def read(self, newer_than: int) -> tuple[int, Message] | None:
        newest = max(self._cells, key=lambda cell: cell.number)
        if newest.number - 1 <= newer_than:
            return None
        found = newest.read()
        return None if found is None else (found[0] - 1, found[1])

    def close(self) -> None:
        """Gives the memory back."""
        self._region.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_layout": self._layout, "_region": self._region}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()


def sleep_until_woken(semaphore: Any, seconds: float) -> None:
    """Sleeps until somebody wakes, and takes back all wake-ups up to then: the caller looks at everything anyway."""
    if semaphore.acquire(timeout=seconds):
        while semaphore.acquire(block=False):
            pass
