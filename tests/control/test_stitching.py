"""Goals taken over from nearby trajectories in exact shares, the clusters that say what is near, and tests of data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator

from zerozoo.control import clusters as clusters_module
from zerozoo.control.clusters import k_means
from zerozoo.control.episodes import Episode, Episodes
from zerozoo.control.stitching import StitchedGoals, cross_wall_share, seen_together
from zerozoo.environments.mazes import Maze
from zerozoo.runs.errors import UserError

MAZE = Maze("umaze")
PAIRS = [((3, 1), (1, 1)), ((1, 1), (3, 1))]


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
    monkeypatch.setattr(clusters_module, "FITTED", 50)
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


# --- whether data test for stitching


def test_seen_together_counts_trajectories_with_both_cells() -> None:
    data = at_cells([(1, 1), (1, 2)], [(3, 1), (3, 2), (1, 1)], [(1, 1), (2, 3), (3, 1)], [(3, 1), (3, 2)])
    assert seen_together(data, MAZE, PAIRS) == 2 * 2  # two trajectories, two directions
    assert seen_together(data, MAZE, [((3, 1), (3, 2))]) == 2
    assert seen_together(data.select([0, 3]), MAZE, PAIRS) == 0


def test_cross_wall_share_counts_waypoints_behind_a_wall() -> None:
    """One cluster holds (1, 1) and (3, 1), six cells of way apart: half of the time the waypoint is the other one."""
    data = at_cells([(1, 1), (3, 1)])
    shared = StitchedGoals(data, np.array([0, 0]), share=1.0, near=True)
    assert cross_wall_share(shared, data, MAZE, Generator().manual_seed(0)) == pytest.approx(0.5, abs=0.02)
    apart = StitchedGoals(data, np.array([0, 1]), share=1.0, near=True)
    assert cross_wall_share(apart, data, MAZE, Generator().manual_seed(0)) == 0


def test_what_a_goal_is_can_be_chosen() -> None:
    """Goals are the third and fourth number of an observation, which are 0 here."""
    sampler = StitchedGoals(trajectories(3), np.zeros(4, dtype=np.int64), 0.5, True, goal_of=lambda obs: obs[:, 2:])
    batch = sampler.sample(10, Generator().manual_seed(0))
    assert batch.goal.shape == (10, 2)
    assert not batch.goal.any()
