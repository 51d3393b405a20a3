"""The benchmark: its data sets, schema, normalised scores, agents, and the claim."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zerozoo.cli.registry import load_recipe
from zerozoo.control.agents import BC, CQL, IQL, SAC, TD3BC
from zerozoo.control.episodes import Episodes
from zerozoo.control.evaluation import Evaluator
from zerozoo.control.files import read_npz
from zerozoo.control.manifest import digest, read_manifest
from zerozoo.control.sources import MAKERS, Data, World, open_data
from zerozoo.environments.controllers import PendulumExpert, WaypointController
from zerozoo.environments.mazes import Maze
from zerozoo.recipes.offline import d4rl as recipe
from zerozoo.recipes.offline.d4rl import ALGORITHMS, CLAIM, OWN_MAKERS, PRESETS, Config
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SETS = {**MAKERS, **OWN_MAKERS}


def config(**changes: Any) -> Config:
    return Config(**{**PRESETS["smoke"], **changes})


def opened(settings: Config, run: Run) -> Data:
    return open_data(settings, run, OWN_MAKERS)


@cache
def episodes_of(name: str) -> Episodes:
    return Episodes.from_list(SETS[name].make(np.random.default_rng(0)))


# --- the data


def test_the_defaults_are_the_papers_protocol() -> None:
    """Baselines of the paper: 500,000 updates; expectile and beta as IQL has them for locomotion."""
    values = {"steps": 500_000, "expectile": 0.7, "beta": 3.0, "batch_size": 256, "evaluation_episodes": 10}
    assert {name: getattr(Config(), name) for name in values} == values


def test_no_own_data_set_hides_another() -> None:
    assert not OWN_MAKERS.keys() & MAKERS.keys()


@pytest.mark.parametrize("name", ["umaze-narrow", "umaze-undirected", "medium-undirected"])
def test_maze_data_has_a_reward_exactly_where_an_episode_ends_at_the_goal(name: str) -> None:
    data, world = episodes_of(name), SETS[name].world
    assert np.array_equal(data.reward == 1, data.terminated)
    assert set(np.unique(data.reward)) == {0.0, 1.0}
    maze = Maze("medium" if "medium" in name else "umaze")
    goal = maze.centre(world.options["goal_cells"][0])
    distance = np.linalg.norm(data.obs[:, :2] - goal, axis=1)
    ends = data.obs_index[data.last] + 1
    assert (distance[ends][data.terminated[data.last]] <= 0.45 + 1e-5).all()
    assert (distance[data.obs_index] > 0.45 - 1e-5).all()  # no step begins at the goal
    # Every cell has been visited.
    assert set(maze.number_of(data.obs[:, :2]).tolist()) == set(range(len(maze.cells)))


def test_narrow_data_knows_one_goal_and_undirected_data_many() -> None:
    """All narrow episodes reach the goal, but for one of each copy, which the recording cut."""
    narrow, undirected = episodes_of("umaze-narrow"), episodes_of("umaze-undirected")
    assert (len(narrow) // 1000, len(undirected) // 1000) == (30, 60)
    assert narrow.terminated.sum() == narrow.episodes - 100
    assert narrow.terminated.mean() > 2 * undirected.terminated.mean() > 0


def test_pendulum_data_is_ordered_by_quality() -> None:
    means = {name: episodes_of(f"pendulum-{name}").returns().mean() for name in ("random", "medium", "expert")}
    assert means["random"] < means["medium"] - 100 < means["expert"] - 200
    both = episodes_of("pendulum-medium-expert").returns()
    assert both[:150].mean() == pytest.approx(means["medium"], abs=100)
    assert both[150:].mean() == pytest.approx(means["expert"], abs=50)


@pytest.mark.parametrize("name", ["umaze-undirected", "pendulum-medium-expert"])
def test_saved_data_comes_back_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The schema's round trip, with the true successors at the ends of episodes."""
    monkeypatch.setattr(recipe, "learn_offline", lambda *arguments: {})
    run = Run(tmp_path / "run")
    recipe.train(config(data=name, save_data=True), run)
    record, back = read_manifest(run.path("data")), read_npz(run.path("data.npz"))
    assert record is not None
    assert (record["maker"], record["episodes"], record["steps"]) == (name, back.episodes, len(back))
    assert digest(back.replace(extras={})) == digest(opened(config(data=name), run).episodes.replace(extras={}))
    recipe.train(config(data=name), other := Run(tmp_path / "other"))
    assert not other.path("data.npz").exists()


