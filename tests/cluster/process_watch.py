"""What tests with processes of their own look at: who lives, what shared memory is left, and waiting for either."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds; what is waited for takes one or two on an idle machine


def segments() -> set[str]:
    """Names of the shared memory of this machine."""
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


def until(true: Callable[[], Any], what: str) -> None:
    """Waits for a condition; AssertionError if it does not come true."""
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit, f"{what} did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
