"""Networks: ensembles as one batched product, small CNN, GPT blocks; all parameters of a network in one flat tensor.

Weights are random by a `torch.Generator` only. A module made without one holds NaN until `initialise` is called; an
`Agent` does that for all its networks, so that recipes need not pass generators around. Shape letters: E members of an
ensemble, B batch, L steps of a sequence, W width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,  # in place: what comes before needs its own output for no gradient
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "mish": functional.mish,
    "silu": functional.silu,
    "elu": functional.elu,
}
ALIGNMENT = 16  # float32 numbers in 64 bytes: every parameter starts where vector instructions are fastest

Module = TypeVar("Module", bound=nn.Module)


class Drawn(nn.Module):
    """A module whose parameters are drawn by `reset`."""

    drawn = False

    def reset(self, generator: Generator) -> None:
        """Draw the parameters anew."""
        raise NotImplementedError


class Dropout(nn.Module):
    """Sets a share of the entries to 0 in training and scales the others by 1 / (1 - share); identity in evaluation.

    `generator` makes the draws. torch's own dropout uses the global one, which no checkpoint of ours holds.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout must lie in [0, 1), but is {share}")
        self.share = share
        self.generator: Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        if self.generator is None:
            raise ValueError("dropout has no generator yet: call initialise, or build the network inside an Agent")
        keep = torch.empty_like(x).bernoulli_(1 - self.share, generator=self.generator)
        return x * keep / (1 - self.share)


def initialise(module: Module, generator: Generator | None) -> Module:
    """Draw all parameters below `module` that were not drawn yet, in the order of definition; returns `module`.

    Dropout layers draw from the same generator later. Without a generator nothing happens. Only what derives from
    `Drawn` is drawn; other modules, a pretrained model for instance, keep what they hold.
    """
    if generator is not None:
        for part in module.modules():
            if isinstance(part, Drawn) and not part.drawn:
                part.reset(generator)
                part.drawn = True
            elif isinstance(part, Dropout):
                part.generator = generator
    return module


def _undrawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, math.nan))


class EnsembleLinear(Drawn):
    """y_e = x_e W_e + b_e: E linear layers as one batched matrix product.

    weight (E, n_in, n_out), bias (E, 1, n_out). Input (E, B, n_in), or (B, n_in) that all members share -> (E, B,
    n_out). Each member is drawn by itself: uniform in +-1 / sqrt(n_in) as torch's Linear, or with `orthogonal` a random
    orthogonal matrix times that gain and zero bias.
    """

    def __init__(self, ensemble: int, n_in: int, n_out: int, orthogonal: float | None = None) -> None:
        super().__init__()
        self.ensemble, self.orthogonal = ensemble, orthogonal
        self.weight = _undrawn(ensemble, n_in, n_out)
        self.bias = _undrawn(ensemble, 1, n_out)

    @torch.no_grad()
    def reset(self, generator: Generator) -> None:
        bound = 1 / math.sqrt(self.weight.shape[1])
        self.weight.uniform_(-bound, bound, generator=generator)
        self.bias.uniform_(-bound, bound, generator=generator)
        if self.orthogonal is not None:
            for member in self.weight:
                member.copy_(nn.init.orthogonal_(torch.empty_like(member), self.orthogonal, generator=generator))
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            x = x.expand(self.ensemble, *x.shape)
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleNorm(nn.Module):
    """LayerNorm over the last dimension with a scale and an offset per member: (E, B, W) -> (E, B, W)."""

    def __init__(self, ensemble: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ensemble, 1, width))
        self.bias = nn.Parameter(torch.zeros(ensemble, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, functional.layer_norm(x, x.shape[-1:]), self.weight)


class Hidden(EnsembleLinear):
    """A hidden layer: linear, [LayerNorm], activation, [dropout]; ValueError for an unknown activation."""

    def __init__(
        self,
        ensemble: int,
        n_in: int,
        n_out: int,
        layer_norm: bool,
        activation: str,
        dropout: float,
        orthogonal: float | None,
    ) -> None:
        super().__init__(ensemble, n_in, n_out, orthogonal)
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]
        self.norm = EnsembleNorm(ensemble, n_out) if layer_norm else None
        self.dropout = Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        x = self.activation(x if self.norm is None else self.norm(x))
        return x if self.dropout is None else self.dropout(x)


