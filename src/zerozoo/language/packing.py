"""Hidden states for learning, without padding and with the prompt of a group once.

All tokens of a micro-batch stand behind one another for everything that works token by token, which is nearly all of
the work. Only attention needs rows: there every response gets a row with its prompt in front, gathered from the common
tokens, and is causal without any mask. Its gradient adds up where rows share a prompt. The layers are those of the
model, called by their own names, so adapters and other backward passes work as they are; norms and gates keep less for
the backward pass than transformers does and go over the memory less often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zerozoo.language.decoder import layer_window, rotate, signed_sines
from zerozoo.language.device import full_products
from zerozoo.language.heads import causal_model, enter


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a micro-batch stand.

    Attributes:
        ids: (T,) token ids.
        positions: (T,) of each token in its own sequence.
        rows: (R, L) places in `ids` of each response with its prompt in front; place 0 where padded, on the right.
        own: (T,) place of each token in the flattened rows; that in the first of its rows for a shared prompt.
        predicts: (M,) places in `ids` of the states that predict response tokens, row by row in the order given.
    """

    ids: Tensor
    positions: Tensor
    rows: Tensor
    own: Tensor
    predicts: Tensor

    def to(self, device: torch.device) -> Packing:
        return Packing(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], shared: bool) -> Packing:
    """Lay out rows of prompt and response ids.

    Args:
        shared: whether rows with equal prompts share one. Otherwise each has its own.
    """
    longest = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)) - 1
    rows = torch.zeros((len(prompts), longest), dtype=torch.int64)
    ids: list[int] = []
    positions: list[int] = []
    own: list[int] = []
    predicts: list[int] = []
    starts: dict[Any, int] = {}  # where a prompt stands
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        key = tuple(prompt) if shared else row
        begin, first = len(prompt), starts.get(key)
        if first is None:
            first = starts[key] = len(ids)
            ids += prompt
            positions += range(begin)
            own += range(row * longest, row * longest + begin)
        end = begin + len(response) - 1  # the last token predicts nothing and stays out
        rows[row, :begin] = torch.arange(first, first + begin)
        rows[row, begin:end] = torch.arange(len(ids), len(ids) + end - begin)
        predicts += [first + begin - 1, *range(len(ids), len(ids) + end - begin)]
        ids += response[:-1]
        positions += range(begin, end)
        own += range(row * longest + begin, row * longest + end)
    return Packing(torch.tensor(ids), torch.tensor(positions), rows, torch.tensor(own), torch.tensor(predicts))


def fill_by_tokens(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], budget: int, share: bool = True
) -> list[tuple[list[int], int]]:
    """Cut rows into micro-batches of at most `budget` computed tokens, a shared prompt counted once in each.

    Groups of like length stand together, and a group that does not fit is cut, its prompt computed once in each part.
    A single row longer than the budget makes a micro-batch of its own.

    Args:
        share: whether rows with equal prompts share one; see `pack`.

    Returns:
        row indices and number of tokens of each micro-batch.
    """
    groups: dict[Any, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt) if share else row, []).append(row)
    longest = {key: len(prompts[rows[0]]) + max(len(responses[row]) for row in rows) for key, rows in groups.items()}
    batches: list[tuple[list[int], int]] = []
    for key in sorted(groups, key=lambda key: longest[key]):
        shared = False  # whether the last micro-batch has this prompt
        for row in groups[key]:
            cost = len(responses[row]) - 1 + (0 if shared else len(prompts[row]))
            if not batches or batches[-1][1] + cost > budget:
                batches.append(([], 0))
                cost = len(responses[row]) - 1 + len(prompts[row])
            rows, tokens = batches[-1]
            batches[-1] = ([*rows, row], tokens + cost)
            shared = True
    return batches


def packed_hidden(model: nn.Module, packing: Packing) -> Tensor:
    """Last hidden states (M, H) that predict the response tokens, for a model that `decoder.can_pack` takes."""
    decoder = causal_model(model).model
    hidden = decoder.embed_tokens(packing.ids)
    cosines, sines = decoder.rotary_emb(hidden, packing.positions[None])
    angles = cosines[0, :, None], signed_sines(sines[0, :, None])
    for layer in decoder.layers:
        hidden = enter(layer, partial(_run_layer, layer, angles, packing), hidden)
    # What comes after the last attention is needed for the predicting states alone.
    return _norm(hidden[packing.predicts], decoder.norm)


