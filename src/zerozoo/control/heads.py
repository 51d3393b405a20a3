"""Value heads, critics and state values: how a network's outputs mean a value, and which loss trains them.

Everything that acts on values (minimum, bootstrap, greedy choice, logging) uses the scalar `value`; only the loss knows
the head. Twin critics therefore take the minimum over expected values, never over distributions. Shape letters: E
ensemble, B batch, A discrete actions, K outputs of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from zerozoo.control.networks import encoder, initialise, mlp
from zerozoo.control.spec import Spec
from zerozoo.losses.values import hl_gauss_targets, huber, mse, quantile_huber


class ScalarHead(nn.Module):
    """One output, which is the value; squared error, or a Huber loss with a threshold."""

    outputs = 1

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.threshold = threshold

    def value(self, logits: Tensor) -> Tensor:
        """(..., 1) -> (...)."""
        return logits.squeeze(-1)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (E, B, 1), target (B,) or (E, B) -> (E, B)."""
        value = self.value(logits)
        if self.threshold is None:
            return mse(value, target)
        return huber(value - target.detach(), self.threshold)


class HLGaussHead(nn.Module):
    """A histogram of `bins` equal bins on [low, high]; the value is its mean, the loss a cross-entropy.

    The target is the histogram of a Gaussian around the scalar target with deviation sigma_ratio bins. Targets outside
    of the range count as its ends, and near the ends the mean is biased inwards by up to three deviations: choose the
    range with that margin. The loss has a minimum above 0, the entropy of its target.

    Source: Imani and White 2018, arXiv 1806.04613; Farebrother et al. 2024, arXiv 2403.03950 (sigma_ratio 0.75).
    """

    edges: Tensor
    centres: Tensor

    def __init__(self, low: float, high: float, bins: int = 51, sigma_ratio: float = 0.75) -> None:
        super().__init__()
        if not low < high or bins < 2:
            raise ValueError(f"a histogram needs low < high and two bins, but got [{low}, {high}] with {bins}")
        self.outputs = bins
        self.sigma = sigma_ratio * (high - low) / bins
        edges = torch.linspace(low, high, bins + 1)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("centres", (edges[1:] + edges[:-1]) / 2, persistent=False)

    def value(self, logits: Tensor) -> Tensor:
        """(..., bins) -> (...)."""
        return logits.softmax(-1) @ self.centres

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (E, B, bins), target (B,) or (E, B) -> (E, B)."""
        probabilities = hl_gauss_targets(target, self.edges, self.sigma)
        return -(probabilities * logits.log_softmax(-1)).sum(-1)


class QuantileHead(nn.Module):
    """K quantiles at levels (i + 1/2) / K; the value is their mean, the loss the quantile Huber loss.

    Source: Dabney et al. 2017 (QR-DQN), arXiv 1710.10044.
    """

    def __init__(self, quantiles: int = 32, threshold: float = 1.0) -> None:
        super().__init__()
        self.outputs, self.threshold = quantiles, threshold

    def value(self, logits: Tensor) -> Tensor:
        """(..., K) -> (...)."""
        return logits.mean(-1)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (E, B, K), target (B,) or (E, B) samples of the return -> (E, B)."""
        return quantile_huber(logits, target[..., None], self.threshold)


Head = ScalarHead | HLGaussHead | QuantileHead


class Critic(nn.Module):
    """Q(s, a) of E members. Called with (obs, action) -> (E, B); discrete actions may be left out -> (E, B, A).

    obs (B, *obs_shape), action (B, m) float or (B,) int64.
    """

    def __init__(self, spec: Spec, hidden: Sequence[int], ensemble: int, head: Head, **options: Any) -> None:
        super().__init__()
        self.discrete, self.action_size = spec.discrete, spec.action_size
        self.encoder, features = encoder(spec.obs_shape)
        n_in = features if spec.discrete else features + spec.action_size
        n_out = head.outputs * spec.action_size if spec.discrete else head.outputs
        self.network = mlp((n_in, *hidden, n_out), ensemble, **options)
        self.head = head

    def logits(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        """What the head reads: (E, B, K), and (E, B, A, K) without an action."""
        features = self.encoder(obs)
        if not self.discrete:
            if action is None:
                raise ValueError("a critic of continuous actions needs an action")
            return self.network(torch.cat((features, action), -1))
        logits = self.network(features).unflatten(-1, (self.action_size, -1))
        if action is None:
            return logits
        index = action[None, :, None, None].expand(logits.shape[0], -1, 1, logits.shape[-1])
        return logits.gather(2, index).squeeze(2)

    def forward(self, obs: Tensor, action: Tensor | None = None) -> Tensor:
        return self.head.value(self.logits(obs, action))

    def loss(self, obs: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """The head's loss against target (B,) or (E, B) -> (E, B); to be averaged over B and summed over E."""
        return self.head.loss(self.logits(obs, action), target)


class Value(nn.Module):
    """V(s): obs (B, *obs_shape) -> (B,), with more than one member (E, B)."""

    def __init__(self, spec: Spec, hidden: Sequence[int], ensemble: int, head: Head, **options: Any) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.encoder, features = encoder(spec.obs_shape)
        self.network = mlp((features, *hidden, head.outputs), ensemble, **options)
        self.head = head

    def logits(self, obs: Tensor) -> Tensor:
        """What the head reads: (B, K), with more than one member (E, B, K)."""
        logits = self.network(self.encoder(obs))
        return logits.squeeze(0) if self.ensemble == 1 else logits

    def forward(self, obs: Tensor) -> Tensor:
        return self.head.value(self.logits(obs))

    def loss(self, obs: Tensor, target: Tensor) -> Tensor:
        """The head's loss against target (B,) -> (B,), with more than one member (E, B)."""
        return self.head.loss(self.logits(obs), target)


def critic(
    spec: Spec,
    hidden: Sequence[int] = (256, 256),
    ensemble: int = 2,
    head: str | Head = "scalar",
    generator: Generator | None = None,
    **options: Any,
) -> Critic:
    """E state-action values, see `Critic`. head: "scalar" or a head object; options: those of `mlp`, as layer_norm."""
    return initialise(Critic(spec, hidden, ensemble, _head(head), **options), generator)


def value(
    spec: Spec,
    hidden: Sequence[int] = (256, 256),
    ensemble: int = 1,
    head: str | Head = "scalar",
    generator: Generator | None = None,
    **options: Any,
) -> Value:
    """A state value, see `Value`; the arguments are those of `critic`."""
    return initialise(Value(spec, hidden, ensemble, _head(head), **options), generator)


def _head(head: str | Head) -> Head:
    if isinstance(head, str):
        if head != "scalar":
            raise ValueError(f"unknown head {head!r}: give 'scalar', HLGaussHead(low, high) or QuantileHead()")
        return ScalarHead()
    return head
