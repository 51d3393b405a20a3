"""What all batched worlds share: copies, reset of some of them, time limit, state, and the view as one environment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from zerozoo.runs.errors import UserError


class Outcome(NamedTuple):
    """What one step did to N copies. `next_obs` is the true successor, also where an episode ended."""

    next_obs: np.ndarray  # (N, *)
    reward: np.ndarray  # (N,) float64
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool, never together with terminated
    info: dict[str, np.ndarray]  # name -> (N, ...)


class BatchedWorld(ABC):
    """N independent copies of one world.

    Everything random of an episode is drawn at its reset, so steps are deterministic and `state()` is complete. The
    state is `self.arrays`: name -> array with the copies along axis 0; "elapsed" counts the steps of each episode.

    A subclass sets `name` and the two spaces (of one copy), and writes `_draw`, `_advance` and `_observe`.
    """

    name: str
    observation_space: spaces.Box
    action_space: spaces.Box | spaces.Discrete

    def __init__(self, copies: int, time_limit: int) -> None:
        if copies < 1 or time_limit < 1:
            raise UserError(f"copies ({copies}) and time_limit ({time_limit}) of a world must be at least 1.")
        self.copies = copies
        self.time_limit = time_limit
        self.arrays: dict[str, np.ndarray] = {}

    @abstractmethod
    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        """State arrays of new episodes of the copies with these numbers (n,), without "elapsed"."""

    @abstractmethod
    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Moves `self.arrays` one step. Action: (N, m) float64 in [-1, 1], or (N,) int. -> reward, terminated, info."""

    @abstractmethod
    def _observe(self) -> np.ndarray:
        """Observations (N, *) of the present state, in a new array."""

    def reset(self, rng: np.random.Generator, mask: np.ndarray | None = None) -> np.ndarray:
        """New episodes for all copies, or for those where `mask` (N,) is true; observations (N, *) of all copies."""
        if mask is None:
            self.arrays = {**self._draw(rng, np.arange(self.copies)), "elapsed": np.zeros(self.copies, dtype=np.int64)}
        else:
            chosen = np.flatnonzero(mask)
            for name, values in self._draw(rng, chosen).items():
                self.arrays[name][chosen] = values
            self.arrays["elapsed"][chosen] = 0
        return self._observe()

    def reset_seeded(self, seeds: Sequence[int]) -> np.ndarray:
        """New episodes, copy n from seed n alone: the same episode as `OneCopy.reset(seed=seeds[n])` gives."""
        if len(seeds) != self.copies:
            raise ValueError(f"{len(seeds)} seeds for {self.copies} copies")
        draws = [self._draw(seeding.np_random(int(seed))[0], np.array([n])) for n, seed in enumerate(seeds)]
        self.arrays = {name: np.concatenate([draw[name] for draw in draws]) for name in draws[0]}
        self.arrays["elapsed"] = np.zeros(self.copies, dtype=np.int64)
        return self._observe()

    def step(self, action: np.ndarray) -> Outcome:
        """One step of all copies. Action: (N, m), clipped to [-1, 1], or (N,) integers. Ended copies need a reset."""
        action = np.asarray(action)
        if action.shape != (self.copies, *(self.action_space.shape or ())):
            raise ValueError(f"{self.name}: actions of shape {action.shape} for {self.copies} copies")
        if isinstance(self.action_space, spaces.Box):
            action = np.clip(action, -1.0, 1.0, dtype=np.float64)
        reward, terminated, info = self._advance(action)
        elapsed = self.arrays["elapsed"]
        elapsed += 1
        return Outcome(self._observe(), reward, terminated, (elapsed >= self.time_limit) & ~terminated, info)

    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything the future depends on."""
        return {name: values.copy() for name, values in self.arrays.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """Goes back to a `state()` of the same kind of world; observations (N, *). UserError if it does not fit."""
        expected = self._draw(np.random.Generator(np.random.PCG64(0)), np.zeros(1, dtype=np.int64))
        expected["elapsed"] = np.zeros(1, dtype=np.int64)
        shapes = {name: (self.copies, *values.shape[1:]) for name, values in expected.items()}
        if {name: np.shape(values) for name, values in state.items()} != shapes:
            raise UserError(f"The saved state does not belong to the world '{self.name}' with {self.copies} copies.")
        self.arrays = {name: np.array(state[name], dtype=values.dtype) for name, values in expected.items()}
        return self._observe()


class OneCopy(gymnasium.Env[np.ndarray, Any]):
    """A batched world of one copy as a gymnasium environment."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, world: BatchedWorld) -> None:
        if world.copies != 1:
            raise ValueError(f"one copy, not {world.copies}")
        self.world = world
        self.observation_space = world.observation_space
        self.action_space = world.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.world.reset(self.np_random)[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.world.step(np.asarray(action)[None])
        values = {name: array[0] for name, array in info.items()}
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), values
