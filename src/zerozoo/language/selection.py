"""Which of the responses that were sampled are trained on: filters between the rewards and the update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zerozoo.language.rollouts import Rollouts
from zerozoo.losses.advantages import informative_groups
from zerozoo.losses.filters import RANK_FILTERS, keep_by_rank, one_right_one_wrong, pass_rate_band
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError

Keep = Callable[[Rollouts, torch.Generator], Tensor]
Judge = Callable[[Rollouts], Tensor]


@dataclass(frozen=True)
class Selection:
    """A filter of rows and its place.

    Rows that are not kept are sampled, scored and logged, but carry no gradient. As masked rows they still count in the
    number of rows that the "constant" aggregation divides by.

    Attributes:
        keep: (rollouts with rewards, the run's stream "selection") -> (N,) bool.
        before_credit: True: the advantages are computed from the kept rows alone, as PF-PPO wants. False: from all rows
            of each group, as OREAL wants, whose baseline would be worth little over two responses.
    """

    keep: Keep
    before_credit: bool = False


def right(rollouts: Rollouts) -> Tensor:
    """(N,) bool: the verifier called the response right, whatever its reward."""
    return torch.tensor([one.verdict is Verdict.RIGHT for one in rollouts.verifications])


def by_pass_rate(low: float, high: float) -> Selection:
    """The groups of which a share from `low` to `high` is right; they stay whole. See `filters.pass_rate_band`."""
    return Selection(partial(_pass_rate, low, high))


def right_and_ended(rollouts: Rollouts) -> Tensor:
    """(N,) bool: right, and not cut off at the length limit."""
    return right(rollouts) & rollouts.samples.stopped


def one_pair(ended: bool = False) -> Selection:
    """One right and one wrong response of each group that has both. See `filters.one_right_one_wrong`.

    ended: a response that was cut off counts as wrong.
    """
    return Selection(partial(_pair, right_and_ended if ended else right))


def mixed_groups(ended: bool = False) -> Selection:
    """All responses of the groups that have right and wrong ones; `ended` as in `one_pair`."""
    return Selection(partial(_mixed, right_and_ended if ended else right))


def by_rank(name: str, before_credit: bool = True) -> Selection:
    """Rows by the rank of their reward in the group: none, best, best-random or best-worst. See `filters.keep_by_rank`.

    Raises UserError for an unknown name.
    """
    if name not in RANK_FILTERS:
        raise UserError(f"Unknown filter {name!r}; choose one of: {', '.join(RANK_FILTERS)}.")
    return Selection(partial(_rank, name), before_credit)


def _pass_rate(low: float, high: float, rollouts: Rollouts, generator: torch.Generator) -> Tensor:
    return pass_rate_band(right(rollouts).float(), rollouts.groups, low, high)


def _pair(judge: Judge, rollouts: Rollouts, generator: torch.Generator) -> Tensor:
    return one_right_one_wrong(judge(rollouts), rollouts.groups, generator)


def _mixed(judge: Judge, rollouts: Rollouts, generator: torch.Generator) -> Tensor:
    return informative_groups(judge(rollouts).float(), rollouts.groups)


def _rank(name: str, rollouts: Rollouts, generator: torch.Generator) -> Tensor:
    return keep_by_rank(rollouts.rewards, rollouts.groups, name, generator)
