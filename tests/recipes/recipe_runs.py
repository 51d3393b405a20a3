"""Whole runs of recipes in tests: killed at a step, gone on with, and compared bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.language.models import load_model
from zerozoo.runs.run import Run

CLOCK = ("time", "seconds/", "steps_per_second", "updates_per_second")  # what a clock says is never the same


class Killed(BaseException):
    """Ends a run from inside as a kill does."""


@contextmanager
def killed(kind: Any, method: str, when: Callable[..., bool]) -> Iterator[None]:
    """What runs inside is killed where `when` says so of the arguments of a method of this class, and must be."""
    healthy = getattr(kind, method)

    def dying(*arguments: Any) -> Any:
        if when(*arguments):
            raise Killed
        return healthy(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, method, dying)
        with pytest.raises(Killed):
            yield


def killed_in_step(kind: Any, number: int) -> Any:
    """`killed` at the beginning of step `number` of a loop that has a method `step`."""
    return killed(kind, "step", lambda loop, step: step == number)


def result(directory: Path) -> dict[str, Any]:
    """All that a run leaves, without what a clock says: rows, samples, state and tensors of the newest checkpoint."""
    run = Run.open(directory)
    newest = sorted((directory / "checkpoints").glob("step-*"))[-1]
    return {
        "rows": [{name: row[name] for name in row if not name.startswith(CLOCK)} for row in run.history()],
        "samples": run.samples(),
        "state": json.loads((newest / "state.json").read_text()),
        "tensors": (newest / "tensors.safetensors").read_bytes(),
    }


def assert_same_result(one: Path, other: Path) -> None:
    """Part by part, so that the first that differs is named."""
    first, second = result(one), result(other)
    for part in first:
        assert first[part] == second[part], part


def parameters(folder: Path | str) -> torch.Tensor:
    """All weights of a saved model in one row."""
    return torch.cat([value.detach().flatten() for value in load_model(folder).model.parameters()])
