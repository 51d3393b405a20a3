"""Soft actor-critic, and RLPD: the same with a large ensemble and many updates, made to learn beside recorded data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerozoo.control.agent import Agent, Target, stop, trains
from zerozoo.control.heads import Critic, critic
from zerozoo.control.policies import Gaussian, Temperature
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.runs.errors import UserError


class SAC(Agent):
    """Maximises reward plus entropy; the weight of the entropy is learned so that it keeps its target.

    Config: hidden, learning_rate, tau, temperature, learn_temperature, entropy_per_dimension.
    """

    view = transitions()

    def build(self, spec: Spec, config: Any) -> None:
        if spec.discrete:
            raise UserError(f"{type(self).__name__} needs continuous actions: take dqn or ppo for discrete ones.")
        self.q = self.make_critic(spec, config)
        self.q_target = Target(self.q, config.tau)
        self.policy = Gaussian(spec, squash=True, hidden=config.hidden)
        self.temperature = Temperature(config.temperature)
        self.target_entropy = config.entropy_per_dimension * spec.action_size

    def make_critic(self, spec: Spec, config: Any) -> Critic:
        return critic(spec, config.hidden)

    def pessimistic(self, q: Tensor) -> Tensor:
        """(E, B) -> (B,), in targets."""
        return q.amin(0)

    def judged(self, q: Tensor) -> Tensor:
        """(E, B) -> (B,), what the policy climbs."""
        return q.amin(0)

    def target(self, batch: Batch) -> Tensor:
        """r + discount (Q'(s', a') - alpha log pi(a' | s')), a' ~ pi: (B,)."""
        action, log_prob = self.policy.sample(batch.next_obs, self.random)
        value = self.pessimistic(self.q_target(batch.next_obs, action)) - self.temperature() * log_prob
        return batch.reward + batch.discount * value

    @trains("q")
    def critic_loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = self.target(batch)
        self.log("q", target)
        return self.q.loss(batch.obs, batch.action, target).mean(-1).sum()

    @trains("policy", "temperature")
    def policy_loss(self, batch: Batch) -> Tensor | None:
        """Two losses that share no parameter, on one draw of actions and in one backward pass."""
        action, log_prob = self.policy.sample(batch.obs, self.random)
        alpha = self.temperature()
        loss = (alpha.detach() * log_prob - self.judged(stop(self.q)(batch.obs, action))).mean()
        self.log("policy/entropy", -log_prob)
        self.log("temperature", alpha)
        if not self.config.learn_temperature:
            return loss
        return loss + self.temperature.loss(log_prob, self.target_entropy).mean()


class RLPD(SAC):
    """SAC with LayerNorm in E critics; targets take the minimum of a random few, the policy climbs the mean of all.

    The policy and the temperature move in every `updates_per_step`-th update, that is once for each step.

    Config: that of SAC, and critics (E), critics_in_target, layer_norm, updates_per_step.
    """

    def make_critic(self, spec: Spec, config: Any) -> Critic:
        if not 1 <= config.critics_in_target <= config.critics:
            raise UserError(f"critics_in_target must lie between 1 and critics, {config.critics}.")
        return critic(spec, config.hidden, ensemble=config.critics, layer_norm=config.layer_norm)

    def pessimistic(self, q: Tensor) -> Tensor:
        chosen = torch.randperm(len(q), generator=self.random)[: self.config.critics_in_target]
        return q[chosen].amin(0)

    def judged(self, q: Tensor) -> Tensor:
        return q.mean(0)

    @trains("policy", "temperature")
    def policy_loss(self, batch: Batch) -> Tensor | None:
        return None if self.updates % self.config.updates_per_step else super().policy_loss(batch)
