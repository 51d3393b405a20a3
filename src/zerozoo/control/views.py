"""Views: how batches are made from recorded episodes. Index arithmetic only; observations are stored once.

A view is a small value, `transitions(gamma=0.99)`. Called with data it gives a sampler, and
`sampler.sample(batch_size, generator)` draws a `Batch` with replacement, every random number from the given generator.
No index leaves the episode that it started in. `dataclasses.replace(view, gamma=0.9)` changes a setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Generator, Tensor

from zerozoo.control.episodes import Episodes
from zerozoo.runs.errors import UserError

# A field that the view does not give. It is typed as a tensor, because an agent knows the view that it has chosen.
_ABSENT = cast(Tensor, None)


@dataclass(slots=True)
class Batch:
    """B rows. In windows (`sequences`, `skills`: (B, L), `pairs`: (B, 2, L)) every field has the window's axes too.

    obs, next_obs (B, *) float32 or uint8; action (B, m) float32 or (B,) int64; reward (B,); discount (B,): gamma^n,
    and 0 where the task ended: the factor of the value of next_obs in a target. Fields that a view lacks are None.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Tensor
    index: Tensor = _ABSENT  # (B,) int64, the step (row of action) that was drawn; of a window, see the view
    next_action: Tensor = _ABSENT  # like action, recorded at next_obs
    next_action_valid: Tensor = _ABSENT  # (B,) bool, False where the episode recorded no action at next_obs
    goal: Tensor = _ABSENT  # (B, g)
    reached: Tensor = _ABSENT  # (B,) bool, the goal was taken from obs itself
    mask: Tensor = _ABSENT  # (B, L) bool, False in the padding
    timestep: Tensor = _ABSENT  # (B, L) int64, number of the step in its episode, 0 in the padding
    return_to_go: Tensor = _ABSENT  # (B, L)
    extra: dict[str, Tensor] = field(default_factory=dict)


