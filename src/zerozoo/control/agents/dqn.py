"""Deep Q-networks with epsilon-greedy exploration, by default double."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from zerozoo.control.agent import Agent, Target, trains
from zerozoo.control.heads import ScalarHead, critic
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.runs.errors import UserError


class DQN(Agent):
    """Q(s, a) follows r + discount max Q'(s', .) with a Huber loss; Q' is copied every `target_every` updates.

    double: the network chooses the action and its target gives the value. Exploration acts uniformly with probability
    epsilon, which falls linearly over the first `epsilon_steps` actions of the agent.

    Config: hidden, learning_rate, double, tau, target_every, epsilon_start, epsilon_end, epsilon_steps.
    """

    view = transitions()
    acted: Tensor

    def build(self, spec: Spec, config: Any) -> None:
        if not spec.discrete:
            raise UserError("DQN needs discrete actions: take sac, td3 or ppo for continuous ones.")
        self.q = critic(spec, config.hidden, ensemble=1, head=ScalarHead(threshold=1.0))
        self.q_target = Target(self.q, config.tau, every=config.target_every)
        self.register_buffer("acted", torch.zeros((), dtype=torch.int64))  # actions taken to explore, saved with all

    @trains("q")
    def critic_loss(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            values = self.q_target(batch.next_obs)[0]  # (B, A)
            judge = self.q(batch.next_obs)[0] if self.config.double else values
            value = values.gather(1, judge.argmax(1, keepdim=True))[:, 0]  # (B,)
            target = batch.reward + batch.discount * value
        self.log("q", target)
        return self.q.loss(batch.obs, batch.action, target).mean(-1).sum()

    @torch.no_grad()
    def act(self, obs: Tensor, explore: bool, generator: Generator | None = None) -> Tensor:
        """The action of the highest value (B,), with `explore` each replaced with probability epsilon."""
        seen = obs if self.normaliser is None else self.normaliser(obs)
        best = self.q(seen)[0].argmax(-1)
        if not explore:
            return best
        random = generator or self.random
        chance = torch.rand(len(obs), generator=random) < self.epsilon()
        anything = torch.randint(self.spec.action_size, (len(obs),), generator=random)
        self.acted += len(obs)
        return torch.where(chance, anything, best)

    def epsilon(self) -> float:
        """Probability of a random action at present."""
        share = min(int(self.acted) / self.config.epsilon_steps, 1.0)
        return self.config.epsilon_start + share * (self.config.epsilon_end - self.config.epsilon_start)
