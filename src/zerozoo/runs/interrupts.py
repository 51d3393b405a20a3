"""Ctrl-C that lets a step finish, so that what is saved is a whole step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

_asked = threading.Event()


def stop_after_step() -> None:
    """Ask this process to stop as the first Ctrl-C does, from another thread than the one that trains."""
    _asked.set()


class Interrupts:
    """Context in which the first SIGINT or SIGTERM, or `stop_after_step` at any time, sets `requested`.

    A second signal interrupts at once.

    Args:
        say: gets one line for the user at the first signal.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._signalled = False
        self._say = say
        self._before: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether to stop after this step."""
        return self._signalled or _asked.is_set()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True
        self._say("Stopping after this step; press Ctrl-C again to stop at once.")