def mlp(
    sizes: Sequence[int],
    ensemble: int = 1,
    layer_norm: bool = False,
    activation: str = "relu",
    dropout: float = 0.0,
    orthogonal: float | None = None,
    generator: Generator | None = None,
) -> nn.Sequential:
    """A `Hidden` layer for each hidden size, then one more linear layer.

    sizes: input, hidden ..., output. Input (B, sizes[0]) or (E, B, sizes[0]) -> (E, B, sizes[-1]), also for E = 1.
    orthogonal: gain of the last layer; the others then have sqrt(2) (Huang et al. 2022, The 37 Implementation Details
    of PPO). dropout: share of each hidden layer. Raises ValueError for fewer than two sizes and an unknown activation.
    """
    if len(sizes) < 2:
        raise ValueError(f"sizes must hold at least input and output, but is {tuple(sizes)}")
    gain = None if orthogonal is None else math.sqrt(2)
    hidden = [
        Hidden(ensemble, n_in, n_out, layer_norm, activation, dropout, gain)
        for n_in, n_out in itertools.pairwise(sizes[:-1])
    ]
    last = EnsembleLinear(ensemble, sizes[-2], sizes[-1], orthogonal)
    return initialise(nn.Sequential(*hidden, last), generator)


class Convolution(Drawn):
    """A 3 x 3 convolution with padding 1, drawn as torch's Conv2d: (B, n_in, H, W) -> (B, n_out, H / stride, ...)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight, self.bias = _undrawn(n_out, n_in, 3, 3), _undrawn(n_out)

    @torch.no_grad()
    def reset(self, generator: Generator) -> None:
        bound = 1 / math.sqrt(self.weight[0].numel())
        self.weight.uniform_(-bound, bound, generator=generator)
        self.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, self.stride, padding=1)


class Pixels(nn.Module):
    """Small CNN: images (B, H, W, C), uint8 or float in [0, 1], -> features (B, n_features).

    Three 3 x 3 convolutions, with stride 2 while a side is longer than 8 pixels, then a linear layer; ReLU everywhere.
    This is the one place where uint8 is divided by 255.
    """

    def __init__(self, obs_shape: tuple[int, ...], features: int = 256, channels: Sequence[int] = (16, 32, 32)) -> None:
        super().__init__()
        height, width, n_in = obs_shape
        self.convolutions = nn.ModuleList()
        for n_out in channels:
            stride = 2 if max(height, width) > 8 else 1
            self.convolutions.append(Convolution(n_in, n_out, stride))
            height, width, n_in = -(-height // stride), -(-width // stride), n_out
        self.linear = EnsembleLinear(1, n_in * height * width, features)

    def forward(self, obs: Tensor) -> Tensor:
        x = obs.permute(0, 3, 1, 2)
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        for convolution in self.convolutions:
            x = torch.relu(convolution(x))
        return torch.relu(self.linear(x.flatten(1))[0])


class Flat(nn.Module):
    """Observations that are vectors already, or are flattened to vectors: (B, *obs_shape) -> (B, features)."""

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.rank = len(obs_shape)

    def forward(self, obs: Tensor) -> Tensor:
        return obs if self.rank == 1 else obs.flatten(1)


def encoder(obs_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """(module, features) that makes vectors of observations: a small CNN for images (H, W, C), else a flattening."""
    if len(obs_shape) == 3:
        module = Pixels(obs_shape)
        return module, module.linear.weight.shape[2]
    return Flat(obs_shape), math.prod(obs_shape)


class GPTBlock(nn.Module):
    """Pre-norm causal self-attention and a four times wider GELU layer, both residual: (B, L, W) -> (B, L, W).

    `visible` (B, 1, L, L) or (L, L) bool says which key a query sees. Dropout acts on the two residual branches, not
    on the attention weights. Source: Radford et al. 2019 (GPT-2).
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the width {width} is not divisible by the number of heads {heads}")
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.attention = EnsembleLinear(1, width, 3 * width)
        self.projection = EnsembleLinear(1, width, width)
        self.feedforward = mlp((width, 4 * width, width), activation="gelu")
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        batch, length, width = x.shape
        rows = self.norms[0](x).reshape(-1, width)
        parts = self.attention(rows).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=visible)
        mixed = self.projection(mixed.transpose(1, 2).reshape(-1, width))
        x = x + self.dropout(mixed.view(batch, length, width))
        return x + self.dropout(self.feedforward(self.norms[1](x).reshape(-1, width)).view(batch, length, width))


