"""A point mass in a maze with a goal, for many copies at once.

Physics, per axis: the velocity is limited to 5, then v += 0.01 (100 a - v) / (m + 0.01) and x += 0.01 v, with m the
mass of a ball of radius 0.1 and density 1000. In free space this equals PointMaze_*-v3 of gymnasium-robotics (MuJoCo's
semi-implicit Euler step with implicit damping) step for step. Walls are ours: the body is a square of half side 0.1
that moves along x, then along y; where it would enter a wall it stops just before it and loses the velocity of that
axis, so it slides along walls without friction or bounce. It moves at most 0.053 a step and cannot jump through one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.environments.mazes import TIME_LIMITS, Cell, Maze
from zerozoo.runs.errors import UserError

DT = 0.01  # s
RADIUS = 0.1
MASS = 4 / 3 * np.pi * RADIUS**3 * 1000  # 4.19 kg
FORCE = 100.0  # N, at action 1
DAMPING = 1.0  # N s/m
MAX_SPEED = 5.0
REACH = 0.45  # distance at which a goal counts as reached, as in gymnasium-robotics
_GAP = 1e-9  # kept from a wall, so that rounding never puts the body into it
_TOP_SPEED = MAX_SPEED + DT / MASS * FORCE  # after a step from the limit


def goal_reward(distance: np.ndarray, kind: str = "sparse", reach: float = REACH) -> np.ndarray:
    """sparse: 1 within `reach` of the goal, else 0; dense: exp(-distance). Of the position after the step."""
    return np.exp(-distance) if kind == "dense" else (distance <= reach).astype(np.float64)


class PointMaze(BatchedWorld):
    """Reach a goal in a maze. Action (2,): force along x and y.

    Observation: x, y, velocity along x and y, and with `observe_goal` the goal's x and y. An episode draws one of the
    pairs (start cell, goal cell) with different cells; `start_cells` and `goal_cells` None mean every free cell. Start
    and goal lie at the cell's centre plus U(-noise, noise) an axis. Reaching the goal terminates, unless `continuing`.
    Info: "success" where the goal is within `reach` after the step. The time limit is 300 steps, 600 in the medium and
    800 in the large maze, unless given.
    """

    def __init__(
        self,
        copies: int,
        layout: str | Sequence[str] = "umaze",
        *,
        start_cells: Sequence[Cell] | None = None,
        goal_cells: Sequence[Cell] | None = None,
        reward: str = "sparse",
        continuing: bool = False,
        observe_goal: bool = False,
        reach: float = REACH,
        start_noise: float = 0.25,
        goal_noise: float = 0.0,
        time_limit: int | None = None,
    ) -> None:
        named = layout if isinstance(layout, str) else "custom"
        super().__init__(copies, TIME_LIMITS.get(named, 300) if time_limit is None else time_limit)
        if reward not in ("sparse", "dense"):
            raise UserError(f"The reward of a maze is 'sparse' or 'dense', not '{reward}'.")
        if not (0 <= start_noise < 0.5 - RADIUS and 0 <= goal_noise <= 0.5 and reach > 0):
            raise UserError("A maze needs start_noise in [0, 0.4), goal_noise in [0, 0.5] and reach above 0.")
        self.name = f"point-maze-{named}"
        self.maze = Maze(layout)
        self.reward, self.continuing, self.observe_goal, self.reach = reward, continuing, observe_goal, reach
        self._noise = np.array([start_noise, start_noise, goal_noise, goal_noise])
        starts, goals = self.maze.indices(start_cells), self.maze.indices(goal_cells)
        pairs = np.stack(np.meshgrid(starts, goals, indexing="ij"), axis=-1).reshape(-1, 2)
        self._pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if not len(self._pairs):
            raise UserError(f"The only start cell of {self.name} is its goal cell: choose another one.")
        self._solid = self.maze.walls[::-1].ravel()  # walls from the bottom row up, as y runs
        self._columns = self.maze.walls.shape[1]
        high = np.array([*self.maze.half, _TOP_SPEED, _TOP_SPEED, *self.maze.half][: 6 if observe_goal else 4])
        self.observation_space = spaces.Box(-high.astype(np.float32), high.astype(np.float32))
        self.action_space = spaces.Box(-1.0, 1.0, (2,))

    @property
    def goal(self) -> np.ndarray:
        """Goal positions (N, 2)."""
        return np.stack([self.arrays["goal_x"], self.arrays["goal_y"]], axis=-1)

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        count = len(copies)
        pairs = self._pairs[rng.integers(len(self._pairs), size=count)]
        points = self.maze.centre(self.maze.cells[pairs]).reshape(count, 4)  # start x, y, goal x, y
        x, y, goal_x, goal_y = (points + rng.uniform(-self._noise, self._noise, size=(count, 4))).T.copy()
        return {"x": x, "y": y, "vx": np.zeros(count), "vy": np.zeros(count), "goal_x": goal_x, "goal_y": goal_y}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        arrays, (half_x, half_y) = self.arrays, self.maze.half
        x, y = arrays["x"] + half_x, arrays["y"] + half_y  # from the lower left corner: truncation gives the cell
        x, arrays["vx"] = self._slide(x, y, arrays["vx"], action[:, 0], 1, self._columns)
        y, arrays["vy"] = self._slide(y, x, arrays["vy"], action[:, 1], self._columns, 1)
        arrays["x"], arrays["y"] = x - half_x, y - half_y
        distance = np.sqrt((arrays["x"] - arrays["goal_x"]) ** 2 + (arrays["y"] - arrays["goal_y"]) ** 2)
        reached = distance <= self.reach
        terminated = np.zeros(self.copies, dtype=bool) if self.continuing else reached.copy()
        return goal_reward(distance, self.reward, self.reach), terminated, {"success": reached}

    def _slide(
        self, along: np.ndarray, across: np.ndarray, speed: np.ndarray, force: np.ndarray, stride: int, other: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """One axis of the step: new coordinate and speed. `stride` and `other` step through the flat wall table."""
        speed = np.clip(speed, -MAX_SPEED, MAX_SPEED)
        speed += DT / (MASS + DT * DAMPING) * (FORCE * force - DAMPING * speed)
        moved = along + DT * speed
        ahead = (moved + np.copysign(RADIUS, speed)).astype(np.intp)  # the cell that the front edge is in
        corner = ahead * stride
        hit = self._solid[corner + (across - RADIUS).astype(np.intp) * other]
        hit |= self._solid[corner + (across + RADIUS).astype(np.intp) * other]
        if hit.any():
            stop = ahead + (speed < 0) - np.copysign(RADIUS + _GAP, speed)
            moved, speed = np.where(hit, stop, moved), np.where(hit, 0.0, speed)
        return moved, speed

    def _observe(self) -> np.ndarray:
        names = ("x", "y", "vx", "vy", "goal_x", "goal_y")[: 6 if self.observe_goal else 4]
        obs = np.empty((self.copies, len(names)), dtype=np.float32)
        for column, name in enumerate(names):
            obs[:, column] = self.arrays[name]
        return obs
