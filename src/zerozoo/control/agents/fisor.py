"""FISOR: critics of reward and constraint, and a diffusion policy cloned with the weights of a feasible region."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from zerozoo.control.agent import Adam, Agent, Target, stop, trains
from zerozoo.control.generative import Diffusion, best_of
from zerozoo.control.heads import critic, value
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.losses.feasibility import feasibility_target, feasibility_weights
from zerozoo.losses.imitation import advantage_weights
from zerozoo.losses.values import expectile, mse


class FISOR(Agent):
    """Critics of reward (q, v) and of the constraint (q_h, v_h), and a diffusion policy cloned with their weights.

    Batches have extra["h"] (B,), the constraint of obs: > 0 is violated. An update: two policy steps on the halves of a
    batch, then V, Q, V_h and Q_h on its first `critic_rows` rows, then the targets: the order of the released code.
    The constraint's pair is joined by its maximum and its expectile is reversed; either the other way round makes
    everything look feasible.

    Config: hidden, tau, expectile, safe_expectile, critic_rows, weights (feasibility, reward or clone), choose
    (least-violation, highest-value or first), candidates, reward_temperature, safety_temperature, reward_cap,
    safety_cap, diffusion_steps, width, blocks, dropout, average, batch_size, learning_rate, steps.
    Source: Zheng et al. 2024, arXiv 2401.10700.
    """

    view = transitions()

    def build(self, spec: Spec, config: Any) -> None:
        self.v, self.v_h = value(spec, config.hidden), value(spec, config.hidden)
        self.q, self.q_h = critic(spec, config.hidden), critic(spec, config.hidden)
        self.q_target, self.q_h_target = Target(self.q, config.tau), Target(self.q_h, config.tau)
        size = {"width": config.width, "blocks": config.blocks, "dropout": config.dropout}
        self.policy = Diffusion(spec, config.diffusion_steps, **size)
        self.average = Target(self.policy, 1 - (1 - config.average) ** 2)  # two moves in one

    def optimiser(self, net: str) -> Adam:
        return Adam(self.config.learning_rate, cosine_steps=3 * self.config.steps if net == "policy" else 0)

    @trains("policy")
    def first_policy_loss(self, batch: Batch) -> Tensor:
        return self.cloning_loss(batch, slice(None, self.config.batch_size // 2))

    @trains("policy")
    def second_policy_loss(self, batch: Batch) -> Tensor:
        return self.cloning_loss(batch, slice(self.config.batch_size // 2, None))

    def cloning_loss(self, batch: Batch, rows: slice) -> Tensor:
        obs, action = batch.obs[rows], batch.action[rows]
        weight = self.weight(obs, action)
        self.log("policy/weight", weight)
        self.log("policy/unused_share", (weight == 0).float())
        return self.policy.loss(obs, action, self.random, weight).mean()

    @torch.no_grad()
    def weight(self, obs: Tensor, action: Tensor) -> Tensor:
        """(B,) as the config says: see `feasibility_weights`."""
        config = self.config
        if config.weights == "clone":
            return torch.ones(len(obs))
        gain = self.q_target(obs, action).amin(0) - self.v(obs)
        reward, clipped = advantage_weights(gain, config.reward_temperature, config.reward_cap)
        self.log("policy/reward_clipped_share", clipped)
        if config.weights == "reward":
            return reward
        q_h, v_h = self.q_h_target(obs, action).amax(0), self.v_h(obs)
        safety, clipped = advantage_weights(v_h - q_h, config.safety_temperature, config.safety_cap)
        self.log("policy/safety_clipped_share", clipped)
        return feasibility_weights(reward, safety, q_h, v_h)

    @trains("v")
    def value_loss(self, batch: Batch) -> Tensor:
        obs, action = self.critic_part(batch.obs, batch.action)
        return expectile(self.q_target(obs, action).amin(0) - self.v(obs), self.config.expectile).mean()

    @trains("q")
    def critic_loss(self, batch: Batch) -> Tensor:
        reward, discount, obs, action = self.critic_part(batch.reward, batch.discount, batch.obs, batch.action)
        target = reward + discount * stop(self.v)(*self.critic_part(batch.next_obs))
        return mse(self.q(obs, action), target).mean(-1).sum()

    @trains("v_h")
    def feasible_value_loss(self, batch: Batch) -> Tensor:
        obs, action = self.critic_part(batch.obs, batch.action)
        v_h = self.v_h(obs)
        self.log("feasible_share", (v_h <= 0).float())
        error = self.q_h_target(obs, action).amax(0) - v_h
        return expectile(-error, self.config.safe_expectile).mean()  # reversed: towards the least over the actions

    @trains("q_h")
    def feasible_critic_loss(self, batch: Batch) -> Tensor:
        h, discount, obs, action = self.critic_part(batch.extra["h"], batch.discount, batch.obs, batch.action)
        target = feasibility_target(h, stop(self.v_h)(*self.critic_part(batch.next_obs)), discount)
        return mse(self.q_h(obs, action), target).mean(-1).sum()

    def critic_part(self, *fields: Tensor) -> list[Tensor]:
        """The first rows of each field: all that the critics see of a batch."""
        return [field[: self.config.critic_rows] for field in fields]

    @torch.no_grad()
    def act(self, obs: Tensor, explore: bool, generator: Generator | None = None) -> Tensor:
        """The chosen one of fresh candidates; without `explore` from noise of a fixed seed."""
        source = (generator or self.random) if explore else Generator().manual_seed(0)
        number = 1 if self.config.choose == "first" else self.config.candidates
        policy: Any = self.average.module
        seen = obs if self.normaliser is None else self.normaliser(obs)
        return self.best(seen, policy.sample(seen, number, source))

    def best(self, obs: Tensor, candidates: Tensor) -> Tensor:
        """obs (B, n), candidates (N, B, m) -> the chosen ones (B, m)."""
        if self.config.choose == "first":
            return candidates[0]
        rows = obs.repeat(len(candidates), 1), candidates.flatten(0, 1)
        if self.config.choose == "highest-value":
            return best_of(candidates, self.q_target(*rows).amin(0).view(len(candidates), -1))
        return best_of(candidates, -self.q_h_target(*rows).amax(0).view(len(candidates), -1))
