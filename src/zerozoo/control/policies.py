"""Policies: Gaussian with and without tanh squashing, deterministic, categorical.

Actions lie in [-1, 1]. An unsquashed Gaussian may draw outside: `sample` gives the draw and its log-prob as they are,
and `act`, which is for environments, clips. A loss that stores draws must store the unclipped ones (trap 23).
Shape letters: B batch, m dimensions of an action, A number of discrete actions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from zerozoo.control.networks import encoder, initialise, mlp
from zerozoo.control.spec import Spec
from zerozoo.losses.imitation import gaussian_nll

LARGEST_ACTION = 1 - 1e-5  # data actions are clipped to it before atanh, which is infinite at 1 (trap 22)


class Policy(nn.Module):
    """What the policies share: an encoder, an MLP of `n_out` outputs, and how an environment is answered."""

    def __init__(self, spec: Spec, hidden: Sequence[int], n_out: int, **options: Any) -> None:
        super().__init__()
        self.encoder, features = encoder(spec.obs_shape)
        self.network = mlp((features, *hidden, n_out), **options)

    def outputs(self, obs: Tensor) -> Tensor:
        """(B, *obs_shape) -> (B, n_out)."""
        return self.network(self.encoder(obs)).squeeze(0)

    def mode(self, obs: Tensor) -> Tensor:
        """The most likely action."""
        raise NotImplementedError

    def sample(self, obs: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """An action for each observation and its log-prob (B,)."""
        raise NotImplementedError

    @torch.no_grad()
    def act(self, obs: Tensor, generator: Generator | None = None) -> Tensor:
        """An action for the environment: a draw, or the mode without a generator."""
        return self.mode(obs) if generator is None else self.sample(obs, generator)[0]

    def forward(self, obs: Tensor) -> Tensor:
        return self.mode(obs)


class Gaussian(Policy):
    """A diagonal Gaussian, squashed by tanh (SAC) or not (IQL, PPO, behavioural cloning).

    Args:
        squash: a = tanh(u) with u Gaussian. Without it a itself is Gaussian; squashing hurts IQL (d3rlpy#171).
        state_std: the log-std is an output of the network, else a parameter; None: with squash only.
        log_std_bounds: a network's output is led into them by tanh, a parameter is clipped.
        tanh_mean: tanh on the mean of an unsquashed Gaussian.
        initial_log_std: of the parameter.
        options: of `mlp`: layer_norm, activation, dropout, orthogonal.

    Source: Haarnoja et al. 2018, arXiv 1812.05905, appendix C; Kostrikov et al. 2021, arXiv 2110.06169.
    """

    def __init__(
        self,
        spec: Spec,
        squash: bool,
        hidden: Sequence[int] = (256, 256),
        state_std: bool | None = None,
        log_std_bounds: tuple[float, float] = (-5.0, 2.0),
        tanh_mean: bool = True,
        initial_log_std: float = 0.0,
        generator: Generator | None = None,
        **options: Any,
    ) -> None:
        self.state_std = squash if state_std is None else state_std
        super().__init__(spec, hidden, spec.action_size * (1 + self.state_std), **options)
        self.squash, self.tanh_mean, self.log_std_bounds = squash, tanh_mean and not squash, log_std_bounds
        if not self.state_std:
            self.log_std = nn.Parameter(torch.full((spec.action_size,), initial_log_std))
        initialise(self, generator)

    def distribution(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, m) and log-std (B, m) or (m,) of the Gaussian, before squashing."""
        outputs = self.outputs(obs)
        low, high = self.log_std_bounds
        if self.state_std:
            mean, raw = outputs.chunk(2, -1)
            log_std = low + (high - low) / 2 * (raw.tanh() + 1)
        else:
            mean, log_std = outputs, self.log_std.clamp(low, high)
        return mean.tanh() if self.tanh_mean else mean, log_std

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """log pi(a | s), (B,). Squashed actions beyond 1 - 1e-5 count as 1 - 1e-5, so it is finite at 1 too."""
        mean, log_std = self.distribution(obs)
        if not self.squash:
            return -gaussian_nll(mean, log_std, action)
        before = torch.atanh(action.clamp(-LARGEST_ACTION, LARGEST_ACTION))
        return -gaussian_nll(mean, log_std, before) - _log_slope(before)

    def sample(self, obs: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """A reparametrised draw (B, m) (not clipped) and its log-prob (B,); gradients flow through both."""
        mean, log_std = self.distribution(obs)
        return self._draw(mean, log_std, torch.randn(mean.shape, generator=generator, dtype=mean.dtype))

    def draw(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What `sample` gives where its generator gives this standard normal noise (B, m)."""
        return self._draw(*self.distribution(obs), noise)

    def _draw(self, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        draw = mean + log_std.exp() * noise
        log_prob = -(noise.square() / 2 + log_std).sum(-1) - mean.shape[-1] * math.log(2 * math.pi) / 2
        return (draw.tanh(), log_prob - _log_slope(draw)) if self.squash else (draw, log_prob)

    def mode(self, obs: Tensor) -> Tensor:
        """The mean, squashed if the policy is (then the median and not quite the mode)."""
        mean, _ = self.distribution(obs)
        return mean.tanh() if self.squash else mean

    def evaluate(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(log-prob, entropy), each (B,), in one pass; a squashed Gaussian has no closed entropy: ValueError."""
        if self.squash:
            raise ValueError("the entropy of a squashed Gaussian has no closed form: use -log_prob of a sample")
        mean, log_std = self.distribution(obs)
        entropy = (log_std.expand_as(mean) + (1 + math.log(2 * math.pi)) / 2).sum(-1)
        return -gaussian_nll(mean, log_std, action), entropy

    @torch.no_grad()
    def act(self, obs: Tensor, generator: Generator | None = None) -> Tensor:
        """A draw, or the mode without a generator, clipped to [-1, 1]."""
        return super().act(obs, generator).clamp(-1, 1)


class Deterministic(Policy):
    """a = tanh(network(s)), (B, m); `noise` is the standard deviation of the Gaussian exploration of `act`.

    Source: Fujimoto et al. 2018 (TD3), arXiv 1802.09477.
    """

    def __init__(
        self,
        spec: Spec,
        hidden: Sequence[int] = (256, 256),
        noise: float = 0.1,
        generator: Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(spec, hidden, spec.action_size, **options)
        self.noise = noise
        initialise(self, generator)

    def mode(self, obs: Tensor) -> Tensor:
        """(B, *obs_shape) -> (B, m)."""
        return self.outputs(obs).tanh()

    @torch.no_grad()
    def act(self, obs: Tensor, generator: Generator | None = None) -> Tensor:
        """The action, with a generator plus clipped exploration noise."""
        action = self.mode(obs)
        if generator is None:
            return action
        noise = torch.randn(action.shape, generator=generator, dtype=action.dtype)
        return (action + self.noise * noise).clamp(-1, 1)


class Categorical(Policy):
    """softmax over A discrete actions; actions are (B,) int64."""

    def __init__(
        self, spec: Spec, hidden: Sequence[int] = (256, 256), generator: Generator | None = None, **options: Any
    ) -> None:
        super().__init__(spec, hidden, spec.action_size, **options)
        initialise(self, generator)

    def log_probs(self, obs: Tensor) -> Tensor:
        """(B, A), normalised."""
        return self.outputs(obs).log_softmax(-1)

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """log pi(a | s), (B,)."""
        return self.evaluate(obs, action)[0]

    def evaluate(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(log-prob, entropy), each (B,), in one pass."""
        log_probs = self.log_probs(obs)
        chosen = log_probs.gather(-1, action[:, None]).squeeze(-1)
        return chosen, -(log_probs.exp() * log_probs).sum(-1)

    def sample(self, obs: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """(B,) int64 and its log-prob (B,)."""
        log_probs = self.log_probs(obs)
        action = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
        return action.squeeze(-1), log_probs.gather(-1, action).squeeze(-1)

    def mode(self, obs: Tensor) -> Tensor:
        """(B,) int64."""
        return self.outputs(obs).argmax(-1)


class Temperature(nn.Module):
    """The entropy weight alpha = exp(log_alpha) > 0 of SAC, learned as a network of one parameter: () -> ()."""

    def __init__(self, initial: float = 1.0) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        return self.log_alpha.exp()

    def loss(self, log_prob: Tensor, target_entropy: float) -> Tensor:
        """-log_alpha (log pi + target_entropy), (B,): alpha rises while the entropy is below its target.

        Source: Haarnoja et al. 2018, arXiv 1812.05905, section 5, with log_alpha for alpha as in the released code.
        """
        return -self.log_alpha * (log_prob.detach() + target_entropy)


def _log_slope(before: Tensor) -> Tensor:
    """sum_j log(1 - tanh(u_j)^2) = sum_j 2 (log 2 - u_j - softplus(-2 u_j)), exact for large |u| (trap 22)."""
    return 2 * (math.log(2) - before - functional.softplus(-2 * before)).sum(-1)
