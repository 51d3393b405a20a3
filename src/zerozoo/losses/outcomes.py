"""Right responses cloned, wrong ones pushed down: the two sides of OREAL, each with a mean and a weight of its own.

Shape letters: N rows (responses), M tokens of whole rows behind one another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerozoo.losses.shapes import check_floating, check_integer, check_rank, check_same_shape


def clone_or_push(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """A > 0:  l = -A min(log pi, log pi_old + log(1 + clip_high))      A <= 0:  l = -A max(rho, 1 - clip_low)

    with rho = pi / pi_old. The loss to be MINIMISED, per token. A token of a right response is cloned: its gradient is
    -A grad log pi whatever the ratio is. A token of a wrong one gets the policy gradient, -A rho grad log pi. On the
    first step after a rollout rho is 1 and the two gradients have one form; later ones differ.

    The paper clips neither: clip_low 1 or more (rho is above 0 anyway) and clip_high inf. Other numbers stop a token
    that has moved so far in its own direction; there the gradient is 0.

    Shapes: all (N, T) or all (M,) -> the same; the gradient flows through `logprobs` only. Raises ValueError for other
    shapes, integer tensors and negative clips.
    Source: Lyu et al. 2025 (OREAL), arXiv 2502.06781, section 2.2; signs and weights as in the released code.
    """
    ratio, advantages = _checked(logprobs, old_logprobs, advantages, clip_low, clip_high)
    ceiling = old_logprobs.detach() + torch.tensor(1.0 + clip_high).log()
    cloned = -advantages * torch.minimum(logprobs, ceiling)
    return torch.where(advantages > 0, cloned, -advantages * ratio.clamp(min=1 - clip_low))


def clone_or_push_clipped(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """True where `clone_or_push` has no gradient though A is not 0.

    Shapes and errors as `clone_or_push` -> bool of the same shape.
    """
    ratio, advantages = _checked(logprobs.detach(), old_logprobs, advantages, clip_low, clip_high)
    return ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))


def side_factors(lengths: Tensor, right: Tensor, counted: Tensor, right_weight: float, wrong_weight: float) -> Tensor:
    """f_i = c+ N / N+ for right rows, c- N / N- for wrong ones, 0 for rows that are not counted.

    N, N+ and N- are the tokens of all counted rows, of the right and of the wrong ones. A mean over the N tokens of
    f_i l_it then is the sum of two means:  c+ / N+ sum over right tokens of l + c- / N- sum over wrong tokens of l.
    Long wrong responses do not drown short right ones.

    Shapes: lengths (N,) integer, right and counted (N,) bool -> (N,) float32. Raises ValueError for other shapes or
    types, and for negative weights. Source: as `clone_or_push`, the normalisation of the released code.
    """
    check_rank("lengths", lengths, 1)
    check_integer(lengths=lengths)
    check_same_shape(lengths=lengths, right=right, counted=counted)
    if right.dtype != torch.bool or counted.dtype != torch.bool:
        raise ValueError(f"right and counted must be bool, but are {right.dtype} and {counted.dtype}")
    if right_weight < 0 or wrong_weight < 0:
        raise ValueError(f"weights must not be negative, but are {right_weight} and {wrong_weight}")
    factors = torch.zeros(len(lengths), device=lengths.device)
    total = (lengths * counted).sum()
    for side, weight in ((right, right_weight), (~right, wrong_weight)):
        chosen = side & counted
        factors[chosen] = weight * total / (lengths * chosen).sum().clamp(min=1)
    return factors


def _checked(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """rho with its gradient, and the advantages without any."""
    check_rank("logprobs", logprobs, 1, 2)
    check_floating(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low and clip_high must not be negative, but are {clip_low} and {clip_high}")
    return (logprobs - old_logprobs.detach()).exp(), advantages.detach()
