"""Episodes of several turns: tokens as drawn, masks, log-probs, rewards of turns, and an update that fits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from zerozoo.language.algorithm import Algorithm
from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import response_scores
from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.turns import TurnRollouts, TurnSampler
from zerozoo.language.update import Updater, UpdateSettings
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task

REVISE = "ba"
DECODING = Decoding(4)
TASKS = [Task("t0", "a", "a", "test"), Task("t1", "bb", "b", "test")]


class Judge:
    """Right is what has the task's letter in it; remembers which texts it saw."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def verify(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verification]:
        self.seen.append(list(responses))
        return [
            Verification(Verdict.RIGHT if problem.answer in text else Verdict.WRONG, text, 0.0, False, 0.0)
            for problem, text in zip(problems, responses, strict=True)
        ]

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return tiny_model("llama", vocabulary="abc", hidden=16, heads=2, kv_heads=1)


def collect(policy: LanguageModel, instructions: tuple[str, ...] = (REVISE,), **changes: Any) -> TurnRollouts:
    judge = changes.pop("judge", Judge())

    def reward(verification: Verification) -> float:
        return float(verification.verdict is Verdict.RIGHT)

    sampler = TurnSampler(policy, NativeSampler(policy), judge, reward, changes.pop("decoding", DECODING), instructions)
    prompts = [policy.encode(task.question) for task in TASKS]
    return sampler.collect(TASKS, prompts, 3, torch.Generator().manual_seed(0))


def test_an_episode_is_what_was_drawn_with_the_fixed_text_between(policy):
    judge = Judge()
    drawn = collect(policy, judge=judge)
    bridge = policy.tokenizer.encode(REVISE, add_special_tokens=False)
    assert drawn.groups.tolist() == [0, 0, 0, 1, 1, 1]
    for row, response in enumerate(drawn.sequences(range(6)).responses):
        turns = drawn.turns[row, : len(response)].tolist()
        parts = {
            turn: [token for token, owner in zip(response, turns, strict=True) if owner == turn] for turn in range(3)
        }
        assert parts[0] == bridge
        assert turns == [1] * len(parts[1]) + [0] * len(bridge) + [2] * len(parts[2])
        assert [policy.decode(parts[turn]) for turn in (1, 2)] == [judge.seen[0][row], judge.seen[1][row]]
        assert drawn.turn_stopped[row].tolist() == [parts[turn][-1] in policy.eos_ids for turn in (1, 2)]
    assert not drawn.turns[~drawn.written()].any()
    assert torch.equal(drawn.trained, drawn.turns > 0)
    assert drawn.turn_texts == judge.seen
    assert bool(drawn.turn_stopped.any())  # or ends inside of an episode were not looked at
    assert not bool(drawn.turn_stopped.all())


def test_log_probs_of_all_turns_come_from_one_pass(policy):
    """Each turn given everything before it, the other turns' ends included; nothing for the fixed text."""
    drawn = collect(policy, ("ba", "c"))
    scores = response_scores(policy.model, drawn.sequences(range(6))).logprobs.detach()
    kept = drawn.flat(drawn.trained, range(6))
    behaviour = drawn.flat(drawn.samples.logprobs, range(6))
    torch.testing.assert_close(behaviour[kept], scores[kept], rtol=0, atol=1e-5)
    assert not behaviour[~kept].any()
    assert int(drawn.turns.max()) == 3


def test_rewards_and_verdicts_of_turns(policy):
    drawn = collect(policy)
    letters = ["a"] * 3 + ["b"] * 3
    for number in range(2):
        expected = [float(letter in text) for letter, text in zip(letters, drawn.turn_texts[number], strict=True)]
        assert drawn.turn_rewards[:, number].tolist() == expected
    assert torch.equal(drawn.rewards, drawn.turn_rewards[:, 1])
    assert drawn.verifications == drawn.turn_verifications[1]
    assert torch.equal(drawn.samples.stopped, drawn.turn_stopped[:, 1])


