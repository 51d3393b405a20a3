"""Rewards beside right and wrong: of steps, of exploration; and how far a learned reward can be trusted.

- Step rewards from the scores of a process reward model. Raw scores invite a policy to write more steps; Clip and Delta
  (arXiv 2410.15115) bound what a solution can collect. Their tensor functions are in `losses.filters`; here they are
  chosen by name, beside the weak remedies that the paper compares them with, and placed on tokens.
- The exploration reward of RLSP (arXiv 2502.06773; forms from its released code) and its mixture with the outcome.
- R^2 of reward and true score, by which PF-PPO (arXiv 2409.06957) decides which ranks of responses to train on.

Shape letters: N solutions, K steps of the longest, T tokens, M responses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from zerozoo.losses.filters import clip_steps, delta_steps
from zerozoo.losses.shapes import check_floating, check_integer, check_rank
from zerozoo.rewards.countdown import CHAIN, OPERATION
from zerozoo.rewards.expressions import evaluate_expression, plain_operators
from zerozoo.rewards.extract import BOX
from zerozoo.runs.errors import UserError

CHARACTERS_PER_TOKEN = 4  # RLSP counts characters and takes four of them for a token

# (scores, steps, eta, penalty) -> step rewards; where there is no step they may be anything
_SHAPINGS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "none": lambda scores, steps, eta, penalty: torch.zeros_like(scores),
    "raw": lambda scores, steps, eta, penalty: scores,
    "normed": lambda scores, steps, eta, penalty: scores / steps.clamp(min=1)[:, None],
    "length-penalty": lambda scores, steps, eta, penalty: scores - penalty,
    "clip": lambda scores, steps, eta, penalty: clip_steps(scores, steps, eta),
    "delta": lambda scores, steps, eta, penalty: delta_steps(scores, steps),
    "clip-delta": lambda scores, steps, eta, penalty: delta_steps(clip_steps(scores, steps, eta), steps),
}
SHAPINGS = tuple(_SHAPINGS)


def shape_steps(name: str, scores: Tensor, steps: Tensor, eta: float = 0.5, penalty: float = 0.5) -> Tensor:
    """Step rewards r_k from the scores p_k of a process reward model, k = 1..K, by the name of a shaping:

        none 0    raw p_k    normed p_k / K    length-penalty p_k - penalty    clip min(p_k - eta, 0)
        delta p_k - p_{k+1}, p_{K-1} for the step before the last, 0 for the last    clip-delta: delta of clip

    `raw` pays every step and can be farmed. The remaining sum of `delta` at step k is p_k, whatever follows; only
    returns per step or token show it. `eta` matters to the two clips, `penalty` to the length penalty.

    Shapes: scores (N, K) float, steps (N,) integer number of steps of each solution -> (N, K), 0 where there is no
    step, without gradient; padded scores may be NaN. Raises `UserError` for an unknown name, ValueError for other ranks
    or types. Source: arXiv 2410.15115; the constants of the paper are not known.
    """
    if name not in _SHAPINGS:
        raise UserError(f"Unknown shaping of steps '{name}'; choose from: {', '.join(SHAPINGS)}.")
    check_rank("scores", scores, 2)
    check_rank("steps", steps, 1)
    check_floating(scores=scores)
    check_integer(steps=steps)
    return _masked(_SHAPINGS[name](scores.detach(), steps, eta, penalty), steps)


def place_on_tokens(step_rewards: Tensor, steps: Tensor, ends: Tensor, length: int) -> Tensor:
    """Token rewards: each step's on the token that ends it, the sum of both where two steps end in one token.

    Shapes: step_rewards (N, K), steps (N,) integer, ends (N, K) places of tokens, anything where there is no step ->
    (N, length). Raises ValueError for an end outside 0..length-1.
    """
    places = _masked(ends, steps)
    if places.numel() and (int(places.min()) < 0 or int(places.max()) >= length):
        raise ValueError(f"the steps end at tokens {int(places.min())} to {int(places.max())} of {length}")
    tokens = step_rewards.new_zeros(len(step_rewards), length)
    return tokens.scatter_add(1, places, _masked(step_rewards, steps))


def _masked(values: Tensor, steps: Tensor) -> Tensor:
    valid = torch.arange(values.shape[1], device=values.device) < steps[:, None]
    return torch.where(valid, values, torch.zeros_like(values))


# --- exploration ---


def inverse_length(response: str, coefficient: float, lowest: float = -1.0) -> float:
    r"""-C / L, at least `lowest`: punishes short reasoning and pays nothing for length without end.

    L is a quarter of the number of characters before the first `\boxed{`, or of all where there is none. The released
    code has no `lowest`, so that C = 1000 hides correctness up to thousands of tokens, and an answer without any
    reasoning, where it divides by zero, gets 0; here it gets `lowest`. C should be of the order of the lengths that are
    written. Raises ValueError for a negative coefficient or a positive `lowest`.
    """
    if coefficient < 0 or lowest > 0:
        raise ValueError(f"coefficient {coefficient} must not be negative, nor lowest {lowest} positive")
    box = BOX.search(response)
    tokens = (len(response) if box is None else box.start()) / CHARACTERS_PER_TOKEN
    return max(lowest, -coefficient / tokens) if tokens else lowest


def distinct_attempts(response: str, most: int) -> float:
    """How many different expressions a response tries ("7*3-2 = 19, no. 7+3*2 = 13"), as a share of `most`, at most 1.

    The stand-in of a rule for RLSP's judge of effort. Of a chain `a = b = c` the first member counts; blanks make no
    difference. Raises ValueError for `most` < 1.
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, but is {most}")
    tried = set()
    for line in plain_operators(response).splitlines():
        for chain in CHAIN.findall(line):
            expression = "".join(chain.partition("=")[0].split())
            if OPERATION.search(expression) and evaluate_expression(expression) is not None:
                tried.add(expression)
    return min(1.0, len(tried) / most)


