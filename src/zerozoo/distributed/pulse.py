"""What a process is doing, asked from outside, and the watchdog that names the one that stands still.

A process answers from a thread beside its work, which looks at the stack of the thread that works: no code that works
has to report anything. Two looks that find every frame at the same instruction mean that nothing has moved.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

IDLE = ""
# What a module is for, in the words of the loop; the longest prefix of the module's name counts.
PHASES = {
    "zerozoo.distributed.weights": "weights",
    "zerozoo.language.evaluation": "evaluation",
    "zerozoo.language.samplers": "sampling",
    "zerozoo.language.update": "update",
    "zerozoo.language.supervised": "update",
    "zerozoo.language.models": "loading the model",
    "zerozoo.rewards": "scoring",
    "zerozoo.tasks": "loading tasks",
    "zerozoo.runs.checkpoints": "checkpoint",
}
# Where a process that stands still only waits for others.
WAITING = {
    "zerozoo.distributed.chunks": "waiting for the rollout workers",
    "zerozoo.language.parallel": "waiting for the other learners",
}


@dataclass(frozen=True)
class State:
    """What one process does.

    Attributes:
        name: "learner 0", "rollout worker 3".
        phase: words for it; `IDLE` when it has nothing to do.
        mark: another number whenever the process has moved.
        waits: whether it does nothing but wait for another process.
    """

    name: str
    phase: str = IDLE
    mark: int = 0
    waits: bool = False


class Activity:
    """The work of one thread of this process, told to other threads."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.thread: int | None = None
        self.done = 0  # pieces of work so far: two pieces may end at the same instruction

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around the work of the calling thread."""
        self.thread = threading.get_ident()
        try:
            yield
        finally:
            self.thread = None
            self.done += 1

    def state(self) -> State:
        """What the working thread does now."""
        frame = None if self.thread is None else sys._current_frames().get(self.thread)
        if frame is None:
            return State(self.name, mark=self.done)
        frames = _frames(frame)
        words, waits = phase_of([(one.f_globals.get("__name__", ""), one.f_code.co_name) for one in frames])
        places = tuple((id(one.f_code), one.f_lasti) for one in frames)
        return State(self.name, words, hash((places, self.done)), waits)


def _frames(innermost: FrameType) -> list[FrameType]:
    """From the outermost to the innermost."""
    frames: list[FrameType] = []
    frame: FrameType | None = innermost
    while frame is not None:
        frames.insert(0, frame)
        frame = frame.f_back
    return frames


def phase_of(calls: list[tuple[str, str]]) -> tuple[str, bool]:
    """Words for a stack of (module, function), outermost first, and whether it only waits for other processes."""
    own = [(module, function) for module, function in calls if module.startswith("zerozoo.")]
    own = [call for call in own if not call[0].startswith(("zerozoo.distributed.learner", __name__))]
    if not own:
        return "starting", False
    words: list[str] = []
    for module, _ in own:
        known = [prefix for prefix in PHASES if module.startswith(prefix)]
        word = PHASES[max(known, key=len)] if known else ""
        if word and word not in words:
            words.append(word)
    module, function = own[-1]
    waits = module in WAITING
    if waits:
        words.append(WAITING[module])
    place = f"{module.removeprefix('zerozoo.')}.{function}"
    return (f"{' > '.join(words)} ({place})" if words else place), waits


@dataclass
class _Seen:
    state: State
    answered: float
    moved: float
    named: float  # when it was last complained about, or moved


class Watchdog:
    """Names the processes in which nothing has moved for `limit` seconds, once for each such span.

    A process that only waits for others is named when the others stand still, too.

    Args:
        limit: seconds.
        clock: seconds, rising.
    """

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.clock = limit, clock
        self._seen: dict[str, _Seen] = {}

    def see(self, state: State) -> None:
        """A process has answered."""
        now, old = self.clock(), self._seen.get(state.name)
        if old is None or old.state.mark != state.mark or state.phase == IDLE:
            self._seen[state.name] = _Seen(state, now, now, now)
        else:
            old.state, old.answered = state, now

    def expect(self, name: str) -> None:
        """A process is there that should answer."""
        now = self.clock()
        self._seen.setdefault(name, _Seen(State(name, "starting"), now, now, now))

    def forget(self, name: str) -> None:
        """A process is gone."""
        self._seen.pop(name, None)

    def silent(self, name: str) -> float:
        """Seconds since a process has answered."""
        return self.clock() - self._seen[name].answered

    def complaints(self) -> list[str]:
        """One sentence for each process that stands still."""
        now = self.clock()
        moving = [one for one in self._seen.values() if one.state.phase != IDLE and now - one.moved < self.limit]
        sentences = []
        for name, one in self._seen.items():
            if now - one.named < self.limit:
                continue
            if now - one.answered >= self.limit:
                doing = f"; it was last seen in: {one.state.phase}" if one.state.phase else ""
                sentences.append(f"{name} has not answered for {now - one.answered:.0f} s{doing}.")
            elif one.state.waits and moving:
                continue
            else:
                sentences.append(f"{name} has not moved for {now - one.moved:.0f} s: {one.state.phase}.")
            one.named = now
        return [sentence[0].upper() + sentence[1:] for sentence in sentences]
