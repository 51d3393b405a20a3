"""What enters the update: filters of groups and ranks, and rewards of steps that cannot be farmed.

Rows belong to a group by their id, as in `advantages`. A filter gives a mask of rows, which says what to train on; the
advantages are computed from ALL rows of a group before, or from the kept rows after, as the method wants. Random
choices come from the caller's generator. Shape letters: N rows, G rows of a group, K steps of the longest solution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zerozoo.losses.shapes import check_floating, check_integer, check_rank, check_same_shape

RANK_FILTERS = ("none", "best", "best-random", "best-worst")


def pass_rate_band(rewards: Tensor, groups: Tensor, low: float, high: float) -> Tensor:
    """True for the rows of the groups with  low <= mean reward <= high.

    With rewards of 0 and 1 the mean is the pass rate. For a band that leaves out groups of equal rewards use
    `advantages.informative_groups`: it compares rewards and not means.

    Shapes: rewards (N,) float, groups (N,) integer ids -> (N,) bool. Raises ValueError for other ranks or types and for
    low > high. Source: difficulty filters of OREAL (pass rate 0 to 0.8), arXiv 2502.06781, section 3, and others.
    """
    rows, number = _rows_of_groups(rewards, groups)
    if not low <= high:
        raise ValueError(f"low must not be above high, but they are {low} and {high}")
    rewards = rewards.detach().double()  # 3 of 10 must be the 0.3 that the caller writes
    sums = rewards.new_zeros(number).index_add(0, rows, rewards)
    sizes = rewards.new_zeros(number).index_add(0, rows, torch.ones_like(rewards))
    mean = (sums / sizes)[rows]
    return (mean >= low) & (mean <= high)


def one_right_one_wrong(right: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """True for one right and one wrong row of each group that has both, drawn at random; such pairs balance the update.

    Shapes: right (N,) bool, groups (N,) integer ids -> (N,) bool, on the CPU like the generator. Raises ValueError for
    other ranks or types. Source: OREAL with a token reward model (released code), arXiv 2502.06781.
    """
    check_rank("right", right, 1)
    if right.dtype != torch.bool:
        raise ValueError(f"right must be bool, but is {right.dtype}")
    rows, number = _rows_of_groups(right.float(), groups)
    order = torch.randperm(len(right), generator=generator)
    kept = torch.zeros_like(right)
    for kind in (right, ~right):
        shuffled = order[kind[order]]
        places = torch.arange(len(shuffled))
        first = torch.full((number,), len(right)).scatter_reduce(0, rows[shuffled], places, "amin")
        kept[shuffled[first[first < len(shuffled)]]] = True
    both = torch.zeros(number, dtype=torch.int64).index_add(0, rows, kept.long()) == 2
    return kept & both[rows]


def rank_weights(name: str, size: int) -> Tensor:
    """w_r, the probability with which the filtered policy returns the response of rank r (rank 0 has the best reward):

        none  1/G     best  (1, 0, ..)     best-random  (1/2, 1/(2(G-1)), ..)     best-worst  (1/2, 0, .., 0, 1/2)

    Shapes: -> (size,) float64 that sums to 1. Raises ValueError for an unknown name, size < 1, and size 1 with the two
    that need a second response. Source: Shen and Zhang 2024 (PF-PPO), arXiv 2409.06957, section 4.
    """
    _check_filter(name, size)
    weights = torch.zeros(size, dtype=torch.float64)
    if name == "none":
        weights[:] = 1 / size
    elif name == "best":
        weights[0] = 1
    elif name == "best-random":
        weights[0], weights[1:] = 0.5, 0.5 / (size - 1)
    else:
        weights[0] = weights[-1] = 0.5
    return weights


def row_probabilities(rewards: Tensor, groups: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """p_i = w of the rank of row i in its group: what PF-PPO's `reweight` mode draws training rows with.

    Equal rewards are ranked at random. The p of each group sum to 1.

    Shapes: rewards (N,) float, groups (N,) integer ids -> (N,) float64. Raises ValueError for other ranks or types, NaN
    rewards, and as `rank_weights`. Source: as `rank_weights`.
    """
    probabilities = torch.zeros(len(rewards), dtype=torch.float64)
    for rows in _ranked(rewards, groups, generator):
        probabilities[rows] = rank_weights(name, len(rows))
    return probabilities


def keep_by_rank(rewards: Tensor, groups: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """True for the rows that stay in the `filter` mode of PF-PPO.

    none: all; best: the best of each group; best-random: the best and one random other; best-worst: the best and the
    worst. The kept rows are trained on as if the policy had drawn them, which is a bias; normalise advantages over kept
    rows only. "best" leaves no bad response: good for cloning, bad for PPO.

    Shapes: rewards (N,) float, groups (N,) integer ids -> (N,) bool. Raises ValueError as `row_probabilities`. Source:
    as `rank_weights`; the kept numbers as in the released code.
    """
    kept = torch.zeros(len(rewards), dtype=torch.bool)
    for rows in _ranked(rewards, groups, generator):
        _check_filter(name, len(rows))
        if name == "none":
            kept[rows] = True
            continue
        kept[rows[0]] = True
        if name == "best-random":
            kept[rows[torch.randint(1, len(rows), (), generator=generator)]] = True
        elif name == "best-worst":
            kept[rows[-1]] = True
    return kept


# --- rewards of steps ---


def clip_steps(scores: Tensor, steps: Tensor, eta: float) -> Tensor:
    """r_k = min(score_k - eta, 0): never positive, so that no extra step can add reward.

    Shapes: scores (N, K) of a process reward model, steps (N,) integer number of steps of each solution, at most K ->
    (N, K), 0 where there is no step. Padded scores may be anything, NaN too. No gradient. Raises ValueError otherwise.
    Source: Gao et al. 2024, arXiv 2410.15115 (Clip).
    """
    return _steps_only((scores.detach() - eta).clamp(max=0), steps)


def delta_steps(scores: Tensor, steps: Tensor) -> Tensor:
    """r_k = score_k - score_{k+1} for k < K - 1,  score_{K-1} for k = K - 1,  0 for the last step K; k counts from 1.

    The sum telescopes: from step k < K on the solution still collects score_k, however many steps follow. With one step
    nothing is given, with two only the first step. Only returns of tokens or steps show this; a sum over the response
    is just score_1. Clip-Delta is `delta_steps(clip_steps(scores, steps, eta), steps)`.

    Shapes and errors as `clip_steps`. Source: Gao et al. 2024, arXiv 2410.15115 (Delta).
    """
    kept = _steps_only(scores.detach(), steps)
    position = torch.arange(kept.shape[1], device=kept.device)
    counted = torch.where(position < steps[:, None] - 1, kept, torch.zeros_like(kept))  # without the last step
    following = torch.cat([counted[:, 1:], torch.zeros_like(counted[:, :1])], dim=1)
    return counted - following


def _steps_only(scores: Tensor, steps: Tensor) -> Tensor:
    """The scores, 0 where there is no step."""
    check_rank("scores", scores, 2)
    check_rank("steps", steps, 1)
    check_floating(scores=scores)
    check_integer(steps=steps)
    if len(steps) != len(scores):
        raise ValueError(f"there are {len(steps)} numbers of steps, but {len(scores)} rows of scores")
    if steps.numel() and (int(steps.min()) < 0 or int(steps.max()) > scores.shape[1]):
        raise ValueError(f"steps must be between 0 and {scores.shape[1]}")
    valid = torch.arange(scores.shape[1], device=scores.device) < steps[:, None]
    return torch.where(valid, scores, torch.zeros_like(scores))


def _rows_of_groups(rewards: Tensor, groups: Tensor) -> tuple[Tensor, int]:
    """(N,) number of each row's group in 0..K-1, and K."""
    check_rank("rewards", rewards, 1)
    check_floating(rewards=rewards)
    check_integer(groups=groups)
    check_same_shape(rewards=rewards, groups=groups)
    ids, rows = torch.unique(groups, return_inverse=True)
    return rows, ids.numel()


def _ranked(rewards: Tensor, groups: Tensor, generator: torch.Generator) -> list[Tensor]:
    """The rows of each group, best reward first, equal rewards in random order."""
    members, number = _rows_of_groups(rewards, groups)
    if bool(rewards.isnan().any()):
        raise ValueError("rewards must not be NaN: they cannot be ranked")
    order = torch.randperm(len(rewards), generator=generator)
    order = order[rewards.detach()[order].argsort(descending=True, stable=True)]
    return [order[members[order] == group] for group in range(number)]


def _check_filter(name: str, size: int) -> None:
    if name not in RANK_FILTERS:
        raise ValueError(f"unknown rank filter {name!r}, expected one of {', '.join(RANK_FILTERS)}")
    if size < (2 if name in ("best-random", "best-worst") else 1):
        raise ValueError(f"the rank filter {name!r} cannot choose among {size} responses")
