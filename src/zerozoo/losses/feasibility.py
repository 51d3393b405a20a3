"""Feasible regions: the target of the worst constraint value to come, and weights that depend on the region.

h(s) > 0 means that the constraint is violated in s; V_h <= 0 is the feasible region. Shape letter: B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerozoo.losses.shapes import check_rank, check_same_shape


def feasibility_target(h: Tensor, next_value: Tensor, discount: Tensor) -> Tensor:
    """y_h = (1 - d) h(s) + d max(h(s), V_h(s')), and so h(s) where the task ended (discount d = 0).

    Shapes: all (B,) -> (B,). Source: Zheng et al. 2024 (FISOR), arXiv 2401.10700, after Fisac et al. 2019.
    """
    check_rank("h", h, 1)
    check_same_shape(h=h, next_value=next_value, discount=discount)
    return (1 - discount) * h + discount * torch.maximum(h, next_value)


def feasibility_weights(reward: Tensor, safety: Tensor, q_h: Tensor, v_h: Tensor) -> Tensor:
    """w = 1[V_h <= 0] 1[Q_h <= 0] reward + 1[V_h > 0] safety: an action that leaves the region gets 0.

    reward and safety are the weights inside and outside of the region. Shapes: all (B,) -> (B,). Source: Zheng et al.
    2024 (FISOR), arXiv 2401.10700.
    """
    check_rank("reward", reward, 1)
    check_same_shape(reward=reward, safety=safety, q_h=q_h, v_h=v_h)
    return torch.where(v_h > 0, safety, torch.where(q_h <= 0, reward, torch.zeros_like(reward)))
