"""Small setups that the tests of actors, streams and trainer share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from zerozoo.control.agents import PPO
from zerozoo.control.sources import World
from zerozoo.distributed.messages import Message
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
