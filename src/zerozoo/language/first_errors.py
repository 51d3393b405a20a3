"""Does the weight of a token know where a chain of sums went wrong? An oracle's view on learned credit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zerozoo.language.rollouts import Rollouts
from zerozoo.language.step_values import StepSplitter
from zerozoo.losses.preferences import TokenWeights
from zerozoo.rewards.steps import check_steps, first_wrong

METRIC = "token_reward/error_correlation"


def error_probe(splitter: StepSplitter) -> Callable[[Rollouts, Tensor, TokenWeights], dict[str, float]]:
    """A probe of `OutcomeCredit`: mean over wrong responses of the rank correlation between w-_t and [t >= e].

    e is the token with which the first wrong step ends, by `rewards.steps.check_steps`. Only problems with their
    numbers and operators in the metadata are looked at (word sums), and only responses with an error before their last
    token. Without any the metric is absent.
    """

    def probe(rollouts: Rollouts, rows: Tensor, weights: TokenWeights) -> dict[str, float]:
        found = []
        for place, row in enumerate(rows.tolist()):
            start = first_error(splitter, rollouts, row)
            length = int(rollouts.samples.lengths[row])
            if start is None:
                continue
            after = (torch.arange(length) >= start).float()
            correlation = rank_correlation(weights.wrong[place, :length], after)
            if not math.isnan(correlation):
                found.append(correlation)
        return {METRIC: sum(found) / len(found)} if found else {}

    return probe


def first_error(splitter: StepSplitter, rollouts: Rollouts, row: int) -> int | None:
    """Place of the token that ends the visible part of the first wrong step; None where there is none or no oracle."""
    metadata = rollouts.tasks[int(rollouts.groups[row])].metadata
    if "numbers" not in metadata or "operators" not in metadata:
        return None
    ids = rollouts.samples.tokens[row, : int(rollouts.samples.lengths[row])].tolist()
    spans = splitter.spans(ids)
    wrong = first_wrong(check_steps([span.text for span in spans], metadata["numbers"], metadata["operators"]))
    if wrong is None:
        return None
    start = spans[wrong - 1].end if wrong else 0
    visible = len(spans[wrong].text.rstrip())
    for end in range(start + 1, spans[wrong].end + 1):
        if len(splitter.text(ids[start:end])) >= visible:
            return end - 1
    return spans[wrong].end - 1


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's rho: Pearson's correlation of the ranks, equal values sharing the mean of theirs; NaN for a constant.

    Shapes: (n,) and (n,). Raises ValueError for other shapes.
    """
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"two vectors of one length are needed, not {tuple(first.shape)} and {tuple(second.shape)}")
    x, y = (_ranks(values) for values in (first, second))
    x, y = x - x.mean(), y - y.mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return float((x * y).sum() / scale) if float(scale) > 0 else math.nan


def _ranks(values: Tensor) -> Tensor:
    """(n,) float64 ranks from 0."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    return ((last - counts + last - 1).double() / 2)[inverse]
