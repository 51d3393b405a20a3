"""Procgen's games by level, as a batched world. Needs the package envpool (extra `procgen`) and the system's Qt 5.

Every episode is played in a game of its own, made for the one level that is wanted. So each level can be played once
and by name, the choice of levels is ours (envpool draws them from a generator that nobody can save), and an episode is
its level and its actions, no more: a game that was played before lets something of that into its next episode
(dodgeball does, envpool 1.2.5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.runs.errors import UserError

GAMES = (
    *("bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot"),
    *("heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot"),
)
MODES = ("easy", "hard", "extreme", "memory", "exploration")  # no game has all of them
ACTIONS = 15  # the nine directions of the joystick, then six buttons
IMAGE = (64, 64, 3)


def task_name(kind: str) -> str:
    """What envpool calls the game of a `kind`: procgen:coinrun is CoinrunEasy-v0, procgen:coinrun:hard CoinrunHard-v0.

    UserError if the package is missing or has no such game.
    """
    try:
        import envpool
    except ImportError:
        raise UserError("Levels of Procgen need the package envpool: pip install 'zerozoo[procgen]'.") from None
    parts = kind.split(":")
    game, mode = parts[1] if len(parts) > 1 else "", parts[2] if len(parts) > 2 else "easy"
    task = f"{game.capitalize()}{mode.capitalize()}-v0"
    if len(parts) > 3 or game not in GAMES or mode not in MODES or task not in envpool.list_all_envs():
        raise UserError(
            f"Unknown levels '{kind}'; write procgen:GAME or procgen:GAME:MODE with a game of {', '.join(GAMES)} and a"
            f" mode that it has, of {', '.join(MODES)}."
        )
    return task


def make_game(task: str, level: int) -> Any:
    """A game that knows one level; the observations of its steps, the last one too, are true successors.

    UserError where Qt is missing.
    """
    import envpool

    try:
        return envpool.make(
            task,
            env_type="gymnasium",
            num_envs=1,
            num_threads=1,
            num_levels=1,
            start_level=level,
            seed=0,  # nothing is left to draw
            channel_first=False,
        )
    except ImportError as error:
        if "Qt" not in str(error):
            raise
        raise UserError("Procgen needs the Qt 5 libraries of the system: apt-get install libqt5gui5.") from None


class ProcgenLevels(BatchedWorld):
    """Play levels of a game. `kind`: see `task_name`; `seeds` are the levels, `cycle` as in `GridLevels`.

    Actions: 15. Observation (64, 64, 3) uint8. Reward: the game's, in coinrun 10 for the coin. Info: "level" (its seed)
    and "success" (the game says that the level is complete). An episode that the game ends terminates; at the time
    limit, one step before the game's own, it is truncated: at its own limit the game does not tell a death from the end
    of time. The state of a copy is its level and its actions, so `load_state` plays them again.
    """

    def __init__(self, copies: int, kind: str, seeds: Sequence[int], cycle: bool = False) -> None:
        if not len(seeds):
            raise UserError(f"{kind} needs at least one level seed.")
        self.task = task_name(kind)
        super().__init__(copies, make_game(self.task, int(seeds[0])).config["max_episode_steps"] - 1)
        self.name, self.seeds, self.cycle = kind, np.asarray(seeds, dtype=np.int64), cycle
        self.observation_space = spaces.Box(0, 255, IMAGE, dtype=np.uint8)
        self.action_space = spaces.Discrete(ACTIONS)
        self._games: list[Any] = [None] * copies
        self._frames = np.zeros((copies, *IMAGE), dtype=np.uint8)

    def load_state(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        self._games = [None] * self.copies  # they are in the middle of other episodes
        return super().load_state(state)

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        level = copies % len(self.seeds) if self.cycle else rng.integers(len(self.seeds), size=len(copies))
        return {"level": level, "played": np.zeros((len(copies), self.time_limit), dtype=np.uint8)}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        if ((action < 0) | (action >= ACTIONS)).any():
            raise ValueError(f"{self.name}: actions must be in 0..{ACTIONS - 1}")
        self.arrays["played"][np.arange(self.copies), self.arrays["elapsed"]] = action
        reward = np.zeros(self.copies)
        terminated, success = np.zeros((2, self.copies), dtype=bool)
        for game, pressed in zip(self._games, action.astype(np.int32), strict=True):
            game.send(pressed[None])  # each has a thread: all are on their way before the first is waited for
        for copy, game in enumerate(self._games):
            obs, earned, dead, _, info = game.recv()
            self._frames[copy], reward[copy], terminated[copy] = obs[0], earned[0], dead[0]
            success[copy] = info["prev_level_complete"][0]
        return reward, terminated, {"level": self.seeds[self.arrays["level"]], "success": success}

    def _observe(self) -> np.ndarray:
        for copy, elapsed in enumerate(self.arrays["elapsed"]):
            if elapsed == 0 or self._games[copy] is None:
                self._begin(copy, self.arrays["played"][copy, :elapsed])
        return self._frames.copy()

    def _begin(self, copy: int, played: np.ndarray) -> None:
        """A new game for one copy, up to where these actions lead."""
        game = make_game(self.task, int(self.seeds[self.arrays["level"][copy]]))
        obs = game.reset()[0]
        for action in played.astype(np.int32):
            obs = game.step(action[None])[0]
        self._games[copy], self._frames[copy] = game, obs[0]
