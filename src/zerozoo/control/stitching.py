"""Goals that are taken over from nearby trajectories, and what says whether data test for stitching at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from zerozoo.control.episodes import Episodes
from zerozoo.control.views import Batch, GoalSampler, goals
from zerozoo.environments.mazes import Cell, Maze


def position(obs: Tensor) -> Tensor:
    """The goal (M, 2) that observations (M, n) of a maze reach: x and y."""
    return obs[:, :2]


class StitchedGoals(GoalSampler):
    """Steps with goals reached later in the same trajectory, a share of them later in one that passes near the goal.

    clusters: (N + E,) int, the cluster of each observation, in the order of `Episodes.obs`; each has a member. share:
    epsilon. near: whether the waypoint is drawn from the goal's own cluster, or else from a cluster drawn uniformly.
    Batches have extra["augmented"] (B,). Source: Ghugare et al. 2024, arXiv 2401.11237 (temporal data augmentation).
    """

    def __init__(
        self,
        data: Episodes,
        clusters: np.ndarray,
        share: float,
        near: bool,
        goal_of: Callable[[Tensor], Tensor] = position,
    ) -> None:
        super().__init__(data, goals(p_current=0, p_future=1, p_random=0, geometric=False, goal_of=goal_of))
        self.share, self.near = share, near
        self.clusters = torch.from_numpy(clusters)
        self.members = torch.from_numpy(np.argsort(clusters, kind="stable"))  # rows of obs, cluster by cluster
        self.sizes = torch.from_numpy(np.bincount(clusters))  # (K,)
        self.begins = self.sizes.cumsum(0) - self.sizes
        rows = data.lengths + 1
        self.final = torch.from_numpy(np.repeat(np.cumsum(rows) - 1, rows))  # (N + E,) last row of each trajectory

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        batch = super().sample(batch_size, generator)
        batch.extra["augmented"] = self.augmented.float()
        return batch

    def draw_rows(self, index: Tensor, generator: Generator) -> Tensor:
        rows = super().draw_rows(index, generator)
        waypoint = self.draw_waypoints(rows, generator)
        later = waypoint + _below(self.final[waypoint] - waypoint + 1, generator)  # the waypoint itself or what follows
        self.augmented = torch.rand(len(index), generator=generator) < self.share
        return torch.where(self.augmented, later, rows)

    def draw_waypoints(self, rows: Tensor, generator: Generator) -> Tensor:
        """Rows (B,) of observations, each from the cluster of the given row (B,), or from any."""
        anywhere = torch.randint(len(self.sizes), (len(rows),), generator=generator)
        cluster = self.clusters[rows] if self.near else anywhere
        return self.members[self.begins[cluster] + _below(self.sizes[cluster], generator)]


def _below(limits: Tensor, generator: Generator) -> Tensor:
    """Uniform integers in 0 .. limits - 1, (B,)."""
    return (torch.rand(len(limits), generator=generator, dtype=torch.float64) * limits).long()


def seen_together(data: Episodes, maze: Maze, pairs: Sequence[tuple[Cell, Cell]]) -> int:
    """How many trajectories visit both cells of one of the pairs; stitching is tested by pairs with 0."""
    cells = maze.number_of(data.obs[:, :2])  # (N + E,)
    first_rows = data.starts + np.arange(data.episodes)
    visits = [[np.logical_or.reduceat(cells == maze.indices([cell])[0], first_rows) for cell in pair] for pair in pairs]
    return int(sum((one & other).sum() for one, other in visits))


def cross_wall_share(sampler: StitchedGoals, data: Episodes, maze: Maze, generator: Generator) -> float:
    """Share of goals whose waypoint is more than two cells of way off: goals that are swapped through a wall."""
    rows = torch.randint(len(data.obs), (10_000,), generator=generator)
    cells = maze.number_of(data.obs[:, :2])
    goal, waypoint = cells[rows.numpy()], cells[sampler.draw_waypoints(rows, generator).numpy()]
    return float((maze.distances[goal, waypoint] > 2).mean())
