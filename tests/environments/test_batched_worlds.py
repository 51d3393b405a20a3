from __future__ import annotations

import warnings
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from zerozoo.environments.batched import hazards
from zerozoo.environments.batched.comb_lock import CombLock, hadamard
from zerozoo.environments.batched.hazards import Hazards, constraint
from zerozoo.environments.batched.pendulum import Pendulum
from zerozoo.environments.batched.point_maze import PointMaze
from zerozoo.environments.batched.world import BatchedWorld, OneCopy
from zerozoo.environments.controllers import comb_lock_solution
from zerozoo.runs.errors import UserError

WORLDS: dict[str, Callable[[int], BatchedWorld]] = {
    "pendulum": lambda copies: Pendulum(copies, time_limit=30),
    "maze": lambda copies: PointMaze(copies, "umaze", observe_goal=True, goal_noise=0.2, time_limit=30),
    "hazards": lambda copies: Hazards(copies, time_limit=30),
    "comb-lock": lambda copies: CombLock(copies, horizon=4),
}
world_kinds = pytest.mark.parametrize("make_world", WORLDS.values(), ids=WORLDS)


def actions_of(world: BatchedWorld, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, size=(world.copies, *world.action_space.shape)).astype(np.float32)


@pytest.mark.parametrize("parameters", [{}, {"gravity": 5.0, "mass": 0.5, "length": 1.5}])
def test_pendulum_equals_gymnasium_step_for_step(parameters: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    seeds = [3, 4, 5, 6]
    world = Pendulum(4, **parameters)
    obs = world.reset_seeded(seeds)
    environments = [gymnasium.make("Pendulum-v1", disable_env_checker=True) for _ in seeds]
    expected = []
    for env, seed in zip(environments, seeds, strict=True):
        expected.append(env.reset(seed=seed)[0])
        if parameters:
            env.unwrapped.g, env.unwrapped.m, env.unwrapped.l = parameters.values()
    assert np.abs(obs - np.array(expected)).max() < 1e-6
    for step in range(200):
        action = rng.uniform(-1.2, 1.2, size=(4, 1))  # beyond the limits too
        outcome = world.step(action)
        assert outcome.next_obs.dtype == np.float32
        for copy, env in enumerate(environments):
            next_obs, reward, terminated, truncated, _ = env.step(2 * action[copy])
            assert np.abs(outcome.next_obs[copy] - next_obs).max() < 1e-6
            state = [world.arrays["angle"][copy], world.arrays["velocity"][copy]]
            assert np.abs(np.array(state) - env.unwrapped.state).max() < 1e-6
            assert abs(outcome.reward[copy] - reward) < 1e-6
            assert (outcome.terminated[copy], outcome.truncated[copy]) == (terminated, truncated)
            assert truncated == (step == 199)


@world_kinds
def test_one_copy_passes_the_checker_of_gymnasium(make_world: Callable[[int], BatchedWorld]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*(minimum|maximum) value is -?infinity.*")
        warnings.filterwarnings("ignore", message=".*not specified.*")  # spec and render modes
        check_env(OneCopy(make_world(1)), skip_render_check=True)


@world_kinds
def test_a_copy_does_not_feel_the_others(make_world: Callable[[int], BatchedWorld]) -> None:
    """Copy n with seed s is the single environment with seed s, to the last bit."""
    world, rng = make_world(3), np.random.default_rng(1)
    obs = world.reset_seeded([11, 12, 13])
    singles = [OneCopy(make_world(1)) for _ in range(3)]
    for copy, single in enumerate(singles):
        assert np.array_equal(single.reset(seed=11 + copy)[0], obs[copy])
    for _ in range(4):
        action = actions_of(world, rng)
        outcome = world.step(action)
        for copy, single in enumerate(singles):
            next_obs, reward, terminated, truncated, info = single.step(action[copy])
            assert np.array_equal(next_obs, outcome.next_obs[copy])
            assert next_obs in single.observation_space
            assert (reward, terminated, truncated) == (
                outcome.reward[copy],
                outcome.terminated[copy],
                outcome.truncated[copy],
            )
            assert info == {name: values[copy] for name, values in outcome.info.items()}


@world_kinds
def test_reset_of_some_copies_leaves_the_others(make_world: Callable[[int], BatchedWorld]) -> None:
    world, rng = make_world(5), np.random.default_rng(2)
    world.reset(rng)
    before = world.step(actions_of(world, rng)).next_obs
    mask = np.array([True, False, True, False, False])
    after = world.reset(rng, mask)
    assert np.array_equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).any(axis=1).all()
    assert world.arrays["elapsed"].tolist() == [0, 1, 0, 1, 1]


@world_kinds
def test_state_comes_back_exactly(make_world: Callable[[int], BatchedWorld]) -> None:
    world, rng = make_world(4), np.random.default_rng(3)
    world.reset(rng)
    seen = world.step(actions_of(world, rng)).next_obs
    state = world.state()
    actions = [actions_of(world, rng) for _ in range(3)]
    expected = [world.step(action) for action in actions]
    other = make_world(4)
    assert np.array_equal(other.load_state(state), seen)
    for action, outcome in zip(actions, expected, strict=True):
        again = other.step(action)
        assert all(np.array_equal(a, b) for a, b in zip(again[:4], outcome[:4], strict=True))
    with pytest.raises(UserError, match="does not belong to the world"):
        make_world(3).load_state(state)
    with pytest.raises(UserError, match="does not belong to the world"):
        other.load_state({**state, "more": state["elapsed"]})


@world_kinds
def test_the_time_limit_truncates_unless_the_episode_terminates(make_world: Callable[[int], BatchedWorld]) -> None:
    world, rng = make_world(200), np.random.default_rng(4)
    world.reset(rng)
    over = np.zeros(200, dtype=bool)
    for step in range(1, world.time_limit + 1):
        outcome = world.step(actions_of(world, rng))
        assert not (outcome.terminated & outcome.truncated).any()
        assert (outcome.truncated == ((step == world.time_limit) & ~outcome.terminated)).all()
        over |= outcome.terminated | outcome.truncated
    assert over.all()


def test_bad_calls_are_named() -> None:
    world = Pendulum(2)
    world.reset(np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"shape \(2,\) for 2 copies"):
        world.step(np.zeros(2))
    with pytest.raises(ValueError, match="3 seeds for 2 copies"):
        world.reset_seeded([1, 2, 3])
    with pytest.raises(UserError, match="must be at least 1"):
        Pendulum(0)
    with pytest.raises(UserError, match="horizon of a comb lock"):
        CombLock(1, horizon=0)
    with pytest.raises(ValueError, match="one copy"):
        OneCopy(world)


def placed(world: BatchedWorld, **arrays: float) -> BatchedWorld:
    """The world with every copy in the given state."""
    world.reset(np.random.default_rng(0))
    world.load_state({**world.state(), **{name: np.full(world.copies, value) for name, value in arrays.items()}})
    return world


def test_hazards_step_by_hand() -> None:
    world = placed(Hazards(1), x=-1.0, y=0.5, speed=1.2, heading=np.pi / 2)
    obs, reward, terminated, truncated, info = world.step(np.array([[0.5, -1.0]]))
    # The old speed and heading move it: y = 0.5 + 0.05 * 1.2.
    assert obs[0, :3] == pytest.approx([-1.0, 0.56, 1.225], abs=1e-6)
    heading = np.pi / 2 - 0.05
    assert obs[0, 3:5] == pytest.approx([np.cos(heading), np.sin(heading)], abs=1e-6)
    assert reward[0] == pytest.approx(np.hypot(3.2, 1.7) - np.hypot(3.2, 1.64))
    # Second hazard (-0.4, 1.2): 0.6 to the right, 0.64 ahead along y.
    assert obs[0, 8] == pytest.approx(np.hypot(0.6, 0.64), abs=1e-6)
    bearing = np.arctan2(0.64, 0.6) - heading
    assert obs[0, 9:] == pytest.approx([np.cos(bearing), np.sin(bearing)], abs=1e-6)
    assert constraint(obs)[0] == pytest.approx(0.8 - np.hypot(0.6, 0.64), abs=1e-6)
    assert (info["cost"][0], terminated[0], truncated[0]) == (0.0, False, False)


def test_hazards_costs_and_ends() -> None:
    inside = placed(Hazards(1), x=-0.4, y=1.0, speed=1.0, heading=np.pi / 2).step(np.zeros((1, 2)))
    assert inside.info["cost"][0] == 1.0
    assert constraint(inside.next_obs)[0] > 0
    assert not inside.terminated[0]
    arrival = placed(Hazards(1), x=2.2, y=1.85, speed=2.0, heading=np.pi / 2).step(np.zeros((1, 2)))
    assert arrival.reward[0] == pytest.approx(1.1)  # 0.1 nearer, and 1 for the arrival
    assert arrival.terminated[0]
    assert arrival.info["success"][0]
    outside = placed(Hazards(1), x=0.0, y=2.95, speed=2.0, heading=np.pi / 2).step(np.zeros((1, 2)))
    assert outside.terminated[0]
    assert not outside.info["success"][0]
    starts = Hazards(4000).reset(np.random.default_rng(0))
    assert np.abs(starts[:, :2]).max() <= hazards.EDGE
    assert 0.5 <= starts[:, 2].min() < 0.6
    assert 1.9 < starts[:, 2].max() <= 2.0
    assert starts[:, 4].min() >= np.sin(np.pi / 4) - 1e-6  # headings between 45 and 135 degrees


def test_comb_lock_pays_its_solution_and_little_else() -> None:
    world, rng = CombLock(20_000, horizon=5), np.random.default_rng(5)
    world.reset(rng)
    assert world.arrays["latent"].mean() == pytest.approx(0.5, abs=0.02)
    for step in range(5):
        outcome = world.step(comb_lock_solution(world))
        assert outcome.terminated.all() == (step == 4)
        assert (outcome.reward == 0).all() or step == 4
    # e^10 / (e^10 + 9) = 0.99959 a step, 0.99796 in five.
    assert outcome.info["success"].mean() == pytest.approx(0.99959**5, abs=0.002)
    assert set(np.unique(outcome.reward)) <= {0.0, 0.1, 1.0}
    world.reset(rng)
    for step in range(5):
        outcome = world.step(np.zeros((20_000, 10)))  # every action is equally likely: lost but for 1 in 10^5
        if step == 0:
            alive = world.arrays["latent"] < 2
            assert alive.mean() == pytest.approx(0.1, abs=0.01)
            assert world.arrays["latent"][alive].mean() == pytest.approx(0.5, abs=0.05)  # either good state
    assert outcome.info["success"].sum() <= 3
    assert outcome.reward.mean() == pytest.approx(0.05, abs=0.002)


def test_comb_lock_dense_reward_and_identity() -> None:
    world = CombLock(500, horizon=4, dense=True)
    world.reset(np.random.default_rng(6))
    total = np.zeros(500)
    for _ in range(4):
        total += world.step(comb_lock_solution(world)).reward
    assert total.max() == 1.0
    assert total.mean() > 0.99
    assert np.array_equal(CombLock(1, horizon=6, lock=3).solution, CombLock(9, horizon=6, lock=3).solution)
    assert not np.array_equal(CombLock(1, horizon=6, lock=3).solution, CombLock(1, horizon=6, lock=4).solution)


def test_comb_lock_observations_are_mixed_one_hot_codes() -> None:
    matrix = hadamard(8)
    assert np.array_equal(matrix @ matrix.T, 8 * np.eye(8))
    world = CombLock(4000, horizon=3)  # 3 + 4 coordinates in 8
    obs = world.reset(np.random.default_rng(7))
    assert obs.shape == (4000, 8)
    code = obs @ matrix.T / 8
    expected = np.zeros((4000, 8))
    expected[np.arange(4000), world.arrays["latent"]] = 1
    expected[:, 3] = 1  # step 0
    assert np.abs((code - expected)[:, 7]).max() < 1e-6  # the unused coordinate carries no noise
    assert (code - expected)[:, :7].std() == pytest.approx(0.1, rel=0.05)
    assert (code - expected)[:, :7].mean() == pytest.approx(0.0, abs=0.005)
