"""Dual RL: f-DVL, which is IQL with the V-loss of a divergence, and ReCOIL, which imitates without rewards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerozoo.control.agent import trains
from zerozoo.control.agents.cql import repeated
from zerozoo.control.agents.iql import XQL
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch
from zerozoo.losses.values import implicit_maximum, mse

# The constants of ReCOIL: targets of Q on expert steps, cost of a step elsewhere, what follows a true end.
EXPERT_VALUE, STEP_REWARD, END_VALUE = 200.0, -2.0, -200.0


class FDVL(XQL):
    """IQL with the V-loss of a divergence. `largest_value` is the largest |V| that any update has seen.

    Config: that of XQL with maximiser, strength and clip (0: none) of `implicit_maximum` for value_beta and value_clip,
    and random_actions, uniform actions for each state that join V's loss. Source: Sikchi et al. 2023, arXiv 2302.08560.
    """

    largest_value: Tensor

    def build(self, spec: Spec, config: Any) -> None:
        super().build(spec, config)
        self.register_buffer("largest_value", torch.zeros(()))

    def maximum(self, error: Tensor) -> Tensor:
        return implicit_maximum(error, self.config.maximiser, self.config.strength, self.config.clip or None)

    @trains("v")
    def value_loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            self.q_data = self.q_target(batch.obs, batch.action).amin(0)  # (B,), kept for the policy
            obs, q = self.with_random_actions(batch, self.q_data)
        return self.maximum(q - self.values(obs)).mean()

    def with_random_actions(self, batch: Batch, q_data: Tensor) -> tuple[Tensor, Tensor]:
        """Observations and target values (B (1 + k),): the data's actions, then k uniform ones for each state."""
        number = self.config.random_actions
        if not number:
            return batch.obs, q_data
        obs = repeated(batch.obs, number)
        action = torch.rand((len(obs), self.spec.action_size), generator=self.random) * 2 - 1
        return torch.cat((batch.obs, obs)), torch.cat((q_data, self.q_target(obs, action).amin(0)))

    def values(self, obs: Tensor) -> Tensor:
        """V(s), (B,), and takes note of the largest."""
        v = self.v(obs)
        largest = v.detach().abs().amax()
        self.largest_value.copy_(torch.maximum(self.largest_value, largest))  # NaN stays NaN
        self.log("value/largest", largest)
        return v


class ReCOIL(FDVL):
    """Imitation: batches mix unlabelled rows with expert rows, which have extra["is_expert"]. Rewards are not used."""

    @trains("v")
    def value_loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            self.q_data = self.q_target(batch.obs, batch.action).amin(0)
        error = self.q_data - self.values(batch.obs)
        return self.maximum(error[~batch.extra["is_expert"]]).mean()

    @trains("q")
    def critic_loss(self, batch: Batch) -> Tensor:
        """Mean over both halves together: half the mean square on expert steps plus half of that on the others."""
        expert_rows = batch.extra["is_expert"]
        with torch.no_grad():
            end = torch.where(batch.discount == 0, self.config.gamma * END_VALUE, 0.0)
            consistent = STEP_REWARD + batch.discount * self.v(batch.next_obs) + end
            target = torch.where(expert_rows, EXPERT_VALUE, consistent)  # (B,)
        q = self.q(batch.obs, batch.action)  # (E, B)
        self.log("q/expert", q[:, expert_rows])
        self.log("q/unlabelled", q[:, ~expert_rows])
        return mse(q, target).mean(-1).sum()