def mix(outcome: float, exploration: float, weight: float = 0.8) -> float:
    """w r_outcome + (1 - w) r_exploration; RLSP has w = 0.8. Raises ValueError for a weight outside 0..1."""
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight {weight} must be in 0..1")
    return weight * outcome + (1 - weight) * exploration


def anneal(step: int, steps: int, start: float, end: float) -> float:
    """A weight that goes from `start` at step 0 in a straight line to `end` at step `steps`, and stays there."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    return start + (end - start) * min(max(step, 0), steps) / steps


# --- reliability of a learned reward ---


def reward_reliability(rewards: ArrayLike, scores: ArrayLike, groups: int = 10) -> float:
    """R^2 = 1 - SS_res / SS_tot of a straight line from mean reward to mean true score, over groups of similar reward.

    The responses are sorted by reward and cut into `groups` of about equal size; equal rewards stay in the order given.
    Use the same number of groups for all filters that are compared, and give each the responses that it keeps
    (`losses.filters.keep_by_rank`). Over group means R^2 is far higher than over single responses. NaN when the mean
    scores of all groups are equal; 0 when the mean rewards are.

    Shapes: rewards (M,), scores (M,). Raises ValueError for other shapes, fewer than 3 groups, or fewer responses than
    groups. Source: PF-PPO, arXiv 2409.06957, section 4.
    """
    reward, score = np.asarray(rewards, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if reward.ndim != 1 or reward.shape != score.shape:
        raise ValueError(f"rewards {reward.shape} and scores {score.shape} must be vectors of one length")
    if not 3 <= groups <= len(reward):
        raise ValueError(f"{groups} groups of {len(reward)} responses: at least 3, and a response for each")
    parts = np.array_split(np.argsort(reward, kind="stable"), groups)
    x, y = (np.array([values[part].mean() for part in parts]) for values in (reward, score))
    if np.ptp(y) == 0:
        return float("nan")
    slope, y = 0.0, y - y.mean()
    if np.ptp(x) > 0:
        x = x - x.mean()
        slope = float(x @ y) / float(x @ x)
    residual = y - slope * x
    return 1 - float(residual @ residual) / float(y @ y)
