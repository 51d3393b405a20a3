"""The off-policy loop: steps in an environment, updates on a replay buffer, and recorded data before or beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from zerozoo.control.episodes import Episodes
from zerozoo.control.loop import Loop, Tensors, with_prefix
from zerozoo.control.replay import Mixture, Replay
from zerozoo.control.sources import RewardTransform
from zerozoo.control.views import Batch, Sampler, transitions
from zerozoo.environments.vector import Step, VecEnv
from zerozoo.losses.traces import reward_to_go


@dataclass(kw_only=True, eq=False)
class OnlineLoop(Loop):
    """See `Loop`. The first `offline_steps` steps are updates on `data`; every later one is a step in the environment.

    Both phases train one agent with one optimiser, so that nothing is forgotten between them.

    Attributes:
        environment: N copies; a pass takes N steps. Its episodes start from the stream "environment".
        replay: where experience goes, with transformed rewards, true successors and what the environment was asked for.
        view: makes a sampler of the replay buffer, such as `transitions(gamma)`.
        batch_size: rows of a batch.
        warmup: steps of uniformly random actions, without updates, before the agent acts.
        updates_per_step: after the warm-up, also a fraction; whole updates are taken as soon as they are due.
        reward: what is learned from; returns are logged as the environment gives them.
        data: recorded experience, in the same rewards, or None.
        offline_share: of each batch after the offline phase, when there is data.
        offline_steps: updates before the first step in the environment.
    """

    environment: VecEnv
    replay: Replay
    view: Callable[[Any], Sampler]
    batch_size: int
    warmup: int = 0
    updates_per_step: float = 1.0
    reward: RewardTransform = RewardTransform()
    data: Sampler | None = None
    offline_share: float = 0.5
    offline_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offline_steps and self.data is None:
            raise ValueError("an offline phase needs data")
        self.fresh = self.view(self.replay)
        shares = [self.offline_share, 1 - self.offline_share]
        self.batches = self.fresh if self.data is None else Mixture([self.data, self.fresh], shares)
        self.obs: np.ndarray | None = None  # what to act on next; None before the first step

    def advance(self, step: int) -> int:
        if step < self.offline_steps:
            self._update(self.data)
            return step + 1
        taken = step - self.offline_steps + self.environment.copies  # in the environment, after this pass
        self._act(taken <= self.warmup)
        for _ in range(self._due(taken) - self._due(taken - self.environment.copies)):
            self._update(self.batches)
        return step + self.environment.copies

    def _due(self, taken: int) -> int:
        """Updates that should have been made after `taken` steps in the environment."""
        return updates_due(taken, self.warmup, self.updates_per_step)

    def _update(self, batches: Sampler | None) -> None:
        assert batches is not None
        self.meter.add(self.agent.update(batches.sample(self.batch_size, self.run.stream("batches"))))

    def _act(self, randomly: bool) -> None:
        """One step of all copies into the replay buffer."""
        if self.obs is None:
            self.obs = self.environment.reset()
        obs = torch.from_numpy(self.obs)
        action = self._random_action() if randomly else self.agent.act(obs, explore=True)
        step = self.environment.step(action.numpy())
        reward = self.reward(step.reward)
        self.replay.add(obs, action, reward, step.next_obs, step.terminated, **step.info)
        if isinstance(self.fresh, ReturnsToGo):
            self.fresh.add(reward, step)
        self.meter.add(finished_episodes(step))
        self.obs = step.obs

    def _random_action(self) -> Tensor:
        spec, generator, copies = self.agent.spec, self.run.stream("exploration"), self.environment.copies
        if spec.discrete:
            return torch.randint(spec.action_size, (copies,), generator=generator)
        return torch.rand((copies, spec.action_size), generator=generator) * 2 - 1

    def tensors(self) -> dict[str, Tensor]:
        """The replay buffer, and the environments once they were reset."""
        tensors = {f"batches/{name}": value for name, value in self.batches.state().items()}
        return tensors if self.obs is None else tensors | environment_tensors(self.environment)

    def restore(self, tensors: Tensors) -> None:
        self.batches.load_state(with_prefix(tensors, "batches/"))
        self.obs = restore_environment(self.environment, tensors)


def updates_due(taken: int, warmup: int, updates_per_step: float) -> int:
    """Updates that should have been made after `taken` steps in the environment: none for the first `warmup`."""
    return int(max(taken - warmup, 0) * updates_per_step)


def finished_episodes(step: Step) -> dict[str, Tensor]:
    """Returns and lengths of the episodes that ended with this step, in the environment's own rewards."""
    if not step.ended.any():
        return {}
    values = {"episode/return": step.returns, "episode/length": step.lengths.astype(np.float64)}
    return {name: torch.from_numpy(value[step.ended]) for name, value in values.items()}


def environment_tensors(environment: VecEnv) -> dict[str, Tensor]:
    """The state of the environments as tensors for a checkpoint."""
    return {f"environment/{name}": torch.from_numpy(value) for name, value in environment.state().items()}


def restore_environment(environment: VecEnv, tensors: Tensors) -> np.ndarray | None:
    """Brings the environments back; the observations to act on, or None if they had not been reset yet."""
    state = {name: value.numpy() for name, value in with_prefix(tensors, "environment/").items()}
    return environment.load_state(state) if state else None


@dataclass(frozen=True)
class TransitionsWithReturns:
    """A view: `transitions(gamma)` whose batches have extra["return_to_go"], the discounted return of the recording.

    Fresh steps have -inf until their episode has ended: nothing is known of their return yet, and max(Q, -inf) is Q.
    """

    gamma: float

    def __call__(self, data: Episodes | Replay) -> Sampler:
        if isinstance(data, Replay):
            return ReturnsToGo(data, self.gamma)
        extras = {**data.extras, "return_to_go": data.returns_to_go(self.gamma)}
        return transitions(self.gamma)(data.replace(extras=extras))


class ReturnsToGo:
    """A sampler of a replay buffer to which N copies add in turn; see `TransitionsWithReturns`."""

    def __init__(self, replay: Replay, gamma: float) -> None:
        self.replay, self.gamma = replay, gamma
        self.rewards = torch.zeros(replay.capacity)
        self.returns = torch.full((replay.capacity,), -torch.inf)

    def add(self, reward: np.ndarray, step: Step) -> None:
        """The rewards (N,) of the step that the buffer got last, and which of its episodes ended."""
        copies, added = len(reward), self.replay.added
        slots = torch.arange(added - copies, added) % self.replay.capacity
        self.rewards[slots] = torch.from_numpy(reward).float()
        self.returns[slots] = -torch.inf
        for copy in np.flatnonzero(step.ended):
            steps = added - copies + int(copy) - copies * torch.arange(int(step.lengths[copy])).flip(0)
            slots = steps[steps >= added - self.replay.capacity] % self.replay.capacity  # those not overwritten yet
            rewards = self.rewards[slots, None]  # (L, 1)
            goes_on = torch.zeros_like(rewards, dtype=torch.bool)
            self.returns[slots] = reward_to_go(rewards, goes_on, self.gamma)[:, 0]

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        batch = self.replay.sample(batch_size, generator, self.gamma)
        batch.extra["return_to_go"] = self.returns[batch.index]
        return batch

    def state(self) -> dict[str, Tensor]:
        return {**self.replay.state(), "returns/rewards": self.rewards.clone(), "returns/values": self.returns.clone()}

    def load_state(self, state: Tensors) -> None:
        own = ("returns/rewards", "returns/values")
        self.replay.load_state({name: value for name, value in state.items() if name not in own})
        self.rewards, self.returns = (state[name].clone() for name in own)
