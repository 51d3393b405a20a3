"""Stitching by supervised learning: the data, the loss, the evaluation, the claim."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from zerozoo.cli.registry import load_recipe
from zerozoo.control.agent import Adam
from zerozoo.control.episodes import Episode, Episodes
from zerozoo.control.manifest import digest, read_manifest
from zerozoo.control.spec import Spec
from zerozoo.control.stitching import StitchedGoals, seen_together
from zerozoo.environments.batched.point_maze import PointMaze
from zerozoo.environments.controllers import WaypointController
from zerozoo.environments.mazes import Maze
from zerozoo.recipes.offline import td_sl_stitching as recipe
from zerozoo.recipes.offline.td_sl_stitching import (
    CLAIM,
    PAIRS,
    PRESETS,
    Config,
    OutcomeCloning,
    PairEvaluator,
    record_regions,
)
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMOKE = Config(**PRESETS["smoke"])
MAZE = Maze("umaze")


def trajectories(*lengths: int) -> Episodes:
    """Episodes whose observation k, counted over all of them, is (k, -k, 0, 0)."""
    items, row = [], 0
    for length in lengths:
        numbers = np.arange(row, row + length + 1, dtype=np.float32)
        row += length + 1
        obs = np.stack([numbers, -numbers, 0 * numbers, 0 * numbers], axis=1)
        items.append(Episode(obs, np.zeros((length, 2), np.float32), np.zeros(length)))
    return Episodes.from_list(items)


def test_the_defaults_are_the_papers() -> None:
    paper = {
        "batch_size": 256,
        "learning_rate": 1e-3,
        "max_gradient_norm": 0.25,
        "steps": 25 * 40_000,
        "augmentation": 0.5,
        "clusters": 20,
        "hidden": (1024, 1024),
        "evaluation_episodes": 10,
        "action_noise": 0.5,
        "transitions": 1_000_000,
    }
    assert {name: getattr(Config(), name) for name in paper} == paper


# --- the data


def test_each_data_policy_stays_in_its_region_and_no_trajectory_holds_a_test_pair(
    tmp_path: Path, smoke_data: Episodes
) -> None:
    data = smoke_data
    assert len(data) >= SMOKE.transitions
    assert data.terminated[data.last].all()  # successful ones only
    first = MAZE.cell_of(data.obs[data.starts + np.arange(data.episodes), :2].astype(np.float64))
    final = MAZE.cell_of(data.obs[data.last + np.arange(data.episodes) + 1, :2].astype(np.float64))
    for start, end in zip(first.tolist(), final.tolist(), strict=True):
        # A trajectory may end up to 0.45 from the goal's centre, and so in its cell.
        assert any(tuple(start) in region and tuple(end) in region for region in recipe.REGIONS)
    assert {tuple(cell) for cell in first.tolist()} == {cell for region in recipe.REGIONS for cell in region}
    assert seen_together(data, MAZE, PAIRS["stitching"]) == 0
    assert seen_together(data, MAZE, [((1, 1), (1, 3))]) > 0
    run = Run(tmp_path / "again")
    assert digest(record_regions(SMOKE, run)) == digest(data)
    record = read_manifest(run.path("data"))
    assert record is not None
    assert record["sha256"] == digest(data)
    assert digest(record_regions(SMOKE, Run(tmp_path / "other", seed=1))) != digest(data)


def test_pairs_are_the_cards() -> None:
    assert PAIRS["stitching"] == [((3, 1), (1, 1)), ((1, 1), (3, 1))]
    assert len(PAIRS["in_distribution"]) == 6 + 6 + 2 + 2
    assert not set(PAIRS["stitching"]) & set(PAIRS["in_distribution"])


# --- learning and evaluation


class Scripted:
    """The way-point controller, or nobody, as an agent that sees the goal at the end of its observation."""

    def __init__(self, moves: bool) -> None:
        self.moves, self.controller = moves, WaypointController(MAZE)

    def act(self, obs: Tensor, explore: bool) -> Tensor:
        rows = obs.numpy()
        action = self.controller(rows[:, :4], rows[:, 4:].astype(np.float64))
        return torch.from_numpy(action if self.moves else 0 * action).float()


def test_the_evaluator_sends_every_pair_to_its_own_goal(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    evaluator = PairEvaluator(2)
    assert evaluator(Scripted(moves=True), run, 0) == {"success/stitching": 1.0, "success/in_distribution": 1.0}
    rows = run.samples()
    assert len(rows) == 2 * 18
    named = {(row["group"], tuple(row["start"]), tuple(row["goal"])) for row in rows}
    assert named == {(group, *pair) for group, pairs in PAIRS.items() for pair in pairs}
    assert evaluator(Scripted(moves=False), run, 1)["success/stitching"] == 0.0
    with pytest.raises(UserError, match="evaluation_episodes must be at least 1"):
        PairEvaluator(0)


def test_the_loss_is_the_mean_square_of_the_actions_error() -> None:
    """All weights 0: the policy's action is tanh(bias)."""
    agent = OutcomeCloning(Spec((6,), 2, False), SMOKE, Generator().manual_seed(0))
    parameters = list(agent.policy.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
        parameters[-1].copy_(torch.atanh(torch.tensor([0.5, 0.0])).expand_as(parameters[-1]))
    batch = StitchedGoals(trajectories(1, 3), np.zeros(6, dtype=np.int64), 1.0, True).sample(
        4, Generator().manual_seed(0)
    )
    batch.action = torch.tensor([[0.5, 0.0], [0.5, 1.0], [-0.5, 0.0], [0.5, 0.0]])
    metrics = agent.update(batch)
    assert float(metrics["policy_loss"]) == pytest.approx((1 + 1) / 8)
    assert float(metrics["augmented_share"]) == 1.0
    assert agent.optimiser("policy") == Adam(1e-3, clip_norm=0.25)


def test_the_policy_answers_the_environments_observation_with_its_goal() -> None:
    """It is trained on x, y, both velocities and the goal, and acts on the world's observation, in the same order."""
    agent = OutcomeCloning(Spec((6,), 2, False), SMOKE, Generator().manual_seed(0))
    batch = StitchedGoals(trajectories(1, 3), np.zeros(6, dtype=np.int64), 1.0, True).sample(
        4, Generator().manual_seed(0)
    )
    world = PointMaze(4, observe_goal=True)
    world.reset(np.random.default_rng(0))
    world.arrays |= {name: batch.obs[:, column].double().numpy() for column, name in enumerate(("x", "y", "vx", "vy"))}
    world.arrays |= {name: batch.goal[:, column].double().numpy() for column, name in enumerate(("goal_x", "goal_y"))}
    answer = agent.act(torch.from_numpy(world._observe()), explore=False)
    assert agent.policy_loss(batch).item() == pytest.approx(float((answer - batch.action).square().mean()))


@pytest.fixture(scope="module")
def smoke_data(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    return record_regions(SMOKE, Run(tmp_path_factory.mktemp("data") / "run"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, smoke_data: Episodes) -> None:
    """One pair of each group, and data that was recorded before."""
    monkeypatch.setattr(recipe, "PAIRS", {group: pairs[:1] for group, pairs in PAIRS.items()})
    monkeypatch.setattr(recipe, "record_regions", lambda config, run: smoke_data)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("arm", CLAIM.arms)
def test_every_arm_trains(tmp_path: Path, arm: str) -> None:
    metrics = recipe.train(Config(**CLAIM.overrides(arm, smoke=True)), Run(tmp_path / "run"))
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["data/pairs_together"] == 0
    assert (metrics["augmented_share"] > 0) == (arm != "plain")
    assert 0 <= metrics[CLAIM.metric] <= 1


@pytest.mark.usefixtures("quick")
def test_a_run_in_two_parts_equals_one(tmp_path: Path) -> None:
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    recipe.train(SMOKE, whole)
    recipe.train(dataclasses.replace(SMOKE, steps=10), parts)
    recipe.train(SMOKE, Run(tmp_path / "parts"))
    one, two = whole.load(), parts.load()
    assert one is not None
    assert two is not None
    assert one.step == two.step == 20
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items() if "agent/" in name)


def test_bad_settings_are_one_sentence(tmp_path: Path) -> None:
    for changes in ({"waypoint": "far"}, {"augmentation": 1.5}):
        with pytest.raises(UserError, match="waypoint must be near or random, and augmentation"):
            recipe.train(dataclasses.replace(SMOKE, **changes), Run(tmp_path / "run"))


# --- the claim


def results(plain: float, augmented: float, random: float, inside: float = 0.9, together: float = 0.0) -> ArmResults:
    noise = {0: 0.0, 1: 0.01, 2: -0.01, 3: 0.02, 4: -0.02}
    centres = {"plain": plain, "augmented": augmented, "random-waypoint": random}
    insides = {"plain": 0.9, "augmented": inside, "random-waypoint": 0.9}
    values = {
        arm: {seed: centre + (extra if arm == "plain" else 0) for seed, extra in noise.items()}
        for arm, centre in centres.items()
    }
    secondary: dict[str, Any] = {
        arm: {
            seed: {
                "success/in_distribution": insides[arm] + (extra if arm == "plain" else 0),
                "data/pairs_together": together,
            }
            for seed, extra in noise.items()
        }
        for arm in centres
    }
    return ArmResults(CLAIM.metric, values, secondary)


def test_the_claim_can_hold_fail_and_be_void() -> None:
    assert judge(CLAIM, results(0.0, 0.8, 0.3)).verdict == "HOLDS"
    assert judge(CLAIM, results(0.7, 0.8, 0.3)).verdict == "FAILS"  # cloning stitches already
    assert judge(CLAIM, results(0.0, 0.1, 0.0)).verdict == "FAILS"  # no gain
    assert judge(CLAIM, results(0.0, 0.8, 0.9)).verdict == "FAILS"  # nearness does not matter
    assert judge(CLAIM, results(0.0, 0.8, 0.3, inside=0.7)).verdict == "FAILS"  # what was learned is lost
    void = judge(CLAIM, results(0.0, 0.8, 0.3, together=1.0))
    assert (void.verdict, void.valid) == ("INCONCLUSIVE", False)


def test_the_arms_differ_in_valid_fields_and_nothing_else() -> None:
    names = {field.name for field in dataclasses.fields(Config)}
    assert load_recipe("td-sl-stitching").claims == (CLAIM,)
    configs = [Config(**CLAIM.overrides(arm)) for arm in CLAIM.arms]
    assert len(set(configs)) == 3
    assert {key for arm in CLAIM.arms.values() for key in arm} == {"augmentation", "waypoint"}
    assert names >= {*CLAIM.base, *CLAIM.smoke, *recipe.EXTENDABLE}
    for preset in PRESETS.values():
        Config(**preset)
