"""TD3, and the two offline methods that add cloning to it: TD3+BC and ReBRAC."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerozoo.control.agent import Adam, Agent, Target, stop, trains
from zerozoo.control.heads import Critic, critic
from zerozoo.control.policies import Deterministic
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.losses.imitation import td3_bc_weight
from zerozoo.runs.errors import UserError

POLICY_DELAY = 2  # critic updates for one of the policy and of the targets, in all three papers


class TD3(Agent):
    """Twin critics with a smoothed target action; the policy, and with it all targets, moves every second update.

    Config: hidden, learning_rate, tau, target_noise, noise_clip, exploration_noise.
    """

    view = transitions()

    def build(self, spec: Spec, config: Any) -> None:
        if spec.discrete:
            raise UserError(f"{type(self).__name__} needs continuous actions: take dqn or ppo for discrete ones.")
        self.q = self.make_critic(spec, config)
        self.q_target = Target(self.q, config.tau, every=POLICY_DELAY)
        self.policy = Deterministic(spec, config.hidden, noise=self.exploration_noise(config))
        self.policy_target = Target(self.policy, config.tau, every=POLICY_DELAY)

    def make_critic(self, spec: Spec, config: Any) -> Critic:
        return critic(spec, config.hidden)

    def exploration_noise(self, config: Any) -> float:
        """Deviation of the noise of `act(explore=True)`."""
        return config.exploration_noise

    def next_action(self, batch: Batch) -> Tensor:
        """(B, m) pi'(s') plus clipped noise, drawn for every row and every dimension (trap 16)."""
        action = self.policy_target(batch.next_obs)
        noise = torch.randn(action.shape, generator=self.random) * self.config.target_noise
        return (action + noise.clamp(-self.config.noise_clip, self.config.noise_clip)).clamp(-1, 1)

    def next_value(self, batch: Batch) -> Tensor:
        """(B,) what the target bootstraps from."""
        return self.q_target(batch.next_obs, self.next_action(batch)).amin(0)

    @trains("q")
    def critic_loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            target = batch.reward + batch.discount * self.next_value(batch)  # (B,)
        self.log("q", target)
        return self.q.loss(batch.obs, batch.action, target).mean(-1).sum()

    @trains("policy", every=POLICY_DELAY)
    def policy_loss(self, batch: Batch) -> Tensor:
        return -stop(self.q)(batch.obs, self.policy(batch.obs))[0].mean()


class TD3BC(TD3):
    """TD3 with the policy loss -lambda Q(s, pi(s)) + (pi(s) - a)^2,  lambda = alpha / mean |Q|.

    Config: that of TD3 without exploration_noise, and alpha.
    """

    def exploration_noise(self, config: Any) -> float:
        return 0.0

    @trains("policy", every=POLICY_DELAY)
    def policy_loss(self, batch: Batch) -> Tensor:
        action = self.policy(batch.obs)
        q = stop(self.q)(batch.obs, action)[0]  # (B,)
        return -td3_bc_weight(q, self.config.alpha) * q.mean() + (action - batch.action).square().mean()


class ReBRAC(TD3):
    """TD3 with squared distances to the data's actions in both losses, apart, and LayerNorm in the critic.

    Q' is lowered by critic_bc ||a' - a'_data||^2, which needs the data's next action. Where the recording stopped there
    is none, and nothing is subtracted (trap 13).

    Config: that of TD3 without exploration_noise, and actor_bc, critic_bc, layer_norm, policy_learning_rate.
    """

    view = transitions(next_action=True)

    def make_critic(self, spec: Spec, config: Any) -> Critic:
        return critic(spec, config.hidden, layer_norm=config.layer_norm)

    def optimiser(self, net: str) -> Adam:
        return Adam(self.config.policy_learning_rate if net == "policy" else self.config.learning_rate)

    def exploration_noise(self, config: Any) -> float:
        return 0.0

    def next_value(self, batch: Batch) -> Tensor:
        action = self.next_action(batch)
        distance = (action - batch.next_action).square().sum(-1) * batch.next_action_valid  # (B,)
        return self.q_target(batch.next_obs, action).amin(0) - self.config.critic_bc * distance

    @trains("policy", every=POLICY_DELAY)
    def policy_loss(self, batch: Batch) -> Tensor:
        action = self.policy(batch.obs)
        q = stop(self.q)(batch.obs, action).amin(0)  # (B,)
        distance = (action - batch.action).square().sum(-1)
        return (self.config.actor_bc * distance - td3_bc_weight(q, 1.0) * q).mean()
