"""int8 matrix products: on CPUs that have them several times the speed of float32, at the price of rounding.

Values are scaled symmetrically, x ~ q * s with q = round(x / s) in [-127, 127] and s = max|x| / 127, one scale for
every row of the left and every column of the right factor, so that an outer product scales the int32 result back.

Two uses, each of which can be had alone:

* the backward pass: gradients of inputs and weights from int8 products, while the forward pass stays in float32;
* projections for sampling: quantised weights behind a smoothing of the channels (SmoothQuant, Xiao et al. 2023,
  arXiv 2211.10438, equation 3, with root mean squares in place of maxima) and a blockwise Hadamard rotation (QuaRot,
  Ashkboos et al. 2024, arXiv 2404.00456), which spreads outliers over 64 channels. The sampled distribution is then
  another one than the learner's: correct it with `losses.weights.truncated_importance_weight`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zerozoo.language.device import has_int8_units
from zerozoo.language.heads import causal_model
from zerozoo.language.products import Projection, plain_projection

LARGEST = 127  # -128 is left out: the scale is symmetric
ROTATION = 64  # channels that a rotation mixes
SMOOTHING = 0.5  # share of the difference between channels that moves from activations to weights
EXACT = 2**24 // LARGEST**2  # so many products of two int8 values add up in float32 without rounding


def quantised(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """int8 values and their float scales, one scale for every slice along `dim` (which keeps size 1).

    A slice of zeros gets the scale 1. values (M, K) -> (M, K) int8 and (M, 1) for dim 1, (1, K) for dim 0.
    """
    scale = values.abs().amax(dim, keepdim=True) / LARGEST
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (values / scale).round_().to(torch.int8), scale


def int8_product(left: Tensor, right: Tensor) -> Tensor:
    """(M, K) x (K, N) -> (M, N), both factors quantised on the way: rows of the left, columns of the right."""
    left_values, left_scale = quantised(left, 1)
    right_values, right_scale = quantised(right, 0)
    return whole_product(left_values, right_values).to(left.dtype).mul_(left_scale).mul_(right_scale)


def whole_product(left: Tensor, right: Tensor) -> Tensor:
    """(M, K) x (K, N) of int8 values, -128 left out -> (M, N), exact: int32, or float32 where all results fit into it.

    Where the machine has no quick int8 products, float32 products of at most `EXACT` terms give the same numbers;
    factors may then be float32 already.
    """
    if has_int8_units():
        return torch._int_mm(left, right)
    terms = left.shape[1]
    if terms <= EXACT:
        return left.float() @ right.float()
    parts = zip(left.split(EXACT, 1), right.split(EXACT, 0), strict=True)
    return torch.stack([(one.float() @ other.float()).int() for one, other in parts]).sum(0, dtype=torch.int32)


class _Int8Gradients(torch.autograd.Function):
    """y = x W^T + b in the precision of x; dL/dx = dL/dy W and dL/dW = dL/dy^T x in int8."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.has_bias = bias is not None
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        outer = gradients[0].reshape(-1, weight.shape[0])  # (M, out)
        needs_input, needs_weight, _ = ctx.needs_input_grad
        input_gradient = int8_product(outer, weight).view(inputs.shape) if needs_input else None
        flat = inputs.reshape(-1, weight.shape[1])
        weight_gradient = int8_product(outer.t(), flat) if needs_weight else None
        return input_gradient, weight_gradient, outer.sum(0) if ctx.has_bias else None


class Int8GradientLinear(nn.Linear):
    """A linear layer whose gradients come from int8 products; the forward pass and the weights are the same."""

    def forward(self, input: Tensor) -> Tensor:
        return _Int8Gradients.apply(input, self.weight, self.bias)


def use_int8_gradients(model: nn.Module) -> int:
    """Gives the projections of every decoder layer int8 gradients; returns how many there are.

    Embeddings and head stay as they are: the head's error would be the error of every log-prob. The layers keep
    their parameters and names, so optimiser, checkpoints and saved models do not notice.
    """
    projections = [module for module in causal_model(model).model.layers.modules() if type(module) is nn.Linear]
    for module in projections:
        module.__class__ = Int8GradientLinear
    return len(projections)


