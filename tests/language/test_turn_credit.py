"""Credit by turn: which turn is paid for what, the KL of each turn, and a loop that draws episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.language.algorithm import Algorithm, KLPenalty
from zerozoo.language.build import make_reference
from zerozoo.language.demonstrations import turn_rows
from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import response_scores
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Decoding, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.turn_credit import TurnCredit, TurnPhase
from zerozoo.language.turns import TurnRollouts, TurnSampler, evaluate_turns
from zerozoo.language.update import Updater, UpdateSettings
from zerozoo.language.zero_rl import LoopSettings, ZeroRL
from zerozoo.losses.divergences import k3
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task, TaskSet

FIRST, SECOND = TurnPhase((0.0, 1.0), (1.0, 0.25)), TurnPhase((1.0, 1.0), (0.25, 0.25), alpha=2.0)
TASKS = [Task(f"t{number}", "ab"[number % 2] * (1 + number), "ab"[number % 2], "test") for number in range(4)]


class Judge:
    """Right is what has the task's letter in it."""

    def verify(self, problems: Any, responses: Any) -> list[Verification]:
        return [
            Verification(Verdict.RIGHT if one.answer in text else Verdict.WRONG, text, 0.0, False, 0.0)
            for one, text in zip(problems, responses, strict=True)
        ]

    def close(self) -> None: ...


def correctness(verification: Verification) -> float:
    return float(verification.verdict is Verdict.RIGHT)


def model() -> LanguageModel:
    return tiny_model("llama", vocabulary="abc", hidden=16, heads=2, kv_heads=1)


def sampler(policy: LanguageModel) -> TurnSampler:
    return TurnSampler(policy, NativeSampler(policy), Judge(), correctness, Decoding(4), ("ba",))


def collect(policy: LanguageModel, step: int) -> TurnRollouts:
    prompts = [policy.encode(task.question) for task in TASKS[:2]]
    drawn = sampler(policy).collect(TASKS[:2], prompts, 3, torch.Generator().manual_seed(3))
    drawn.turn_rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    drawn.step = step
    return drawn


def by_turn(drawn: TurnRollouts, values: torch.Tensor) -> torch.Tensor:
    """(N, 2) the number that stands at every token of a turn."""
    rows = [[values[row][drawn.turns[row] == turn].unique().squeeze() for turn in (1, 2)] for row in range(6)]
    return torch.stack([torch.stack(row) for row in rows])


def test_the_first_phase_pays_the_second_turn_alone():
    drawn = collect(model(), step=5)
    given = by_turn(drawn, TurnCredit(FIRST, SECOND, 5).give(drawn, None, 0.0))
    assert not given[:, 0].any()
    assert given[:, 1].tolist() == pytest.approx([-0.5, 1.0, -0.5, 0.5, 0.5, -1.0])


def test_the_second_phase_adds_the_bonus_to_the_second_turn():
    """R2 of the first group: -2, 3, 0; of the second 3, 1, 0."""
    drawn = collect(model(), step=6)
    given = by_turn(drawn, TurnCredit(FIRST, SECOND, 5).give(drawn, None, 0.0))
    assert given[:, 0].tolist() == pytest.approx([1.0, -0.5, -0.5, -0.5, 1.0, -0.5])
    assert given[:, 1].tolist() == pytest.approx([-3.5, 4.0, -0.5, 2.5, -0.5, -2.0])
    white = by_turn(drawn, TurnCredit(FIRST, SECOND, 5, whiten=True).give(drawn, None, 0.0))
    assert torch.allclose(white, given / given.std(0, correction=0), atol=1e-6)


def test_a_kl_in_the_reward_is_that_of_its_turn():
    drawn = collect(model(), step=1)
    kl = torch.where(drawn.turns == 1, 1.0, torch.where(drawn.turns == 2, 10.0, torch.nan))
    lengths = torch.stack([(drawn.turns == turn).sum(1) for turn in (1, 2)], dim=1)
    given = by_turn(drawn, TurnCredit(FIRST, SECOND, 5).give(drawn, kl, 0.5))
    first = -0.5 * lengths[:, 0].float()
    second = drawn.turn_rewards[:, 1] - 0.5 * 0.25 * 10.0 * lengths[:, 1]
    for column, rewards in enumerate((first, second)):
        for group in (slice(0, 3), slice(3, 6)):
            part = rewards[group]
            wanted = 1.5 * (part - part.mean())
            assert torch.allclose(given[group, column], wanted, atol=1e-5)


def test_weights_of_the_kl_by_phase_and_turn():
    credit = TurnCredit(FIRST, SECOND, 5)
    for step, wanted in ((5, (1.0, 0.25)), (6, (0.25, 0.25))):
        drawn = collect(model(), step)
        weights = credit.kl_weights(drawn)
        assert by_turn(drawn, weights).unique(dim=0).tolist() == [list(wanted)]
        assert not weights[drawn.turns == 0].any()


