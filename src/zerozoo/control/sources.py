"""What the fields `environment`, `data` and `reward_...` of a recipe mean: worlds, recorded episodes, rewards."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from zerozoo.control.episodes import Episodes
from zerozoo.control.files import Bounds, read_minari, read_npz
from zerozoo.control.manifest import manifest, manifest_path, write_manifest
from zerozoo.control.spec import Spec, unit_box
from zerozoo.environments.data import hazard_mixture, mixed_quality, narrow, reference_returns, undirected
from zerozoo.environments.make import WORLDS, make, make_batched
from zerozoo.environments.vector import VecEnv
from zerozoo.environments.wrappers import StandardEnv
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams

SUCCESS = ("success", "is_success")  # what environments call it in their info
REFERENCE_COPIES = 200  # episodes behind each number of a measured reference pair
# Returns of a random policy and an expert by family, from D4RL's infos.py (measured with the -v2 environments).
D4RL_REFERENCES = {
    "HalfCheetah": (-280.18, 12135.0),
    "Hopper": (-20.27, 3234.3),
    "Walker2d": (1.63, 4592.3),
    "Ant": (-325.6, 3879.7),
}


@dataclass(frozen=True)
class World:
    """An environment by its name, with options; the same for training, data and evaluation.

    name: one of `zerozoo.environments.make.WORLDS` or a gymnasium id. observation_keys: see `make`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    observation_keys: tuple[str, ...] = ()

    @property
    def batched(self) -> bool:
        """Whether thousands of copies step in one call."""
        return self.name in WORLDS and not self.observation_keys

    def make(self) -> gymnasium.Env[Any, Any]:
        """One environment. UserError if there is none of that name."""
        return make(self.name, self.observation_keys or None, **self.options)

    def vector(self, copies: int, generator: np.random.Generator, info: Sequence[str] = ()) -> VecEnv:
        """`copies` of it, stepped together; every reset without seeds draws from `generator`."""
        if self.batched:
            return VecEnv(make_batched(self.name, copies, **self.options), generator, info)
        return VecEnv([self.make] * copies, generator, info)

    def spec(self) -> Spec:
        """Shapes of its observations and actions."""
        env = self.make()
        return Spec.of_spaces(env.observation_space, env.action_space)

    def success_name(self) -> str | None:
        """What its info calls success, found by one step; None if it reports none."""
        env = self.make()
        env.reset(seed=0)
        idle = 0 if isinstance(env.action_space, spaces.Discrete) else np.zeros(env.action_space.shape or ())
        info = env.step(idle)[4]
        env.close()
        return next((name for name in SUCCESS if name in info), None)

    def action_bounds(self) -> Bounds | None:
        """Bounds of the actions that recordings of this environment hold; None if [-1, 1] or discrete."""
        env = self.make()
        native = env.env.action_space if isinstance(env, StandardEnv) else env.action_space
        return (native.low, native.high) if isinstance(native, spaces.Box) and not unit_box(native) else None

    def reference(self) -> tuple[float, float] | None:
        """Returns that score 0 and 100, of a random and an expert policy; None if nobody knows them.

        Those of our own worlds are measured on the spot, with a fixed seed; those of MuJoCo are D4RL's.
        """
        if self.batched:
            world = make_batched(self.name, REFERENCE_COPIES, **self.options)
            try:
                low, high = reference_returns(world, np.random.Generator(np.random.PCG64(0)))
            except ValueError:  # a world without an expert
                return None
            return (low, high) if high > low else None
        return D4RL_REFERENCES.get(self.name.split("-")[0])


