"""Pairs by graded scores: which two responses, which label, and how R^2 depends on the ranks that are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Samples
from zerozoo.language.scored_pairs import edit_distance, flip_probability, pairs_by_score, reliability_by_filter
from zerozoo.losses.filters import RANK_FILTERS
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.tasks.task import Task


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("x 3 *", "x 3 *", 0),
        ("ab", "ba", 2),
        ("flaw", "lawn", 2),
    ],
)
def test_edit_distances_by_hand(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


def test_labels_are_doubtful_in_the_middle() -> None:
    assert flip_probability(1.0, 0.0, 1.0) == 0.0
    assert flip_probability(1.0, 0.5, 1.0) == 0.5
    assert flip_probability(0.5, 0.0, 0.6) == pytest.approx(0.3)
    assert flip_probability(0.75, 0.25, 1.0) == pytest.approx(0.375)
    assert flip_probability(0.5, 0.4, 1.0) == 0.5  # never more than a coin
    assert flip_probability(1.0, 0.5, 0.0) == 0.0


def drawn(*groups: list[tuple[str, float]]) -> Rollouts:
    """Responses of one token a character, with their scores."""
    texts = [text for group in groups for text, _ in group]
    scores = [score for group in groups for _, score in group]
    longest = max(map(len, texts))
    samples = Samples(
        tokens=torch.tensor([[ord(c) for c in text] + [0] * (longest - len(text)) for text in texts]),
        lengths=torch.tensor([len(text) for text in texts]),
        logprobs=torch.zeros((len(texts), longest)),
        stopped=torch.ones(len(texts), dtype=torch.bool),
        groups=torch.tensor([number for number, group in enumerate(groups) for _ in group]),
        texts=texts,
    )
    kinds = [Verification(Verdict.RIGHT if one == 1 else Verdict.WRONG, "", 0.0, False, one) for one in scores]
    tasks = [Task(f"t{number}", f"q{number}", "", "test") for number in range(len(groups))]
    prompts = [[1, number] for number in range(len(groups))]
    return Rollouts(tasks, prompts, samples, kinds, torch.zeros(len(texts)))


def test_the_pair_that_differs_most_is_taken_and_the_better_one_chosen() -> None:
    rollouts = drawn(
        [("abc", 1.0), ("abd", 0.5), ("xyz", 0.0)],
        [("aaaa", 1.0), ("zzzz", 1.0), ("aaab", 0.0)],  # the most different two are equally good
        [("a", 0.5), ("b", 0.5), ("c", 0.5)],  # nothing to prefer
    )
    first, second = pairs_by_score(rollouts, noise=0.0, seed=0)
    assert (first["task"], first["prompt"], first["scores"]) == ("t0", [1, 0], [1.0, 0.0])
    assert (first["chosen"], first["rejected"]) == ([97, 98, 99], [120, 121, 122])
    assert "".join(map(chr, second["chosen"] + second["rejected"])) == "zzzzaaab"


def test_the_noise_turns_labels_of_the_middle_round_and_no_others() -> None:
    rollouts = drawn(
        *([("abc", 1.0), ("xyz", 0.5)] for _ in range(400)), *([("abc", 1.0), ("xyz", 0.0)] for _ in range(100))
    )
    rows = pairs_by_score(rollouts, noise=1.0, seed=3)
    middle, ends = rows[:400], rows[400:]
    turned = sum(row["scores"] == [0.5, 1.0] for row in middle)
    assert turned / 400 == pytest.approx(0.5, abs=0.07)
    assert all(row["chosen"] == ([97, 98, 99] if row["scores"][0] == 1 else [120, 121, 122]) for row in middle)
    assert {tuple(row["scores"]) for row in ends} == {(1.0, 0.0)}
    assert rows == pairs_by_score(rollouts, noise=1.0, seed=3)
    assert rows != pairs_by_score(rollouts, noise=1.0, seed=4)


def test_a_reward_that_is_blind_in_the_middle_is_reliable_at_the_ends() -> None:
    """Six responses to each of 300 prompts; the reward knows scores of 0 and 1, and gives noise between."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]).repeat(300)
    noise = torch.rand(len(scores), generator=generator) * 0.8 + 0.1
    rewards = torch.where((scores > 0) & (scores < 1), noise, scores)
    groups = torch.arange(300).repeat_interleave(6)
    found = reliability_by_filter(rewards, scores, groups, torch.Generator().manual_seed(1), bins=5)
    assert set(found) == set(RANK_FILTERS)
    assert np.isnan(found["best"])  # all of one score: nothing to explain
    assert found["best-worst"] == pytest.approx(1.0, abs=1e-6)
    assert found["best-worst"] > found["best-random"] > found["none"] - 0.2
    assert found["none"] < 0.97
