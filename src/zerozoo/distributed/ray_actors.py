"""Actors that can be asked something while they work, and what Ray says of those that are gone."""

from __future__ import annotations

from typing import Any

import ray


def actor_class(kind: type) -> Any:
    """An actor class of Ray, never restarted by Ray, whose methods may be called `aside` while one of them works."""
    remote: Any = ray.remote
    return remote(concurrency_groups={"control": 1}, max_restarts=0)(kind)


def aside(method: Any) -> Any:
    """Call an actor's method beside the one that works; a reference to what it returns."""
    return method.options(concurrency_group="control").remote()


def reason_of(error: BaseException) -> str:
    """The line of an error of Ray that says what happened, without a full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    told = [line for line in lines if line.startswith(("The actor died", "The actor is dead", "Task was"))]
    return (told or lines)[0].split("Worker exit detail:")[0].rstrip(" .")
