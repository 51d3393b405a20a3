"""Rewards and advantages of episodes with several turns, whose turns are credited one by one.

Shape letters: N episodes, K turns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerozoo.losses.advantages import leave_one_out
from zerozoo.losses.sequence_policy import whitened
from zerozoo.losses.shapes import check_floating, check_rank


def progress_bonus(rewards: Tensor, alpha: float) -> Tensor:
    """R_1 = r_1,  R_k = r_k + alpha (r_k - r_{k-1}) for k > 1: a turn is paid for what it has changed.

    With rewards of 0 and 1 a second turn gets 1 (right stays right), 1 + alpha (made right), -alpha (made wrong) or 0.
    The bonus belongs to the later turn alone: credited to the first one, too, it would pay for beginning wrong.

    Shapes: rewards (N, K) float -> (N, K). No gradient. Raises ValueError for other ranks or types.
    Source: Kumar et al. 2024 (SCoRe), arXiv 2409.12917, section 5.2.
    """
    check_rank("rewards", rewards, 2)
    check_floating(rewards=rewards)
    rewards = rewards.detach()
    changes = rewards[:, 1:] - rewards[:, :-1]
    return torch.cat([rewards[:, :1], rewards[:, 1:] + alpha * changes], dim=1)


def turn_advantages(rewards: Tensor, groups: Tensor, whiten: bool = False) -> Tensor:
    """A_ik = R_ik - mean of R_jk over the other episodes j of the group: each turn with a baseline of its own.

    No turn sees the reward of another one (gamma 0). `whiten` divides each turn by its own deviation over the batch, so
    that a large bonus does not drown the first turn.

    Shapes: rewards (N, K) float, groups (N,) integer ids -> (N, K). Raises ValueError for other ranks or types and for
    a group of one. Source: arXiv 2409.12917, section 5; leave-one-out baseline as in arXiv 2402.14740.
    """
    check_rank("rewards", rewards, 2)
    columns = [leave_one_out(column, groups) for column in rewards.unbind(1)]
    return torch.stack([whitened(column) if whiten else column for column in columns], dim=1)
