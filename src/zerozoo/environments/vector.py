"""N environments as one: the true successor of every step, and the observation to act on next, kept apart.

There is no step across a reset (a ghost transition): a copy that ends is reset within the same call, `Step.next_obs`
holds the last observation of the old episode and `Step.obs` the first one of the new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from zerozoo.environments.batched.world import BatchedWorld, Outcome
from zerozoo.environments.wrappers import environment_name, standard
from zerozoo.runs.errors import DivergedError, UserError

EnvMaker = Callable[[], gymnasium.Env[Any, Any]]


@dataclass(frozen=True)
class Step:
    """What one step did to N copies, in the environment's own rewards."""

    next_obs: np.ndarray  # (N, *) true successor, also where the episode ended
    reward: np.ndarray  # (N,) float64
    terminated: np.ndarray  # (N,) bool
    truncated: np.ndarray  # (N,) bool, never together with terminated
    obs: np.ndarray  # (N, *) what to act on next: the new episode's first observation where one ended
    returns: np.ndarray  # (N,) sum of rewards of the episode so far, this step included: its return where it ended
    lengths: np.ndarray  # (N,) steps of the episode so far, this one included
    info: Mapping[str, np.ndarray]  # the names that VecEnv was asked for -> (N, ...)

    @property
    def ended(self) -> np.ndarray:
        """(N,) where an episode ended."""
        return self.terminated | self.truncated


