"""Stitching by goals taken over from nearby trajectories: the sampler in exact shares, the data, the claim."""

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
    StitchedGoals,
    cross_wall_share,
    k_means,
    record_regions,
    seen_together,
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


def at_cells(*ways: list[tuple[int, int]]) -> Episodes:
    """Episodes that stand in the middle of the given cells, one after the other."""
    items = []
    for way in ways:
        obs = np.concatenate([MAZE.centre(way), np.zeros((len(way), 2))], axis=1)
        items.append(Episode(obs, np.zeros((len(way) - 1, 2), np.float32), np.zeros(len(way) - 1)))
    return Episodes.from_list(items)


def shares_of_goals(sampler: StitchedGoals, step: int, draws: int = 120_000) -> np.ndarray:
    """How often each row of obs is the goal of a step."""
    goal, _ = sampler.draw_goals(torch.full((draws,), step), Generator().manual_seed(0))
    assert torch.equal(goal[:, 1], -goal[:, 0])
    return np.bincount(goal[:, 0].long().numpy(), minlength=len(sampler.obs)) / draws


# --- the sampler


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


def test_without_augmentation_goals_are_uniform_in_the_rest_of_the_own_trajectory() -> None:
    sampler = StitchedGoals(trajectories(3, 2), np.zeros(7, dtype=np.int64), share=0.0, near=True)
    np.testing.assert_allclose(shares_of_goals(sampler, 0), [0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0], atol=0.01)
    np.testing.assert_allclose(shares_of_goals(sampler, 2), [0, 0, 0, 1, 0, 0, 0], atol=0)
    batch = sampler.sample(100, Generator().manual_seed(1))
    assert float(batch.extra["augmented"].sum()) == 0
    long = StitchedGoals(trajectories(300), np.zeros(301, dtype=np.int64), share=0.0, near=True)
    assert np.arange(301) @ shares_of_goals(long, 0) == pytest.approx(150.5, abs=2)  # the mean of 1 .. 300


def test_stitched_goals_lie_after_a_waypoint_of_the_goals_cluster() -> None:
    """Rows 0, 1 | 2, 3, 4, 5. Step 0 has the goal row 1, whose cluster is {1, 3}: 1 -> 1; 3 -> 3, 4 or 5."""
    clusters = np.array([0, 1, 0, 1, 2, 2])
    sampler = StitchedGoals(trajectories(1, 3), clusters, share=1.0, near=True)
    np.testing.assert_allclose(shares_of_goals(sampler, 0), [0, 1 / 2, 0, 1 / 6, 1 / 6, 1 / 6], atol=0.01)


def test_random_waypoints_come_from_every_cluster_alike() -> None:
    """Each cluster 1/3, each of its two members 1/2, then uniform to the end of the waypoint's trajectory."""
    clusters = np.array([0, 1, 0, 1, 2, 2])
    sampler = StitchedGoals(trajectories(1, 3), clusters, share=1.0, near=False)
    expected = np.zeros(6)
    for rows in ([0, 1], [1], [2, 3, 4, 5], [3, 4, 5], [4, 5], [5]):
        expected[rows] += 1 / 6 / len(rows)
    np.testing.assert_allclose(shares_of_goals(sampler, 0), expected, atol=0.01)


def test_epsilon_is_realised_and_reported() -> None:
    sampler = StitchedGoals(trajectories(1, 3), np.array([0, 1, 0, 1, 2, 2]), share=0.25, near=True)
    batch = sampler.sample(40_000, Generator().manual_seed(2))
    assert float(batch.extra["augmented"].mean()) == pytest.approx(0.25, abs=0.01)
    stayed = batch.extra["augmented"] == 0
    first = batch.index == 0
    assert set(batch.goal[first & stayed, 0].tolist()) == {1.0}
    assert set(batch.goal[first & ~stayed, 0].tolist()) == {1.0, 3.0, 4.0, 5.0}
    assert batch.goal.shape == (40_000, 2)


# --- clusters


def test_k_means_finds_separate_groups() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    truth = rng.integers(4, size=400)
    labels = k_means(centres[truth] + rng.normal(size=(400, 2)), 4, np.random.default_rng(1))
    assert set(labels) == {0, 1, 2, 3}
    pairs = set(zip(truth.tolist(), labels.tolist(), strict=True))
    assert len(pairs) == 4  # one label for each group and one group for each label


def test_k_means_fits_on_a_part_and_labels_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "FITTED", 50)
    points = np.repeat([[0.0], [100.0]], 200, axis=0) + np.random.default_rng(0).normal(size=(400, 1))
    labels = k_means(points, 2, np.random.default_rng(1))
    assert len(labels) == 400
    assert len(set(labels[:200])) == len(set(labels[200:])) == 1
    assert labels[0] != labels[-1]


def test_k_means_with_equal_points_and_bad_numbers() -> None:
    assert k_means(np.zeros((5, 2)), 3, np.random.default_rng(0)).tolist() == [0] * 5
    for number in (0, 6):
        with pytest.raises(UserError, match="clusters must lie between 1 and the number of observations, 5"):
            k_means(np.zeros((5, 2)), number, np.random.default_rng(0))


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


def test_seen_together_counts_trajectories_with_both_cells() -> None:
    data = at_cells([(1, 1), (1, 2)], [(3, 1), (3, 2), (1, 1)], [(1, 1), (2, 3), (3, 1)], [(3, 1), (3, 2)])
    assert seen_together(data, MAZE, PAIRS["stitching"]) == 2 * 2  # two trajectories, two directions
    assert seen_together(data, MAZE, [((3, 1), (3, 2))]) == 2
    assert seen_together(data.select([0, 3]), MAZE, PAIRS["stitching"]) == 0


def test_cross_wall_share_counts_waypoints_behind_a_wall() -> None:
    """One cluster holds (1, 1) and (3, 1), six cells of way apart: half of the time the waypoint is the other one."""
    data = at_cells([(1, 1), (3, 1)])
    shared = StitchedGoals(data, np.array([0, 0]), share=1.0, near=True)
    assert cross_wall_share(shared, data, MAZE, Generator().manual_seed(0)) == pytest.approx(0.5, abs=0.02)
    apart = StitchedGoals(data, np.array([0, 1]), share=1.0, near=True)
    assert cross_wall_share(apart, data, MAZE, Generator().manual_seed(0)) == 0


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
