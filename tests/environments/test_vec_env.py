from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from zerozoo.environments.batched.comb_lock import CombLock
from zerozoo.environments.batched.pendulum import Pendulum
from zerozoo.environments.batched.point_maze import PointMaze
from zerozoo.environments.make import make
from zerozoo.environments.vector import VecEnv
from zerozoo.runs.errors import DivergedError, UserError


class Counter(gymnasium.Env[np.ndarray, Any]):
    """Observes (episode's number, step); ends after `length` steps; the reward is the action."""

    def __init__(self, length: int = 3, repeatable: bool = True) -> None:
        self.observation_space = spaces.Box(-1e9, 1e9, (2,), dtype=np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.length, self.repeatable, self.resets = length, repeatable, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.resets += 1
        self.number = int(self.np_random.integers(1000)) if self.repeatable else self.resets
        self.steps = 0
        return np.array([self.number, 0.0]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        done = self.steps >= self.length
        return (
            np.array([self.number, self.steps], dtype=np.float64),
            float(action[0]),
            done,
            done,
            {"twice": self.steps},
        )


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_step_keeps_the_successor_and_what_to_act_on_apart() -> None:
    vec = VecEnv([lambda: Counter(2), lambda: Counter(3)], stream(), info=("twice",))
    obs = vec.reset([5, 6])
    numbers = obs[:, 0].tolist()
    first = vec.step(np.array([[0.5], [-1.0]]))
    assert first.next_obs.tolist() == first.obs.tolist() == [[numbers[0], 1], [numbers[1], 1]]
    assert not first.ended.any()
    second = vec.step(np.array([[0.25], [-1.0]]))
    assert second.next_obs.tolist() == [[numbers[0], 2], [numbers[1], 2]]
    assert second.terminated.tolist() == [True, False]
    assert second.truncated.tolist() == [False, False]  # terminated wins where the environment says both
    assert second.obs[0, 1] == 0
    assert second.obs[0, 0] != numbers[0]
    assert second.obs[1].tolist() == second.next_obs[1].tolist()
    assert second.returns.tolist() == [0.75, -2.0]
    assert second.lengths.tolist() == [2, 2]
    assert second.info["twice"].tolist() == [2, 2]
    third = vec.step(np.array([[1.0], [0.5]]))
    assert third.returns.tolist() == [1.0, -1.5]
    assert third.lengths.tolist() == [1, 3]
    assert third.next_obs[0].tolist() == [second.obs[0, 0], 1]


def test_counts_of_a_batched_world() -> None:
    vec = VecEnv(CombLock(50, horizon=3, dense=True), stream(), info=("success",))
    vec.reset()
    total = np.zeros(50)
    for step in range(1, 10):
        outcome = vec.step(stream(step).uniform(-1, 1, size=(50, 10)))
        total += outcome.reward
        assert np.array_equal(outcome.returns, total)
        assert (outcome.lengths == (step - 1) % 3 + 1).all()
        assert (outcome.ended == (step % 3 == 0)).all()
        if step % 3 == 0:
            total[:] = 0
            assert outcome.info["success"].shape == (50,)


def test_the_two_kinds_agree() -> None:
    """A batched world and the same number of single environments: equal until the first reset without seeds."""
    kinds = [
        VecEnv(PointMaze(3, "umaze"), stream(), info=("success",)),
        VecEnv([lambda: make("point-maze-umaze")] * 3, stream(), info=("success",)),
    ]
    assert kinds[0].name == kinds[1].name
    observations = [vec.reset([1, 2, 3]) for vec in kinds]
    assert np.array_equal(*observations)
    for step in range(50):
        action = stream(step).uniform(-1, 1, size=(3, 2))
        a, b = (vec.step(action) for vec in kinds)
        for name in ("next_obs", "reward", "terminated", "truncated", "obs", "returns", "lengths"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
        assert np.array_equal(a.info["success"], b.info["success"])


@pytest.mark.parametrize("batched", [True, False])
def test_the_same_stream_gives_the_same_episodes(batched: bool) -> None:
    def starts(seed: int) -> np.ndarray:
        source = Pendulum(4, time_limit=2) if batched else [lambda: make("pendulum", time_limit=2)] * 4
        vec = VecEnv(source, stream(seed))
        found = [vec.reset()]
        for _ in range(6):
            step = vec.step(np.zeros((4, 1)))
            found += [step.obs] if step.ended.all() else []
        return np.concatenate(found)

    assert np.array_equal(starts(1), starts(1))
    assert len(np.unique(np.concatenate([starts(1), starts(2)]), axis=0)) == 32  # no start comes twice


SOURCES = {
    "batched": lambda: PointMaze(3, "umaze", time_limit=20),
    "classic": lambda: [lambda: make("CartPole-v1")] * 3,
    "mujoco": lambda: [lambda: make("InvertedPendulum-v5")] * 3,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_resume_is_exact(kind: str) -> None:

    def actions(vec: VecEnv, step: int) -> np.ndarray:
        rng = stream(step)
        discrete = isinstance(vec.action_space, spaces.Discrete)
        return rng.integers(2, size=3) if discrete else rng.uniform(-1, 1, size=(3, *vec.action_space.shape))

    generator = stream()
    vec = VecEnv(SOURCES[kind](), generator)
    vec.reset()
    ends = sum(vec.step(actions(vec, step)).ended.sum() for step in range(31))
    assert ends > 0
    state, random = vec.state(), generator.bit_generator.state
    expected = [vec.step(actions(vec, step)) for step in range(31, 70)]
    assert sum(step.ended.sum() for step in expected) > 0

    other_generator = stream(99)
    other = VecEnv(SOURCES[kind](), other_generator)
    other_generator.bit_generator.state = random
    assert np.array_equal(other.load_state(state), state["obs"])
    saved_again = other.state()
    assert set(saved_again) == set(state)
    assert all(np.array_equal(saved_again[name], state[name]) for name in state)
    for step, outcome in enumerate(expected, start=31):
        again = other.step(actions(other, step))
        for name in ("next_obs", "reward", "terminated", "truncated", "obs", "returns", "lengths"):
            assert np.array_equal(getattr(again, name), getattr(outcome, name)), name
    assert other_generator.bit_generator.state == generator.bit_generator.state


def test_what_a_seed_does_not_fix_starts_again() -> None:
    makers = [lambda: Counter(9), lambda: Counter(9, repeatable=False)]
    vec = VecEnv(makers, stream())
    vec.reset()
    for _ in range(2):
        vec.step(np.ones((2, 1)))
    state = vec.state()
    other = VecEnv(makers, stream(1))
    other._source.envs[1].unwrapped.resets = 5
    obs = other.load_state(state)
    assert obs[0].tolist() == state["obs"][0].tolist()
    assert obs[1, 1] == 0
    step = other.step(np.ones((2, 1)))
    assert step.returns.tolist() == [3.0, 1.0]
    assert step.lengths.tolist() == [3, 1]
    with pytest.raises(UserError, match="are not 1 copies of"):
        VecEnv(makers[:1], stream()).load_state(state)


def test_errors_name_environment_and_step() -> None:
    class Broken(Counter):
        def step(self, action: np.ndarray) -> Any:
            if self.steps == 1:
                raise RuntimeError("the motor is off")
            return super().step(action)

    vec = VecEnv([Broken], stream())
    vec.reset()
    vec.step(np.zeros((1, 1)))
    with pytest.raises(UserError, match=r"Broken failed in step 2 of its episode: RuntimeError: the motor is off"):
        vec.step(np.zeros((1, 1)))

    class Lost(Pendulum):
        def _observe(self) -> np.ndarray:
            obs = super()._observe()
            obs[1, 2] = np.nan if self.arrays["elapsed"][1] == 3 else 0
            return obs

    vec = VecEnv(Lost(2), stream())
    vec.reset()
    vec.step(np.zeros((2, 1)))
    vec.step(np.zeros((2, 1)))
    with pytest.raises(UserError, match="pendulum gave NaN or inf in step 3 of copy 1"):
        vec.step(np.zeros((2, 1)))


def test_bad_calls_are_named() -> None:
    vec = VecEnv(Pendulum(2), stream(), info=("success", "cost"))
    vec.reset()
    with pytest.raises(UserError, match="pendulum does not report cost, success in its info"):
        vec.step(np.zeros((2, 1)))
    vec = VecEnv([lambda: make("CartPole-v1")], stream(), info=("success",))
    vec.reset()
    with pytest.raises(UserError, match="CartPole-v1 does not report success"):
        vec.step(np.zeros(1, dtype=np.int64))
    with pytest.raises(ValueError, match="float64 actions"):
        vec.step(np.zeros(1))
    with pytest.raises(ValueError, match=r"shape \(1, 1\) for 1 copies"):
        vec.step(np.zeros((1, 1), dtype=np.int64))
    vec = VecEnv(Pendulum(2), stream())
    vec.reset()
    with pytest.raises(DivergedError, match="pendulum an action that is not a finite number"):
        vec.step(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError):
        vec.reset([1])
    with pytest.raises(UserError, match="At least one"):
        VecEnv([], stream())
    with pytest.raises(UserError, match="other observations or actions than CartPole-v1"):
        VecEnv([lambda: make("CartPole-v1"), lambda: make("pendulum")], stream())


def test_close_reaches_every_environment() -> None:
    closed = []

    class Closing(Counter):
        def close(self) -> None:
            closed.append(self)

    VecEnv([Closing, Closing], stream()).close()
    VecEnv(Pendulum(1), stream()).close()
    assert len(closed) == 2
