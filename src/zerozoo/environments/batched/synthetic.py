"""A world that costs what one wants it to cost, for measurements of the systems that carry experience."""

from __future__ import annotations

import time

import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.runs.errors import UserError

ACTIONS = 4


class Synthetic(BatchedWorld):
    """Each copy keeps its core busy for `milliseconds` a step, and shows `size` numbers.

    Action a of 4 adds a / 4 to a phase that each episode draws in [0, 1); number j of the observation is
    sin(2 pi phase + j). The reward is the first number. Never terminates. The milliseconds are computing time of this
    thread, as a simulator's are: where two processes share a core each takes twice as long by the clock on the wall.
    """

    name = "synthetic"

    def __init__(self, copies: int, time_limit: int = 1000, milliseconds: float = 0.0, size: int = 8) -> None:
        super().__init__(copies, time_limit)
        if milliseconds < 0 or size < 1:
            raise UserError(f"milliseconds ({milliseconds}) must be at least 0 and size ({size}) at least 1.")
        self.seconds, self.size = milliseconds / 1000, size
        self.observation_space = spaces.Box(-1.0, 1.0, (size,))
        self.action_space = spaces.Discrete(ACTIONS)

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        return {"phase": rng.random(len(copies))}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        until = time.thread_time() + self.copies * self.seconds
        self.arrays["phase"] = (self.arrays["phase"] + action / ACTIONS) % 1.0
        reward = np.sin(2 * np.pi * self.arrays["phase"])
        while time.thread_time() < until:
            pass
        return reward, np.zeros(self.copies, dtype=bool), {}

    def _observe(self) -> np.ndarray:
        return np.sin(2 * np.pi * self.arrays["phase"][:, None] + np.arange(self.size)).astype(np.float32)
