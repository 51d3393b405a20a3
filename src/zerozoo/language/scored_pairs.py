"""Pairs for a reward model from responses with graded scores, and how far its scores can then be trusted by rank."""

from __future__ import annotations

import random
from itertools import combinations

import torch
from torch import Tensor

from zerozoo.language.example_files import Row
from zerozoo.language.rollouts import Rollouts
from zerozoo.losses.filters import RANK_FILTERS, keep_by_rank
from zerozoo.rewards.shaping import reward_reliability


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, deletions and exchanges of characters that turn one text into the other (Levenshtein)."""
    above = list(range(len(second) + 1))
    for number, character in enumerate(first, start=1):
        row = [number]
        for place, other in enumerate(second, start=1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (character != other)))
        above = row
    return above[-1]


def flip_probability(better: float, worse: float, noise: float) -> float:
    """noise max(m(a), m(b)) / 2,  m(s) = 4 s (1 - s): labels are sure at scores of 0 and 1 and doubtful at 1/2.

    With `noise` 1 a pair with a 1/2 in it is labelled by the toss of a coin, which is the worst: beyond it labels would
    be wrong by rule. Scores and noise lie between 0 and 1.
    """
    return noise * max(4 * score * (1 - score) for score in (better, worse)) / 2


def pairs_by_score(rollouts: Rollouts, noise: float, seed: int) -> list[Row]:
    """Rows for `read_pairs`: of each problem the two responses of different true scores that differ most as texts.

    The one with the higher score of the verifier is chosen, but for labels that the noise has turned round. Source of
    the choice of pairs: PF-PPO, arXiv 2409.06957; the noise is ours (see `flip_probability`).
    """
    scores = [one.score for one in rollouts.verifications]
    members: dict[int, list[int]] = {}
    for row, group in enumerate(rollouts.groups.tolist()):
        members.setdefault(group, []).append(row)
    rows: list[Row] = []
    for group, own in members.items():
        task, texts = rollouts.tasks[group], rollouts.samples.texts
        pairs = [pair for pair in combinations(own, 2) if scores[pair[0]] != scores[pair[1]]]
        if not pairs:
            continue
        pair = max(pairs, key=lambda pair: edit_distance(texts[pair[0]], texts[pair[1]]))
        worse, better = sorted(pair, key=lambda row: scores[row])
        flipped = random.Random(f"label/{seed}/{task.id}").random() < flip_probability(
            scores[better], scores[worse], noise
        )
        chosen, rejected = (worse, better) if flipped else (better, worse)
        sequences = rollouts.sequences([chosen, rejected])
        if sequences.responses[0] == sequences.responses[1]:
            continue
        rows.append(
            {
                "task": task.id,
                "prompt": list(sequences.prompts[0]),
                "chosen": list(sequences.responses[0]),
                "rejected": list(sequences.responses[1]),
                "scores": [scores[chosen], scores[rejected]],
            }
        )
    return rows


def reliability_by_filter(
    rewards: Tensor, scores: Tensor, groups: Tensor, generator: torch.Generator, bins: int = 10
) -> dict[str, float]:
    """R^2 of reward and true score over the responses that each rank filter keeps; see `reward_reliability`.

    Shapes: rewards, scores (N,) float, groups (N,) integer ids. Raises ValueError as `keep_by_rank` and
    `reward_reliability` do.
    """
    result = {}
    for name in RANK_FILTERS:
        kept = keep_by_rank(rewards, groups, name, generator)
        result[name] = reward_reliability(rewards[kept].numpy(), scores[kept].numpy(), bins)
    return result