class GPT(nn.Module):
    """A stack of GPTBlocks with a final LayerNorm: (B, L, W) tokens -> (B, L, W), each from itself and what precedes.

    mask (B, L) bool marks the real tokens; padding is seen by nobody but itself, on either side. Positions are the
    caller's business (a decision transformer adds time embeddings).
    """

    def __init__(
        self, width: int, heads: int, blocks: int, dropout: float = 0.0, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GPTBlock(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        initialise(self, generator)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            # a query that sees nothing would give NaN: everyone sees itself
            itself = torch.eye(length, dtype=torch.bool, device=x.device)
            visible = (visible & mask[:, None, None, :]) | itself
        for block in self.blocks:
            x = block(x, visible)
        return self.norm(x)


class FlatParameters:
    """All trainable parameters of a module as views of ONE tensor, and their gradients likewise.

    An optimiser step is then one call on one tensor, and so are zeroing, clipping and moving a target, however many
    layers there are. Parameters start at multiples of 64 bytes; the gaps hold zeros and stay zero.

    `values`, `gradients`: (P,) flat tensors. Raises ValueError when a parameter already belongs to another flat tensor
    (a shared encoder must be a network of its own), and when there is none.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("there is no parameter to train")
        if any(hasattr(p, "flat") for p in parameters):
            raise ValueError("a parameter belongs to two networks: train a shared part as a network of its own")
        sizes = [-(-p.numel() // ALIGNMENT) * ALIGNMENT for p in parameters]
        self.values = parameters[0].detach().new_zeros(sum(sizes))
        self.gradients = torch.zeros_like(self.values)
        starts = itertools.accumulate(sizes, initial=0)
        for parameter, start in zip(parameters, starts, strict=False):
            part = slice(start, start + parameter.numel())
            self.values[part] = parameter.detach().flatten()
            parameter.data = self.values[part].view(parameter.shape)
            parameter.grad = self.gradients[part].view(parameter.shape)
            parameter.flat = True  # type: ignore[attr-defined]


class Stopped:
    """`stop(net)`: the network with its parameters detached. Called as the network; its methods likewise."""

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _without_gradient(self._net, self._net, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._net, name)
        if not callable(attribute):
            return attribute
        return lambda *args, **kwargs: _without_gradient(self._net, attribute, args, kwargs)


def stop(net: nn.Module) -> Stopped:
    """`net` with its parameters detached: a gradient flows through it to its inputs and not into it."""
    return Stopped(net)


def _without_gradient(net: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    # Switching the flags of a dozen parameters costs 2 us; torch.func.functional_call costs 50 to 100.
    parameters = net.__dict__.get("_all_parameters")
    if parameters is None:  # a walk over all modules, once
        parameters = net.__dict__["_all_parameters"] = tuple(net.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    for parameter in trainable:
        parameter.requires_grad = False
    try:
        return function(*args, **kwargs)
    finally:
        for parameter in trainable:
            parameter.requires_grad = True