def _run_layer(layer: Any, angles: tuple[Tensor, Tensor], packing: Packing, hidden: Tensor) -> Tensor:
    """(T, H) -> (T, H)."""
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        result: Tensor = checkpoint(
            _layer, layer, angles, packing, hidden, use_reentrant=False, preserve_rng_state=False
        )
        return result
    return _layer(layer, angles, packing, hidden)


def _layer(layer: Any, angles: tuple[Tensor, Tensor], packing: Packing, hidden: Tensor) -> Tensor:
    attention, network = layer.self_attn, layer.mlp
    inputs = _norm(hidden, layer.input_layernorm)
    size = attention.head_dim
    query = attention.q_proj(inputs).unflatten(-1, (-1, size))
    key = attention.k_proj(inputs).unflatten(-1, (-1, size))
    value = attention.v_proj(inputs).unflatten(-1, (-1, size))
    if hasattr(attention, "q_norm"):
        query, key = _norm(query, attention.q_norm), _norm(key, attention.k_norm)
    query, key = rotate(query, *angles), rotate(key, *angles)
    mixed: Any = _Attention.apply(query, key, value, packing, float(attention.scaling), layer_window(attention))
    hidden = hidden + attention.o_proj(mixed)
    inputs = _norm(hidden, layer.post_attention_layernorm)
    gated: Any = _Gate.apply(network.gate_proj(inputs), network.up_proj(inputs))
    return hidden + network.down_proj(gated)


class _Attention(torch.autograd.Function):
    """`_attend`, computed again for the backward pass: rows repeat a shared prompt, so keeping them would cost room."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, window: int | None
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.others = packing, scaling, window
        with full_products():
            return _attend(query, key, value, packing, scaling, window)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad(), full_products():
            mixed = _attend(*inputs, *ctx.others)
            return (*torch.autograd.grad(mixed, inputs, gradients[0]), None, None, None)


def _attend(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, window: int | None) -> Tensor:
    """(T, heads, D), (T, key heads, D) twice -> (T, heads * D)."""
    longest = packing.rows.shape[1]
    narrow = window is not None and window < longest
    mask = None
    if window is not None and narrow:
        back = torch.arange(longest, device=query.device)
        back = back[:, None] - back
        mask = (back >= 0) & (back < window)
    kind = value.dtype  # rotations may have widened the others
    query, key, value = (_gather(part.to(kind), packing.rows).transpose(1, 2) for part in (query, key, value))
    mixed = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=not narrow,
        scale=scaling,
        enable_gqa=query.shape[1] > key.shape[1],
    )
    return functional.embedding(packing.own, mixed.transpose(1, 2).flatten(2).flatten(0, 1))


def _gather(heads: Tensor, rows: Tensor) -> Tensor:
    """(T, heads, D) -> (R, L, heads, D). As an embedding, for its backward pass uses all cores."""
    return functional.embedding(rows, heads.flatten(1)).unflatten(-1, heads.shape[1:])


def _norm(hidden: Tensor, norm: Any) -> Tensor:
    result: Any = _RootMeanSquareNorm.apply(hidden, norm.weight, norm.variance_epsilon)
    return result


class _RootMeanSquareNorm(torch.autograd.Function):
    """y = w x r with r = 1 / sqrt(mean(x^2) + e) over the last dimension of size H; keeps x and r only.

    dL/dw = sum of x r dL/dy. With g = w dL/dy: dL/dx = r g - x r^3 / H sum(g x). As in transformers, x is looked at in
    float32, and what does not come from it stays in its own precision.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = hidden.float()
        reciprocal = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(hidden, weight, reciprocal)
        return weight * (wide * reciprocal).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, reciprocal = ctx.saved_tensors
        # No narrower than the gradient: what is added up over micro-batches must not depend on how they are cut.
        outer, wide = gradients[0], hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (outer * (wide * reciprocal).to(outer.dtype)).flatten(0, -2).sum(0).to(weight.dtype)
        inner = (outer * weight).to(wide.dtype)
        share = (inner * wide).sum(-1, keepdim=True).mul_(reciprocal.pow(3)).div_(-hidden.shape[-1])
        return inner.mul_(reciprocal).addcmul_(wide, share).to(hidden.dtype), weight_gradient, None


class _Gate(torch.autograd.Function):
    """silu(g) u; keeps g and u, where autograd would keep silu(g) as well."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        outer = gradients[0]
        return torch.ops.aten.silu_backward(outer * up, gate), functional.silu(gate).mul_(outer)
