"""PointRobot: a unicycle that must drive around two hazards to its goal (FISOR, arXiv 2401.10700)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.pendulum import wrapped
from zerozoo.environments.batched.world import BatchedWorld

DT = 0.05  # s
EDGE = 3.0  # the arena is [-3, 3]^2
HAZARDS = np.array([[0.4, -1.2], [-0.4, 1.2]])  # centres
HAZARD_RADIUS = 0.8
GOAL = np.array([2.2, 2.2])
GOAL_RADIUS = 0.3
_SLOWEST, _FASTEST = 0.5, 2.0  # speeds of the start


def constraint(obs: np.ndarray) -> np.ndarray:
    """h (...,) of observations (..., 11): hazard radius minus the distance to the nearest hazard; > 0 is violated."""
    return HAZARD_RADIUS - np.minimum(obs[..., 5], obs[..., 8])


class Hazards(BatchedWorld):
    """x' = v cos(heading), y' = v sin(heading), v' = a0, heading' = a1; explicit Euler steps of 0.05 s.

    Observation (11,): x, y, v, cos and sin of the heading, and for each hazard its distance and the cos and sin of its
    bearing in the robot's frame. Reward: decrease of the distance to the goal, +1 on arrival. Terminates on arrival
    and outside the arena. Info: "cost" is 1 where the state after the step is inside a hazard, "success" on arrival.
    Starts: x, y ~ U(-3, 3), v ~ U(0.5, 2), heading ~ U(pi/4, 3 pi/4), inside a hazard too.
    """

    name = "hazards"

    def __init__(self, copies: int, time_limit: int = 300) -> None:
        super().__init__(copies, time_limit)
        speed = _FASTEST + DT * time_limit  # after full acceleration for a whole episode
        place = EDGE + DT * speed  # the last state may lie just outside
        far = np.hypot(place, place) + np.hypot(*HAZARDS[0])
        high = np.array([place, place, speed, 1, 1, far, 1, 1, far, 1, 1], dtype=np.float32)
        low = np.where(np.isin(np.arange(11), (5, 8)), 0, -high).astype(np.float32)
        self.observation_space = spaces.Box(low, high)
        self.action_space = spaces.Box(-1.0, 1.0, (2,))

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        low, high = [-EDGE, -EDGE, _SLOWEST, np.pi / 4], [EDGE, EDGE, _FASTEST, 3 * np.pi / 4]
        x, y, speed, heading = rng.uniform(low, high, size=(len(copies), 4)).T.copy()
        return {"x": x, "y": y, "speed": speed, "heading": heading}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        arrays = self.arrays
        before = np.hypot(GOAL[0] - arrays["x"], GOAL[1] - arrays["y"])
        x = arrays["x"] + DT * arrays["speed"] * np.cos(arrays["heading"])
        y = arrays["y"] + DT * arrays["speed"] * np.sin(arrays["heading"])
        arrays["speed"] = arrays["speed"] + DT * action[:, 0]
        arrays["heading"] = wrapped(arrays["heading"] + DT * action[:, 1])
        arrays["x"], arrays["y"] = x, y
        distance = np.hypot(GOAL[0] - x, GOAL[1] - y)
        arrived = distance <= GOAL_RADIUS
        outside = (np.abs(x) > EDGE) | (np.abs(y) > EDGE)
        nearest = np.minimum(*(np.hypot(cx - x, cy - y) for cx, cy in HAZARDS))
        info = {"cost": (nearest < HAZARD_RADIUS).astype(np.float64), "success": arrived}
        return before - distance + arrived, arrived | outside, info

    def _observe(self) -> np.ndarray:
        x, y, heading = self.arrays["x"], self.arrays["y"], self.arrays["heading"]
        obs = np.empty((self.copies, 11), dtype=np.float32)
        obs[:, 0], obs[:, 1], obs[:, 2] = x, y, self.arrays["speed"]
        obs[:, 3], obs[:, 4] = np.cos(heading), np.sin(heading)
        for column, (cx, cy) in zip((5, 8), HAZARDS, strict=True):
            bearing = np.arctan2(cy - y, cx - x) - heading
            obs[:, column] = np.hypot(cx - x, cy - y)
            obs[:, column + 1], obs[:, column + 2] = np.cos(bearing), np.sin(bearing)
        return obs


def avoidable(state: Mapping[str, np.ndarray], turns: int = 9) -> np.ndarray:
    """(N,) bool: whether a robot can brake to a stand without a violation, turning at one of `turns` constant rates.

    state: x, y, speed, heading (N,). A robot that stands violates nothing any more, and outside of the arena there are
    no hazards. Other manoeuvres are not tried, so that the answer is on the safe side.
    """
    count = len(state["x"])
    world = Hazards(count * turns)
    arrays = {name: np.tile(values, turns) for name, values in state.items() if name != "elapsed"}
    obs = world.load_state({**arrays, "elapsed": np.zeros(world.copies, dtype=np.int64)})
    turn = np.repeat(np.linspace(-1, 1, turns), count)
    violated = constraint(obs) > 0
    for _ in range(int(np.ceil(np.abs(state["speed"]).max() / DT)) + 1):
        violated |= world.step(np.stack([-world.arrays["speed"] / DT, turn], axis=-1)).info["cost"] > 0
    return np.asarray(~violated.reshape(turns, count).all(axis=0))


class SafeStarts(Hazards):
    """PointRobot whose episodes start where every violation can still be avoided."""

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        arrays = super()._draw(rng, copies)
        while (doomed := ~avoidable(arrays)).any():
            for name, values in super()._draw(rng, copies[doomed]).items():
                arrays[name][doomed] = values
        return arrays
