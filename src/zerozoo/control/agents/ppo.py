"""Proximal policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zerozoo.control.agent import Adam, Agent, trains
from zerozoo.control.heads import value
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.on_policy import Minibatch
from zerozoo.control.policies import Categorical, Gaussian
from zerozoo.control.spec import Spec
from zerozoo.losses.policy import clip_fraction, clipped_surrogate

LARGEST_OBSERVATION = 10.0  # of normalised observations
IMAGES = 1024  # whose values are asked for at once: as floats and features they take far more memory than as bytes


@dataclass(frozen=True)
class LinearAdam(Adam):
    """Adam whose rate falls linearly to 0 at step `falls_until` of the network; 0: it stays."""

    falls_until: int = 0

    def rate(self, step: int) -> float:
        share = max(1 - step / self.falls_until, 0.0) if self.falls_until else 1.0
        return super().rate(step) * share


class PPO(Agent):
    """Climbs the clipped surrogate on a rollout's advantages; policy and state value are two networks.

    Policy: a Gaussian with one learned deviation a dimension, or categorical. With `normalise` observations are seen in
    their running scale, which changes only after a rollout was learned from: until then old and new log-probs are of
    the same inputs, and their ratio begins at 1.

    Config: hidden, learning_rate, falls_until, max_gradient_norm, clip, entropy_coefficient, normalise_advantage,
    normalise.
    """

    def build(self, spec: Spec, config: Any) -> None:
        shared: dict[str, Any] = {"activation": "tanh", "orthogonal": 0.01}  # near 0: all actions alike at first
        self.policy: Gaussian | Categorical = (
            Categorical(spec, config.hidden, **shared)
            if spec.discrete
            else Gaussian(spec, False, config.hidden, tanh_mean=False, **shared)
        )
        self.v = value(spec, config.hidden, activation="tanh", orthogonal=1.0)
        if config.normalise:
            self.normaliser = Normaliser(spec.obs_shape, clip=LARGEST_OBSERVATION)

    def optimiser(self, net: str) -> Adam:
        config = self.config
        return LinearAdam(
            config.learning_rate, eps=1e-5, clip_norm=config.max_gradient_norm, falls_until=config.falls_until
        )

    @trains("policy")
    def policy_loss(self, batch: Minibatch) -> Tensor:
        advantage = batch.advantage
        if self.config.normalise_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        log_prob, entropy = self.policy.evaluate(batch.obs, batch.action)
        ratios = (log_prob, batch.log_prob, advantage, self.config.clip, self.config.clip)
        self.log("policy/clip_fraction", clip_fraction(*ratios))
        self.log("policy/kl", batch.log_prob - log_prob)
        self.log("policy/entropy", entropy)
        return (clipped_surrogate(*ratios) - self.config.entropy_coefficient * entropy).mean()

    @trains("v")
    def value_loss(self, batch: Minibatch) -> Tensor:
        return self.v.loss(batch.obs, batch.target).mean()

    @torch.no_grad()
    def draw(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Actions for (N, *obs_shape), not clipped, and their log-probs (N,)."""
        return self.policy.sample(self._scaled(obs), self.random)

    @torch.no_grad()
    def values(self, obs: Tensor) -> Tensor:
        """State values (M,) of (M, *obs_shape); of images a part at a time."""
        parts = obs.split(IMAGES) if obs.ndim == 4 else (obs,)
        return torch.cat([self.v(self._scaled(part)) for part in parts])

    def seen(self, obs: Tensor) -> None:
        """Takes the observations (M, *obs_shape) of a rollout into their scale, for the next rollout."""
        if isinstance(self.normaliser, Normaliser):
            self.normaliser.update(obs)

    def _scaled(self, obs: Tensor) -> Tensor:
        return obs if self.normaliser is None else self.normaliser(obs)