def test_the_update_weighs_the_kl_of_each_token():
    """Its gradient is that of 1/M sum w_t k3_t over the tokens of the turns, by another way."""
    policy, other = model(), tiny_model("llama", vocabulary="abc", hidden=16, heads=2, kv_heads=1, seed=1)
    drawn = collect(policy, step=1)
    drawn.kl_weights = TurnCredit(FIRST, SECOND, 5).kl_weights(drawn)
    scores = response_scores(policy.model, drawn.sequences(range(6))).logprobs
    reference = response_scores(other.model, drawn.sequences(range(6))).logprobs.detach()
    weights = drawn.flat(drawn.kl_weights, range(6))
    (0.3 * (weights * k3(scores, reference)).sum() / drawn.trained.sum()).backward()
    wanted = torch.cat([value.grad.flatten() for value in policy.model.parameters()])
    policy.model.zero_grad(set_to_none=True)
    before = torch.cat([value.detach().flatten().clone() for value in policy.model.parameters()])
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    updater = Updater(policy, optimizer, Algorithm(kl=KLPenalty(0.3)), UpdateSettings(max_gradient_norm=1e9))
    updater.update(drawn, updater.scores(other.model, drawn))
    after = torch.cat([value.detach().flatten() for value in policy.model.parameters()])
    torch.testing.assert_close(before - after, wanted, rtol=1e-3, atol=1e-6)


def test_rows_keep_their_weights_and_their_step():
    drawn = collect(model(), step=7)
    drawn.kl_weights = TurnCredit(FIRST, SECOND, 5).kl_weights(drawn)
    taken = drawn.take_rows(torch.tensor([4, 1]))
    assert torch.equal(taken.kl_weights, drawn.kl_weights[[4, 1]])
    assert taken.step == 7


def test_single_responses_have_no_turns():
    samples = Samples(
        torch.zeros((1, 1), dtype=torch.int64), torch.ones(1, dtype=torch.int64), torch.zeros((1, 1)),
        torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64), [""],
    )  # fmt: skip
    rollouts = Rollouts(TASKS[:1], [[3]], samples, [Verification(Verdict.RIGHT, "", 0.0, False, 1.0)], torch.ones(1))
    with pytest.raises(ValueError, match="several turns"):
        TurnCredit(FIRST, SECOND, 5).give(rollouts, None, 0.0)
    assert rollouts.metrics() == {}


# --- the loop


def loop(directory: Path, **algorithm: Any) -> ZeroRL:
    policy = model()
    chosen = Algorithm(kl=KLPenalty(0.1), **algorithm)
    updater = Updater(policy, torch.optim.AdamW(policy.model.parameters(), lr=0.01), chosen, UpdateSettings())
    episodes = sampler(policy)
    return ZeroRL(
        policy=policy,
        sampler=episodes.sampler,
        tasks=TaskSet("test", tuple(TASKS[:2]), tuple(TASKS[2:]), "math", "lenient", "{question}", (), 4),
        prompt=lambda task: policy.encode(task.question),
        verifier=episodes.verifier,
        reward=correctness,
        algorithm=chosen,
        updater=updater,
        decoding=episodes.decoding,
        settings=LoopSettings(2, 2, 3),
        run=Run(directory),
        reference=make_reference(policy, updater),
        credit=TurnCredit(FIRST, SECOND, 1),
        episodes=episodes,
    )


def test_a_loop_draws_episodes_and_measures_both_turns(tmp_path: Path) -> None:
    made = loop(tmp_path)
    rollouts, metrics = made.step(2)
    assert isinstance(rollouts, TurnRollouts)
    assert rollouts.step == 2
    assert torch.equal(rollouts.kl_weights, made.creditor.kl_weights(rollouts))
    assert {"turns/accuracy_1", "turns/1_to_2_gain"} <= metrics.keys()
    found = made.evaluate(2, sampled=True)
    for mode in ("greedy", "sampled"):
        assert found[f"heldout/{mode}_accuracy"] == found[f"heldout/{mode}_accuracy_2"]
        gain = found[f"heldout/{mode}_accuracy_2"] - found[f"heldout/{mode}_accuracy_1"]
        assert found[f"heldout/{mode}_1_to_2_gain"] == pytest.approx(gain)


def test_episodes_cannot_be_refilled_and_truncated_ones_can_be_masked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refill_rounds"):
        loop(tmp_path, refill_rounds=1)
    rollouts, _ = loop(tmp_path, overlong="mask").step(1)
    stopped = rollouts.samples.stopped
    assert torch.equal(rollouts.trained, (rollouts.turns > 0) & stopped[:, None])
    assert not bool(stopped.all())


def test_an_evaluation_of_episodes_judges_the_last_turn() -> None:
    policy = model()
    prompts = [policy.encode(task.question) for task in TASKS]
    result = evaluate_turns(sampler(policy), TASKS, prompts, torch.Generator().manual_seed(0))
    right = [one.verdict is Verdict.RIGHT for one in result.rollouts.verifications]
    assert result.metrics["accuracy"] == sum(right) / 4 == result.metrics["turns/accuracy_2"]
    assert result.correct[:, 0].tolist() == right


def test_rows_of_an_episode_are_what_the_sampler_would_join() -> None:
    policy = model()
    first, second = turn_rows(policy, "a", ("b", "cc"), ("ba",))
    encode = lambda text: policy.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    end = policy.eos_ids[0]
    assert first == {"prompt": policy.encode("a"), "response": [*encode("b"), end]}
    assert second["prompt"] == [*policy.encode("a"), *encode("b"), end, *encode("ba")]
    assert second["response"] == [*encode("cc"), end]
    with pytest.raises(ValueError, match="1 instructions"):
        turn_rows(policy, "a", ("b", "c"), ())
