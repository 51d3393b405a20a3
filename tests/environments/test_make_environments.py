from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from zerozoo.environments.batched.world import OneCopy
from zerozoo.environments.make import WORLDS, make, make_batched
from zerozoo.environments.wrappers import StandardEnv, environment_name, standard
from zerozoo.runs.errors import UserError


class Fake(gymnasium.Env[Any, Any]):
    """Returns what it is told to and keeps the actions that it gets."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any], obs: Any = None) -> None:
        self.observation_space, self.action_space = observation, action
        self.obs = observation.sample() if obs is None else obs
        self.reward: float = 1.5
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.obs, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        return self.obs, self.reward, False, False, {"kept": 1}


BOX = spaces.Box(-1.0, 1.0, (2,))


def test_continuous_actions_are_stretched_and_clipped() -> None:
    native = spaces.Box(np.array([[-2.0, 0.0]]), np.array([[2.0, 10.0]]), dtype=np.float64)
    inner = Fake(BOX, native)
    env = StandardEnv(inner)
    assert env.action_space == BOX
    env.reset()
    for action in ([-1.0, -1.0], [0.5, 0.0], [7.0, -3.0]):
        env.step(np.array(action))
    assert [action.tolist() for action in inner.actions] == [[[-2, 0]], [[1, 5]], [[2, 0]]]
    assert all(action in native for action in inner.actions)


def test_discrete_actions_start_at_zero() -> None:
    inner = Fake(BOX, spaces.Discrete(3, start=5))
    env = StandardEnv(inner)
    env.reset()
    env.step(np.int64(2))
    assert env.action_space == spaces.Discrete(3)
    assert inner.actions == [7]


def test_observations_become_flat_float32_vectors() -> None:
    wide = StandardEnv(Fake(spaces.Box(-1, 1, (2, 3), dtype=np.float64), BOX))
    assert wide.reset()[0].shape == wide.observation_space.shape == (6,)
    assert wide.reset()[0].dtype == np.float32
    one_hot = StandardEnv(Fake(spaces.Discrete(4), BOX, obs=2))
    assert one_hot.reset()[0].tolist() == [0, 0, 1, 0]
    memory = StandardEnv(Fake(spaces.Box(0, 255, (128,), dtype=np.uint8), BOX))
    assert memory.reset()[0].dtype == np.float32
    image = Fake(spaces.Box(0, 255, (8, 8, 3), dtype=np.uint8), BOX)
    obs, _ = StandardEnv(image).reset()
    assert (obs.dtype, obs.shape) == (np.uint8, (8, 8, 3))
    assert obs is not image.obs  # the environment may write over its own array


def test_dictionaries_are_chosen_from_by_name() -> None:
    space = spaces.Dict(
        {"goal": spaces.Box(-9, 9, (2,)), "place": spaces.Box(-9, 9, (1,)), "list": spaces.Sequence(BOX)}
    )
    fake = Fake(space, BOX, obs={"goal": np.array([1.0, 2.0]), "place": np.array([3.0]), "list": ()})
    env = StandardEnv(fake, observation_keys=("place", "goal"))
    assert env.reset()[0].tolist() == [3, 1, 2]  # in the order asked for
    assert env.observation_space.shape == (3,)
    with pytest.raises(UserError, match=r"Fake gives several observations \(goal, list, place\)"):
        StandardEnv(fake)
    with pytest.raises(UserError, match=r"observation_keys \['goals'\] of Fake must be some of: goal, list, place"):
        StandardEnv(fake, observation_keys=("goals",))
    with pytest.raises(UserError, match="cannot be made a vector"):
        StandardEnv(fake, observation_keys=("list", "goal"))
    with pytest.raises(UserError, match="no dictionary observations"):
        StandardEnv(Fake(BOX, BOX), observation_keys=("place",))


def test_actions_that_do_not_fit_are_named() -> None:
    for space in (spaces.Box(-np.inf, np.inf, (2,)), spaces.MultiDiscrete([2, 3])):
        with pytest.raises(UserError, match="Fake needs discrete actions or a box of finite bounds"):
            StandardEnv(Fake(BOX, space))


def test_what_an_environment_does_wrong_is_named() -> None:
    fake = Fake(BOX, BOX, obs=np.zeros(2))
    env = StandardEnv(fake)
    env.reset()
    env.step(np.zeros(2))
    fake.obs = np.array([0.0, np.nan])
    with pytest.raises(UserError, match="Fake gave an observation with NaN or inf in step 2 of its episode"):
        env.step(np.zeros(2))
    with pytest.raises(UserError, match="Fake gave an observation with NaN or inf at reset"):
        env.reset()
    fake.obs, fake.reward = np.zeros(2), np.nan
    env.reset()
    with pytest.raises(UserError, match="Fake gave the reward nan in step 1"):
        env.step(np.zeros(2))
    del fake.obs
    with pytest.raises(UserError, match="Fake failed at reset: AttributeError"):
        env.reset()


def test_make_gives_worlds_and_gymnasium_environments() -> None:
    for name in WORLDS:
        if name != "levels":
            env = make(name)
            assert isinstance(env, OneCopy)
            assert env.reset(seed=0)[0] in env.observation_space
    assert make("point-maze", layout="medium").world.name == environment_name(make("point-maze-medium"))
    assert make_batched("pendulum", 7, gravity=5.0).gravity == 5.0
    env = make("Pendulum-v1", max_episode_steps=3)
    assert environment_name(env) == "Pendulum-v1"
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(3)] == [False, False, True]
    assert standard(env) is env
    world = make("pendulum")
    assert standard(world) is world


def test_pendulum_of_both_kinds_is_the_same() -> None:
    ours, theirs = make("pendulum"), make("Pendulum-v1")
    assert np.allclose(ours.reset(seed=1)[0], theirs.reset(seed=1)[0], atol=1e-6)
    for action in np.linspace(-1.5, 1.5, 20, dtype=np.float32)[:, None]:
        a, b = ours.step(action), theirs.step(action)
        assert np.allclose(a[0], b[0], atol=1e-6)
        assert a[1] == pytest.approx(b[1], abs=1e-6)


def test_make_with_robotics_packages() -> None:
    env = make("PointMaze_UMaze-v3", observation_keys=("observation", "desired_goal"))
    assert env.reset(seed=0)[0].shape == (6,)
    with pytest.raises(UserError, match="choose some with observation_keys"):
        make("PointMaze_UMaze-v3")


def test_make_says_what_is_wrong() -> None:
    with pytest.raises(UserError, match=r"'Pendulm-v1' cannot be made: .*Worlds of this library: pendulum"):
        make("Pendulm-v1")
    with pytest.raises(UserError, match="'CartPole-v1' cannot be made: .*wheels"):
        make("CartPole-v1", wheels=4)
    with pytest.raises(UserError, match="'pendulum' cannot be made with these options: got an unexpected keyword"):
        make("pendulum", wheels=4)
    with pytest.raises(UserError, match="'levels' cannot be made with these options: missing a required argument"):
        make("levels")
    with pytest.raises(UserError, match="Unknown world 'CartPole-v1'"):
        make_batched("CartPole-v1", 3)


def test_the_room_does_not_import_optional_packages() -> None:
    """In a fresh interpreter: everything here imports without the extra."""
    import subprocess

    code = (
        "import sys, zerozoo.environments.make, zerozoo.environments.vector, zerozoo.environments.data;"
        "print([name for name in ('minigrid', 'pygame', 'mujoco', 'gymnasium_robotics') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
