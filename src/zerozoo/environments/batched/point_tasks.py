"""Point robots with a hidden task: a family of worlds that differ in their reward or in their dynamics."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.runs.errors import UserError

STEP = 0.1  # how far an action of 1 moves
TURN_GOAL = np.array([0.6, 0.6])  # of the family "turns"
FAMILIES = ("goals", "turns")


class PointTasks(BatchedWorld):
    """s' = s + 0.1 R a from s = (0, 0) for `time_limit` steps, reward -|s' - g|; what R or g is, nobody is told.

    family "goals": R = 1, and the goal g ~ U([-1, 1]^2) is the task (Point-Robot of Meta-DT, arXiv 2410.11448). family
    "turns": g is TURN_GOAL, and the rotation R by an angle ~ U(-pi, pi) is the task. Copy n plays task n mod K always;
    nothing of an episode is random.

    Observation (2,): the position. `tasks` (K, 2): goals, or cosine and sine of the angles (see `draw_tasks`). Info:
    "task", its number. UserError for an unknown family and tasks of another shape.
    """

    def __init__(self, copies: int, family: str, tasks: np.ndarray, time_limit: int = 20) -> None:
        super().__init__(copies, time_limit)
        self.name = f"point-{family}"
        check_family(family)
        self.tasks = np.asarray(tasks, dtype=np.float64)
        if self.tasks.ndim != 2 or self.tasks.shape[1] != 2 or not len(self.tasks):
            raise UserError(f"{self.name} needs tasks of shape (number, 2), not {self.tasks.shape}.")
        number = np.arange(copies) % len(self.tasks)
        rotated = family == "turns"
        self.task = number
        self.goal = np.broadcast_to(TURN_GOAL, (copies, 2)) if rotated else self.tasks[number]
        cosine, sine = self.tasks[number].T if rotated else (np.ones(copies), np.zeros(copies))
        self.rotation = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], axis=1)  # (N, 2, 2)
        edge = STEP * 2 * time_limit
        self.observation_space = spaces.Box(-edge, edge, (2,), dtype=np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,))

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        return {"position": np.zeros((len(copies), 2))}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        moved = np.einsum("nij,nj->ni", self.rotation, action)
        self.arrays["position"] = self.arrays["position"] + STEP * moved
        distance = np.linalg.norm(self.arrays["position"] - self.goal, axis=-1)
        return -distance, np.zeros(self.copies, dtype=bool), {"task": self.task.copy()}

    def _observe(self) -> np.ndarray:
        return self.arrays["position"].astype(np.float32)

    def oracle(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(N, 2) straight to the goal, as fast as actions allow, and there it stays."""
        wanted = self._towards_goal() / STEP
        return wanted / np.maximum(np.abs(wanted).max(axis=-1, keepdims=True), 1.0)

    def medium(self, noise: float = 0.6, most_random: float = 0.6) -> _Medium:
        """An actor of middling skill, for data: see `_Medium`."""
        return _Medium(self, noise, most_random)

    def _towards_goal(self) -> np.ndarray:
        """(N, 2) goal minus position, as actions see it."""
        away = self.goal - self.arrays["position"]
        return np.einsum("nji,nj->ni", self.rotation, away)


class _Medium:
    """Full speed towards the goal with N(0, noise^2) on each action; a share of the actions is uniform instead.

    The share is drawn from U(0, most_random) for each copy and stays.
    """

    def __init__(self, world: PointTasks, noise: float, most_random: float) -> None:
        self.world, self.noise, self.most_random = world, noise, most_random
        self.share: np.ndarray | None = None

    def __call__(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.share is None:
            self.share = rng.uniform(0, self.most_random, size=len(obs))
        away = self.world._towards_goal()
        direct = away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-9)
        action = direct + self.noise * rng.standard_normal(away.shape)
        chance = (rng.random(len(obs)) < self.share)[:, None]
        return np.clip(np.where(chance, rng.uniform(-1, 1, size=away.shape), action), -1, 1)


def draw_tasks(family: str, number: int, rng: np.random.Generator) -> np.ndarray:
    """(number, 2) tasks of a family: goals, or cosine and sine of angles. UserError for an unknown family."""
    check_family(family)
    if family == "goals":
        return rng.uniform(-1, 1, size=(number, 2))
    angle = rng.uniform(-np.pi, np.pi, size=number)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def check_family(family: str) -> None:
    """UserError for an unknown family."""
    if family not in FAMILIES:
        raise UserError(f"Unknown family of tasks {family!r}; choose from: {', '.join(FAMILIES)}.")
