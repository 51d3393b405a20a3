"""Credit from outcomes: advantages by hand, what the model of tokens learns, exact state, and where sums went wrong."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from written_rollouts import rollouts

from zerozoo.language.algorithm import ADVANTAGES
from zerozoo.language.families import tiny_model
from zerozoo.language.final_scores import FinalScore
from zerozoo.language.first_errors import METRIC, error_probe, first_error, rank_correlation
from zerozoo.language.outcome_credit import OutcomeCredit, TokenModel
from zerozoo.language.reward_models import RewardModel, random_head
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.selection import mixed_groups, one_pair, right_and_ended
from zerozoo.language.step_values import StepSplitter
from zerozoo.losses.preferences import TokenWeights
from zerozoo.rewards.verifier import Verdict
from zerozoo.tasks.task import Task

RIGHT, WRONG = Verdict.RIGHT, Verdict.WRONG


def written() -> Rollouts:
    """Group 0: right, wrong, right but cut off, wrong; group 1: all wrong. A pair of group 0 is kept."""
    given = rollouts(
        (0, "abc", RIGHT, True),
        (0, "abcdef", WRONG, True),
        (0, "ab", RIGHT, False),
        (0, "abcd", WRONG, True),
        (1, "a", WRONG, True),
        (1, "b", WRONG, True),
    )
    given.samples.tokens %= 60
    given.rewards = torch.tensor([1.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    given.trained = torch.tensor([True, True, False, False, False, False])
    return given


def token_model(seed: int | None = None, **changes: Any) -> TokenModel:
    language_model = tiny_model("llama", hidden=16, heads=2, kv_heads=1)
    model = RewardModel(language_model, None if seed is None else random_head(language_model, seed))
    return TokenModel(model, torch.optim.AdamW(model.parameters(), lr=0.01), **changes)


def test_uniform_credit_by_hand() -> None:
    """Leave-one-out over all four: 1 + 1 = 2 for the right one, -1 + 1/3 for the wrong one; factors 9/3 and 0.5 9/6."""
    credit = OutcomeCredit(ADVANTAGES["leave-one-out"], 1.0, 0.5)
    advantages = credit.give(written(), None, 0.0)
    assert advantages.shape == (6, 6)
    assert advantages[0].tolist() == pytest.approx([6.0, 6.0, 6.0, 0, 0, 0])
    assert advantages[1].tolist() == pytest.approx([-0.5] * 6)
    assert not advantages[2:].any()
    assert credit.learn() == {}
    assert credit.tensors() == {}


def test_a_response_that_was_cut_off_is_a_wrong_one() -> None:
    given = written()
    assert right_and_ended(given).tolist() == [True, False, False, False, False, False]
    generator = torch.Generator().manual_seed(0)
    kept = one_pair(ended=True).keep(given, generator)
    assert kept[0]
    assert int(kept.sum()) == 2
    assert mixed_groups(ended=True).keep(given, generator).tolist() == [True] * 4 + [False] * 2
    given.samples.stopped[0] = False  # now nothing is right in the sense that counts
    assert not mixed_groups(ended=True).keep(given, generator).any()
    assert mixed_groups().keep(given, generator).tolist() == [True] * 4 + [False] * 2


def test_a_head_of_zeros_gives_no_gradient_until_it_has_learned() -> None:
    credit = OutcomeCredit(ADVANTAGES["leave-one-out"], 1.0, 0.5, token_model())
    assert not credit.give(written(), None, 0.0).any()
    metrics = credit.learn()
    assert metrics["token_reward/loss"] == pytest.approx(math.log(2))
    assert metrics["token_reward/weight_right"] == metrics["token_reward/weight_wrong"] == 0
    for _ in range(30):
        advantages = credit.give(written(), None, 0.0)
        metrics = credit.learn()
    assert metrics["token_reward/loss"] < 0.3
    assert metrics["token_reward/accuracy"] == 1
    assert bool((advantages[0, :3] > 0).any())
    assert bool((advantages[1] < 0).any())
    assert not advantages[0, 3:].any()
    assert not advantages[2:].any()


def test_weights_are_those_of_the_running_mean() -> None:
    """Against a computation token by token, in float64."""
    part = token_model(seed=3)
    given = written()
    advantages = OutcomeCredit(ADVANTAGES["leave-one-out"], 1.0, 0.5, part).give(given, None, 0.0)
    for row, (scale, sign) in enumerate(((6.0, 1), (-0.5, -1))):
        with torch.no_grad():
            scores = part.model.token_scores(given.sequences([row])).double().tolist()
        for place in range(len(scores)):
            mean = sum(scores[: place + 1]) / (place + 1)
            weight = max(sign * (2 / (1 + math.exp(-mean)) - 1), 0)
            assert float(advantages[row, place]) == pytest.approx(scale * weight, abs=1e-5)


def test_the_state_is_complete() -> None:
    first = OutcomeCredit(ADVANTAGES["leave-one-out"], 1.0, 0.5, token_model())
    for _ in range(2):
        first.give(written(), None, 0.0)
        first.learn()
    second = OutcomeCredit(ADVANTAGES["leave-one-out"], 1.0, 0.5, token_model())
    second.load({name: value.clone() for name, value in first.tensors().items()})
    for _ in range(2):
        results = []
        for credit in (first, second):
            advantages = credit.give(written(), None, 0.0)
            results.append((advantages.tolist(), credit.learn()))
        assert results[0] == results[1]


def test_nothing_kept_is_nothing_learned() -> None:
    credit = OutcomeCredit(ADVANTAGES["leave-one-out"], 1.0, 0.5, token_model())
    given = written()
    given.trained[:] = False
    assert not credit.give(given, None, 0.0).any()
    assert credit.learn() == {}
    given.trained = torch.ones((6, 6), dtype=torch.bool)
    with pytest.raises(ValueError, match="written itself"):
        credit.give(given, None, 0.0)


# --- scores of whole responses


def test_a_missing_end_replaces_the_score() -> None:
    """A right answer that was cut off gets -10, below the 0 of a wrong one with an end."""
    given = written()
    given.rewards = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    learned = torch.tensor([0.5, -0.5, 3.0, 0.0, 0.0, 1.0])
    plain = given.rewards + FinalScore(10.0, -10.0)(given)
    assert plain.tolist() == [10.0, 0.0, -10.0, 0.0, 0.0, 0.0]
    mixed = given.rewards + FinalScore(10.0, -10.0, 2.0, lambda rows: learned)(given)
    assert mixed.tolist() == [11.0, -1.0, -10.0, 0.0, 0.0, 2.0]


# --- where sums went wrong


def test_rank_correlation_is_spearmans() -> None:
    first = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(first, first**3) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    # Ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert rank_correlation(torch.tensor([2.0, 2.0, 5.0, 9.0]), first) == pytest.approx(4.5 / math.sqrt(22.5))
    assert math.isnan(rank_correlation(first, torch.ones(4)))
    with pytest.raises(ValueError, match="one length"):
        rank_correlation(first, first[:2])


def test_the_first_error_is_the_end_of_the_first_wrong_step() -> None:
    policy = tiny_model("llama", hidden=16, heads=2, kv_heads=1)
    splitter = StepSplitter(policy)
    texts = ["5+3=8\n8-2=7\n7", "5+3=8\n8-2=6\nthe answer is 6.", "5+3=9\n"]
    ids = [policy.tokenizer.encode(text, add_special_tokens=False) for text in texts]
    given = rollouts(*((row, text, WRONG, True) for row, text in enumerate(texts)))
    given.samples.lengths = torch.tensor([len(row) for row in ids])
    given.samples.tokens = torch.zeros((3, max(map(len, ids))), dtype=torch.int64)
    for row, one in enumerate(ids):
        given.samples.tokens[row, : len(one)] = torch.tensor(one)
    given.tasks = [
        Task(f"t{row}", "?", "6", "word-sums", metadata={"numbers": [5, 3, 2], "operators": "+-"}) for row in range(3)
    ]
    assert [first_error(splitter, given, row) for row in range(3)] == [len("5+3=8\n8-2=7") - 1, None, len("5+3=9") - 1]
    weights = torch.zeros((3, len(ids[1])))
    weights[0, len("5+3=8\n8-2=7") - 1 :] = 0.4  # exactly from the wrong result on
    found = error_probe(splitter)(given, torch.arange(3), TokenWeights(torch.zeros_like(weights), weights))
    assert found[METRIC] == pytest.approx(1)  # the other two rows say nothing: no error, and equal weights
    given.tasks = [Task("t", "?", "6", "files")] * 3
    assert first_error(splitter, given, 0) is None
    assert error_probe(splitter)(given, torch.arange(3), TokenWeights(weights, weights)) == {}
