"""MiniGrid levels by seed: mazes of 9 x 9 cells, seen whole, as a batched world.

A level is what minigrid builds from its seed. Its dynamics are put into a table once, so that thousands of copies step
by one look-up; the table equals minigrid step for step. Needs the package minigrid (extra `environments`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.runs.errors import UserError

SIZE = 9
ACTIONS = ("left", "right", "forward", "toggle")  # minigrid's actions 0, 1, 2 and 5
CHANNELS = ("wall", "goal", "lava", "closed door", "open door", "right", "down", "left", "up")  # last four: the agent
_WALL, _DOOR, _GOAL, _LAVA = 2, 4, 8, 9  # minigrid's object types
_CELLS = SIZE * SIZE
_STATES = 2 * 4 * _CELLS  # door open, direction of the agent, its cell (row, column)
_AHEAD = np.array([1, SIZE, -1, -SIZE])  # cell in front, for right, down, left, up


def minigrid_environment(kind: str) -> Any:
    """The minigrid environment that builds the levels of a `kind`. UserError if unknown or minigrid is missing."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # minigrid imports pygame, which greets on stdout
    try:
        from minigrid.core.mission import MissionSpace
        from minigrid.core.world_object import Lava, Wall
        from minigrid.envs import CrossingEnv, FourRoomsEnv, MultiRoomEnv
        from minigrid.minigrid_env import MiniGridEnv
    except ImportError:
        raise UserError("Levels need the package minigrid: pip install 'zerozoo[environments]'.") from None

    class SmallFourRooms(FourRoomsEnv):
        """FourRooms has a fixed size of 19; this one is as large as the other levels."""

        def __init__(self) -> None:
            self._agent_default_pos = self._goal_default_pos = None
            mission = MissionSpace(mission_func=self._gen_mission)
            MiniGridEnv.__init__(self, mission_space=mission, width=SIZE, height=SIZE, max_steps=100)

    kinds: dict[str, Callable[[], Any]] = {
        "SimpleCrossing-S9N2": partial(CrossingEnv, size=SIZE, num_crossings=2, obstacle_type=Wall),
        "LavaCrossing-S9N2": partial(CrossingEnv, size=SIZE, num_crossings=2, obstacle_type=Lava),
        "MultiRoom-N2-S4": partial(MultiRoomEnv, minNumRooms=2, maxNumRooms=2, maxRoomSize=4, width=SIZE, height=SIZE),
        "FourRooms": SmallFourRooms,
    }
    if kind not in kinds:
        raise UserError(f"Unknown levels '{kind}'; choose from: {', '.join(kinds)}.")
    return kinds[kind]()


