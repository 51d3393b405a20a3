"""The on-policy loop: rollouts of T steps in N copies, advantages from true successors, epochs of minibatches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from zerozoo.control.loop import Loop, Tensors
from zerozoo.control.online import environment_tensors, finished_episodes, restore_environment
from zerozoo.control.sources import RewardTransform
from zerozoo.environments.vector import VecEnv
from zerozoo.losses.traces import gae
from zerozoo.runs.errors import UserError


class OnPolicy(Protocol):
    """What the loop asks of an agent beyond `update`."""

    def draw(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Actions for (N, *obs_shape), not clipped, and their log-probs (N,)."""
        ...

    def values(self, obs: Tensor) -> Tensor:
        """State values (M,) of (M, *obs_shape), without gradient."""
        ...

    def seen(self, obs: Tensor) -> None:
        """The observations (M, *obs_shape) of a rollout that has been learned from."""
        ...


@dataclass
class Minibatch:
    """B rows of a rollout. action: as drawn, not clipped; log_prob: of the policy that drew it."""

    obs: Tensor  # (B, *)
    action: Tensor  # (B, m) or (B,)
    log_prob: Tensor  # (B,)
    advantage: Tensor  # (B,)
    target: Tensor  # (B,) what the state value should be: advantage + the value that it was
    next_obs: Tensor | None = None  # not used: nothing is bootstrapped any more

    def take(self, index: Tensor) -> Minibatch:
        """The rows with these numbers."""
        rows = (self.obs, self.action, self.log_prob, self.advantage, self.target)
        return Minibatch(*(values.index_select(0, index) for values in rows))


def with_advantages(agent: OnPolicy, taken: Tensors, gamma: float, lam: float) -> Minibatch:
    """T steps of N copies as one batch of T * N rows, with advantages by the agent's present state values.

    taken: obs, action, log_prob, next_obs, reward, terminated, ended, each (T, N, ...); next_obs the true successor.
    """
    flat = {name: value.flatten(0, 1) for name, value in taken.items()}
    shape = taken["reward"].shape
    values, next_values = (agent.values(flat[name]).view(shape) for name in ("obs", "next_obs"))
    advantage = gae(taken["reward"], values, next_values, taken["terminated"], taken["ended"], gamma=gamma, lam=lam)
    return Minibatch(flat["obs"], flat["action"], flat["log_prob"], advantage.flatten(), (advantage + values).flatten())


@dataclass(kw_only=True, eq=False)
class OnPolicyLoop(Loop):
    """See `Loop`. A pass makes T * N steps in the environment and learns from them; the agent has `OnPolicy`.

    Attributes:
        environment: N copies; its episodes start from the stream "environment" and go on across rollouts.
        rollout: T, steps of each copy before an update.
        epochs: how often a rollout is gone through.
        batch_size: rows of a minibatch; T * N must be a multiple of it.
        gamma, lam: of the advantages, see `gae`.
        reward: what is learned from; returns are logged as the environment gives them.
    """

    environment: VecEnv
    rollout: int
    epochs: int
    batch_size: int
    gamma: float
    lam: float
    reward: RewardTransform = RewardTransform()

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.rollout * self.environment.copies
        if self.batch_size < 1 or size % self.batch_size:
            raise UserError(
                f"batch_size {self.batch_size} does not divide the {size} steps of a rollout"
                f" ({self.rollout} steps of {self.environment.copies} copies)."
            )
        self.obs: np.ndarray | None = None

    def advance(self, step: int) -> int:
        rows = self.collect()
        size = len(rows.log_prob)
        for _ in range(self.epochs):
            order = torch.randperm(size, generator=self.run.stream("batches"))
            for index in order.split(self.batch_size):
                self.meter.add(self.agent.update(rows.take(index)))
        agent = cast(OnPolicy, self.agent)
        agent.seen(rows.obs)
        return step + size

    def collect(self) -> Minibatch:
        """A rollout as one batch of T * N rows, with advantages.

        An episode that the end of the rollout cuts is bootstrapped from its true successor; so is a truncated one.
        """
        if self.obs is None:
            self.obs = self.environment.reset()
        agent = cast(OnPolicy, self.agent)
        columns: dict[str, list[Tensor]] = {}
        for _ in range(self.rollout):
            obs = torch.from_numpy(self.obs)
            action, log_prob = agent.draw(obs)
            # The environment gets the clipped action; what is learned from is the one that was drawn (trap 23).
            step = self.environment.step(action.numpy() if self.agent.spec.discrete else action.clamp(-1, 1).numpy())
            row = {
                "obs": obs,
                "action": action,
                "log_prob": log_prob,
                "next_obs": torch.from_numpy(step.next_obs),
                "reward": torch.from_numpy(self.reward(step.reward)).float(),
                "terminated": torch.from_numpy(step.terminated),
                "ended": torch.from_numpy(step.ended),
            }
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
            self.meter.add(finished_episodes(step))
            self.obs = step.obs
        taken = {name: torch.stack(values) for name, values in columns.items()}  # each (T, N, ...)
        return with_advantages(agent, taken, self.gamma, self.lam)

    def tensors(self) -> dict[str, Tensor]:
        """The environments, which are in the middle of their episodes."""
        return {} if self.obs is None else environment_tensors(self.environment)

    def restore(self, tensors: Tensors) -> None:
        self.obs = restore_environment(self.environment, tensors)
