"""Conservative Q-learning and its calibrated form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zerozoo.control.agent import Adam, trains
from zerozoo.control.agents.sac import SAC
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch
from zerozoo.losses.values import calibrated, cql_penalty, mse


class CQL(SAC):
    """SAC whose critics are pushed down where the policy acts and up where the data does.

    critic loss = (Q - target)^2 + alpha [ log mean exp(Q(s, a~) - log mu(a~)) - Q(s, a) ], with n actions each of
    a~ ~ uniform, pi(s) and pi(s'). The target has no entropy term; with backup_actions = k > 1 it is the best of k
    draws of the policy. calibrated (Cal-QL): values of the policy's actions count as at least the return of the data,
    batch.extra["return_to_go"].

    Config: that of SAC, and alpha, sampled_actions (n), backup_actions (k), calibrated, policy_learning_rate.
    """

    def build(self, spec: Spec, config: Any) -> None:
        super().build(spec, config)
        self.uniform_log_density = -spec.action_size * math.log(2)  # of the cube [-1, 1]^m

    def optimiser(self, net: str) -> Adam:
        return Adam(self.config.learning_rate if net == "q" else self.config.policy_learning_rate)

    def target(self, batch: Batch) -> Tensor:
        draws = self.config.backup_actions
        obs = repeated(batch.next_obs, draws)
        action, _ = self.policy.sample(obs, self.random)
        q = self.q_target(obs, action).amin(0).view(draws, -1)  # (k, B)
        return batch.reward + batch.discount * q.amax(0)

    @trains("q")
    def critic_loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = self.target(batch)
            action, log_density = self.proposals(batch)
        data = self.q(batch.obs, batch.action)  # (E, B)
        sampled = self.q(repeated(batch.obs, len(log_density)), action)
        sampled = sampled.view(len(sampled), *log_density.shape)  # (E, S, B)
        if self.config.calibrated:
            policy = slice(self.config.sampled_actions, None)
            lifted = calibrated(sampled[:, policy], batch.extra["return_to_go"])
            self.log("q/calibrated_share", (lifted > sampled[:, policy]).float())
            sampled = torch.cat((sampled[:, : self.config.sampled_actions], lifted), 1)
        penalty = cql_penalty(sampled, log_density, data)  # (E, B)
        self.log("q", target)
        self.log("q/penalty", penalty)
        return (mse(data, target) + self.config.alpha * penalty).mean(-1).sum()

    def proposals(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Actions (S * B, m) and their log-densities (S, B), S = 3 n: uniform, pi(s), pi(s')."""
        number, size = self.config.sampled_actions, len(batch.reward)
        uniform = torch.rand((number * size, self.spec.action_size), generator=self.random) * 2 - 1
        here, log_here = self.policy.sample(repeated(batch.obs, number), self.random)
        there, log_there = self.policy.sample(repeated(batch.next_obs, number), self.random)
        log_density = torch.cat((torch.full_like(log_here, self.uniform_log_density), log_here, log_there))
        return torch.cat((uniform, here, there)), log_density.view(3 * number, size)


def repeated(values: Tensor, times: int) -> Tensor:
    """(B, *) -> (times * B, *), the whole batch again and again."""
    return values.repeat(times, *(1 for _ in values.shape[1:]))
