"""Traps of control that environments, vector environments and data makers own."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import zerozoo.environments
from zerozoo.environments import data
from zerozoo.environments.batched.pendulum import Pendulum
from zerozoo.environments.batched.point_maze import PointMaze
from zerozoo.environments.make import make
from zerozoo.environments.mazes import Maze
from zerozoo.environments.vector import VecEnv
from zerozoo.runs.errors import UserError

SOURCES = {
    "batched": lambda limit: Pendulum(3, time_limit=limit),
    "gymnasium": lambda limit: [lambda: make("Pendulum-v1", max_episode_steps=limit)] * 3,
}
both_kinds = pytest.mark.parametrize("make_source", SOURCES.values(), ids=SOURCES)


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@both_kinds
def test_trap_04_no_transition_crosses_a_reset(make_source: Any) -> None:
    """Mistake: NEXT_STEP autoreset makes a ghost step after every end. Rule: N calls give N real transitions."""
    vec = VecEnv(make_source(5), stream())
    obs = vec.reset()
    for call in range(1, 24):
        action = stream(call).uniform(-1, 1, size=(3, 1))
        step = vec.step(action)
        # Each stored pair obeys the pendulum's law: no row joins two episodes, none is without effect.
        angle, torque = np.arctan2(obs[:, 1], obs[:, 0]).astype(np.float64), 2 * action[:, 0]
        velocity = np.clip(obs[:, 2] + (15 * np.sin(angle) + 3 * torque) * 0.05, -8, 8)
        assert step.next_obs[:, 2] == pytest.approx(velocity, abs=1e-4)
        assert step.next_obs[:, 0] == pytest.approx(np.cos(angle + 0.05 * velocity), abs=1e-4)
        assert (step.truncated == (call % 5 == 0)).all()
        assert (step.lengths == (call - 1) % 5 + 1).all()
        assert np.array_equal(step.obs, step.next_obs) == (call % 5 != 0)
        obs = step.obs


@both_kinds
def test_trap_05_episodes_are_counted_without_info(make_source: Any) -> None:
    """Mistake: `"final_info" in infos` turns silently false. Rule: the wrapper counts, a missing info is an error."""
    vec = VecEnv(make_source(4), stream())
    vec.reset()
    finished: list[float] = []
    running = np.zeros(3)
    for call in range(12):
        step = vec.step(np.full((3, 1), 0.1 * call))
        running += step.reward
        finished += step.returns[step.ended].tolist()
        assert (step.returns[step.ended] == running[step.ended]).all()
        running[step.ended] = 0
    assert len(finished) == 9
    vec = VecEnv(make_source(4), stream(), info=("episode",))
    vec.reset()
    with pytest.raises(UserError, match="does not report episode"):
        vec.step(np.zeros((3, 1)))


def test_trap_05_no_word_of_vector_infos_in_the_room() -> None:
    """Mistake: logs hang on the keys of a library's info. Rule: no such key is read anywhere in environments/."""
    words = {"final_info", "final_observation", "final_obs", "terminal_observation", "TimeLimit.truncated", "_episode"}
    for path in Path(zerozoo.environments.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            assert not (isinstance(node, ast.Constant) and node.value in words), path


class Priced(gymnasium.Env[np.ndarray, Any]):
    """Pays a known list of large rewards."""

    REWARDS = (100.0, -3.5, 0.0, 1e6)

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.paid = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.paid += 1
        return np.zeros(1, dtype=np.float32), self.REWARDS[self.paid - 1], self.paid == 4, False, {}


def test_trap_08_returns_are_in_the_rewards_of_the_environment() -> None:
    """Mistake: returns of normalised rewards are reported as scores. Rule: rewards pass every wrapper untouched."""
    vec = VecEnv([Priced, Priced], stream())
    vec.reset()
    steps = [vec.step(np.zeros(2, dtype=np.int64)) for _ in range(8)]
    assert [step.reward[0] for step in steps] == [*Priced.REWARDS] * 2
    assert [step.returns[0] for step in steps if step.ended[0]] == [1_000_096.5] * 2


def test_trap_09_reward_of_data_and_of_environment_are_the_same() -> None:
    """Mistake: data are shifted to -1/0 and the environment is not. Rule: both give the raw 0/1 of one function."""
    goal = (1, 1)
    episodes = data.undirected(stream(), 6000, goal_cell=goal, copies=20)
    world = PointMaze(1, "umaze", goal_cells=[goal])
    world.reset(stream())
    checked = 0
    for episode in episodes:
        obs, action = episode["obs"].astype(np.float64), episode["action"]
        for step in {0, len(action) - 1}:
            state = dict(zip(("x", "y", "vx", "vy"), obs[step][:, None], strict=True))
            world.load_state({**world.state(), **state})
            outcome = world.step(action[step : step + 1])
            assert outcome.reward[0] == episode["reward"][step]
            assert outcome.terminated[0] == episode["terminated"][step]
            checked += int(episode["reward"][step])
    assert checked > 5
    assert {float(value) for episode in episodes for value in episode["reward"]} == {0.0, 1.0}


def test_trap_10_the_last_partial_episode_stays_in_the_data() -> None:
    """Mistake: the running episode at the end is dropped from data and return range. Rule: it is kept as truncated."""
    episodes = data.record(Pendulum(2, time_limit=30), lambda obs, rng: np.zeros((2, 1)), stream(), 50)
    assert [len(episode["reward"]) for episode in episodes] == [30, 20, 30, 20]
    assert [bool(episode["truncated"][-1]) for episode in episodes] == [True] * 4
    assert [len(episode["obs"]) for episode in episodes] == [31, 21, 31, 21]


@both_kinds
def test_trap_26_episodes_do_not_begin_in_the_same_states(make_source: Any) -> None:
    """Mistake: evaluation re-seeds the same starts each time. Rule: seeds are given, later resets draw fresh ones."""
    vec = VecEnv(make_source(2), stream())
    first = vec.reset([10_000_000, 10_000_001, 10_000_002])
    assert len(np.unique(first, axis=0)) == 3
    starts = [first]
    for _ in range(3):
        vec.step(np.zeros((3, 1)))
        starts.append(vec.step(np.zeros((3, 1))).obs)
    assert len(np.unique(np.concatenate(starts), axis=0)) == 12
    assert np.array_equal(vec.reset([10_000_000, 10_000_001, 10_000_002]), first)  # the same seeds, the same starts
    other = VecEnv(make_source(2), stream(5))
    assert np.array_equal(other.reset([10_000_002, 10_000_000, 10_000_001]), first[[2, 0, 1]])


def test_trap_25_data_and_resets_draw_from_the_given_generator_alone() -> None:
    """Mistake: global random state moves with evaluation. Rule: numpy's global stream is neither read nor moved."""
    before = np.random.get_state()[1].copy()
    first = data.undirected(stream(7), 2000, goal_cell=(1, 1), copies=10)
    np.random.seed(3)
    moved = np.random.get_state()[1].copy()
    again = data.undirected(stream(7), 2000, goal_cell=(1, 1), copies=10)
    vec = VecEnv(Pendulum(3, time_limit=1), stream())
    vec.reset()
    vec.step(np.zeros((3, 1)))
    assert np.array_equal(np.random.get_state()[1], moved)
    assert not np.array_equal(before, moved)
    assert all(np.array_equal(a["obs"], b["obs"]) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("limit", [7, 6])
def test_trap_29_success_at_the_last_allowed_step_is_no_timeout(limit: int) -> None:
    """Mistake: `done and step < max_steps` calls the last step a timeout. Rule: the environment's own two flags."""
    goal = Maze("umaze").centre((1, 3))
    world = PointMaze(1, "umaze", start_cells=[(1, 1)], goal_cells=[(1, 3)], start_noise=0, time_limit=limit)
    vec = VecEnv(world, stream(), info=("success",))
    vec.reset()
    world.arrays["x"][:], world.arrays["vx"][:] = goal[0] - 0.45 - 0.33, 5.0  # 0.33 away at 0.05 a step: 7 steps
    for _ in range(limit):
        step = vec.step(np.array([[0.0, 0.0]]))
    assert step.ended[0]
    assert step.lengths[0] == limit
    assert step.terminated[0] == step.info["success"][0] == (limit == 7)
    assert step.truncated[0] == (limit == 6)
    assert step.returns[0] == (limit == 7)


def test_trap_29_terminated_wins_where_an_environment_says_both() -> None:
    """Mistake: the time limit's flag hides the end of an episode. Rule: terminated wins."""
    vec = VecEnv([lambda: gymnasium.wrappers.TimeLimit(Priced(), 4)], stream())
    vec.reset()
    for _ in range(4):
        step = vec.step(np.zeros(1, dtype=np.int64))
    assert (step.terminated[0], step.truncated[0]) == (True, False)