def by_hand(*rows: tuple[bool, bool]) -> TurnRollouts:
    drawn = collect(tiny_model("llama", vocabulary="abc", hidden=16, heads=2, kv_heads=1))
    kinds = {True: Verdict.RIGHT, False: Verdict.WRONG}
    drawn.turn_verifications = [
        [Verification(kinds[row[turn]], "", 0.0, False, 0.0) for row in rows] for turn in range(2)
    ]
    return drawn


def test_what_a_second_turn_gains_and_loses():
    metrics = by_hand(
        (True, True), (False, True), (False, True), (True, False), (False, False), (False, False)
    ).metrics()
    assert metrics["turns/accuracy_1"] == pytest.approx(2 / 6)
    assert metrics["turns/accuracy_2"] == pytest.approx(3 / 6)
    assert metrics["turns/1_to_2_gain"] == pytest.approx(1 / 6)
    assert metrics["turns/1_to_2_wrong_to_right"] == pytest.approx(2 / 6)
    assert metrics["turns/1_to_2_right_to_wrong"] == pytest.approx(1 / 6)


def test_numbers_of_turns_and_of_their_tokens(policy):
    drawn = collect(policy)
    values = torch.arange(12.0).view(6, 2) + 1
    spread = drawn.spread(values)
    assert torch.equal(spread[drawn.turns == 1], values[:, :1].expand_as(drawn.turns)[drawn.turns == 1])
    assert torch.equal(spread[drawn.turns == 2], values[:, 1:].expand_as(drawn.turns)[drawn.turns == 2])
    assert not spread[drawn.turns == 0].any()
    counts = torch.stack([(drawn.turns == turn).sum(1) for turn in (1, 2)], dim=1)
    torch.testing.assert_close(drawn.turn_sums(spread), values * counts)
    noisy = torch.where(drawn.turns > 0, spread, torch.nan)  # as padding may be
    torch.testing.assert_close(drawn.turn_sums(noisy), values * counts)


def test_rows_can_be_taken(policy):
    drawn = collect(policy)
    taken = drawn.take_rows(torch.tensor([4, 1]))
    assert isinstance(taken, TurnRollouts)
    assert torch.equal(taken.turns, drawn.turns[[4, 1]])
    assert taken.turn_texts == [[turn[4], turn[1]] for turn in drawn.turn_texts]
    assert torch.equal(taken.turn_rewards, drawn.turn_rewards[[4, 1]])
    assert taken.turn_verifications[0] == [drawn.turn_verifications[0][4], drawn.turn_verifications[0][1]]
    assert torch.equal(taken.turn_stopped, drawn.turn_stopped[[4, 1]])


def test_an_update_trains_both_turns_and_not_the_fixed_text(policy):
    """Its gradient is that of - sum A_k log pi(y_k | before) over the tokens of the turns, by another way."""
    policy = tiny_model("llama", vocabulary="abc", hidden=16, heads=2, kv_heads=1)
    drawn = collect(policy)
    drawn.advantages = drawn.spread(torch.linspace(-1, 1, 12).view(6, 2))
    scores = response_scores(policy.model, drawn.sequences(range(6))).logprobs
    weights = drawn.flat(drawn.advantages, range(6)) / drawn.trained.sum()
    (-(weights * scores).sum()).backward()
    wanted = torch.cat([value.grad.flatten() for value in policy.model.parameters()])
    policy.model.zero_grad(set_to_none=True)
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    before = torch.cat([value.detach().flatten().clone() for value in policy.model.parameters()])
    updater = Updater(policy, optimizer, Algorithm(), UpdateSettings(max_gradient_norm=1e9))
    metrics = updater.update(drawn)
    after = torch.cat([value.detach().flatten() for value in policy.model.parameters()])
    torch.testing.assert_close(before - after, wanted, rtol=1e-3, atol=1e-6)
    assert metrics["update/response_tokens"] == float(drawn.trained.sum())
    assert metrics["policy/sampler_mismatch"] < 1e-4


def test_a_turn_that_does_not_fit_is_one_sentence(policy):
    with pytest.raises(UserError, match=r"up to 5\d\d tokens, but the model has room for 512: lower max_new_tokens"):
        collect(policy, ("ab" * 240,), decoding=Decoding(40))
