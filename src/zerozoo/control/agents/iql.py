"""Implicit Q-learning, and extreme Q-learning, which differs in the loss of V."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerozoo.control.agent import Adam, Agent, Target, stop, trains
from zerozoo.control.agents.bc import cloning_policy
from zerozoo.control.heads import ScalarHead, critic, value
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.losses.imitation import advantage_weights
from zerozoo.losses.values import expectile, gumbel


class IQL(Agent):
    """V leans to the best of the data's actions, Q bootstraps from V, the policy clones with weights exp(beta A).

    The order of an update is V, Q, policy (trap 18). Q and policy see the V that has just been trained, and the
    advantage is that of the target critic, which moves only after all three; so V, policy, Q, the order of the authors'
    code, gives the same. Works for discrete actions too.

    Config: hidden, dropout, learning_rate, cosine_steps, tau, expectile, beta, max_weight.
    """

    view = transitions()

    def build(self, spec: Spec, config: Any) -> None:
        self.q = critic(spec, config.hidden)
        self.q_target = Target(self.q, config.tau)
        self.v = value(spec, config.hidden)
        self.policy = cloning_policy(spec, config)

    def optimiser(self, net: str) -> Adam:
        return Adam(self.config.learning_rate, cosine_steps=self.config.cosine_steps if net == "policy" else 0)

    def maximum(self, error: Tensor) -> Tensor:
        """The loss of V, elementwise, of error = Q - V."""
        return expectile(error, self.config.expectile)

    @trains("v")
    def value_loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():  # kept for the policy: the target does not move before the update ends
            self.q_data = self.q_target(batch.obs, batch.action).amin(0)  # (B,)
        return self.maximum(self.q_data - self.v(batch.obs)).mean()

    @trains("q")
    def critic_loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = batch.reward + batch.discount * self.v(batch.next_obs)  # (B,)
        return self.q.loss(batch.obs, batch.action, target).mean(-1).sum()

    @trains("policy")
    def policy_loss(self, batch: Batch) -> Tensor:
        advantage = self.q_data - stop(self.v)(batch.obs)
        weight, clipped = advantage_weights(advantage, self.config.beta, self.config.max_weight)
        self.log("policy/clipped_share", clipped)
        self.log("policy/advantage", advantage)
        return -(weight * self.policy.log_prob(batch.obs, batch.action)).mean()


class XQL(IQL):
    """V is the soft maximum beta log mean exp(Q / beta), by Gumbel regression; the rest is IQL.

    Config: that of IQL with value_beta and value_clip for expectile, and layer_norm, q_threshold (of the critic's Huber
    loss).
    """

    def build(self, spec: Spec, config: Any) -> None:
        head = ScalarHead(config.q_threshold)
        self.q = critic(spec, config.hidden, head=head, layer_norm=config.layer_norm)
        self.q_target = Target(self.q, config.tau)
        self.v = value(spec, config.hidden, layer_norm=config.layer_norm)
        self.policy = cloning_policy(spec, config)

    def maximum(self, error: Tensor) -> Tensor:
        return gumbel(error, self.config.value_beta, self.config.value_clip)
