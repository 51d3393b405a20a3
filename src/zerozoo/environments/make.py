"""Environments by name: the batched worlds of this library, and every id that gymnasium knows."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium

from zerozoo.environments.batched.comb_lock import CombLock
from zerozoo.environments.batched.hazards import Hazards
from zerozoo.environments.batched.pendulum import Pendulum
from zerozoo.environments.batched.point_maze import PointMaze
from zerozoo.environments.batched.synthetic import Synthetic
from zerozoo.environments.batched.world import BatchedWorld, OneCopy
from zerozoo.environments.levels import GridLevels
from zerozoo.environments.mazes import LAYOUTS
from zerozoo.environments.procgen import ProcgenLevels
from zerozoo.environments.wrappers import StandardEnv
from zerozoo.runs.errors import UserError

# Levels by what stands before the colon in their kind; all others are those of minigrid.
_LEVELS: dict[str, Callable[..., BatchedWorld]] = {"procgen": ProcgenLevels}


def make_levels(copies: int, kind: str, seeds: Sequence[int], cycle: bool = False) -> BatchedWorld:
    """Levels of a `kind`, see `GridLevels` and `ProcgenLevels`: SimpleCrossing-S9N2, procgen:coinrun:hard, ...

    Raises `UserError` for an unknown kind and where what it needs is not installed.
    """
    return _LEVELS.get(kind.partition(":")[0], GridLevels)(copies, kind, seeds, cycle)


WORLDS: dict[str, Callable[..., BatchedWorld]] = {
    "pendulum": Pendulum,
    "point-maze": PointMaze,
    **{f"point-maze-{layout}": partial(PointMaze, layout=layout) for layout in LAYOUTS},
    "hazards": Hazards,
    "comb-lock": CombLock,
    "levels": make_levels,
    "synthetic": Synthetic,
}
# Packages whose environments gymnasium knows only once they are imported.
_PACKAGES = ("gymnasium_robotics", "minigrid")


def make_batched(name: str, copies: int, **options: Any) -> BatchedWorld:
    """The world `name` of `WORLDS` with `copies` copies; the options are those of its class.

    Raises `UserError` for an unknown world, a missing option, or one that the world does not have.
    """
    if name not in WORLDS:
        raise UserError(f"Unknown world '{name}'; choose from: {', '.join(WORLDS)}.")
    try:
        inspect.signature(WORLDS[name]).bind(copies, **options)
    except TypeError as error:
        raise UserError(f"The world '{name}' cannot be made with these options: {error}.") from None
    return WORLDS[name](copies, **options)


def make(name: str, observation_keys: Sequence[str] | None = None, **options: Any) -> gymnasium.Env[Any, Any]:
    """An environment in the library's form: actions in [-1, 1] or 0..n-1, plain observations.

    `name` is one of `WORLDS`, with its options, or a gymnasium id, whose options go to `gymnasium.make`.
    `observation_keys` chooses from dictionary observations. Raises `UserError` for what cannot be made.
    """
    if name in WORLDS and observation_keys is None:
        return OneCopy(make_batched(name, 1, **options))
    if name not in gymnasium.registry:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # minigrid's pygame greets on stdout
        for package in _PACKAGES:
            with contextlib.suppress(ImportError):
                importlib.import_module(package)
    try:
        env = gymnasium.make(name, disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(
            f"The environment '{name}' cannot be made: {reason}. Worlds of this library: {', '.join(WORLDS)}."
        ) from None
    return StandardEnv(env, observation_keys)
