"""Returns and advantages along time, with the two flags kept apart.

`terminated` says that the task ended: nothing comes after, so nothing is bootstrapped. `ended` says that the recorded
episode stops here (terminated or truncated by a time limit): the next row belongs to another episode, so no sum may run
across. Libraries mix them up in both directions (traps 1, 2 and 3). `next_values` are the values of the TRUE successor
of each step, also at a truncation, and not the values of the row that follows.

Shape letters: T steps in time order, N environments side by side. Nothing here has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerozoo.losses.shapes import check_floating, check_rank, check_same_shape


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """A_t = d_t + gamma lambda (1 - ended_t) A_{t+1},  d_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t).

    Shapes: all (T, N), terminated and ended bool -> (T, N). The last row needs no special case: its bootstrap is
    next_values[-1]. Raises ValueError for other shapes or types and for a terminated step that is not ended.
    Source: Schulman et al. 2015, arXiv 1506.02438, equation 16; time limits: Pardo et al. 2018, arXiv 1712.00378.
    """
    _check(rewards, terminated, ended, values=values, next_values=next_values)
    error = rewards + gamma * _bootstrap(next_values, terminated) - values
    return _sum_to_end(error.detach(), ended, gamma * lam)


def lambda_returns(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """G_t = r_t + gamma (1 - terminated_t) [(1 - lambda) V(s'_t) + lambda G_{t+1}], with V(s'_t) for G_{t+1} at an end.

    Computed as `gae` + values, which is the same when values[t + 1] = next_values[t] inside an episode. Shapes and
    errors as `gae`. Source: Sutton and Barto 2018, section 12.1.
    """
    return gae(rewards, values, next_values, terminated, ended, gamma, lam) + values.detach()


def n_step_returns(
    rewards: Tensor, next_values: Tensor, terminated: Tensor, ended: Tensor, gamma: float, steps: int
) -> Tensor:
    """G_t = sum_{i < k} gamma^i r_{t+i} + gamma^k (1 - terminated_{t+k-1}) V(s'_{t+k-1}).

    k <= steps is the number of rewards until the episode or the recording ends.

    Shapes: rewards, next_values, terminated, ended (T, N) -> (T, N). Raises ValueError for other shapes, for steps < 1
    and for a terminated step that is not ended. Source: Sutton and Barto 2018, section 7.1.
    """
    _check(rewards, terminated, ended, next_values=next_values)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    bootstrap = _bootstrap(next_values, terminated).detach()
    length = len(rewards)
    returns = rewards + gamma * bootstrap  # of one step; those of k steps need row t + 1 of those of k - 1 steps
    for _ in range(min(steps, length) - 1):
        longer = torch.where(ended[:-1], bootstrap[:-1], returns[1:])
        returns = torch.cat([rewards[:-1] + gamma * longer, returns[-1:]])
    return returns.detach()


def reward_to_go(rewards: Tensor, ended: Tensor, gamma: float = 1.0) -> Tensor:
    """G_t = r_t + gamma (1 - ended_t) G_{t+1}: what the data earned from here to the end of its episode.

    Shapes: rewards, ended (T, N); the episodes of a flat array follow one another along T with N = 1 -> (T, N). A
    truncated episode's sum simply stops. Raises ValueError for other shapes or types.
    """
    _check(rewards, ended, ended)
    return _sum_to_end(rewards.detach(), ended, gamma)


def _bootstrap(next_values: Tensor, terminated: Tensor) -> Tensor:
    # where, not a product: the value of a state after a true end may be anything, NaN too
    return torch.where(terminated, torch.zeros_like(next_values), next_values)


def _sum_to_end(terms: Tensor, ended: Tensor, decay: float) -> Tensor:
    """y_t = x_t + decay (1 - ended_t) y_{t+1}, by doubling: after k passes y_t holds the next 2^k terms.

    log2(T) passes over whole tensors and not T over rows: a million rows take a fraction of a second.
    """
    total = terms.clone()
    factor = torch.where(ended, torch.zeros_like(terms), torch.full_like(terms, decay))
    reach = 1
    while reach < len(terms):
        total[:-reach] = total[:-reach] + factor[:-reach] * total[reach:]
        factor[:-reach] = factor[:-reach] * factor[reach:]
        reach *= 2
    return total


def _check(rewards: Tensor, terminated: Tensor, ended: Tensor, **values: Tensor) -> None:
    check_rank("rewards", rewards, 2)
    check_floating(rewards=rewards, **values)
    check_same_shape(rewards=rewards, terminated=terminated, ended=ended, **values)
    if terminated.dtype != torch.bool or ended.dtype != torch.bool:
        raise ValueError(f"terminated and ended must be bool, but are {terminated.dtype} and {ended.dtype}")
    if bool((terminated & ~ended).any()):
        raise ValueError("a terminated step must be an ended one: ended = terminated | truncated")
