"""Hidden states and logits of a causal language model of transformers, apart from each other.

The learner needs logits only where a response token is predicted, and the sampler only at the last position, so
neither calls the model's own forward, which would build logits for every position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

T = TypeVar("T")
DOOR = "with_whole_weights"  # what `sharding` puts on a module whose weights are kept in parts


def enter(module: nn.Module, compute: Callable[..., T], *arguments: Any) -> T:
    """`compute(*arguments)`, which works with the weights of a module without calling it.

    Those of a sharded module are gathered meanwhile, and in the backward pass again. Tensors that a gradient shall pass
    must be among the arguments.
    """
    sharded: Any = module
    if not hasattr(sharded, DOOR):
        return compute(*arguments)
    result: T = getattr(sharded, DOOR)(compute, *arguments)
    if not torch.is_grad_enabled():
        sharded.reshard()  # FSDP keeps the outermost module whole for a backward pass
    return result


def causal_model(model: nn.Module) -> Any:
    """The causal language model itself, also when peft has wrapped it."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped


def decoder_hidden(model: nn.Module, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any = None) -> Tensor:
    """Last hidden states.

    Args:
        ids: (B, L) token ids, the new ones when there is a cache.
        mask: (B, past + L) bool, False on padding; or (B, 1, L, L) to be added to the attention scores; None for rows
            packed behind one another (positions restart).
        positions: (B, L) position of each token in its own sequence: always given, so that padding on the left
            changes nothing for any kind of position encoding (trap 2).

    Returns:
        (B, L, H).
    """
    return (
        causal_model(model)
        .model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        .last_hidden_state
    )


def head_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (..., V) of hidden states (..., H), float32 at least, with Gemma's soft cap where the model has one."""
    causal = causal_model(model)
    logits = causal.lm_head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()


def has_plain_head(model: nn.Module) -> bool:
    """Whether logits are one matrix product and nothing else, so that `head_scores` can stand for the head."""
    causal = causal_model(model)
    head = causal.lm_head
    hooks = head._forward_hooks or head._forward_pre_hooks
    cap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    return isinstance(head, nn.Linear) and head.bias is None and not hooks and cap is None


def head_scores(
    model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, keep: bool
) -> tuple[Tensor, Tensor]:
    """Log-probs of target tokens and entropies, with one table of logits in memory.

    Args:
        hidden: (M, H) states that predict the targets.
        targets: (M,) token ids.
        temperature: above 0; logits are divided by it.
        keep: keep the table of probabilities for the backward pass, or compute it again.

    Returns:
        (M,) log-probs, float32 at least, and (M,) entropies in nats, which have no gradient.
    """
    weight = causal_model(model).lm_head.weight
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    result: tuple[Tensor, Tensor] = _HeadScores.apply(hidden, weight, targets, temperature, keep, dtype)
    return result


class _HeadScores(torch.autograd.Function):
    """With p the softmax of the logits W h / t and y the target: d log p_y / d (W h) = (e_y - p) / t."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        keep: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        logits = _logits(hidden, weight, temperature, dtype)
        table = logits.log_softmax(-1)
        logprobs = table.gather(-1, targets[:, None])[:, 0]
        probabilities = torch.exp(table, out=logits)
        # Where a probability is 0 its logarithm may be minus infinity.
        entropy = -_row_products(probabilities, table.clamp_(min=torch.finfo(table.dtype).min))
        ctx.save_for_backward(hidden, weight, targets, *([probabilities] if keep else []))
        ctx.temperature, ctx.dtype = temperature, dtype
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, *kept = ctx.saved_tensors
        outer = gradients[0] / ctx.temperature
        if kept:
            table = kept[0] * -outer[:, None]
        else:
            logits = _logits(hidden, weight, ctx.temperature, ctx.dtype)
            table = torch.softmax(logits, -1).mul_(-outer[:, None])
        table.scatter_add_(1, targets[:, None], outer[:, None])
        table = table.to(ctx.dtype)
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        return (
            (table @ weight.to(ctx.dtype)).to(hidden.dtype) if needs_hidden else None,
            (table.t() @ hidden.to(ctx.dtype)).to(weight.dtype) if needs_weight else None,
            None,
            None,
            None,
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """(M, V), float32 at least, a table of our own to write into."""
    logits = functional.linear(hidden.to(dtype), weight.to(dtype))
    logits = logits.to(torch.promote_types(dtype, torch.float32))
    return logits if temperature == 1 else logits.div_(temperature)


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """(M,) sums over the products of two tables (M, V), a few rows at a time, which stay in the cache."""
    pairs = zip(left.split(16), right.split(16), strict=True)
    return torch.cat([(one * other).sum(-1) for one, other in pairs])
