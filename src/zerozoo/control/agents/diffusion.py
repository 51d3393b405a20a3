"""Diffusion policies that clone the data: alone (DDPM-BC), and with the critics of IQL to choose from (IDQL)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from zerozoo.control.agent import Adam, Agent, Target, trains
from zerozoo.control.agents.iql import IQL
from zerozoo.control.generative import Diffusion, best_of
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions


class Drawing:
    """Plays an agent by draws from noise of its own, the same in every evaluation."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.noise = agent, Generator().manual_seed(0)

    def act(self, obs: Tensor) -> Tensor:
        return self.agent.act(obs, explore=True, generator=self.noise)

    def observe(self, reward: np.ndarray) -> None:
        """Rewards do not matter to it."""


class DiffusionBC(Agent):
    """Clones the data by denoising, and acts with an averaged copy of the network.

    Config: hidden (its first number is the width), learning_rate, cosine_steps, diffusion_steps, average.
    """

    view = transitions()

    def build(self, spec: Spec, config: Any) -> None:
        self.policy = Diffusion(spec, config.diffusion_steps, width=config.hidden[0])
        self.average = Target(self.policy, config.average)

    def optimiser(self, net: str) -> Adam:
        return Adam(self.config.learning_rate, cosine_steps=self.config.cosine_steps)

    @trains("policy")
    def policy_loss(self, batch: Batch) -> Tensor:
        return self.policy.loss(batch.obs, batch.action, self.random).mean()

    @torch.no_grad()
    def act(self, obs: Tensor, explore: bool, generator: Generator | None = None) -> Tensor:
        seen = obs if self.normaliser is None else self.normaliser(obs)
        policy: Any = self.average.module
        return policy.act(seen, (generator or self.random) if explore else None)

    def player(self, copies: int) -> Drawing:
        return Drawing(self)


class IDQL(IQL):
    """The critics of IQL; of some draws of a diffusion that clones the data, the one of the highest value is played.

    Config: that of IQL, and diffusion_steps, average, candidates. Source: Hansen-Estruch et al. 2023, arXiv 2304.10573.
    """

    def build(self, spec: Spec, config: Any) -> None:
        super().build(spec, config)
        self.policy = Diffusion(spec, config.diffusion_steps, width=config.hidden[0])
        self.average = Target(self.policy, config.average)

    def policy_loss(self, batch: Batch) -> Tensor:
        return self.policy.loss(batch.obs, batch.action, self.random).mean()

    @torch.no_grad()
    def act(self, obs: Tensor, explore: bool, generator: Generator | None = None) -> Tensor:
        source = (generator or self.random) if explore else Generator().manual_seed(0)
        policy: Any = self.average.module
        seen = obs if self.normaliser is None else self.normaliser(obs)
        drawn = policy.sample(seen, self.config.candidates, source)  # (N, B, m)
        values = self.q_target(seen.repeat(len(drawn), 1), drawn.flatten(0, 1)).amin(0)
        return best_of(drawn, values.view(len(drawn), -1))

    def player(self, copies: int) -> Drawing:
        return Drawing(self)
