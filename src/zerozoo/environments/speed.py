"""Running at a wanted speed: HalfCheetah-v5 with another reward, and data of open-loop gaits at two speeds.

Needs the extra `environments`. The reward is that of the A1 tasks of D5RL (Rafailov et al. 2024, arXiv 2408.08441), of
which only the tolerance of the speed and the cost of effort are kept.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from zerozoo.environments.data import Episode
from zerozoo.environments.wrappers import StandardEnv
from zerozoo.runs.errors import UserError

LENGTH = 200  # steps of an episode
STEP_SECONDS = 0.05
SPEEDS, KEPT = (0.5, 1.0), 5  # in m/s: the data are of the five gaits nearest to each
_VX = 8  # where the speed along x is in the observation


def tolerance(value: np.ndarray, low: float, high: float, margin: float) -> np.ndarray:
    """1 within [low, high], falling linearly to 0 at a distance of `margin`; that of dm_control with a linear tail."""
    distance = np.maximum(np.maximum(low - value, value - high), 0)
    return np.maximum(1 - distance / margin, 0)


def speed_reward(next_obs: np.ndarray, action: np.ndarray, target: float) -> np.ndarray:
    """tolerance(vx; target +- 0.1, margin target) - 0.1 ||a||^2: next_obs (..., 17), action (..., 6) -> (...)."""
    effort = 0.1 * np.square(action).sum(axis=-1)
    return tolerance(next_obs[..., _VX], target - 0.1, target + 0.1, target) - effort


class TargetSpeed(gymnasium.Wrapper[Any, Any, Any, Any]):
    """HalfCheetah-v5 that is rewarded for a speed in m/s."""

    def __init__(self, target: float) -> None:
        try:
            env = gymnasium.make("HalfCheetah-v5", max_episode_steps=LENGTH, disable_env_checker=True)
        except (gymnasium.error.Error, ImportError) as error:
            raise UserError(f"The task needs HalfCheetah-v5, which cannot be made: {error}") from None
        super().__init__(env)
        self.target = target

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = self.env.step(action)
        return obs, float(speed_reward(obs, action, self.target)), terminated, truncated, info


def gait(parameters: np.ndarray, steps: int = LENGTH) -> np.ndarray:
    """(13,) amplitudes, phases of six joints, and a frequency in Hz -> actions (steps, 6) of sines at 20 Hz."""
    time = STEP_SECONDS * np.arange(steps)[:, None]
    return parameters[:6] * np.sin(2 * np.pi * parameters[12] * time + parameters[6:12])


def gait_data(rng: np.random.Generator, transitions: int, *, target: float, gaits: int = 200) -> list[Episode]:
    """Whole episodes, at least `transitions` steps, of the gaits nearest to the two speeds, N(0, 0.2^2) on the actions.

    The gaits are chosen from `gaits` random ones by their mean speed. Only rewards depend on `target`.
    extras["speed"] is the mean speed of the episode's gait when it was chosen.
    """
    env = StandardEnv(TargetSpeed(target))

    def play(actions: np.ndarray) -> np.ndarray:
        obs = [env.reset(seed=int(rng.integers(2**31)))[0]]
        return np.stack(obs + [env.step(action)[0] for action in actions])  # (T + 1, 17)

    low, high = np.repeat([0.0, 0.0, 0.5], (6, 6, 1)), np.repeat([1.0, 2 * np.pi, 3.0], (6, 6, 1))
    tried = rng.uniform(low, high, size=(gaits, 13))
    speeds = np.array([play(gait(parameters))[1:, _VX].mean() for parameters in tried])
    kept = np.concatenate([np.argsort(np.abs(speeds - wanted), kind="stable")[:KEPT] for wanted in SPEEDS])
    episodes = []
    for number in range(-(-transitions // LENGTH)):
        chosen = kept[number % len(kept)]
        actions = gait(tried[chosen])
        actions = np.clip(actions + 0.2 * rng.standard_normal(actions.shape), -1, 1).astype(np.float32)
        obs = play(actions)
        ends = np.arange(LENGTH) == LENGTH - 1
        episodes.append(
            {
                "obs": obs,
                "action": actions,
                "reward": speed_reward(obs[1:], actions, target).astype(np.float32),
                "terminated": np.zeros(LENGTH, dtype=bool),
                "truncated": ends,
                "extras": {"speed": np.full(LENGTH, speeds[chosen], dtype=np.float32)},
            }
        )
    return episodes