class GridLevels(BatchedWorld):
    """Reach the goal of a level. `kind`: see `minigrid_environment`; `seeds` are the levels.

    Actions: `ACTIONS`. Observation (9, 9, 9) uint8: channels of `CHANNELS`, rows, columns; 255 where the thing is, so
    that a network which divides images by 255 sees a one-hot code. Reward 1 - 0.9 t / limit on reaching the goal after
    t steps, else 0. Goal and lava terminate. Each reset draws a level; with `cycle` copy n always plays level
    n mod len(seeds), to measure on every level once. Info: "level" (its seed) and "success".
    """

    def __init__(self, copies: int, kind: str, seeds: Sequence[int], cycle: bool = False) -> None:
        builder = minigrid_environment(kind)
        super().__init__(copies, builder.max_steps)
        if not len(seeds):
            raise UserError(f"{kind} needs at least one level seed.")
        self.name, self.seeds, self.cycle = kind, np.asarray(seeds, dtype=np.int64), cycle
        self.objects, self._start = self._build(builder)
        self._door = (self.objects == _DOOR).argmax(axis=1)  # a level has one door at most; 0 where it has none
        self._pictures = self._draw_pictures()
        self._next, self._wins, self._dies = self._tables()
        self.observation_space = spaces.Box(0, 255, (len(CHANNELS), SIZE, SIZE), dtype=np.uint8)
        self.action_space = spaces.Discrete(len(ACTIONS))

    def _build(self, builder: Any) -> tuple[np.ndarray, np.ndarray]:
        """Object types (L, cells) and start states (L,) of all levels."""
        objects, start = [], []
        for seed in self.seeds:
            builder.reset(seed=int(seed))
            objects.append(builder.grid.encode()[:, :, 0].T.reshape(-1))
            column, row = builder.agent_pos
            start.append(builder.agent_dir * _CELLS + row * SIZE + column)
        return np.array(objects, dtype=np.int64), np.array(start, dtype=np.int64)

    def _draw_pictures(self) -> np.ndarray:
        """Observations (L, channels, cells) of the levels without the agent, doors closed."""
        pictures = np.zeros((len(self.seeds), len(CHANNELS), _CELLS), dtype=np.uint8)
        for channel, thing in enumerate((_WALL, _GOAL, _LAVA, _DOOR)):
            pictures[:, channel] = np.where(self.objects == thing, 255, 0)
        return pictures

    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Next state (L, states, actions), and whether the step reaches the goal or dies (L, states, actions)."""
        is_open, direction, cell = np.unravel_index(np.arange(_STATES), (2, 4, _CELLS))
        ahead = np.clip(cell + _AHEAD[direction], 0, _CELLS - 1)  # the agent never stands at the border
        thing = self.objects[:, ahead]  # (L, states)
        shut = (thing == _DOOR) & (is_open == 0)
        moves = ~((thing == _WALL) | shut)

        def state(is_open: np.ndarray, direction: np.ndarray, cell: np.ndarray) -> np.ndarray:
            return (is_open * 4 + direction % 4) * _CELLS + cell + np.zeros_like(thing)

        following = np.stack(
            [
                state(is_open, direction - 1, cell),
                state(is_open, direction + 1, cell),
                state(is_open, direction, np.where(moves, ahead, cell)),
                state(np.where(thing == _DOOR, 1 - is_open, is_open), direction, cell),
            ],
            axis=-1,
        )
        forward = np.arange(len(ACTIONS)) == ACTIONS.index("forward")
        return following, (thing == _GOAL)[..., None] & forward, (thing == _LAVA)[..., None] & forward

    @cached_property
    def distances(self) -> np.ndarray:
        """(L, states) fewest steps to the goal, infinite where there is no way: breadth first, all levels at once."""
        levels = np.arange(len(self.seeds))[:, None, None]
        distances = np.full((len(self.seeds), _STATES), np.inf)
        while True:
            after = np.where(self._wins, 0.0, np.where(self._dies, np.inf, distances[levels, self._next]))
            closer = 1 + after.min(axis=-1)
            if np.array_equal(closer, distances):
                return distances
            distances = closer

    def expert_action(self) -> np.ndarray:
        """(N,) the first step of a shortest way to the goal; among equals the first of `ACTIONS`."""
        level, state = self.arrays["level"], self.arrays["state"]
        after = self.distances[level[:, None], self._next[level, state]]
        after = np.where(self._dies[level, state], np.inf, after)
        return np.where(self._wins[level, state], 0.0, after).argmin(axis=-1)

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        level = copies % len(self.seeds) if self.cycle else rng.integers(len(self.seeds), size=len(copies))
        return {"level": level, "state": self._start[level]}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        if ((action < 0) | (action >= len(ACTIONS))).any():
            raise ValueError(f"{self.name}: actions must be in 0..{len(ACTIONS) - 1}")
        level, state = self.arrays["level"], self.arrays["state"]
        self.arrays["state"] = self._next[level, state, action]
        wins = self._wins[level, state, action]
        reward = np.where(wins, 1 - 0.9 * (self.arrays["elapsed"] + 1) / self.time_limit, 0.0)
        terminated = wins | self._dies[level, state, action]
        return reward, terminated, {"level": self.seeds[level], "success": wins}

    def _observe(self) -> np.ndarray:
        copies, level = np.arange(self.copies), self.arrays["level"]
        is_open, direction, cell = np.unravel_index(self.arrays["state"], (2, 4, _CELLS))
        obs = self._pictures[level]
        opened = np.flatnonzero(is_open)
        obs[opened, 3, self._door[level[opened]]] = 0
        obs[opened, 4, self._door[level[opened]]] = 255
        obs[copies, 5 + direction, cell] = 255
        return obs.reshape(self.copies, len(CHANNELS), SIZE, SIZE)
