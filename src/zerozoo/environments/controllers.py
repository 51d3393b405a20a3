"""Scripted controllers: experts of the batched worlds, and the worse ones that offline data are made of.

An actor is a function (obs (N, *), rng) -> actions (N, m) in [-1, 1], or (N,) integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched import hazards
from zerozoo.environments.batched.comb_lock import ACTIONS, CombLock
from zerozoo.environments.batched.hazards import Hazards
from zerozoo.environments.batched.pendulum import DT, MAX_TORQUE, Pendulum, wrapped
from zerozoo.environments.batched.point_maze import PointMaze
from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.environments.levels import GridLevels
from zerozoo.environments.mazes import Maze

Actor = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def expert(world: BatchedWorld) -> Actor:
    """The scripted expert of a world; it must be that very world, for some experts read what is not observed."""
    if isinstance(world, Pendulum):
        swing_up = PendulumExpert(world.gravity, world.mass, world.length)
        return lambda obs, rng: swing_up(obs)
    if isinstance(world, PointMaze):
        way = WaypointController(world.maze)
        return lambda obs, rng: way(obs, world.goal)
    if isinstance(world, Hazards):
        return lambda obs, rng: drive_to_goal(obs, avoid=True)
    if isinstance(world, CombLock):
        return lambda obs, rng: comb_lock_solution(world)
    if isinstance(world, GridLevels):
        return lambda obs, rng: world.expert_action()
    raise ValueError(f"no expert for {world.name}")


def random_actor(world: BatchedWorld) -> Actor:
    """Uniform actions."""
    space = world.action_space
    if isinstance(space, spaces.Discrete):
        return lambda obs, rng: rng.integers(int(space.n), size=len(obs))
    return lambda obs, rng: rng.uniform(-1.0, 1.0, size=(len(obs), *space.shape))


def noisy(actor: Actor, std: float) -> Actor:
    """Adds N(0, std^2) to every action and clips to [-1, 1]."""
    if std == 0:
        return actor

    def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        action = actor(obs, rng)
        return np.clip(action + std * rng.standard_normal(action.shape), -1.0, 1.0)

    return act


class PendulumExpert:
    """Pumps energy until the rod can reach the top, then holds it there with a linear-quadratic regulator.

    Energy, with the inertia m l^2 / 3 of a rod about its end: E = m l^2 w^2 / 6 + m g l cos(angle) / 2, and torque
    along the velocity raises it. The regulator minimises angle^2 + 0.1 w^2 + 0.001 torque^2, the reward of the world,
    for the linearised step (Riccati iteration); it takes over above the horizontal where it asks for at most five times
    the torque there is. Mean return in Pendulum-v1: -150, as good as a trained agent.
    """

    def __init__(self, gravity: float = 10.0, mass: float = 1.0, length: float = 1.0) -> None:
        self.inertia, self.weight = mass * length**2 / 3, mass * gravity * length / 2
        lift, push = self.weight / self.inertia, 1 / self.inertia
        step = np.array([[1 + DT**2 * lift, DT], [DT * lift, 1.0]])
        force = np.array([[DT**2 * push], [DT * push]])
        cost = future = np.diag([1.0, 0.1])
        for _ in range(500):
            self.gain = np.linalg.solve(0.001 + force.T @ future @ force, force.T @ future @ step)  # (1, 2)
            future = cost + step.T @ future @ (step - force @ self.gain)

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Observations (N, 3) -> actions (N, 1)."""
        cosine, sine, velocity = np.asarray(obs, dtype=np.float64).T
        angle = np.arctan2(sine, cosine)
        missing = self.weight * (1 - cosine) - self.inertia * velocity**2 / 2
        pumping = 2.0 * missing * np.where(velocity >= 0, 1.0, -1.0)
        holding = -(self.gain[0, 0] * angle + self.gain[0, 1] * velocity)
        near = (np.abs(holding) <= 5 * MAX_TORQUE) & (cosine > 0)
        return np.clip(np.where(near, holding, pumping) / MAX_TORQUE, -1.0, 1.0)[:, None]


class WaypointController:
    """Drives a point mass to a target: action = clip(10 (w - x) - v, -1, 1), gains of D4RL's controller.

    The way point w is the centre of the next cell on a shortest way, or the target within its own cell. It depends on
    the present cell alone (D4RL keeps a way point until it is within 0.1), so the controller needs no memory.
    """

    def __init__(self, maze: Maze) -> None:
        self.maze = maze

    def __call__(self, obs: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Observations (N, 4 or more) starting with x, y, vx, vy; targets (N, 2) or (2,) -> actions (N, 2)."""
        position, velocity = obs[:, :2].astype(np.float64), obs[:, 2:4]
        target = np.broadcast_to(target, position.shape)
        here, there = self.maze.number_of(position), self.maze.number_of(target)
        following = self.maze.centre(self.maze.cells[self.maze.next_cells[here, there]])
        waypoint = np.where((here == there)[:, None], target, following)
        return np.clip(10 * (waypoint - position) - velocity, -1.0, 1.0)


def drive_to_goal(obs: np.ndarray, avoid: bool) -> np.ndarray:
    """Steers PointRobot to its goal, actions (N, 2); with `avoid` along the tangent of a hazard that is in the way."""
    obs = obs.astype(np.float64)
    heading = np.arctan2(obs[:, 4], obs[:, 3])
    away = hazards.GOAL - obs[:, :2]
    course = np.arctan2(away[:, 1], away[:, 0])
    if avoid:
        for column in (5, 8):
            distance, bearing = obs[:, column], np.arctan2(obs[:, column + 2], obs[:, column + 1]) + heading
            half_angle = np.arcsin(np.minimum((hazards.HAZARD_RADIUS + 0.25) / np.maximum(distance, 1e-6), 1.0))
            offset = wrapped(course - bearing)
            blocked = (np.abs(offset) < half_angle) & (distance < 2.2)
            course = np.where(blocked, bearing + np.where(offset >= 0, half_angle, -half_angle), course)
    error = wrapped(course - heading)
    speed = np.clip(np.hypot(away[:, 0], away[:, 1]), 0.4, 1.5) * np.maximum(np.cos(error), 0.2)
    return np.clip(np.stack([3 * (speed - obs[:, 2]), 3 * error], axis=-1), -1.0, 1.0)


def wandering(std: float = 0.7, memory: float = 0.9) -> Actor:
    """Ornstein-Uhlenbeck actions with the given stationary deviation, two per copy, clipped to [-1, 1]."""
    present = np.zeros((0, 2))

    def act(obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nonlocal present
        if len(present) != len(obs):
            present = std * rng.standard_normal((len(obs), 2))
        present = memory * present + std * np.sqrt(1 - memory**2) * rng.standard_normal(present.shape)
        return np.clip(present, -1.0, 1.0)

    return act


def comb_lock_solution(world: CombLock) -> np.ndarray:
    """(N, 10) the hidden good action at +1 and the others at -1; action 0 where the episode is lost."""
    step = np.minimum(world.arrays["elapsed"], world.horizon - 1)
    good = np.maximum(world.solution[step, world.arrays["latent"]], 0)
    return np.where(np.arange(ACTIONS) == good[:, None], 1.0, -1.0)
