"""Behavioural cloning: the likelihood of the data's actions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zerozoo.control.agent import Agent, trains
from zerozoo.control.policies import Categorical, Gaussian
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions


class BC(Agent):
    """loss = -log pi(a | s), with a Gaussian of one learned deviation a dimension, or a categorical policy.

    Config: hidden, dropout, learning_rate.
    """

    view = transitions()

    def build(self, spec: Spec, config: Any) -> None:
        self.policy = cloning_policy(spec, config)

    @trains("policy")
    def policy_loss(self, batch: Batch) -> Tensor:
        return -self.policy.log_prob(batch.obs, batch.action).mean()


def cloning_policy(spec: Spec, config: Any) -> Gaussian | Categorical:
    """The policy of BC, IQL and XQL: not squashed, since squashing hurts weighted cloning (trap 22)."""
    if spec.discrete:
        return Categorical(spec, config.hidden, dropout=config.dropout)
    return Gaussian(spec, squash=False, hidden=config.hidden, dropout=config.dropout)
