"""The evaluator against plain gymnasium loops; and what names of worlds, data and rewards mean."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from zerozoo.control import sources
from zerozoo.control.agents import BC, SAC
from zerozoo.control.episodes import Episode, Episodes
from zerozoo.control.evaluation import EVALUATION_SEED, Evaluator, Played, evaluate, normalised
from zerozoo.control.files import write_npz
from zerozoo.control.sources import MAKERS, RewardTransform, World, open_data
from zerozoo.control.spec import Spec
from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.environments.data import mixed_quality
from zerozoo.environments.make import WORLDS, make
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.statistics import student_quantile

SETTINGS = SimpleNamespace(hidden=(8,), learning_rate=0.01, dropout=0.0)


def agent(spec: Spec) -> BC:
    return BC(spec, SETTINGS, torch.Generator().manual_seed(3))


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def played_alone(env: gymnasium.Env[Any, Any], policy: BC, seed: int) -> tuple[float, int]:
    obs, total, steps, ended = env.reset(seed=seed)[0], 0.0, 0, False
    while not ended:
        action = policy.act(torch.from_numpy(obs)[None], explore=False)[0]
        obs, reward, terminated, truncated, _ = env.step(action.numpy())
        total, steps, ended = total + float(reward), steps + 1, terminated or truncated
    return total, steps


SHORT = [
    World("pendulum", {"time_limit": 30}),
    World("Pendulum-v1", {"max_episode_steps": 30}),
    World("CartPole-v1"),
]


@pytest.mark.parametrize("world", SHORT, ids=lambda world: world.name)
@pytest.mark.parametrize("copies", [1, 3, 5])
def test_side_by_side_equals_one_after_the_other(world: World, copies: int) -> None:
    policy = agent(world.spec())
    played = evaluate(policy, world.vector(copies, stream()), 5)
    alone = [played_alone(world.make(), policy, EVALUATION_SEED + k) for k in range(5)]
    assert played.seeds.tolist() == [EVALUATION_SEED + k for k in range(5)]
    assert played.returns == pytest.approx([total for total, _ in alone], rel=1e-4)
    assert played.lengths.tolist() == [steps for _, steps in alone]
    assert played.success is None


def test_the_same_episodes_every_time_and_other_seeds_are_others() -> None:
    world = SHORT[0]
    policy, environment = agent(world.spec()), world.vector(4, stream())
    first, again = (evaluate(policy, environment, 6).returns for _ in range(2))
    other = evaluate(policy, environment, 6, first_seed=5).returns
    assert np.array_equal(first, again)
    assert not np.isclose(first, other).any()
    assert len(set(first.tolist())) == 6


class Countdown(BatchedWorld):
    """Ends after 1 to 4 steps, drawn at the reset; reward 1 a step; success where it lasted 3 steps or more.

    One that would last 4 steps is cut after the third by the time limit.
    """

    name = "countdown"

    def __init__(self, copies: int) -> None:
        super().__init__(copies, time_limit=3)
        self.observation_space = spaces.Box(-10, 10, (2,))
        self.action_space = spaces.Box(-1, 1, (1,))

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        return {"lasts": rng.integers(1, 5, size=len(copies))}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        elapsed = self.arrays["elapsed"] + 1
        return np.ones(self.copies), elapsed == self.arrays["lasts"], {"success": elapsed >= 3}

    def _observe(self) -> np.ndarray:
        return np.stack([self.arrays["lasts"], self.arrays["elapsed"]], axis=1).astype(np.float32)


@pytest.fixture
def countdown(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setitem(WORLDS, "countdown", Countdown)
    return World("countdown")


def test_the_first_episode_of_each_copy_counts_and_no_later_one(countdown: World) -> None:
    lasts = [int(make("countdown").reset(seed=EVALUATION_SEED + k)[0][0]) for k in range(12)]
    assert set(lasts) == {1, 2, 3, 4}
    for copies in (1, 5, 12, 20):
        environment = countdown.vector(copies, stream(), ["success"])
        played = evaluate(agent(countdown.spec()), environment, 12, success="success")
        assert played.lengths.tolist() == [min(steps, 3) for steps in lasts]
        assert played.returns.tolist() == [min(steps, 3) for steps in lasts]
        assert played.success is not None
        assert played.success.tolist() == [steps >= 3 for steps in lasts]


def test_metrics_by_hand() -> None:
    returns, lengths = np.array([1.0, 2.0, 6.0]), np.array([4, 5, 9])
    played = Played(EVALUATION_SEED + np.arange(3), returns, lengths, np.array([True, False, False]))
    half = student_quantile(0.95, 2) * math.sqrt(7.0 / 3)  # variance with n - 1: (4 + 1 + 9) / 2
    expected = {"return": 3.0, "low": 3 - half, "high": 3 + half, "length": 6.0, "success": 1 / 3, "score": 50.0}
    metrics = played.metrics(reference=(-1.0, 7.0))
    assert {name.removeprefix("evaluation/"): value for name, value in metrics.items()} == pytest.approx(expected)
    row = {"step": 7, "phase": "evaluation", "episode": 2, "seed": EVALUATION_SEED + 2}
    assert list(played.rows(7))[2] == {**row, "return": 6.0, "length": 9, "success": False}
    assert (normalised(-1.0, (-1.0, 7.0)), normalised(7.0, (-1.0, 7.0))) == (0.0, 100.0)


def test_the_evaluator_keeps_a_row_for_each_episode(tmp_path: Path) -> None:
    world = World("point-maze-umaze", {"goal_cells": [(3, 1)], "time_limit": 200})
    run = Run(tmp_path / "run")
    metrics = Evaluator(world, 12)(agent(world.spec()), run, 40)
    assert {name for name in metrics if name.startswith("evaluation/")} == {
        f"evaluation/{name}" for name in ("return", "low", "high", "length", "success", "score")
    }
    rows = run.samples()
    assert [row["episode"] for row in rows] == list(range(12))
    assert all(row["step"] == 40 and row["phase"] == "evaluation" for row in rows)
    assert np.mean([row["return"] for row in rows]) == pytest.approx(metrics["evaluation/return"])


def test_an_episode_without_end_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerozoo.control.evaluation.LONGEST", 50)
    world = World("pendulum")
    with pytest.raises(UserError, match="An episode of pendulum had no end after 50 steps"):
        evaluate(agent(world.spec()), world.vector(2, stream()), 2)


def test_a_world_without_success_or_reference_has_no_such_metric() -> None:
    metrics = Evaluator(World("CartPole-v1"), 2)(agent(World("CartPole-v1").spec()), Recorder(), 0)
    assert not {"evaluation/success", "evaluation/score"} & set(metrics)
    with pytest.raises(UserError, match="evaluation_episodes must be at least 1"):
        Evaluator(World("pendulum"), 0)


class Recorder:
    """Takes the place of a run."""

    def sample(self, rows: Any) -> None:
        self.rows = list(rows)


# --- worlds


def test_the_references_are_the_random_and_the_expert_returns() -> None:
    low, high = World("pendulum").reference() or (0.0, 0.0)
    assert -1400 < low < -1000
    assert -200 < high < -100
    assert World("pendulum").reference() == (low, high)
    assert World("Hopper-v5").reference() == (-20.27, 3234.3)
    assert World("CartPole-v1").reference() is None


def test_a_world_without_an_expert_has_no_reference(countdown: World) -> None:
    assert countdown.reference() is None
    assert countdown.success_name() == "success"
    assert World("pendulum").success_name() is None


def test_bounds_are_those_of_the_environment_itself() -> None:
    low, high = World("Pendulum-v1").action_bounds() or (0, 0)
    assert (low.tolist(), high.tolist()) == ([-2.0], [2.0])
    assert World("pendulum").action_bounds() is None
    assert World("CartPole-v1").action_bounds() is None


# --- rewards


def episodes(*rewards: list[float]) -> Episodes:
    return Episodes.from_list([Episode(np.zeros((len(r) + 1, 3)), np.zeros((len(r), 1)), np.array(r)) for r in rewards])


def test_rewards_are_scaled_then_shifted() -> None:
    transform = RewardTransform(scale=10.0, shift=-5.0)
    assert transform(np.array([0.0, 1.0])).tolist() == [-5.0, 5.0]
    assert transform.episodes(episodes([0.0, 1.0], [2.0])).reward.tolist() == [-5.0, 5.0, 15.0]


def test_the_range_of_returns_counts_every_episode() -> None:
    assert RewardTransform.by_return_range(episodes([1.0], [2.0], [1.0, 8.0])).scale == 1000 / 8
    with pytest.raises(UserError, match="All episodes have the same return"):
        RewardTransform.by_return_range(episodes([1.0], [0.5, 0.5]))


# --- data


def config(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"data": "small", "data_seed": 0, "environment": "", "observation_keys": (), **changes})


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = sources.Maker(World("pendulum"), lambda rng: mixed_quality(rng, 3))
    monkeypatch.setitem(MAKERS, "small", maker)


def test_made_data_depends_on_its_own_seed_and_leaves_a_manifest(tmp_path: Path) -> None:
    run, other = Run(tmp_path / "run", seed=1), Run(tmp_path / "other", seed=2)
    first, same = open_data(config(), run), open_data(config(), other)
    assert np.array_equal(first.episodes.obs, same.episodes.obs)
    assert not np.array_equal(first.episodes.obs, open_data(config(data_seed=1), run).episodes.obs)
    assert (first.spec, first.world) == (Spec((3,), 1, False), World("pendulum"))
    assert run.streams.state()["numpy"] == {}
    record = json.loads((tmp_path / "run" / "data.manifest.json").read_text())
    assert (record["maker"], record["seed"], record["steps"]) == ("small", 0, 600)


def test_a_file_is_read_with_the_bounds_of_its_environment(tmp_path: Path) -> None:
    recorded = open_data(config(), Run(tmp_path / "run")).episodes
    path, foreign = write_npz(tmp_path / "data.npz", recorded), tmp_path / "foreign.npz"
    with np.load(path) as file:
        np.savez(foreign, **{name: file[name] for name in file if not name.startswith("metadata")})
    said: list[str] = []
    run = Run(tmp_path / "run")
    run.say = said.append
    data = open_data(config(data=str(path)), run)
    assert data.world is None
    assert said == ["No environment is given, so nothing will be evaluated."]
    assert np.array_equal(data.episodes.action, recorded.action)
    same = open_data(config(data=str(path), environment="Pendulum-v1"), run).episodes
    assert np.array_equal(same.action, recorded.action)
    # Recordings that others made of Pendulum-v1 hold torques up to 2.
    halved = open_data(config(data=str(foreign), environment="Pendulum-v1"), run).episodes
    assert halved.action == pytest.approx(recorded.action / 2)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "smal"}, r"Unknown data 'smal' \(did you mean small\?\): give a data maker \(pendulum-mixed, "),
        ({"data": "missing.npz"}, "missing.npz: there is no such file"),
        ({"environment": "CartPole-v1"}, r"the data does not fit the environment: its observations have shape \(3,\)"),
        ({"environment": "pendulun"}, "The environment 'pendulun' cannot be made"),
    ],
)
def test_bad_data_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        open_data(config(**changes), Run(tmp_path / "run"))


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "small"])
def test_what_a_maker_makes_fits_its_world(name: str, tmp_path: Path) -> None:
    data = open_data(config(data=name), Run(tmp_path / "run"))
    assert len(data.episodes) >= 30_000
    assert data.spec == data.episodes.spec


def test_agents_need_no_run_to_be_evaluated() -> None:
    settings = SimpleNamespace(
        hidden=(8,), learning_rate=0.01, tau=0.1, temperature=1.0, learn_temperature=True, entropy_per_dimension=-1.0
    )
    world = World("pendulum", {"time_limit": 10})
    soft = SAC(world.spec(), settings, torch.Generator().manual_seed(0))
    before = soft.random.get_state()
    assert evaluate(soft, world.vector(2, stream()), 2).lengths.tolist() == [10, 10]
    assert torch.equal(soft.random.get_state(), before)
    assert soft.training
