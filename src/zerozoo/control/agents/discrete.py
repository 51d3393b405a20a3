"""Offline Q-learning for discrete actions: conservative Q-learning and batch-constrained Q-learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from zerozoo.control.agent import Agent, Target, trains
from zerozoo.control.heads import ScalarHead, critic
from zerozoo.control.networks import encoder, mlp
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.losses.values import huber
from zerozoo.runs.errors import UserError

LOGIT_PENALTY = 0.01  # of BCQ's imitation, on the mean square of its logits


class DiscreteCQL(Agent):
    """Double deep Q-learning whose values are pushed down everywhere and up at the data's action.

    loss = Huber(Q(s, a) - y) + alpha [ log sum_b exp Q(s, b) - Q(s, a) ],  y = r + discount Q'(s', argmax_b Q(s', b))

    Q' is a copy made every `target_every` updates.

    Config: hidden, learning_rate, alpha, target_every. Source: Kumar et al. 2020, arXiv 2006.04779, equation 4.
    """

    view = transitions()

    def build(self, spec: Spec, config: Any) -> None:
        check_discrete(spec, type(self).__name__)
        self.q = critic(spec, config.hidden, ensemble=1, head=ScalarHead())
        self.q_target = Target(self.q, tau=1.0, every=config.target_every)

    @trains("q")
    def critic_loss(self, batch: Batch) -> Tensor:
        values = self.q(batch.obs)[0]  # (B, A)
        data = chosen(values, batch.action)
        with torch.no_grad():
            best = self.q(batch.next_obs)[0].argmax(-1)
            target = batch.reward + batch.discount * self.q_target(batch.next_obs, best)[0]
        penalty = values.logsumexp(-1) - data  # (B,)
        self.log("q", target)
        self.log("q/penalty", penalty)
        return (huber(data - target, 1.0) + self.config.alpha * penalty).mean()

    @torch.no_grad()
    def act(self, obs: Tensor, explore: bool, generator: Generator | None = None) -> Tensor:
        """The action of the highest value, (B,). ValueError to explore: it learns from recorded data only."""
        check_greedy(explore)
        return self.q(obs)[0].argmax(-1)


class ImitatingCritic(nn.Module):
    """obs (B, *) -> Q(s, .) and log G(. | s), both (B, A): values, and an imitation of the data, of one encoder.

    The third output are the logits of the imitation, (B, A).
    """

    def __init__(self, spec: Spec, hidden: Sequence[int]) -> None:
        super().__init__()
        self.encoder, features = encoder(spec.obs_shape)
        self.values, self.imitation = (mlp((features, *hidden, spec.action_size)) for _ in range(2))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.encoder(obs)
        logits = self.imitation(features)[0]
        return self.values(features)[0], logits.log_softmax(-1), logits


class DiscreteBCQ(Agent):
    """Double deep Q-learning that considers only actions which the data is likely to have.

    Allowed are A(s) = {a: G(a | s) / max_b G(b | s) > xi}, G an imitation of the data. Q learns from the best allowed
    action of the next state, and the agent takes the best allowed action:

    loss = Huber(Q(s, a) - y) - log G(a | s) + 0.01 mean over the actions of G's squared logits,
    y = r + discount Q'(s', argmax over b in A(s') of Q(s', b))

    Config: hidden, learning_rate, threshold (xi), target_every. Source: Fujimoto et al. 2019, arXiv 1910.01708,
    equations 14 to 16.
    """

    view = transitions()

    def build(self, spec: Spec, config: Any) -> None:
        check_discrete(spec, type(self).__name__)
        self.q = ImitatingCritic(spec, config.hidden)
        self.q_target = Target(self.q, tau=1.0, every=config.target_every)

    @trains("q")
    def critic_loss(self, batch: Batch) -> Tensor:
        values, log_imitation, logits = self.q(batch.obs)
        with torch.no_grad():
            best = self.best_allowed(batch.next_obs)
            following = chosen(self.q_target(batch.next_obs)[0], best)
            target = batch.reward + batch.discount * following  # (B,)
        imitation = -chosen(log_imitation, batch.action)
        self.log("q", target)
        self.log("imitation", imitation)
        value_loss = huber(chosen(values, batch.action) - target, 1.0)
        return (value_loss + imitation + LOGIT_PENALTY * logits.square().mean(-1)).mean()

    @torch.no_grad()
    def best_allowed(self, obs: Tensor) -> Tensor:
        """(B,) the action of the highest value among those that the data is likely to have."""
        values, log_imitation, _ = self.q(obs)
        likely = log_imitation - log_imitation.amax(-1, keepdim=True) > math.log(self.config.threshold)
        return values.masked_fill(~likely, -math.inf).argmax(-1)

    def act(self, obs: Tensor, explore: bool, generator: Generator | None = None) -> Tensor:
        """The best allowed action, (B,). ValueError to explore: it learns from recorded data only."""
        check_greedy(explore)
        return self.best_allowed(obs)


def chosen(values: Tensor, action: Tensor) -> Tensor:
    """(B, A), (B,) int64 -> (B,)."""
    return values.gather(-1, action[:, None])[:, 0]


def check_discrete(spec: Spec, name: str) -> None:
    """UserError for continuous actions."""
    if not spec.discrete:
        raise UserError(f"{name} needs discrete actions: take cql or iql for continuous ones.")


def check_greedy(explore: bool) -> None:
    """ValueError to explore."""
    if explore:
        raise ValueError("an agent of recorded data does not explore")
