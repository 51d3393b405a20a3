"""Replay buffer for experience that is still being made, and batches mixed from several sources in fixed shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, Sampler

JOINED = tuple(item.name for item in fields(Batch) if item.name not in ("index", "extra"))


class Replay:
    """The newest `capacity` steps in a ring, each with its true successor and its own `terminated`.

    Whether an episode was truncated is not kept: it changes no target, since next_obs is the true successor. Step i of
    all that were added lies in slot i mod capacity. `len` is min(added, capacity). extras: name -> shape of a field of
    one step, such as {"cost": (), "skill": (8,)}; obs_dtype: torch.uint8 keeps images as bytes.
    """

    def __init__(
        self,
        spec: Spec,
        capacity: int,
        extras: Mapping[str, tuple[int, ...]] | None = None,
        obs_dtype: torch.dtype = torch.float32,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"the capacity must be at least 1, not {capacity}")
        self.spec, self.capacity, self.added = spec, capacity, 0
        action = () if spec.discrete else (spec.action_size,)
        shapes = {"obs": spec.obs_shape, "next_obs": spec.obs_shape, "action": action, "reward": (), "terminated": ()}
        dtypes = {"obs": obs_dtype, "next_obs": obs_dtype, "terminated": torch.bool}
        if spec.discrete:
            dtypes["action"] = torch.int64
        if clash := set(shapes) & set(extras or {}):
            raise ValueError(f"an extra field cannot be called {sorted(clash)[0]!r}: the buffer has one of that name")
        shapes.update(extras or {})
        self._fields = {
            name: torch.zeros((capacity, *shape), dtype=dtypes.get(name, torch.float32))
            for name, shape in shapes.items()
        }
        self._extras = tuple(extras or ())

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, obs: Any, action: Any, reward: Any, next_obs: Any, terminated: Any, **extras: Any) -> None:
        """One step of N environments: obs, next_obs (N, *), action (N, m) or (N,), the rest (N,), extras (N, ...).

        Arrays or tensors; copied. next_obs is the true successor, at an episode's end too. ValueError for a missing or
        unknown field, another shape, and bytes (uint8) for numbers or numbers for bytes.
        """
        given = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs, "terminated": terminated}
        rows = {name: _tensor(values) for name, values in {**given, **extras}.items()}
        if rows.keys() != self._fields.keys():
            raise ValueError(f"the step has the fields {sorted(rows)}, but {sorted(self._fields)} are wanted")
        count = len(rows["reward"])
        for name, values in rows.items():
            wanted = (count, *self._fields[name].shape[1:])
            if tuple(values.shape) != wanted:
                raise ValueError(f"the field {name} has shape {tuple(values.shape)}, but {wanted} is wanted")
            kept = self._fields[name].dtype
            if name in ("obs", "next_obs") and (kept == torch.uint8) != (values.dtype == torch.uint8):
                raise ValueError(f"the field {name} is {values.dtype}, but the buffer keeps {kept}: see obs_dtype")
        skipped = max(count - self.capacity, 0)  # of more steps than there are slots the last ones stay
        begin = (self.added + skipped) % self.capacity
        first = min(count - skipped, self.capacity - begin)  # up to the end of the ring; the rest goes to its beginning
        for name, values in rows.items():
            slots = self._fields[name]
            slots[begin : begin + first] = values[skipped : skipped + first]
            slots[: count - skipped - first] = values[skipped + first :]
        self.added += count

    def sample(self, batch_size: int, generator: Generator, gamma: float = 0.99) -> Batch:
        """Steps drawn uniformly from those kept, with replacement; index is the slot. ValueError if there are none."""
        if self.added == 0:
            raise ValueError("the replay buffer is empty: add steps before sampling")
        index = torch.randint(len(self), (batch_size,), generator=generator)
        rows = {name: values.index_select(0, index) for name, values in self._fields.items()}
        return Batch(
            obs=rows["obs"],
            action=rows["action"],
            reward=rows["reward"],
            discount=torch.where(rows["terminated"], 0.0, gamma),
            next_obs=rows["next_obs"],
            index=index,
            extra={name: rows[name] for name in self._extras},
        )

    def sampler(self, gamma: float) -> ReplaySampler:
        """What `transitions(gamma)` of this buffer is: it always sees what has been added so far."""
        return ReplaySampler(self, gamma)

    def state(self) -> dict[str, Tensor]:
        """Copies of all that is kept, the part that is filled only, and how many steps were ever added."""
        kept = {name: values[: len(self)].clone() for name, values in self._fields.items()}
        return {**kept, "added": torch.tensor(self.added)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Becomes the buffer that `state` was taken from. ValueError if that one had other fields or capacity."""
        wanted_names = {*self._fields, "added"}
        if state.keys() != wanted_names:
            raise ValueError(f"the state has the fields {sorted(state)}, but {sorted(wanted_names)} are wanted")
        added = int(state["added"])
        for name, values in self._fields.items():
            wanted = (min(added, self.capacity), *values.shape[1:])
            if tuple(state[name].shape) != wanted:
                raise ValueError(f"{name} of the state has shape {tuple(state[name].shape)}, but {wanted} is wanted")
            values[: wanted[0]] = state[name]
        self.added = added


class ReplaySampler:
    """A replay buffer with a discount."""

    def __init__(self, replay: Replay, gamma: float) -> None:
        self.replay, self.gamma = replay, gamma

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        return self.replay.sample(batch_size, generator, self.gamma)

    def state(self) -> dict[str, Tensor]:
        return self.replay.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.replay.load_state(state)


class Mixture:
    """Batches with a fixed number of rows from every source, in the order of the sources; nothing about it is random.

    Source: the symmetric sampling of RLPD, Ball et al. 2023, arXiv 2302.02948 (half offline data, half online).
    """

    def __init__(self, sources: Sequence[Sampler], shares: Sequence[float]) -> None:
        """shares: fraction of each source, summing to 1."""
        if len(sources) != len(shares) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"{len(sources)} sources need as many shares that sum to 1, not {list(shares)}")
        self.sources, self.shares = list(sources), list(shares)

    def counts(self, batch_size: int) -> list[int]:
        """Rows of each source in a batch: share x batch_size, rounded so that they sum to it (largest remainder)."""
        exact = np.array(self.shares) / sum(self.shares) * batch_size
        counts = np.floor(exact + 1e-9).astype(int)
        missing = batch_size - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
        return [int(count) for count in counts]

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Rows 0 .. counts[0] - 1 come from the first source, and so on. index is left out: it differs in meaning.

        ValueError if the sources give different fields.
        """
        counts = zip(self.sources, self.counts(batch_size), strict=True)
        parts = [source.sample(count, generator) for source, count in counts if count]
        joined: dict[str, Any] = {}
        for name in JOINED:
            values = [getattr(part, name) for part in parts]
            if all(value is not None for value in values):
                joined[name] = torch.cat(values)
            elif any(value is not None for value in values):
                raise ValueError(f"only some of the mixed sources have the field {name}: give them the same view")
        for part in parts:
            if part.extra.keys() != parts[0].extra.keys():
                raise ValueError(
                    f"the mixed sources have different extra fields: {sorted(part.extra)} and {sorted(parts[0].extra)}"
                )
        extra = {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra}
        return Batch(**joined, extra=extra)

    def state(self) -> dict[str, Tensor]:
        """The states of the sources, as "<number of the source>.<name>"."""
        return {
            f"{number}.{name}": value
            for number, source in enumerate(self.sources)
            for name, value in source.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for number, source in enumerate(self.sources):
            prefix = f"{number}."
            source.load_state({key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