class VecEnv:
    """Copies of a batched world, or gymnasium environments (one maker each), stepped together.

    Every reset without seeds draws from `generator`, a named stream of the run: the same stream, the same episodes.
    `info` names what of the environments' info is wanted with each step. UserError where environments differ in their
    spaces, lack a wanted info, raise, or give NaN; DivergedError for an action that is not finite.
    """

    def __init__(
        self, source: BatchedWorld | Sequence[EnvMaker], generator: np.random.Generator, info: Sequence[str] = ()
    ) -> None:
        self._source = source if isinstance(source, BatchedWorld) else _Environments(source, info)
        self._generator = generator
        self._wanted = tuple(info)
        self.name, self.copies = self._source.name, self._source.copies
        self.observation_space, self.action_space = self._source.observation_space, self._source.action_space
        self._returns = np.zeros(self.copies)
        self._lengths = np.zeros(self.copies, dtype=np.int64)
        self._obs = np.zeros((self.copies, *self.observation_space.shape), dtype=self.observation_space.dtype)

    def reset(self, seeds: Sequence[int] | None = None) -> np.ndarray:
        """New episodes everywhere: observations (N, *). Copy n starts from seed n, without seeds from the generator."""
        self._returns[:], self._lengths[:] = 0, 0
        self._obs = self._source.reset(self._generator) if seeds is None else self._source.reset_seeded(seeds)
        return self._obs

    def step(self, action: np.ndarray) -> Step:
        """One step of all copies with actions (N, m) in [-1, 1] or (N,) integers; copies that ended are reset."""
        action, kind = np.asarray(action), self.action_space.dtype
        if action.shape != (self.copies, *(self.action_space.shape or ())) or not np.can_cast(
            action, kind, "same_kind"
        ):
            raise ValueError(f"{self.name}: {action.dtype} actions of shape {action.shape} for {self.copies} copies")
        if not np.isfinite(action).all():
            raise DivergedError(f"The policy gave {self.name} an action that is not a finite number.")
        next_obs, reward, terminated, truncated, info = self._source.step(action.astype(kind, copy=False))
        self._check(next_obs, reward, info)
        truncated = truncated & ~terminated
        ended = terminated | truncated
        self._returns += reward
        self._lengths += 1
        returns, lengths = self._returns.copy(), self._lengths.copy()
        self._obs = self._source.reset(self._generator, ended) if ended.any() else next_obs
        self._returns[ended], self._lengths[ended] = 0, 0
        chosen = {name: info[name] for name in self._wanted}
        return Step(next_obs, reward, terminated, truncated, self._obs, returns, lengths, chosen)

    def _check(self, next_obs: np.ndarray, reward: np.ndarray, info: Mapping[str, np.ndarray]) -> None:
        # A sum is finite only if all its terms are: one pass instead of three; images are integers.
        if not np.isfinite(reward.sum() + (next_obs.sum() if next_obs.dtype.kind == "f" else 0)):
            bad = ~(np.isfinite(reward) & np.isfinite(next_obs.reshape(self.copies, -1)).all(axis=1))
            step = self._lengths[bad.argmax()] + 1
            raise UserError(f"The environment {self.name} gave NaN or inf in step {step} of copy {bad.argmax()}.")
        if missing := set(self._wanted) - set(info):
            raise UserError(f"The environment {self.name} does not report {', '.join(sorted(missing))} in its info.")

    def state(self) -> dict[str, np.ndarray]:
        """Flat arrays from which `load_state` goes on; the generator's own state is kept by its owner.

        A batched world gives its exact arrays. Gymnasium environments give each episode's seed and actions, which are
        played again: exact for every environment whose seed fixes the episode (MuJoCo, classic control, MiniGrid ...).
        """
        own = {"returns": self._returns.copy(), "lengths": self._lengths.copy(), "obs": self._obs.copy()}
        return own | {f"source.{name}": values for name, values in self._source.state().items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        """Goes back to `state`: the observations (N, *) to act on. Put the generator back first.

        An environment that does not come back to the observation it had (its seed does not fix it) starts a new
        episode, and its count of rewards and steps begins again. UserError if the state belongs to something else.
        """
        saved = np.asarray(state["obs"])
        if saved.shape != self._obs.shape:
            raise UserError(f"The saved environments {saved.shape} are not {self.copies} copies of {self.name}.")
        inner = {name.removeprefix("source."): state[name] for name in state if name.startswith("source.")}
        self._obs = self._source.load_state(inner)
        self._returns[:], self._lengths[:] = state["returns"], state["lengths"]
        lost = (self._obs != saved).reshape(self.copies, -1).any(axis=1)
        if lost.any():
            self._obs = self._source.reset(self._generator, lost)
            self._returns[lost], self._lengths[lost] = 0, 0
        return self._obs

    def close(self) -> None:
        """Closes gymnasium environments; a batched world holds nothing open."""
        if isinstance(self._source, _Environments):
            self._source.close()


class _Environments:
    """Gymnasium environments behind the interface of a batched world; keeps each episode's seed and actions."""

    def __init__(self, makers: Sequence[EnvMaker], wanted: Sequence[str]) -> None:
        if not makers:
            raise UserError("At least one environment is needed.")
        self.envs, self.wanted = [standard(maker()) for maker in makers], wanted
        self.copies, self.name = len(self.envs), environment_name(self.envs[0])
        observations: Any = self.envs[0].observation_space
        self.observation_space = observations
        self.action_space: Any = self.envs[0].action_space
        for env in self.envs[1:]:
            if (env.observation_space, env.action_space) != (self.observation_space, self.action_space):
                raise UserError(f"{environment_name(env)} has other observations or actions than {self.name}.")
        self.seeds = np.zeros(self.copies, dtype=np.int64)
        self.actions: list[list[np.ndarray]] = [[] for _ in self.envs]
        self.obs = np.zeros((self.copies, *observations.shape), dtype=observations.dtype)

    def _begin(self, place: int, seed: int) -> None:
        self.seeds[place], self.actions[place] = seed, []
        self.obs[place] = self.envs[place].reset(seed=seed)[0]

    def reset(self, rng: np.random.Generator, mask: np.ndarray | None = None) -> np.ndarray:
        for place in np.flatnonzero(np.ones(self.copies) if mask is None else mask):
            self._begin(int(place), int(rng.integers(2**31)))
        return self.obs.copy()

    def reset_seeded(self, seeds: Sequence[int]) -> np.ndarray:
        for place, seed in zip(range(self.copies), seeds, strict=True):
            self._begin(place, int(seed))
        return self.obs.copy()

    def step(self, action: np.ndarray) -> Outcome:
        rewards, terminated, truncated, infos = [], [], [], []
        for place, env in enumerate(self.envs):
            self.obs[place], reward, dead, cut, info = env.step(action[place])
            self.actions[place].append(action[place].copy())
            rewards.append(reward)
            terminated.append(dead)
            truncated.append(cut)
            infos.append(info)
        reported = [name for name in self.wanted if all(name in info for info in infos)]
        values = {name: np.array([info[name] for info in infos]) for name in reported}
        return Outcome(self.obs.copy(), np.array(rewards), np.array(terminated), np.array(truncated), values)

    def state(self) -> dict[str, np.ndarray]:
        counts = np.array([len(actions) for actions in self.actions])
        played = np.zeros((self.copies, counts.max(), *(self.action_space.shape or ())), self.action_space.dtype)
        for place, actions in enumerate(self.actions):
            played[place, : len(actions)] = np.array(actions).reshape(-1, *played.shape[2:])
        return {"seeds": self.seeds.copy(), "counts": counts, "actions": played}

    def load_state(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        for place, count in enumerate(state["counts"]):
            self._begin(place, int(state["seeds"][place]))
            for action in state["actions"][place, :count]:
                self.obs[place] = self.envs[place].step(action)[0]
                self.actions[place].append(action)
        return self.obs.copy()

    def close(self) -> None:
        for env in self.envs:
            env.close()