def test_own_data_depends_on_its_own_seed_and_has_its_reference(tmp_path: Path) -> None:
    settings = config(data="pendulum-medium")
    one, same = (opened(settings, Run(tmp_path / str(seed), seed)) for seed in (0, 1))
    other = opened(dataclasses.replace(settings, data_seed=1), Run(tmp_path / "other"))
    assert digest(one.episodes) == digest(same.episodes) != digest(other.episodes)
    record = read_manifest(Run(tmp_path / "0").path("data"))
    assert record is not None
    low, high = record["reference"]
    assert -1400 < low < -1000 < -300 < high < -100  # random and expert in Pendulum-v1
    changed = opened(dataclasses.replace(settings, environment="pendulum"), Run(tmp_path / "named"))
    assert changed.world == World("pendulum")
    with pytest.raises(UserError, match="does not fit the environment"):
        opened(dataclasses.replace(settings, environment="hazards"), Run(tmp_path / "wrong"))


# --- normalised scores


class Actor:
    """Uniform actions, or a controller's."""

    def __init__(self, controller: Any = None) -> None:
        self.controller, self.random = controller, np.random.default_rng(0)

    def act(self, obs: Tensor, explore: bool) -> Tensor:
        rows = obs.numpy()
        if self.controller is None:
            size = 1 if rows.shape[1] == 3 else 2
            return torch.from_numpy(self.random.uniform(-1, 1, (len(rows), size))).float()
        return torch.from_numpy(self.controller(rows)).float()


def maze_expert(rows: np.ndarray) -> np.ndarray:
    maze = Maze("umaze")
    return WaypointController(maze)(rows, maze.centre(MAKERS["umaze-narrow"].world.options["goal_cells"][0]))


@pytest.mark.parametrize(
    ("name", "controller", "wide"), [("pendulum-medium", PendulumExpert(), 5), ("umaze-narrow", maze_expert, 10)]
)
def test_a_random_policy_scores_0_and_the_expert_100(tmp_path: Path, name: str, controller: Any, wide: float) -> None:
    """Over episodes that the reference pair was not measured on (in the maze a mean of 200 zeros and ones)."""
    evaluator, run = Evaluator(SETS[name].world, 300), Run(tmp_path / "run")
    assert evaluator(Actor(), run, 0)["evaluation/score"] == pytest.approx(0, abs=wide)
    assert evaluator(Actor(controller), run, 0)["evaluation/score"] == pytest.approx(100, abs=5)


# --- whole runs


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains(tmp_path: Path, algorithm: str) -> None:
    metrics = recipe.train(config(data="pendulum-medium-expert", algorithm=algorithm), Run(tmp_path / "run"))
    assert metrics["diverged"] == 0
    assert -1800 < metrics["evaluation/return"] < 0
    assert np.isfinite(metrics["evaluation/score"])


@pytest.mark.parametrize("arm", CLAIM.arms)
def test_every_arm_trains(tmp_path: Path, arm: str) -> None:
    metrics = recipe.train(Config(**CLAIM.overrides(arm, smoke=True)), Run(tmp_path / "run"))
    assert 0 <= metrics[CLAIM.metric] <= 1
    assert metrics["diverged"] == 0


