"""Point robots with a hidden task: the steps by hand, the oracle, the data, the state."""

from __future__ import annotations

import numpy as np
import pytest

from zerozoo.environments.batched.point_tasks import FAMILIES, STEP, TURN_GOAL, PointTasks, draw_tasks
from zerozoo.environments.data import record
from zerozoo.runs.errors import UserError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_goals_differ_in_the_reward_and_not_in_the_steps() -> None:
    world = PointTasks(3, "goals", np.array([[0.3, 0.4], [-0.6, 0.0]]))
    assert world.reset(rng()).tolist() == [[0, 0]] * 3
    outcome = world.step(np.array([[1.0, -0.5]] * 3))
    np.testing.assert_allclose(outcome.next_obs, [[0.1, -0.05]] * 3, rtol=1e-6)
    away = np.array([[0.2, 0.45], [-0.7, 0.05], [0.2, 0.45]])
    np.testing.assert_allclose(outcome.reward, -np.hypot(*away.T))
    assert outcome.info["task"].tolist() == [0, 1, 0]


def test_turns_differ_in_the_steps_and_not_in_the_goal() -> None:
    quarter, half = [0.0, 1.0], [-1.0, 0.0]
    world = PointTasks(2, "turns", np.array([quarter, half]))
    world.reset(rng())
    outcome = world.step(np.array([[1.0, 0.5]] * 2))
    np.testing.assert_allclose(outcome.next_obs, [[-0.05, 0.1], [-0.1, -0.05]], atol=1e-7)
    np.testing.assert_allclose(outcome.reward, -np.linalg.norm(outcome.next_obs - TURN_GOAL, axis=1), rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_oracle_goes_straight_and_stays(family: str) -> None:
    world = PointTasks(40, family, draw_tasks(family, 40, rng(1)))
    obs = world.reset(rng())
    for step in range(1, world.time_limit + 1):
        action = world.oracle(obs, rng())
        assert np.abs(action).max() <= 1
        outcome = world.step(action)
        obs = outcome.next_obs
        direct = np.linalg.norm(world.goal, axis=1)
        assert (-outcome.reward <= np.maximum(direct - STEP * step, 0) + 1e-6).all()  # at least 0.1 a step
        cross = obs[:, 0] * world.goal[:, 1] - obs[:, 1] * world.goal[:, 0]
        assert np.abs(cross).max() < 1e-6  # on the line from the start
        assert outcome.truncated.all() == (step == 20)
    assert np.abs(outcome.reward).max() < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_data_is_of_middling_skill(family: str) -> None:
    tasks = draw_tasks(family, 10, rng(2))
    returns = {}
    for name in ("medium", "oracle", "random"):
        world = PointTasks(1000, family, tasks)
        actors = {
            "medium": world.medium(),
            "oracle": world.oracle,
            "random": lambda obs, rng: rng.uniform(-1, 1, size=(len(obs), 2)),
        }
        episodes = record(world, actors[name], rng(3), 20)
        returns[name] = np.mean([episode["reward"].sum() for episode in episodes])
        assert [episode["extras"]["task"][0] for episode in episodes] == [copy % 10 for copy in range(1000)]
        assert all(len(episode["reward"]) == 20 and episode["truncated"][-1] for episode in episodes)
    assert returns["random"] + 3 < returns["medium"] < returns["oracle"] - 1


def test_the_share_of_random_actions_stays_with_the_copy() -> None:
    world = PointTasks(2000, "goals", np.array([[1.0, 1.0]]))
    actor, generator = world.medium(noise=0.0, most_random=0.6), rng(4)
    obs = world.reset(generator)
    odd = np.zeros(2000)
    for _ in range(10):
        action = actor(obs, generator)
        odd += np.abs(action - np.sqrt(0.5)).max(axis=1) > 1e-6
        world.reset(generator)
    assert odd.mean() / 10 == pytest.approx(0.3, abs=0.02)
    expected = 10 * (0.3 - 0.6**2 / 3) + 100 * 0.6**2 / 12  # binomial, and the spread of the shares
    assert odd.var() == pytest.approx(expected, rel=0.1)


def test_state_and_what_cannot_be() -> None:
    world = PointTasks(5, "turns", draw_tasks("turns", 5, rng()))
    world.reset(rng())
    seen = world.step(np.ones((5, 2))).next_obs
    assert np.array_equal(PointTasks(5, "turns", world.tasks).load_state(world.state()), seen)
    assert (seen[0] in world.observation_space, world.action_space.shape) == (True, (2,))
    np.testing.assert_allclose(np.hypot(*draw_tasks("turns", 50, rng()).T), 1)
    assert np.abs(draw_tasks("goals", 500, rng())).max() == pytest.approx(1, abs=0.01)
    with pytest.raises(UserError, match="Unknown family of tasks 'maze'; choose from: goals, turns"):
        draw_tasks("maze", 1, rng())
    with pytest.raises(UserError, match="Unknown family of tasks 'maze'"):
        PointTasks(1, "maze", np.zeros((1, 2)))
    with pytest.raises(UserError, match=r"point-goals needs tasks of shape \(number, 2\), not \(2,\)"):
        PointTasks(1, "goals", np.zeros(2))
