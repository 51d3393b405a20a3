"""MiniGrid levels by seed, seen whole, as a batched world.

A level is what minigrid builds from its seed: one of the mazes of 9 x 9 cells that have a name here, or any environment
of minigrid by its gymnasium id, if it has nothing but walls, a goal, lava and at most one door. Its dynamics are put
into a table once, so that thousands of copies step by one look-up; the table equals minigrid step for step. Needs the
package minigrid (extra `environments`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.runs.errors import UserError

SIZE = 9  # of the levels that are known by name
ACTIONS = ("left", "right", "forward", "toggle")  # minigrid's actions 0, 1, 2 and 5
CHANNELS = ("wall", "goal", "lava", "closed door", "open door", "right", "down", "left", "up")  # last four: the agent
_EMPTY, _WALL, _DOOR, _GOAL, _LAVA = 1, 2, 4, 8, 9  # minigrid's object types
_CLOSED = 1  # minigrid's state of a door


def minigrid_environment(kind: str) -> Any:
    """The minigrid environment that builds the levels of a `kind`, a name or a gymnasium id as MiniGrid-FourRooms-v0.

    UserError if it is unknown or minigrid is missing.
    """
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
    if kind in kinds:
        return kinds[kind]()
    try:
        if not kind.startswith("MiniGrid-"):
            raise gymnasium.error.NameNotFound
        return gymnasium.make(kind, disable_env_checker=True).unwrapped
    except gymnasium.error.Error:
        known = ", ".join(kinds)
        raise UserError(f"Unknown levels '{kind}'; choose from: {known}, or an id of minigrid.") from None


class GridLevels(BatchedWorld):
    """Reach the goal of a level. `kind`: see `minigrid_environment`; `seeds` are the levels.

    Actions: `ACTIONS`. Observation (rows, columns, 9) uint8: the channels of `CHANNELS` come last, as in all images
    here; 255 where the thing is, so that a network which divides images by 255 sees a one-hot code. Reward
    1 - 0.9 t / limit on reaching the goal after t steps, else 0. Goal and lava terminate. Each reset draws a level;
    with `cycle` copy n always plays level n mod len(seeds), to measure on every level once. Info: "level" (its seed)
    and "success".
    """

    def __init__(self, copies: int, kind: str, seeds: Sequence[int], cycle: bool = False) -> None:
        builder = minigrid_environment(kind)
        super().__init__(copies, builder.max_steps)
        if not len(seeds):
            raise UserError(f"{kind} needs at least one level seed.")
        self.name, self.seeds, self.cycle = kind, np.asarray(seeds, dtype=np.int64), cycle
        self.rows, self.columns = builder.height, builder.width
        self._cells = self.rows * self.columns
        # A state: door open, direction of the agent, its cell (row, column).
        self._shape, self._states = (2, 4, self._cells), 2 * 4 * self._cells
        self.objects, self._start = self._build(builder)
        self._door = (self.objects == _DOOR).argmax(axis=1)  # a level has one door at most; 0 where it has none
        self._pictures = self._draw_pictures()
        self._next, self._wins, self._dies = self._tables()
        self.observation_space = spaces.Box(0, 255, (self.rows, self.columns, len(CHANNELS)), dtype=np.uint8)
        self.action_space = spaces.Discrete(len(ACTIONS))

    def _build(self, builder: Any) -> tuple[np.ndarray, np.ndarray]:
        """Object types (L, cells) and start states (L,) of all levels. UserError for a level with other things."""
        objects, start = [], []
        for seed in self.seeds:
            builder.reset(seed=int(seed))
            kinds, _, states = builder.grid.encode().T.reshape(3, -1)
            doors = kinds == _DOOR
            known = np.isin(kinds, (_EMPTY, _WALL, _DOOR, _GOAL, _LAVA)).all() and (kinds == _GOAL).any()
            if not known or doors.sum() > 1 or (states[doors] != _CLOSED).any():
                raise UserError(
                    f"Levels here have a goal and may have walls, lava and one door that is closed and not locked;"
                    f" those of {self.name} are different."
                )
            objects.append(kinds)
            column, row = builder.agent_pos
            start.append(builder.agent_dir * self._cells + row * self.columns + column)
        return np.array(objects, dtype=np.int64), np.array(start, dtype=np.int64)

    def _draw_pictures(self) -> np.ndarray:
        """Observations (L, cells, channels) of the levels without the agent, doors closed."""
        pictures = np.zeros((len(self.seeds), self._cells, len(CHANNELS)), dtype=np.uint8)
        for channel, thing in enumerate((_WALL, _GOAL, _LAVA, _DOOR)):
            pictures[:, :, channel] = np.where(self.objects == thing, 255, 0)
        return pictures

    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Next state (L, states, actions), and whether the step reaches the goal or dies (L, states, actions)."""
        is_open, direction, cell = np.unravel_index(np.arange(self._states), self._shape)
        front = np.array([1, self.columns, -1, -self.columns])  # right, down, left, up
        ahead = np.clip(cell + front[direction], 0, self._cells - 1)  # the agent never stands at the border
        thing = self.objects[:, ahead]  # (L, states)
        shut = (thing == _DOOR) & (is_open == 0)
        moves = ~((thing == _WALL) | shut)

        def state(is_open: np.ndarray, direction: np.ndarray, cell: np.ndarray) -> np.ndarray:
            return (is_open * 4 + direction % 4) * self._cells + cell + np.zeros_like(thing)

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
        distances = np.full((len(self.seeds), self._states), np.inf)
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
        is_open, direction, cell = np.unravel_index(self.arrays["state"], self._shape)
        obs = self._pictures[level]
        opened = np.flatnonzero(is_open)
        obs[opened, self._door[level[opened]], 3] = 0
        obs[opened, self._door[level[opened]], 4] = 255
        obs[copies, cell, 5 + direction] = 255
        return obs.reshape(self.copies, self.rows, self.columns, len(CHANNELS))
