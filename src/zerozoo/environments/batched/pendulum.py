"""The inverted pendulum: gymnasium's Pendulum-v1, step for step, for many copies at once."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.world import BatchedWorld

MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m, at action 1
DT = 0.05  # s


class Pendulum(BatchedWorld):
    """Swing a rod up and hold it. Angle 0 is upright; action (1,) in [-1, 1] is the torque divided by 2.

    Observation: cos and sin of the angle, angular velocity (rad/s). Reward, from the state before the step:
    -(angle^2 + 0.1 velocity^2 + 0.001 torque^2). Never terminates. gravity in m/s^2, mass in kg, length in m; the
    defaults are those of Pendulum-v1, and so are the seeded starts: angle ~ U(-pi, pi), velocity ~ U(-1, 1).
    """

    name = "pendulum"

    def __init__(
        self, copies: int, time_limit: int = 200, gravity: float = 10.0, mass: float = 1.0, length: float = 1.0
    ) -> None:
        super().__init__(copies, time_limit)
        self.gravity, self.mass, self.length = gravity, mass, length
        high = np.array([1.0, 1.0, MAX_SPEED], dtype=np.float32)
        self.observation_space = spaces.Box(-high, high)
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        start = rng.uniform([-np.pi, -1.0], [np.pi, 1.0], size=(len(copies), 2))
        return {"angle": start[:, 0].copy(), "velocity": start[:, 1].copy()}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        angle, velocity = self.arrays["angle"], self.arrays["velocity"]
        torque = MAX_TORQUE * action[:, 0]
        cost = wrapped(angle) ** 2 + 0.1 * velocity**2 + 0.001 * torque**2
        pull = 3 * self.gravity / (2 * self.length) * np.sin(angle)
        velocity = velocity + (pull + 3.0 / (self.mass * self.length**2) * torque) * DT
        velocity = np.clip(velocity, -MAX_SPEED, MAX_SPEED)
        self.arrays["angle"], self.arrays["velocity"] = angle + velocity * DT, velocity
        return -cost, np.zeros(self.copies, dtype=bool), {}

    def _observe(self) -> np.ndarray:
        obs = np.empty((self.copies, 3), dtype=np.float32)
        obs[:, 0] = np.cos(self.arrays["angle"])
        obs[:, 1] = np.sin(self.arrays["angle"])
        obs[:, 2] = self.arrays["velocity"]
        return obs


def wrapped(angle: np.ndarray) -> np.ndarray:
    """The same angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
