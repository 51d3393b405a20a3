"""Diffusion and flow policies: actions are made from noise in a few steps, so they may have many modes.

Shape letters: B batch, m dimensions of an action, T steps, N candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from zerozoo.control.networks import Drawn, Dropout, EnsembleLinear, encoder, initialise, mlp
from zerozoo.control.spec import Spec
from zerozoo.losses.imitation import denoising

Predictor = Callable[[Tensor, Tensor], Tensor]  # (noisy action (N, m), time (N,)) -> (N, m)


class Schedule(NamedTuple):
    """Variance-preserving noise schedule of T steps; index 0 is the step next to the data."""

    betas: Tensor  # (T,)
    alphas: Tensor  # (T,) 1 - beta
    cumulative: Tensor  # (T,) product of the alphas up to and including this one


def vp_schedule(steps: int, low: float = 0.1, high: float = 10.0) -> Schedule:
    """beta_t = 1 - exp(-low / T - (high - low) (2 t - 1) / (2 T^2)),  t = 1 ... T.

    Source: Xiao et al. 2021, arXiv 2112.07804, the discretised VP process; in FISOR, arXiv 2401.10700.
    """
    if steps < 1:
        raise ValueError(f"a diffusion needs at least one step, not {steps}")
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    betas = 1 - torch.exp(-low / steps - (high - low) * (2 * t - 1) / (2 * steps**2))
    return Schedule(betas.float(), (1 - betas).float(), (1 - betas).cumprod(0).float())


def ancestral_sample(
    predict_noise: Predictor, noise: Tensor, schedule: Schedule, generator: Generator, clip: float | None = 1.0
) -> Tensor:
    """DDPM: x <- (x - beta_t / sqrt(1 - abar_t) eps(x, t)) / sqrt(alpha_t) + sqrt(beta_t) z, from t = T down to 1.

    No noise at the last step; x is clipped after every step. noise (N, m) is the start, times are indices 0 ... T - 1
    -> (N, m). Source: Ho et al. 2020, arXiv 2006.11239, algorithm 2 with sigma_t^2 = beta_t.
    """
    x = noise
    for step in reversed(range(len(schedule.betas))):
        beta, alpha, cumulative = (float(part[step]) for part in schedule)
        time = torch.full((len(x),), step, dtype=torch.int64)
        x = (x - beta / math.sqrt(1 - cumulative) * predict_noise(x, time)) / math.sqrt(alpha)
        if step > 0:
            x = x + math.sqrt(beta) * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        if clip is not None:
            x = x.clamp(-clip, clip)
    return x


def euler_sample(velocity: Predictor, noise: Tensor, steps: int) -> Tensor:
    """x <- x + velocity(x, t) / steps for t = 0, 1 / steps, ...: from noise (N, m) at t = 0 to data at t = 1."""
    x = noise
    for step in range(steps):
        time = torch.full((len(x),), step / steps, dtype=x.dtype)
        x = x + velocity(x, time) / steps
    return x


class FourierTime(Drawn):
    """cos and sin of 2 pi w t with learned frequencies w ~ N(0, 0.2^2): (N,) times -> (N, features)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.full((features // 2,), math.nan))

    @torch.no_grad()
    def reset(self, generator: Generator) -> None:
        self.frequencies.normal_(0, 0.2, generator=generator)

    def forward(self, time: Tensor) -> Tensor:
        angle = 2 * math.pi * time.to(self.frequencies.dtype)[:, None] * self.frequencies
        return torch.cat((angle.cos(), angle.sin()), -1)


class ResidualBlock(nn.Module):
    """x + W2 mish(W1 LayerNorm(dropout(x))) with a four times wider middle: (N, W) -> (N, W)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.norm = Dropout(dropout), nn.LayerNorm(width)
        self.network = mlp((width, 4 * width, width), activation="mish")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.network(self.norm(self.dropout(x))).squeeze(0)


class Denoiser(nn.Module):
    """The network of both policies: (action (N, m), features of the state (N, n), time (N,)) -> (N, m).

    Fourier time features -> MLP 128-128, joined with action and state, then residual blocks. Source: FISOR, arXiv
    2401.10700 (released code), after Hansen-Estruch et al. 2023 (IDQL), arXiv 2304.10573.
    """

    def __init__(
        self, n_state: int, n_action: int, width: int, blocks: int, time_features: int, dropout: float
    ) -> None:
        super().__init__()
        self.time = FourierTime(time_features)
        self.condition = mlp((time_features, 128, 128), activation="mish")
        self.entry = EnsembleLinear(1, n_state + n_action + 128, width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout) for _ in range(blocks)))
        self.exit = EnsembleLinear(1, width, n_action)

    def forward(self, action: Tensor, state: Tensor, time: Tensor) -> Tensor:
        condition = self.condition(self.time(time)).squeeze(0)
        x = self.entry(torch.cat((action, state, condition), -1)).squeeze(0)
        return self.exit(functional.mish(self.blocks(x))).squeeze(0)


class _Generative(nn.Module):
    """Encoder, denoiser, and sampling of N candidates for each of B observations."""

    def __init__(
        self,
        spec: Spec,
        steps: int,
        width: int = 256,
        blocks: int = 3,
        time_features: int = 64,
        dropout: float = 0.1,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        self.steps, self.action_size = steps, spec.action_size
        self.encoder, features = encoder(spec.obs_shape)
        self.network = Denoiser(features, spec.action_size, width, blocks, time_features, dropout)
        initialise(self, generator)

    def _generate(self, predict: Predictor, noise: Tensor, generator: Generator) -> Tensor:
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, obs: Tensor, n: int, generator: Generator) -> Tensor:
        """n candidate actions for each observation: (B, *obs_shape) -> (n, B, m) in [-1, 1], without gradient."""
        state = self.encoder(obs)
        repeated = state.expand(n, *state.shape).reshape(n * len(state), -1)
        noise = torch.randn((len(repeated), self.action_size), generator=generator, dtype=state.dtype)
        action = self._generate(lambda x, time: self.network(x, repeated, time), noise, generator)
        return action.clamp(-1, 1).view(n, len(state), self.action_size)

    def act(self, obs: Tensor, generator: Generator | None = None) -> Tensor:
        """One draw (B, m); without a generator with noise of a fixed seed, so that it depends on obs alone."""
        return self.sample(obs, 1, generator or Generator().manual_seed(0))[0]


class Diffusion(_Generative):
    """A conditional DDPM on actions, trained to predict the noise, weighted by what the algorithm prefers.

    A weight w makes the policy the data's density times w (exact energy guidance, FISOR). Act with an EMA copy of it,
    a `Target` of rate 0.001, and draw candidates to be scored by a critic: see `best_of`.
    """

    def __init__(self, spec: Spec, steps: int = 5, **options: Any) -> None:
        super().__init__(spec, steps, **options)
        self.schedule = vp_schedule(steps)

    def loss(self, obs: Tensor, action: Tensor, generator: Generator, weight: Tensor | None = None) -> Tensor:
        """w ||eps - eps_theta(sqrt(abar_t) a + sqrt(1 - abar_t) eps, s, t)||^2 with t uniform: (B,)."""
        time = torch.randint(self.steps, (len(action),), generator=generator)
        noise = torch.randn(action.shape, generator=generator, dtype=action.dtype)
        cumulative = self.schedule.cumulative.to(action.dtype)[time, None]  # (B, 1)
        noisy = cumulative.sqrt() * action + (1 - cumulative).sqrt() * noise
        return denoising(self.network(noisy, self.encoder(obs), time), noise, weight)

    def _generate(self, predict: Predictor, noise: Tensor, generator: Generator) -> Tensor:
        return ancestral_sample(predict, noise, self.schedule, generator)


class Flow(_Generative):
    """A rectified flow on actions: the velocity of straight lines from noise to data, integrated by Euler steps.

    Source: Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747.
    """

    def __init__(self, spec: Spec, steps: int = 10, **options: Any) -> None:
        super().__init__(spec, steps, **options)

    def loss(self, obs: Tensor, action: Tensor, generator: Generator, weight: Tensor | None = None) -> Tensor:
        """w ||(a - x0) - v_theta((1 - t) x0 + t a, s, t)||^2 with t uniform in [0, 1), x0 ~ N(0, 1): (B,)."""
        time = torch.rand(len(action), generator=generator, dtype=action.dtype)
        noise = torch.randn(action.shape, generator=generator, dtype=action.dtype)
        between = torch.lerp(noise, action, time[:, None])
        return denoising(self.network(between, self.encoder(obs), time), action - noise, weight)

    def _generate(self, predict: Predictor, noise: Tensor, generator: Generator) -> Tensor:
        return euler_sample(predict, noise, self.steps)


def best_of(candidates: Tensor, scores: Tensor) -> Tensor:
    """The candidate with the highest score: candidates (N, B, m), scores (N, B) -> (B, m)."""
    best = scores.argmax(0)  # (B,)
    return candidates[best, torch.arange(candidates.shape[1])]
