"""Small setups that the tests of actors, streams and trainers share, and a run of a trainer that is killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zerozoo.control.agents import PPO
from zerozoo.control.sources import World
from zerozoo.distributed.messages import Message
from zerozoo.distributed.trainer import StreamTrainer
from zerozoo.distributed.workers import Setup

SETTINGS: dict[str, Any] = {
    "hidden": (8,),
    "learning_rate": 0.003,
    "falls_until": 0,
    "max_gradient_norm": 0.5,
    "clip": 0.2,
    "entropy_coefficient": 0.01,
    "normalise_advantage": True,
    "normalise": False,
}


def setup(environment: str = "CartPole-v1", settings: dict[str, Any] | None = None, **changes: Any) -> Setup:
    """Two copies, samples of five steps."""
    sizes = {"actors": 1, "ring_size": 1, "copies": 2, "sample_steps": 5, "inference_cap": 100, "pull_seconds": 0.0}
    config = SimpleNamespace(**{**SETTINGS, **(settings or {})})
    options = changes.pop("options", {})
    return Setup(world=World(environment, options), agent=PPO, config=config, seed=3, **{**sizes, **changes})


def sample(versions: list[int] | int, name: int = 0) -> Message:
    """A sample of (T, 1) steps whose actions were chosen by these versions; `name` tells it from others."""
    version = np.array(versions if isinstance(versions, list) else [versions], dtype=np.int32)[:, None]
    return {"version": version, "value": np.full(version.shape, name), "origin": np.array([0, 0, name])}


TIMED = {"seconds", "target_seconds"}  # of the totals
CLOCK = {"time", "seconds/train", "steps_per_second", "updates_per_second"}  # of the rows


def killed_and_resumed(make: Callable[[], Any], kill_at: int, saved: int, under_way: Sequence[str]) -> Any:
    """Trains what `make` makes, dies at step `kill_at`, and goes on to the end; the trainer that went on.

    saved: step of the checkpoint that must be there by then. under_way: parts of names that must be in it, so that the
    test compares what it says.
    """
    killed = make()
    advance = killed.advance

    def until_killed(step: int) -> int:
        if step >= kill_at:
            raise MemoryError("killed")
        return int(advance(step))

    killed.advance = until_killed
    with pytest.raises(MemoryError):
        killed.train()
    killed.run.close()
    resumed = make()
    assert resumed.run.resume(resumed._go_back) == resumed.run.saved == saved
    assert all(any(part in name for name in resumed.tensors()) for part in under_way)
    resumed.train()
    return resumed


def assert_same_run(whole: StreamTrainer, other: StreamTrainer) -> None:
    """Agent, totals and logged rows, without what a clock says."""
    expected, found = whole.agent.state(), other.agent.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert {name: value for name, value in asdict(other.totals).items() if name not in TIMED} == pytest.approx(
        {name: value for name, value in asdict(whole.totals).items() if name not in TIMED}, nan_ok=True, abs=0
    )
    for one, two in zip(whole.run.history(), other.run.history(), strict=True):
        assert {k: v for k, v in one.items() if k not in CLOCK} == {k: v for k, v in two.items() if k not in CLOCK}
