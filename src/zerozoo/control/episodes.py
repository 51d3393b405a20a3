"""Recorded experience in flat arrays: T + 1 observations for the T steps of an episode, two flags kept apart.

Step i of episode e acts on the observation in row i + e and leads to that in row i + e + 1: every step, the last of an
episode included, has its true successor, and no index reaches into another episode. Ends are what was recorded:
`terminated` (the task is over, nothing follows) or `truncated` (recording stopped, the world would have gone on), at
the last step of every episode exactly one of them. Ends are never guessed from observations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from zerozoo.control.spec import Spec
from zerozoo.runs.errors import UserError

Array = np.ndarray

# Continuous actions are kept this far inside [-1, 1], because the log-density of a squashed policy is infinite at 1.
ACTION_LIMIT = 1 - 1e-5
ROUNDING = 1e-5  # how far outside [-1, 1] an action may lie by rounding
ARRAYS = ("obs", "action", "reward", "terminated", "truncated", "lengths")


@dataclass(frozen=True)
class Episode:
    """One episode of T steps: obs (T + 1, *), action (T, m) float or (T,) int, reward (T,), extras name -> (T, ...).

    terminated and truncated are (T,) bool, or one bool that speaks of the last step.
    """

    obs: Any
    action: Any
    reward: Any
    terminated: Any = False
    truncated: Any = False
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)


class Episodes:
    """E episodes with N steps in all. The arrays are shared, not copied, and must not be changed: see `replace`.

    obs (N + E, *) float32 or uint8; action (N, m) float32 or (N,) int64; reward (N,) float32; terminated, truncated
    (N,) bool; extras name -> (N, ...); starts, lengths (E,) int64 (first step and number of steps of an episode).
    `len` is N, `episodes` is E.
    """

    def __init__(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        lengths: Any,
        extras: Mapping[str, Any] | None = None,
        spec: Spec | None = None,
    ) -> None:
        """Takes flat arrays; `spec` is read from them unless given. Continuous actions are clipped to ACTION_LIMIT.

        Raises UserError, naming the field and the place, for NaN or infinity, wrong shapes or types, an episode
        without steps, ends that are missing, doubled or early, and actions that do not fit the spec.
        """
        self.lengths = np.asarray(lengths, np.int64)
        if self.lengths.ndim != 1 or len(self.lengths) == 0:
            raise UserError("there are no episodes in the data")
        if (self.lengths < 1).any():
            raise UserError(f"episode {int(np.argmax(self.lengths < 1))} is empty: every episode needs a step")
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.obs = np.ascontiguousarray(obs) if np.asarray(obs).dtype == np.uint8 else _numbers("obs", obs)
        self.action = _actions(action)
        self.reward = _numbers("reward", reward)
        self.terminated, self.truncated = as_flags("terminated", terminated), as_flags("truncated", truncated)
        self.extras = {name: _extra(name, values) for name, values in (extras or {}).items()}
        self._check_rows()
        self._check_finite()
        self._check_ends()
        self.spec = spec or self._infer_spec()
        self._check_actions()

    @classmethod
    def from_list(cls, episodes: Sequence[Episode | Mapping[str, Any]], spec: Spec | None = None) -> Episodes:
        """Joins `Episode`s, or mappings with the same names, as an environment or a data maker gives them.

        Where both flags are true `terminated` wins; an episode that ends with neither was cut off: it counts as
        truncated. Raises UserError as the constructor does, and for episodes that do not fit each other.
        """
        items = [item if isinstance(item, Episode) else Episode(**item) for item in episodes]
        if not items:
            raise UserError("there are no episodes in the data")
        for number, item in enumerate(items):
            if len(item) == 0:
                raise UserError(f"episode {number} is empty: every episode needs a step")
            if len(item.obs) != len(item) + 1:
                raise UserError(
                    f"episode {number} has {len(item.obs)} observations for {len(item)} actions:"
                    " an episode needs one observation more than actions"
                )
            _same_extras("episode", number, item.extras, items[0].extras)
        ends = [_resolved(item, number) for number, item in enumerate(items)]
        return cls(
            obs=_joined("obs", [item.obs for item in items]),
            action=_joined("action", [item.action for item in items]),
            reward=_joined("reward", [item.reward for item in items]),
            terminated=np.concatenate([terminated for terminated, _ in ends]),
            truncated=np.concatenate([truncated for _, truncated in ends]),
            lengths=[len(item) for item in items],
            extras={name: _joined(name, [item.extras[name] for item in items]) for name in items[0].extras},
            spec=spec,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Episodes]) -> Episodes:
        """All episodes of the parts, in order. UserError if their specs or extra fields differ."""
        specs = [replace(part.spec, action_size=0) if part.spec.discrete else part.spec for part in parts]
        for number, (part, spec) in enumerate(zip(parts, specs, strict=True)):
            if spec != specs[0]:
                raise UserError(f"part {number} does not fit part 0: {part.spec} against {parts[0].spec}")
            _same_extras("part", number, part.extras, parts[0].extras)
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS},
            extras={name: np.concatenate([part.extras[name] for part in parts]) for name in parts[0].extras},
            spec=max((part.spec for part in parts), key=lambda spec: spec.action_size),
        )

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def episodes(self) -> int:
        """E, the number of episodes."""
        return len(self.lengths)

    @cached_property
    def episode_of(self) -> Array:
        """(N,) int64, the episode of each step."""
        return np.repeat(np.arange(self.episodes), self.lengths)

    @cached_property
    def obs_index(self) -> Array:
        """(N,) int64, the row of the observation a step acts on; its successor is in the next row."""
        return np.arange(len(self)) + self.episode_of

    @cached_property
    def last(self) -> Array:
        """(E,) int64, the last step of each episode."""
        return self.starts + self.lengths - 1

    def episode(self, number: int) -> Episode:
        """Episode `number`, as views into the arrays."""
        number = range(self.episodes)[number]  # negative numbers count from the end
        steps = slice(self.starts[number], self.last[number] + 1)
        first = int(self.starts[number]) + number
        return Episode(**self._take(slice(first, first + int(self.lengths[number]) + 1), steps))

    def returns(self) -> Array:
        """(E,) float64, the undiscounted sum of rewards of each episode."""
        return np.add.reduceat(self.reward.astype(np.float64), self.starts)

    def returns_to_go(self, gamma: float = 1.0) -> Array:
        """(N,) float32, sum over k >= 0 of gamma^k r_{t+k} up to the end of the recording, in each step's own episode.

        What a truncated episode would still have earned is unknown and not in the sum.
        """
        result = np.empty(len(self), np.float64)
        total = np.zeros(self.episodes)
        for back in range(int(self.lengths.max())):  # all episodes at once, from their ends
            alive = np.flatnonzero(self.lengths > back)
            rows = self.last[alive] - back
            total[alive] = self.reward[rows] + gamma * total[alive]
            result[rows] = total[alive]
        return result.astype(np.float32)

    def replace(self, **changes: Any) -> Episodes:
        """The same episodes with other arrays for the named ones (obs, action, reward, extras...), checked again."""
        return Episodes(**{**{name: getattr(self, name) for name in (*ARRAYS, "extras", "spec")}, **changes})

    def select(self, which: Any) -> Episodes:
        """The episodes where a mask (E,) is true, or those with the given numbers, in that order."""
        chosen = np.asarray(which)
        if chosen.dtype == bool:
            if chosen.shape != (self.episodes,):
                raise ValueError(f"the mask has shape {chosen.shape} for {self.episodes} episodes")
            chosen = np.flatnonzero(chosen)
        chosen = np.arange(self.episodes)[chosen.astype(np.int64)]  # negative numbers count from the end
        lengths = self.lengths[chosen]
        rows = self._take(_ranges(self.starts[chosen] + chosen, lengths + 1), _ranges(self.starts[chosen], lengths))
        return Episodes(**rows, lengths=lengths, spec=self.spec)

    def split(
        self, by: Sequence[float] | Callable[[Episode], bool], random: np.random.Generator | None = None
    ) -> tuple[Episodes, ...]:
        """Parts with whole episodes: by fractions that sum to 1, or (those for which `by` is true, the others).

        Fractions are of the number of episodes, in their order, or in random order if a generator is given.
        UserError if a part would get no episode.
        """
        if callable(by):
            chosen = np.array([bool(by(self.episode(number))) for number in range(self.episodes)])
            return self.select(chosen), self.select(~chosen)
        if min(by) < 0 or abs(sum(by) - 1) > 1e-6:
            raise ValueError(f"fractions must not be negative and must sum to 1, not {list(by)}")
        order = np.arange(self.episodes) if random is None else random.permutation(self.episodes)
        cuts = np.round(np.cumsum(by)[:-1] * self.episodes).astype(np.int64)
        return tuple(self.select(part) for part in np.split(order, cuts))

    def _take(self, obs_rows: Any, steps: Any) -> dict[str, Any]:
        rows = {name: getattr(self, name)[steps] for name in ARRAYS[1:5]}
        extras = {name: values[steps] for name, values in self.extras.items()}
        return {"obs": self.obs[obs_rows], **rows, "extras": extras}

    def _infer_spec(self) -> Spec:
        discrete = self.action.ndim == 1
        size = int(self.action.max()) + 1 if discrete else self.action.shape[1]
        return Spec(self.obs.shape[1:], size, discrete)

    def _steps(self) -> list[tuple[str, Array]]:
        return [*((name, getattr(self, name)) for name in ARRAYS[1:5]), *self.extras.items()]

    def _check_rows(self) -> None:
        steps = int(self.lengths.sum())
        for name, values in self._steps():
            if values.ndim == 0 or len(values) != steps or (name in ARRAYS[2:5] and values.ndim != 1):
                wanted = f"({steps},)" if name in ARRAYS[2:5] else f"({steps}, ...)"
                raise UserError(f"the field {name} has shape {values.shape}, but {wanted} is wanted for {steps} steps")
        if len(self.obs) != steps + self.episodes:
            raise UserError(
                f"the field obs has shape {self.obs.shape}, but {steps} steps in {self.episodes} episodes"
                f" need {steps + self.episodes} rows: one more than steps in every episode"
            )

    def _check_finite(self) -> None:
        obs_starts = self.starts + np.arange(self.episodes)
        for name, values in [("obs", self.obs), *self._steps()]:
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                row = int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
                place = _place(row, obs_starts if name == "obs" else self.starts)
                raise UserError(f"the field {name} holds NaN or infinity at {place}")

    def _check_ends(self) -> None:
        early = self.terminated | self.truncated
        unmarked = ~early[self.last]
        early[self.last] = False
        for problem, where in (
            ("terminated and truncated are both true", self.terminated & self.truncated),
            ("an end is recorded, but the episode goes on,", early),
        ):
            if where.any():
                raise UserError(f"{problem} at {_place(int(np.argmax(where)), self.starts)}")
        if unmarked.any():
            raise UserError(f"episode {int(np.argmax(unmarked))} ends neither terminated nor truncated: mark its end")

    def _check_actions(self) -> None:
        spec, obs_shape = self.spec, self.obs.shape[1:]
        if obs_shape != spec.obs_shape:
            raise UserError(f"the field obs has observations of shape {obs_shape}, but {spec.obs_shape} is wanted")
        if spec.discrete:
            if self.action.ndim != 1:
                raise UserError("the field action holds continuous actions, but discrete ones are wanted")
            if self.action.min() < 0 or self.action.max() >= spec.action_size:
                raise UserError(
                    f"the field action holds numbers from {self.action.min()} to {self.action.max()},"
                    f" but there are {spec.action_size} actions, numbered from 0"
                )
            return
        if self.action.ndim != 2 or self.action.shape[1] != spec.action_size:
            raise UserError(
                f"the field action has shape {self.action.shape}, but (steps, {spec.action_size}) is wanted"
            )
        largest = float(np.abs(self.action).max())
        if largest > 1 + ROUNDING:
            raise UserError(
                f"the field action reaches {largest:g}, outside [-1, 1]: rescale it, giving the bounds of its space"
            )
        if largest > np.float32(ACTION_LIMIT):
            self.action = self.action.clip(-np.float32(ACTION_LIMIT), np.float32(ACTION_LIMIT))


class Recorder:
    """Builds Episodes from what N environment copies do, one call of `add` per step of all of them."""

    def __init__(self) -> None:
        self._steps: dict[str, list[Array]] = {}
        self._finals: dict[tuple[int, int], Array] = {}  # (time, copy) of an episode's last step -> its last obs

    def add(
        self, obs: Any, action: Any, reward: Any, terminated: Any, truncated: Any, next_obs: Any, **extras: Any
    ) -> None:
        """One step: obs (N, *), action (N, m) or (N,), the rest (N,), extras (N, ...); copied.

        next_obs (N, *) are the true successors: of a copy whose episode goes on, the `obs` of the next call.
        """
        row = {"obs": obs, "action": action, "reward": reward, "terminated": terminated, "truncated": truncated}
        if self._steps and set(self._steps) != {*row, *extras}:
            raise ValueError(f"every step needs the same fields: {sorted(self._steps)}")
        for name, values in {**row, **extras}.items():
            self._steps.setdefault(name, []).append(np.array(values))
        time = len(self._steps["obs"]) - 1
        for copy in np.flatnonzero(np.asarray(terminated) | np.asarray(truncated)):
            self._finals[time, int(copy)] = np.array(next_obs[copy])
        self._next_obs = np.array(next_obs)

    def __len__(self) -> int:
        return sum(len(values) for values in self._steps.get("reward", []))

    def episodes(self, spec: Spec | None = None) -> Episodes:
        """All that was added, ordered by the time of the end, then by copy. Unfinished episodes count as truncated."""
        if not self._steps:
            raise UserError("there are no episodes in the data")
        columns = {name: np.stack(values) for name, values in self._steps.items()}  # (T, N, ...)
        steps, copies = columns["reward"].shape
        finals = {**{(steps - 1, copy): self._next_obs[copy] for copy in range(copies)}, **self._finals}
        begins = dict.fromkeys(range(copies), 0)
        items = []
        for end, copy in sorted(finals):
            part = {name: values[begins[copy] : end + 1, copy] for name, values in columns.items()}
            begins[copy] = end + 1
            obs = np.concatenate([part.pop("obs"), finals[end, copy][None]])
            flat = {name: part.pop(name) for name in ("action", "reward", "terminated", "truncated")}
            items.append(Episode(obs, **flat, extras=part))
        return Episodes.from_list(items, spec)


def _place(row: int, starts: Array) -> str:
    episode = int(np.searchsorted(starts, row, "right")) - 1
    return f"step {row - int(starts[episode])} of episode {episode}"


def _numbers(name: str, values: Any) -> Array:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise UserError(f"the field {name} does not hold numbers but {array.dtype}")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused as such
        return np.ascontiguousarray(array, np.float32)


def _actions(values: Any) -> Array:
    array = np.asarray(values)
    if array.dtype.kind in "iu" and array.ndim == 1:
        return np.ascontiguousarray(array, np.int64)
    if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1]:
        return _numbers("action", array)
    raise UserError(
        f"the field action has shape {array.shape} and type {array.dtype}:"
        " it must be (steps, size) of floats or (steps,) of integers"
    )


def _extra(name: str, values: Any) -> Array:
    array = np.asarray(values)
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        return np.ascontiguousarray(array, np.int64)
    return np.ascontiguousarray(array) if array.dtype.kind in "bu" else _numbers(name, array)


def _same_extras(noun: str, number: int, extras: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    if set(extras) != set(first):
        raise UserError(
            f"{noun} {number} has other extra fields than {noun} 0: {sorted(extras)} against {sorted(first)}"
        )


def as_flags(name: str, values: Any) -> Array:
    """A flag as bool, from booleans or from the numbers 0 and 1; UserError, naming the field, for anything else."""
    array = np.asarray(values)
    if array.dtype.kind != "b" and (array.dtype.kind not in "fiu" or not np.isin(array, (0, 1)).all()):
        raise UserError(f"the field {name} must be true or false (or 1 or 0) at every step")
    return array.astype(bool)


def _resolved(item: Episode, number: int) -> tuple[Array, Array]:
    """The two flags (T,) of an episode, with terminated winning and an unmarked end truncated."""
    flags = []
    for name, given in (("terminated", item.terminated), ("truncated", item.truncated)):
        values = as_flags(name, given)
        if values.ndim == 0:
            values = np.where(np.arange(len(item)) == len(item) - 1, values, False)
        if values.shape != (len(item),):
            raise UserError(f"the field {name} of episode {number} has shape {values.shape} for {len(item)} steps")
        flags.append(values)
    terminated, truncated = flags
    truncated[-1] = not terminated[-1]
    return terminated, truncated


def _joined(name: str, parts: Sequence[Any]) -> Array:
    arrays = [np.asarray(part) for part in parts]
    for number, array in enumerate(arrays):
        if array.shape[1:] != arrays[0].shape[1:]:
            raise UserError(
                f"the field {name} of episode {number} has rows of shape {array.shape[1:]},"
                f" that of episode 0 {arrays[0].shape[1:]}"
            )
    return np.concatenate(arrays)


def _ranges(starts: Array, lengths: Array) -> Array:
    """start, start + 1, ..., start + length - 1 of every pair, one after the other."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))
