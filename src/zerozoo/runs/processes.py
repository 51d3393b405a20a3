"""What torchrun tells a process about its place among those it started."""

from __future__ import annotations

import os


def process_count() -> int:
    """How many processes work on this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Which of them this is, from 0; only 0 writes the run directory."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def local_rank() -> int:
    """Which of the processes of this machine it is, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if process_count() > 1 else 0
