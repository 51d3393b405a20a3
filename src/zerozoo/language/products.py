"""Matrix products of the decoder: from the model's own weights, from weights laid out anew, or in another precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Projection = Callable[[Tensor], Tensor]  # (..., K) -> (..., N)
# Makes a projection from weight (N, K), bias (N,) or None, and the name of the first of the layers that it stands for.
MakeProjection = Callable[[Tensor, Tensor | None, str], Projection]


@cache
def weights_first() -> bool:
    """Whether W X^T is quicker than X W^T for the few hundred rows of a step.

    MKL computes it a third faster where it has AVX2 and no AVX-512 (docs/speed.md). The processor decides, not a
    measurement: rounding must not change from run to run.
    """
    return torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2"


class Products(Protocol):
    """Of several layers with the same inputs: (..., K) -> one (..., N) a layer.

    Attributes:
        by_columns: results of inputs (B, K) lie in memory column by column, and so may the inputs.
    """

    by_columns: bool

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]: ...

    def prepare(self, rows: int) -> None:
        """Be quick for inputs (rows, K) from here on, whatever that takes."""


def plain_projection(weight: Tensor, bias: Tensor | None, name: str) -> Projection:
    """x -> x W^T + b, in the precision of the weight."""
    return lambda inputs: functional.linear(inputs.to(weight.dtype), weight, bias)


def make_products(
    modules: Sequence[Any], dtype: torch.dtype | None, project: MakeProjection, name: str
) -> OwnWeights | Joined:
    """The products of linear layers with the same inputs.

    On a CPU one product of weights that stand below one another is no faster than one each, so weights are copied only
    where another precision or another kind of product needs it anyway.
    """
    weights = [module.weight.detach() for module in modules]
    biases = [None if module.bias is None else module.bias.detach() for module in modules]
    if project is plain_projection and dtype in (None, weights[0].dtype):
        return OwnWeights(weights, biases)
    weight = torch.cat([weight.to(dtype or weight.dtype) for weight in weights])
    sizes = [len(weight) for weight in weights]
    bias = None
    if any(one is not None for one in biases):
        parts = [weight.new_zeros(size) if one is None else one for size, one in zip(sizes, biases, strict=True)]
        bias = torch.cat(parts).to(weight.dtype)
    return Joined(project(weight, bias, name), sizes)


class OwnWeights:
    """Products from the model's own weights, one each.

    `prepare` makes a copy of them in the layout that MKL multiplies fastest, which fits one number of rows only. It
    takes as long as a few products and as much memory as the weights.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.layers = list(zip(weights, biases, strict=True))
        whole = weights[0].dtype == torch.float32 and weights[0].device.type == "cpu"
        self.by_columns = whole and weights_first()
        self.rows = 0
        self.packed: list[Tensor] = []

    def prepare(self, rows: int) -> None:
        """See `Products`. Only for whole float32 products on a CPU for which torch has MKL; else nothing happens.

        Nor where the other order of the factors is quick without it, see `weights_first`.
        """
        weight, _ = self.layers[0]
        whole = weight.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        if self.by_columns or weight.device.type != "cpu" or not whole or not torch.backends.mkl.is_available():
            return
        self.packed = []  # the old ones go first
        self.packed = [torch.ops.mkl._mkl_reorder_linear_weight(weight, rows) for weight, _ in self.layers]
        self.rows = rows

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]:
        if self.by_columns and inputs.ndim == 2:
            return [_columns(inputs, weight, bias) for weight, bias in self.layers]
        if self.packed and inputs.ndim == 2 and len(inputs) == self.rows:
            return [
                torch.ops.mkl._mkl_linear(inputs, packed, weight, bias, self.rows)
                for packed, (weight, bias) in zip(self.packed, self.layers, strict=True)
            ]
        return [functional.linear(inputs.to(weight.dtype), weight, bias) for weight, bias in self.layers]


def _columns(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = (weight @ inputs.t()).t()
    return product if bias is None else product + bias


class Joined:
    """One product for all of the layers, whose parts are handed out."""

    by_columns = False

    def __init__(self, joined: Projection, sizes: Sequence[int]) -> None:
        self.joined, self.sizes = joined, list(sizes)

    def prepare(self, rows: int) -> None:
        """See `Products`: there is nothing to do."""

    def __call__(self, inputs: Tensor) -> Sequence[Tensor]:
        return self.joined(inputs).split(self.sizes, -1)
