"""Mazes of unit cells: walls, coordinates, and shortest ways. The maps are those of gymnasium-robotics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from zerozoo.runs.errors import UserError

Cell = tuple[int, int]  # row (from the top), column

# gymnasium_robotics/envs/maze/maps.py; # is a wall. The time limits are those of PointMaze_*-v3.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "umaze": ("#####", "#...#", "###.#", "#...#", "#####"),
    "open": ("#######", "#.....#", "#.....#", "#.....#", "#######"),
    "medium": ("########", "#..##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#..#", "########"),
    "large": (
        "############",
        "#....#.....#",
        "#.##.#.#.#.#",
        "#......#...#",
        "#.####.###.#",
        "#..#.#.....#",
        "##.#.#.#.###",
        "#..#...#...#",
        "############",
    ),
}
TIME_LIMITS = {"umaze": 300, "open": 300, "medium": 600, "large": 800}


class Maze:
    """A grid of walls and K free cells, one unit a cell, the origin in the middle, y upwards.

    `layout` is a name of `LAYOUTS` or rows of "#" (wall) and "." (free). UserError unless the border is closed and
    every free cell can be reached from every other one.
    """

    def __init__(self, layout: str | Sequence[str]) -> None:
        if isinstance(layout, str) and layout not in LAYOUTS:
            raise UserError(f"Unknown maze '{layout}'; choose from: {', '.join(LAYOUTS)}, or give rows of # and '.'.")
        rows = LAYOUTS[layout] if isinstance(layout, str) else tuple(layout)
        if len({len(row) for row in rows}) != 1 or set("".join(rows)) - set("#."):
            raise UserError("A maze is made of rows of the same length that hold only # and '.'.")
        self.layout = layout
        self.walls = np.array([[character == "#" for character in row] for row in rows])  # (rows, columns)
        border = np.concatenate([self.walls[0], self.walls[-1], self.walls[:, 0], self.walls[:, -1]])
        self.cells = np.argwhere(~self.walls)  # (K, 2) row, column
        if not border.all() or len(self.cells) < 2:
            raise UserError("A maze needs walls all around and at least two free cells.")
        self.number = np.full(self.walls.shape, -1)  # (rows, columns) -> index into cells, -1 in walls
        self.number[tuple(self.cells.T)] = np.arange(len(self.cells))
        self.half = np.array([self.walls.shape[1], self.walls.shape[0]]) / 2  # half width, half height
        if not np.isfinite(self.distances).all():
            raise UserError("Some free cells of the maze cannot be reached from the others.")

    def centre(self, cells: np.ndarray | Sequence[Cell] | Cell) -> np.ndarray:
        """Cells (..., 2) -> the positions (..., 2) of their centres."""
        cells = np.asarray(cells)
        return np.stack([cells[..., 1] + 0.5 - self.half[0], self.half[1] - cells[..., 0] - 0.5], axis=-1)

    def cell_of(self, position: np.ndarray) -> np.ndarray:
        """Positions (..., 2) -> cells (..., 2) that contain them."""
        row = np.floor(self.half[1] - position[..., 1])
        return np.stack([row, np.floor(position[..., 0] + self.half[0])], axis=-1).astype(np.int64)

    def number_of(self, position: np.ndarray) -> np.ndarray:
        """Positions (..., 2) -> indices (...,) of their cells in `cells`, -1 in walls and beyond the maze."""
        row, column = np.moveaxis(self.cell_of(position), -1, 0)
        inside = (row >= 0) & (row < self.walls.shape[0]) & (column >= 0) & (column < self.walls.shape[1])
        return np.where(inside, self.number[np.where(inside, row, 0), np.where(inside, column, 0)], -1)

    def indices(self, cells: Sequence[Cell] | None) -> np.ndarray:
        """Indices of the given cells in `cells`, of all for None. UserError for a wall or a cell beyond the maze."""
        if cells is None:
            return np.arange(len(self.cells))
        found = self.number_of(self.centre(np.asarray(cells, dtype=np.int64).reshape(-1, 2)))
        if not len(found) or (found < 0).any():
            raise UserError(f"The cells {list(cells)} must be free cells (row, column) of the maze {self.layout!r}.")
        return found

    @cached_property
    def distances(self) -> np.ndarray:
        """(K, K) cells on the shortest way between two free cells; infinite where there is none."""
        near = (np.abs(self.cells[:, None] - self.cells[None]).sum(-1) == 1).astype(np.float32)
        distances = np.where(np.eye(len(near), dtype=bool), 0.0, np.inf)
        reached = np.eye(len(near), dtype=np.float32)
        for steps in range(1, len(near)):
            reached = np.minimum(reached + reached @ near, 1)
            new = (reached > 0) & np.isinf(distances)
            if not new.any():
                break
            distances[new] = steps
        return distances

    @cached_property
    def next_cells(self) -> np.ndarray:
        """(K, K) index of the cell after a on a shortest way to b (a itself where a is b); ties: the lowest index."""
        following = np.tile(np.arange(len(self.cells)), (len(self.cells), 1))
        for start, away in enumerate(self.distances):
            neighbours = np.flatnonzero(away == 1)
            following[start] = neighbours[np.argmin(self.distances[neighbours], axis=0)]
        np.fill_diagonal(following, np.arange(len(self.cells)))
        return following