class Int8Projection:
    """x -> x W^T + b with int8 weights and one scale for every row of activations.

    With c the smoothing (K,) and H the rotation, x W^T = (x / c) H (W c H)^T. Both are made from a calibration: the
    root mean square of every input channel over some text whose FIRST token is among it, because the first token's
    activations are far larger than all others (speed.md measured three times the error without it).

    Args:
        weight: (N, K), read at `refresh` only.
        bias: (N,) or None.
        activation: (K,) root mean square of each input channel.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Tensor) -> None:
        weight_size = weight.detach().square().mean(0).sqrt().clamp(min=1e-6)
        smooth = activation.clamp(min=1e-6) ** SMOOTHING / weight_size ** (1 - SMOOTHING)
        self.smooth = smooth / smooth.log().mean().exp()  # only ratios between channels matter
        self.block = math.gcd(weight.shape[1], ROTATION)  # the largest power of two up to 64 that divides K
        self.rotation = hadamard(self.block).to(weight)
        self.refresh(weight, bias)

    @torch.no_grad()
    def refresh(self, weight: Tensor, bias: Tensor | None) -> None:
        """Quantise changed weights; the smoothing stays that of the calibration."""
        values, scale = quantised(self._rotated(weight * self.smooth), 1)
        kept = values if has_int8_units() else values.float()  # see `whole_product`
        self.weight, self.scale = kept.t(), scale.t()  # (K, N), (1, N)
        self.bias = None if bias is None else bias.detach().clone()

    def _rotated(self, rows: Tensor) -> Tensor:
        return (rows.view(*rows.shape[:-1], -1, self.block) @ self.rotation).view(rows.shape)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """(..., K) -> (..., N)."""
        flat = self._rotated((inputs / self.smooth).reshape(-1, inputs.shape[-1]))
        values, scale = quantised(flat, 1)
        result = whole_product(values, self.weight).to(inputs.dtype).mul_(scale).mul_(self.scale)
        if self.bias is not None:
            result += self.bias
        return result.view(*inputs.shape[:-1], -1)


class Int8Projections:
    """`products.MakeProjection` in int8 for every projection that the calibration names; others stay as they are.

    Weights are quantised anew for every decoder, that is for every call of a sampler; the smoothing stays.

    Args:
        sizes: what `channel_sizes` gives.
    """

    def __init__(self, sizes: Mapping[str, Tensor]) -> None:
        self.sizes = sizes
        self.made: dict[str, Int8Projection] = {}

    def __call__(self, weight: Tensor, bias: Tensor | None, name: str) -> Projection:
        if name not in self.sizes:
            return plain_projection(weight, bias, name)
        if name in self.made:
            self.made[name].refresh(weight, bias)
        else:
            self.made[name] = Int8Projection(weight, bias, self.sizes[name])
        return self.made[name]


@cache
def hadamard(size: int) -> Tensor:
    """The symmetric orthogonal matrix (size, size) of entries +-1 / sqrt(size), by Sylvester's doubling.

    Raises ValueError when size is no power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"a Hadamard matrix of this kind needs a power of two, not {size}")
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix / math.sqrt(size)


@torch.no_grad()
def channel_sizes(model: nn.Module, prompts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Root mean square of every input channel of the decoder layers' projections, by name in the model.

    Every prompt runs alone and whole, first token included.
    """
    layers = causal_model(model).model.layers
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    hooks = []
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear):

            def add(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
                sums[name] = sums.get(name, torch.zeros(rows.shape[1], device=rows.device)) + rows.square().sum(0)
                counts[name] = counts.get(name, 0) + len(rows)

            hooks.append(module.register_forward_pre_hook(add))
    try:
        device = next(model.parameters()).device
        for prompt in prompts:
            causal_model(model).model(input_ids=torch.tensor([list(prompt)], device=device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / counts[name]).sqrt() for name, total in sums.items()}
