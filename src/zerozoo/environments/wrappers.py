"""The one form in which the library sees gymnasium environments: `StandardEnv`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from zerozoo.environments.batched.world import OneCopy
from zerozoo.runs.errors import UserError


class StandardEnv(gymnasium.Wrapper[np.ndarray, Any, Any, Any]):
    """Any gymnasium environment with actions in [-1, 1] (or 0..n-1) and a plain observation array.

    Continuous actions are clipped to [-1, 1] and stretched to the environment's bounds. Observations become flat
    float32 vectors; images (uint8 of three dimensions) stay as they are. Of a dictionary the entries `observation_keys`
    are put one after another. Rewards are not touched. An environment that raises, or gives a number that is not
    finite, is a UserError that names it and the step of the episode; so are spaces that do not fit this form.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], observation_keys: Sequence[str] | None = None) -> None:
        super().__init__(env)
        self.name = environment_name(env)
        self._elapsed = 0
        self._keys = observation_keys
        self._chosen = self._choose(env.observation_space)
        self._is_image = (
            isinstance(self._chosen, spaces.Box) and self._chosen.dtype == np.uint8 and len(self._chosen.shape) == 3
        )
        if self._is_image:
            self.observation_space = self._chosen
        else:
            try:
                flat = spaces.flatten_space(self._chosen)
            except NotImplementedError:
                flat = None
            if not isinstance(flat, spaces.Box):
                raise UserError(f"The observations of {self.name} cannot be made a vector: {self._chosen}.")
            self.observation_space = spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32))
        native = env.action_space
        if isinstance(native, spaces.Discrete):
            self.action_space = spaces.Discrete(int(native.n))
        elif isinstance(native, spaces.Box) and np.isfinite(native.low).all() and np.isfinite(native.high).all():
            self.action_space = spaces.Box(-1.0, 1.0, (int(np.prod(native.shape)),))
        else:
            raise UserError(f"{self.name} needs discrete actions or a box of finite bounds, not {native}.")

    def _choose(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        """The part of the observation space that is kept."""
        if not isinstance(space, spaces.Dict):
            if self._keys is not None:
                raise UserError(f"{self.name} has no dictionary observations: leave observation_keys out.")
            return space
        names = ", ".join(space.spaces)
        if self._keys is None:
            raise UserError(f"{self.name} gives several observations ({names}): choose some with observation_keys.")
        if not self._keys or not set(self._keys) <= set(space.spaces):
            raise UserError(f"observation_keys {list(self._keys)} of {self.name} must be some of: {names}.")
        return spaces.Tuple([space[key] for key in self._keys])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._elapsed = 0
        obs, info = self._call(self.env.reset, seed=seed, options=options)
        return self._plain(obs), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._elapsed += 1
        native = self.env.action_space
        if isinstance(native, spaces.Box):
            share = (np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0).reshape(native.shape) + 1) / 2
            action = (native.low + share * (native.high.astype(np.float64) - native.low)).astype(native.dtype)
        elif isinstance(native, spaces.Discrete):
            action = native.start + int(action)
        obs, reward, terminated, truncated, info = self._call(self.env.step, action)
        if not np.isfinite(reward):
            raise UserError(f"The environment {self.name} gave the reward {reward} {self._where}.")
        return self._plain(obs), float(reward), bool(terminated), bool(truncated), info

    @property
    def _where(self) -> str:
        return f"in step {self._elapsed} of its episode" if self._elapsed else "at reset"

    def _call(self, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        """Calls the environment; what it raises becomes a UserError that names it and the step."""
        try:
            return function(*values, **options)
        except UserError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"The environment {self.name} failed {self._where}: {reason}.") from error

    def _plain(self, obs: Any) -> np.ndarray:
        """The observation in this wrapper's form, always a new array."""
        if self._is_image:
            return np.array(obs, dtype=np.uint8)
        if self._keys is not None:
            obs = tuple(obs[key] for key in self._keys)
        flat = np.array(spaces.flatten(self._chosen, obs), dtype=np.float32)
        if not np.isfinite(flat).all():
            raise UserError(f"The environment {self.name} gave an observation with NaN or inf {self._where}.")
        return flat


def environment_name(env: gymnasium.Env[Any, Any]) -> str:
    """The id of an environment, of a batched world its name, otherwise its class."""
    inner = env.unwrapped
    if isinstance(inner, OneCopy):
        return inner.world.name
    return env.spec.id if env.spec is not None else type(inner).__name__


def standard(env: gymnasium.Env[Any, Any], observation_keys: Sequence[str] | None = None) -> gymnasium.Env[Any, Any]:
    """`env` in the library's form; a `StandardEnv` or one copy of a batched world is in it already."""
    if isinstance(env, StandardEnv | OneCopy):
        return env
    return StandardEnv(env, observation_keys)