class Sampler(Protocol):
    """What a view of data, a replay view and a mixture have in common."""

    def sample(self, batch_size: int, generator: Generator) -> Batch: ...

    def state(self) -> dict[str, Tensor]:
        """What an exact resume needs, the generator apart."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


class Growing(Protocol):
    """Data that is still being added to and gives one-step transitions only: a Replay."""

    def sampler(self, gamma: float) -> Sampler: ...


@dataclass(frozen=True)
class Transitions:
    """See `transitions`."""

    gamma: float = 0.99
    n_step: int = 1
    next_action: bool = False

    def __call__(self, data: Episodes | Growing) -> Sampler:
        if isinstance(data, Episodes):
            return TransitionSampler(data, self)
        if self.n_step != 1 or self.next_action:
            raise ValueError("a replay buffer keeps single steps: it has no n_step > 1 and no next_action")
        return data.sampler(self.gamma)


def transitions(gamma: float = 0.99, n_step: int = 1, next_action: bool = False) -> Transitions:
    """Steps, drawn uniformly. Takes Episodes, or a Replay for n_step 1 without next_action.

    With k = min(n_step, steps left in the episode): reward = sum_{j<k} gamma^j r_{t+j}, next_obs = s_{t+k}, and
    discount = gamma^k, but 0 if the task ended with the k-th step. The sum stops at the episode's last step, and a
    truncated episode bootstraps from its true last observation. next_action gives a_{t+k}, where the episode
    recorded one (next_action_valid); elsewhere it repeats the episode's last action, which no target may use.
    """
    if n_step < 1:
        raise ValueError(f"n_step must be at least 1, not {n_step}")
    return Transitions(gamma, n_step, next_action)


@dataclass(frozen=True)
class Goals:
    """See `goals`."""

    gamma: float = 0.99
    p_current: float = 0.2
    p_future: float = 0.5
    p_random: float = 0.3
    geometric: bool = True
    clamp: bool = False
    goal_of: Callable[[Tensor], Tensor] | None = None
    rewards: tuple[float, float] = (-1.0, 0.0)

    def __call__(self, data: Episodes) -> GoalSampler:
        return GoalSampler(_whole_episodes(data), self)


def goals(
    gamma: float = 0.99,
    p_current: float = 0.2,
    p_future: float = 0.5,
    p_random: float = 0.3,
    geometric: bool = True,
    goal_of: Callable[[Tensor], Tensor] | None = None,
    clamp: bool = False,
    rewards: tuple[float, float] = (-1.0, 0.0),
) -> Goals:
    """Steps with hindsight goals: each row's goal is, with these probabilities, the row's own observation (current), a
    later one of its episode, its final observation included (future), or any observation of the data (random).

    A future goal k steps ahead, 1 <= k <= n with n steps to the end: P(k) proportional to gamma^(k-1), cut at the end
    of the episode (truncated geometric). With clamp, as in OGBench and HILP, k is an untruncated draw and all that lies
    beyond the end falls on the final observation. geometric=False: uniform.
    reward and discount are those of the goal: (each step, at the goal) = rewards, and discount is gamma, but 0 where
    the goal is `reached`; the environment's own reward and termination do not count. goal_of maps observations (M, *)
    to goals (M, g), row by row, and is called once on all of the data; None: the observation itself.

    Source of shares and defaults: OGBench, Park et al. 2024, arXiv 2410.20092 (its value goals).
    """
    shares = (p_current, p_future, p_random)
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"the shares of the goals must not be negative and must sum to 1, not {shares}")
    if geometric and not 0 < gamma < 1:
        raise ValueError(f"geometric goals need 0 < gamma < 1, not {gamma}")
    return Goals(gamma, p_current, p_future, p_random, geometric, clamp, goal_of, rewards)


@dataclass(frozen=True)
class Sequences:
    """See `sequences`."""

    length: int
    return_to_go: bool = True
    gamma: float = 0.99

    def __call__(self, data: Episodes) -> SequenceSampler:
        return SequenceSampler(_whole_episodes(data), self)


def sequences(length: int, return_to_go: bool = True, gamma: float = 0.99) -> Sequences:
    """Windows of up to `length` steps that end at a step drawn uniformly (`index`), padded with zeros on the left.

    That is the context which a policy sees when it acts. return_to_go is the undiscounted sum of rewards from the step
    to the end of the episode, not of the window; discount is gamma, 0 where the task ended.
    (The Decision Transformer's own loader draws the first step instead and so has short windows at episode ends.)
    """
    _check_length(length)
    return Sequences(length, return_to_go, gamma)


@dataclass(frozen=True)
class Segments:
    """See `skills` and `pairs`."""

    length: int
    gamma: float = 0.99
    paired: bool = False

    def __call__(self, data: Episodes) -> SegmentSampler:
        return SegmentSampler(_whole_episodes(data), self)


def skills(length: int, gamma: float = 0.99) -> Segments:
    """Windows (B, length) of exactly `length` steps of one episode, uniform over all there are; index (B,): the first.

    next_obs[:, -1] is where the window leads. UserError if no episode is long enough.
    """
    _check_length(length)
    return Segments(length, gamma)


def pairs(length: int, gamma: float = 0.99) -> Segments:
    """Two such windows in every row, (B, 2, length), index (B, 2), drawn independently: segments to compare."""
    _check_length(length)
    return Segments(length, gamma, paired=True)


class _EpisodeSampler:
    """The arrays of the episodes as tensors that share their memory; data at rest has no state."""

    def __init__(self, data: Episodes, gamma: float) -> None:
        self.steps = len(data)
        self.obs, self.action = torch.from_numpy(data.obs), torch.from_numpy(data.action)
        self.reward = torch.from_numpy(data.reward)
        self.extras = {name: torch.from_numpy(values) for name, values in data.extras.items()}
        self.row = torch.from_numpy(data.obs_index)  # (N,) step -> row of obs
        self.first = torch.from_numpy(np.repeat(data.starts, data.lengths))  # (N,) first step of the step's episode
        self.last = torch.from_numpy(np.repeat(data.last, data.lengths))  # (N,)
        self.discount = torch.from_numpy(np.where(data.terminated, 0.0, gamma).astype(np.float32))

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise ValueError(f"data at rest has no state, but got {sorted(state)}")

    def _draw(self, batch_size: int, generator: Generator) -> Tensor:
        return torch.randint(self.steps, (batch_size,), generator=generator)

    def _extra(self, index: Tensor) -> dict[str, Tensor]:
        return {name: values.index_select(0, index) for name, values in self.extras.items()}

    def _windows(self, steps: Tensor) -> Batch:
        """All fields at steps (..., L), each inside its episode."""
        flat = steps.flatten()
        rows = self.row.index_select(0, flat)

        def take(values: Tensor, index: Tensor) -> Tensor:
            return values.index_select(0, index).view(*steps.shape, *values.shape[1:])

        return Batch(
            obs=take(self.obs, rows),
            action=take(self.action, flat),
            reward=take(self.reward, flat),
            discount=take(self.discount, flat),
            next_obs=take(self.obs, rows + 1),
            extra={name: take(values, flat) for name, values in self.extras.items()},
        )


class TransitionSampler(_EpisodeSampler):
    """n-step sums are made once, for all steps; a draw only gathers."""

    def __init__(self, data: Episodes, view: Transitions) -> None:
        super().__init__(data, view.gamma)
        step, last = np.arange(len(data)), np.repeat(data.last, data.lengths)
        taken = np.minimum(view.n_step, last - step + 1)  # (N,)
        reward = data.reward.astype(np.float64)
        for ahead in range(1, min(view.n_step, int(data.lengths.max()))):
            inside = np.flatnonzero(step + ahead <= last)
            reward[inside] += view.gamma**ahead * data.reward[inside + ahead]
        final = step + taken - 1  # (N,) the last step of the sum
        discount = np.where(data.terminated[final], 0.0, np.float64(view.gamma) ** taken)
        self.reward = torch.from_numpy(reward.astype(np.float32))
        self.discount = torch.from_numpy(discount.astype(np.float32))
        self.next_row = self.row + torch.from_numpy(taken)
        self.with_next_action = view.next_action
        self.next_step = torch.from_numpy(np.minimum(final + 1, last))
        self.goes_on = torch.from_numpy(final < last)

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        index = self._draw(batch_size, generator)
        batch = Batch(
            obs=self.obs.index_select(0, self.row.index_select(0, index)),
            action=self.action.index_select(0, index),
            reward=self.reward.index_select(0, index),
            discount=self.discount.index_select(0, index),
            next_obs=self.obs.index_select(0, self.next_row.index_select(0, index)),
            index=index,
            extra=self._extra(index),
        )
        if self.with_next_action:
            batch.next_action = self.action.index_select(0, self.next_step.index_select(0, index))
            batch.next_action_valid = self.goes_on.index_select(0, index)
        return batch


class GoalSampler(_EpisodeSampler):
    """Steps with goals; `draw_goals` gives further goals for steps that were drawn before."""

    def __init__(self, data: Episodes, view: Goals) -> None:
        super().__init__(data, view.gamma)
        self.view = view
        self.goals = self.obs if view.goal_of is None else view.goal_of(self.obs)  # (N + E, g)
        if len(self.goals) != len(self.obs):
            raise ValueError(f"goal_of made {len(self.goals)} goals of {len(self.obs)} observations")

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        index = self._draw(batch_size, generator)
        row = self.row.index_select(0, index)
        goal, reached = self.draw_goals(index, generator)
        each_step, at_goal = self.view.rewards
        return Batch(
            obs=self.obs.index_select(0, row),
            action=self.action.index_select(0, index),
            reward=torch.where(reached, at_goal, each_step),
            discount=torch.where(reached, 0.0, self.view.gamma),
            next_obs=self.obs.index_select(0, row + 1),
            index=index,
            goal=goal,
            reached=reached,
            extra=self._extra(index),
        )

    def draw_goals(self, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Goals for steps `index` (B,), drawn as the view says -> goal (B, g), reached (B,) bool."""
        row = self.row.index_select(0, index)
        rows = self.draw_rows(index, generator)
        return self.goals.index_select(0, rows), rows == row

    def draw_rows(self, index: Tensor, generator: Generator) -> Tensor:
        """Rows of obs (B,) from which the goals for steps `index` (B,) are taken."""
        view, size = self.view, len(index)
        row = self.row.index_select(0, index)
        left = self.last.index_select(0, index) - index + 1  # (B,) observations after this one: at least 1
        choice, share = torch.rand((2, size), generator=generator, dtype=torch.float64)
        if view.geometric:
            if not view.clamp:  # the part of the distribution that lies inside the episode
                share = share * (1 - view.gamma ** left.double())
            ahead = 1 + (torch.log1p(-share) / float(np.log(view.gamma))).floor().long()
        else:
            ahead = 1 + (share * left).long()
        future = row + torch.minimum(ahead, left)
        anywhere = torch.randint(len(self.obs), (size,), generator=generator)
        rows = torch.where(choice < view.p_current + view.p_future, future, anywhere)
        return torch.where(choice < view.p_current, row, rows)


class SequenceSampler(_EpisodeSampler):
    """Left-padded windows that end at a drawn step."""

    def __init__(self, data: Episodes, view: Sequences) -> None:
        super().__init__(data, view.gamma)
        self.offsets = torch.arange(1 - view.length, 1)
        self.return_to_go = torch.from_numpy(data.returns_to_go()) if view.return_to_go else None

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        index = self._draw(batch_size, generator)
        first = self.first.index_select(0, index)[:, None]
        steps = index[:, None] + self.offsets  # (B, L)
        mask = steps >= first
        steps = torch.maximum(steps, first)
        batch = self._windows(steps)
        batch.index, batch.mask, batch.timestep = index, mask, steps - first  # the padding repeats step 0
        if self.return_to_go is not None:
            batch.return_to_go = self.return_to_go.index_select(0, steps.flatten()).view(steps.shape)
        padding = ~mask
        fields = [batch.obs, batch.action, batch.reward, batch.discount, batch.next_obs, *batch.extra.values()]
        for values in fields if batch.return_to_go is None else [*fields, batch.return_to_go]:
            values.masked_fill_(padding.view(*padding.shape, *[1] * (values.ndim - 2)), 0)
        return batch


class SegmentSampler(_EpisodeSampler):
    """Windows without padding, one or two in a row."""

    def __init__(self, data: Episodes, view: Segments) -> None:
        super().__init__(data, view.gamma)
        self.paired = view.paired
        self.offsets = torch.arange(view.length)
        self.begins = torch.nonzero(self.last - torch.arange(self.steps) >= view.length - 1)[:, 0]
        if len(self.begins) == 0:
            raise UserError(
                f"no episode has the {view.length} steps that a segment needs (the longest has"
                f" {int(data.lengths.max())}): choose shorter segments"
            )

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        shape = (batch_size, 2) if self.paired else (batch_size,)
        drawn = torch.randint(len(self.begins), shape, generator=generator)
        index = self.begins[drawn]
        batch = self._windows(index[..., None] + self.offsets)
        batch.index = index
        return batch


def _whole_episodes(data: Any) -> Episodes:
    if not isinstance(data, Episodes):
        raise ValueError(f"this view needs Episodes, not {type(data).__name__}, which keeps single steps")
    return data


def _check_length(length: int) -> None:
    if length < 1:
        raise ValueError(f"a window needs at least one step, not {length}")