def test_agents_get_the_configs_fields_their_own_constants_and_transformed_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def catch(agent: Any, data: Any, view: Any, settings: Any, run: Any, reward: Any) -> dict[str, float]:
        caught.append((agent, view, reward))
        return {}

    caught: list[Any] = []
    monkeypatch.setattr(recipe, "learn_offline", catch)
    for name, kind in {"bc": BC, "sac": SAC, "td3-bc": TD3BC, "iql": IQL, "cql": CQL}.items():
        recipe.train(config(algorithm=name, gamma=0.9, beta=7.0, expectile=0.6, tau=0.5), Run(tmp_path / name))
        agent, view, reward = caught[-1]
        assert type(agent) is kind
        assert view.gamma == 0.9
        assert reward(np.array([0.0, 1.0])).tolist() == [-1.0, 0.0]
        assert (agent.config.beta, agent.config.expectile, agent.config.tau) == (7.0, 0.6, 0.5)
        assert agent.config.cosine_steps == 20
    assert (caught[2][0].config.alpha, caught[4][0].config.alpha) == (2.5, 5.0)


def test_a_run_in_two_parts_equals_one(tmp_path: Path) -> None:
    """The second part begins with the data made again."""
    settings = config(data="pendulum-medium", algorithm="sac", reward_shift=0.0)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    recipe.train(settings, whole)
    recipe.train(dataclasses.replace(settings, steps=10), parts)
    recipe.train(settings, Run(tmp_path / "parts"))
    one, two = whole.load(), parts.load()
    assert one is not None
    assert two is not None
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items() if "agent/" in name)


def test_divergence_is_a_result(tmp_path: Path) -> None:
    said: list[str] = []
    run = Run(tmp_path / "run")
    run.say = said.append
    metrics = recipe.train(config(algorithm="sac", learning_rate=1e30), run)
    assert metrics == {"evaluation/success": 0.0, "diverged": 1.0}
    assert said


def test_an_unknown_algorithm_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown algorithm 'bcq'; choose from: bc, sac, td3-bc, iql, cql"):
        recipe.train(config(algorithm="bcq"), Run(tmp_path / "run"))
    with pytest.raises(UserError, match="Unknown data"):
        recipe.train(config(data="umaze-nowhere"), Run(tmp_path / "run"))


# --- the claim

NOISE = (0.0, 0.01, -0.01, 0.02, -0.02)


def results(**success: float) -> ArmResults:
    """Six arms, with noise in the undirected iql and both sac arms."""
    centres = {
        "narrow-bc": 0.95,
        "narrow-sac": 0.05,
        "narrow-iql": 0.95,
        "undirected-bc": 0.2,
        "undirected-sac": 0.05,
        "undirected-iql": 0.9,
    }
    centres |= {name.replace("_", "-"): value for name, value in success.items()}
    noisy = ("undirected-iql", "narrow-sac", "undirected-sac")
    values = {
        arm: {seed: centre + (extra if arm in noisy else 0) for seed, extra in enumerate(NOISE)}
        for arm, centre in centres.items()
    }
    return ArmResults(CLAIM.metric, values)


def test_the_claim_is_the_interaction() -> None:
    held = judge(CLAIM, results())
    assert held.verdict == "HOLDS"
    assert held.effect.value == pytest.approx(0.9 - 0.2)  # (0.9 - 0.2) - (0.95 - 0.95)
    assert held.threshold == 0.25


@pytest.mark.parametrize(
    "success",
    [
        {"undirected_iql": 0.4},  # no interaction
        {"undirected_bc": 0.7},
        {"narrow_iql": 0.6},  # iql loses what cloning has
        {"narrow_bc": 0.5, "undirected_bc": 0.0},  # cloning is poor on narrow data, too
        {"narrow_sac": 0.5},  # no constraint is needed
        {"undirected_sac": 0.5},
    ],
)
def test_the_claim_fails_without_any_of_its_parts(success: dict[str, float]) -> None:
    assert judge(CLAIM, results(**success)).verdict == "FAILS"


def test_arms_differ_in_data_and_algorithm_only() -> None:
    assert load_recipe("d4rl").claims == (CLAIM,)
    assert {key for arm in CLAIM.arms.values() for key in arm} == {"data", "algorithm"}
    assert len({Config(**CLAIM.overrides(arm)) for arm in CLAIM.arms}) == 6
    for preset in PRESETS.values():
        Config(**preset)