@dataclass(frozen=True)
class RewardTransform:
    """reward -> scale * reward + shift: ONE object for recorded and for fresh rewards (traps 9 and 10).

    What is learned from is transformed; what is reported as a return never is.
    """

    scale: float = 1.0
    shift: float = 0.0

    @classmethod
    def by_return_range(cls, episodes: Episodes, span: float = 1000.0) -> RewardTransform:
        """scale = span / (largest - smallest return), all recorded episodes counted, the last one too.

        Source: IQL, arXiv 2110.06169, section 5.1 of its code for MuJoCo. UserError if all returns are equal.
        """
        returns = episodes.returns()
        if returns.max() == returns.min():
            raise UserError("All episodes have the same return: give reward_scale a number other than 0.")
        return cls(scale=span / float(returns.max() - returns.min()))

    def __call__(self, reward: np.ndarray) -> np.ndarray:
        return self.scale * reward + self.shift

    def episodes(self, episodes: Episodes) -> Episodes:
        """The same episodes with transformed rewards."""
        return episodes.replace(reward=self(episodes.reward))


@dataclass(frozen=True)
class Maker:
    """Makes data, and names the world in which what was learned from it is to be tried."""

    world: World
    make: Callable[[np.random.Generator], list[dict[str, Any]]]


_GOAL = (3, 1)  # the lower left end of the U
_UMAZE = World("point-maze-umaze", {"goal_cells": [_GOAL]})
MAKERS: dict[str, Maker] = {
    "pendulum-mixed": Maker(World("pendulum"), mixed_quality),
    "pendulum-random": Maker(World("pendulum"), partial(mixed_quality, quality=0.0)),
    "pendulum-expert": Maker(World("pendulum"), partial(mixed_quality, quality=1.0)),
    "umaze-narrow": Maker(_UMAZE, partial(narrow, transitions=30_000, goal_cells=[_GOAL])),
    "umaze-undirected": Maker(_UMAZE, partial(undirected, transitions=60_000, goal_cell=_GOAL)),
    "hazards-mixed": Maker(World("hazards"), hazard_mixture),
}


@dataclass(frozen=True)
class Data:
    """Recorded episodes in their own rewards; spec: the world's, where there is one."""

    episodes: Episodes
    spec: Spec
    world: World | None


def open_data(config: Any, run: Run, makers: Mapping[str, Maker] | None = None) -> Data:
    """The episodes of `config.data`, made or read, and the world of `config.environment` ("": that of the data maker).

    Made data depends on `config.data_seed` alone; its manifest, with the world's reference returns, is written into the
    run. makers: a recipe's own, beside `MAKERS`. UserError for data that is not there or broken, and for a world that
    does not fit it.
    """
    makers = {**MAKERS, **(makers or {})}
    maker = makers.get(config.data)
    world = World(config.environment, observation_keys=config.observation_keys) if config.environment else None
    if maker is not None:
        world = world or maker.world
        generator = Streams(config.data_seed).numpy(f"data/{config.data}")
        episodes = Episodes.from_list(maker.make(generator))
        if run.writes and not manifest_path(run.path("data")).exists():
            run.directory.mkdir(parents=True, exist_ok=True)
            record = manifest(episodes, config.data, {}, config.data_seed, maker.world.reference())
            write_manifest(run.path("data"), record)
    else:
        episodes = _read(config.data, config.observation_keys, world, makers)
    if world is None:
        run.say("No environment is given, so nothing will be evaluated.")
        return Data(episodes, episodes.spec, None)
    spec = world.spec()
    episodes.spec.check(spec)
    return Data(episodes, spec, world)


def _read(name: str, keys: Sequence[str], world: World | None, makers: Mapping[str, Maker]) -> Episodes:
    bounds = world.action_bounds() if world is not None else None
    if name.endswith(".npz"):
        return read_npz(name, action_bounds=bounds)
    if not (Path(name).exists() or re.search(r"-v\d+$", name)):  # ids of Minari end with a version
        near = difflib.get_close_matches(name, makers, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"Unknown data {name!r}{hint}: give a data maker ({', '.join(makers)}), an .npz file, or the folder or id"
            " of a Minari data set."
        )
    return read_minari(name, keys=keys or None, action_bounds=bounds)
