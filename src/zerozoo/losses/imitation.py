"""Losses that imitate the data's actions: weighted cloning, TD3+BC, denoising, masked sequences.

Shape letters: B batch, L steps of a sequence, m dimensions of an action, A number of actions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zerozoo.losses.shapes import check_floating, check_integer, check_same_shape


def advantage_weights(advantages: Tensor, beta: float, cap: float) -> tuple[Tensor, Tensor]:
    """w = min(exp(beta A), cap), and the share of the batch that was clipped; no gradient.

    The exponent is clipped, not the exponential, so that a large advantage cannot become infinite on the way. The
    clipped share is to be logged: with a hidden cap of 100, half of a batch can lose its ranking unseen (trap 20).

    Shapes: advantages (B,) -> weights (B,), share (). Raises ValueError for beta < 0 or cap <= 0.
    Source: Peng et al. 2019 (AWR), arXiv 1910.00177, section 3; cap 100 in IQL, arXiv 2110.06169 (released code).
    """
    if beta < 0 or cap <= 0:
        raise ValueError(f"beta must not be negative and cap must be positive, but they are {beta} and {cap}")
    exponent = beta * advantages.detach()
    limit = math.log(cap)
    return exponent.clamp(max=limit).exp(), (exponent > limit).float().mean()


def td3_bc_weight(q: Tensor, alpha: float) -> Tensor:
    """lambda = alpha / mean |Q(s, pi(s))|, without gradient: loss = -lambda mean Q + mean (pi(s) - a)^2.

    Shapes: q (B,) -> (). The mean is kept away from 0 by 1e-8. Source: Fujimoto and Gu 2021, arXiv 2106.06860,
    equation 5 (alpha = 2.5 there).
    """
    return alpha / q.detach().abs().mean().clamp(min=1e-8)


def gaussian_nll(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """-log N(a; mean, diag(std^2)) = sum_j [ (a_j - mean_j)^2 / (2 std_j^2) + log std_j + log(2 pi) / 2 ].

    The loss of a Gaussian clone and of an inverse-dynamics model.

    Shapes: mean, action (..., m), log_std (..., m) or (m,) -> (...). Raises ValueError unless mean and action agree.
    """
    check_same_shape(mean=mean, action=action)
    squares = ((action - mean) * (-log_std).exp()).square()
    return (squares / 2 + log_std).sum(-1) + mean.shape[-1] * math.log(2 * math.pi) / 2


def denoising(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """w ||target - prediction||^2: the target is the noise of a diffusion, the velocity of a flow.

    The squares are summed over the action's dimensions; weights get no gradient. Weighting by exp(energy) samples from
    the data times that energy.

    Shapes: prediction, target (B, m), weight (B,) or None -> (B,). Raises ValueError for other shapes.
    Source: Ho et al. 2020, arXiv 2006.11239, equation 14; weighted: Zheng et al. 2024 (FISOR), arXiv 2401.10700.
    """
    check_same_shape(prediction=prediction, target=target)
    loss = (prediction - target.detach()).square().sum(-1)
    if weight is None:
        return loss
    check_same_shape(loss=loss, weight=weight)
    return weight.detach() * loss


def masked_mse(prediction: Tensor, action: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid steps and the dimensions of (prediction - action)^2: the loss of a decision transformer.

    Shapes: prediction, action (B, L, m), mask (B, L) bool -> (); 0 without a valid step. The actions of padded steps do
    not matter, NaN included. Raises ValueError for other shapes. Source: Chen et al. 2021, arXiv 2106.01345.
    """
    check_same_shape(prediction=prediction, action=action)
    # masked before the square: 0 * NaN in the backward pass would be NaN
    error = torch.where(mask.bool()[..., None], prediction - action.detach(), 0.0)
    return _masked_mean(error.square().mean(-1), mask)


def masked_cross_entropy(logits: Tensor, action: Tensor, mask: Tensor) -> Tensor:
    """Mean over the valid steps of -log softmax(logits)[action], for discrete actions.

    Shapes: logits (B, L, A), action (B, L) int64, mask (B, L) bool -> (); padded steps as in `masked_mse`, but their
    action must be a valid index. Raises ValueError for other shapes.
    """
    check_floating(logits=logits)
    check_integer(action=action)
    check_same_shape(logits=logits[..., 0], action=action)
    log_probs = torch.log_softmax(logits, -1).gather(-1, action[..., None]).squeeze(-1)  # (B, L)
    return _masked_mean(-log_probs, mask)


def _masked_mean(losses: Tensor, mask: Tensor) -> Tensor:
    check_same_shape(losses=losses, mask=mask)
    valid = mask.bool()
    return torch.where(valid, losses, torch.zeros_like(losses)).sum() / valid.sum().clamp(min=1)
