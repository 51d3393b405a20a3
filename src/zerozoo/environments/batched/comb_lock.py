"""The continuous combination lock: one wrong action in H steps loses everything (HNPG, arXiv 2311.08384)."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.runs.errors import UserError

ACTIONS = 10
TEMPERATURE = 0.1
CONSOLATION = 0.1  # the reward that a lost episode pays with probability 1/2
OBS_NOISE = 0.1
_LOST = 2  # latent states 0 and 1 are good


def hadamard(size: int) -> np.ndarray:
    """Sylvester's Hadamard matrix of a power of two: entries +-1, rows orthogonal."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


class CombLock(BatchedWorld):
    """Play the hidden good action of the latent state, `horizon` times in a row.

    Action a (10,) in [-1, 1] stands for u = (a + 1) / 2, from which one of ten discrete actions is drawn with
    probabilities softmax(u / 0.1). The good one leads from a good state to good state 0 or 1, half each; any other
    leads to the lost state, for good. The last step pays 1 for the good action, otherwise 0.1 with probability 1/2;
    other steps pay nothing, with `dense` every good action pays 1/horizon and nothing else pays. The episode then
    terminates. `lock` draws which actions are good; worlds with the same `lock` and `horizon` are the same world.
    Observation: one-hot latent state (3) and step (horizon + 1), each plus N(0, 0.1^2), times a Hadamard matrix. Info:
    "success" where the last action was good.
    """

    name = "comb-lock"

    def __init__(self, copies: int, horizon: int = 5, lock: int = 0, dense: bool = False) -> None:
        if horizon < 1:
            raise UserError(f"The horizon of a comb lock must be at least 1, not {horizon}.")
        super().__init__(copies, time_limit=horizon)
        self.horizon, self.dense = horizon, dense
        good = np.random.Generator(np.random.PCG64(lock)).integers(ACTIONS, size=(horizon, 2))
        # (H, latent state) -> the good action; the lost state has none.
        self.solution = np.concatenate([good, np.full((horizon, 1), -1)], axis=1)
        self._coordinates = horizon + 4
        size = 1 << (self._coordinates - 1).bit_length()
        self._mixing = hadamard(size)[: self._coordinates].astype(np.float64)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,))
        self.action_space = spaces.Box(-1.0, 1.0, (ACTIONS,))

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "latent": rng.integers(2, size=len(copies)),
            "luck": rng.random(
                (len(copies), self.horizon, 2)
            ),  # which action is drawn; the next good state or consolation
            "noise": OBS_NOISE
            * rng.standard_normal((len(copies), self.horizon + 1, self._coordinates), dtype=np.float32),
        }

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        step, latent = self.arrays["elapsed"], self.arrays["latent"]
        luck = np.take_along_axis(self.arrays["luck"], step[:, None, None], axis=1)[:, 0]  # (N, 2)
        weights = np.exp((action - 1) / 2 / TEMPERATURE).cumsum(axis=1)
        played = (weights < luck[:, :1] * weights[:, -1:]).sum(axis=1)
        good = played == self.solution[step, latent]
        coin = luck[:, 1] < 0.5
        self.arrays["latent"] = np.where(good, coin.astype(np.int64), _LOST)
        last = step == self.horizon - 1
        paid = good / self.horizon if self.dense else last * np.where(good, 1.0, CONSOLATION * coin)
        return paid, last, {"success": good & last}

    def _observe(self) -> np.ndarray:
        step, copies = self.arrays["elapsed"], np.arange(self.copies)
        coordinates = self.arrays["noise"][copies, step]
        coordinates[copies, self.arrays["latent"]] += 1
        coordinates[copies, 3 + step] += 1
        # Sums of float32 numbers are exact in float64, so the number of copies beside does not round them otherwise.
        return (coordinates.astype(np.float64) @ self._mixing).astype(np.float32)
