"""The loop with scripted samplers and verifiers: every metric by hand, and what may not disturb the training."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.language.algorithm import ADVANTAGES, DIVERGENCES, Algorithm, KLPenalty
from zerozoo.language.credit import Credit
from zerozoo.language.evaluation import evaluate_modes, evaluate_tasks, verdict_shares
from zerozoo.language.families import tiny_model
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts, join_rollouts, verify_samples
from zerozoo.language.samplers.interface import Decoding, Sampler, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.samplers.reference import TransformersSampler
from zerozoo.language.update import Updater, UpdateSettings
from zerozoo.language.zero_rl import LoopSettings, ZeroRL
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.runs.run import Run
from zerozoo.runs.statistics import mean_interval, proportion_interval
from zerozoo.runs.streams import Streams
from zerozoo.tasks.task import Task, TaskSet

Answer = Callable[[str, int], str]
LIMIT = 6


class ScriptedSampler:
    """Answers with `answer(question, number of the sample)`; a text as long as the limit has no end token."""

    def __init__(self, policy: LanguageModel, answer: Answer) -> None:
        self.policy, self.answer = policy, answer
        self.calls: list[tuple[list[str], int, Decoding]] = []

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Samples:
        questions = [self.policy.decode(prompt) for prompt in prompts]
        self.calls.append((questions, samples, decoding))
        texts = [self.answer(question, number) for question in questions for number in range(samples)]
        most = decoding.max_new_tokens
        rows = [[*self.policy.encode(text)[1:], self.policy.eos_ids[0]][:most] for text in texts]
        longest = max(map(len, rows))
        return Samples(
            torch.tensor([row + [self.policy.pad_id] * (longest - len(row)) for row in rows]),
            torch.tensor([len(row) for row in rows]),
            torch.zeros((len(rows), longest)),
            torch.tensor([row[-1] == self.policy.eos_ids[0] for row in rows]),
            torch.arange(len(prompts)).repeat_interleave(samples),
            texts,
        )


class ScriptedVerifier:
    """A verdict by a rule on the problem's answer and the response; remembers every response that it saw."""

    def __init__(self, rule: Callable[[str, str], Verdict]) -> None:
        self.rule = rule
        self.seen: list[str] = []

    def verify(self, problems: Sequence[Any], responses: Sequence[str]) -> list[Verification]:
        self.seen += responses
        verdicts = [self.rule(one.answer, text) for one, text in zip(problems, responses, strict=True)]
        return [Verification(one, "x", 0.0, "box" in text, 0.0) for one, text in zip(verdicts, responses, strict=True)]

    def close(self) -> None: ...


def equal(answer: str, response: str) -> Verdict:
    return Verdict.RIGHT if answer == response else Verdict.WRONG


def odd(answer: str, response: str) -> Verdict:
    """Right about half the time for the text of a random model."""
    return Verdict.RIGHT if sum(map(ord, response)) % 2 else Verdict.WRONG


def correctness(verification: Verification) -> float:
    return float(verification.verdict is Verdict.RIGHT)


def make_tasks(number: int, heldout: int = 2) -> TaskSet:
    tasks = [Task(f"t{index}", f"q{index}", f"a{index}", "test") for index in range(number + heldout)]
    return TaskSet("test", tuple(tasks[:number]), tuple(tasks[number:]), "math", "lenient", "{question}", (), LIMIT)


def make_loop(
    directory: Path,
    *,
    answer: Answer | None = None,
    rule: Callable[[str, str], Verdict] = equal,
    tasks: TaskSet | None = None,
    algorithm: Algorithm | None = None,
    decoding: Decoding | None = None,
    reward: Callable[[Verification], float] = correctness,
    reference: Any = None,
    optimizer: Any = None,
    seed: int = 0,
    vocabulary: str | None = None,
    learner_temperature: float = 1.0,
    credit: Credit | None = None,
    extra_reward: Callable[[Rollouts], torch.Tensor] | None = None,
    **settings: Any,
) -> ZeroRL:
    policy = tiny_model("llama", hidden=16, heads=2, kv_heads=1, vocabulary=vocabulary)
    sampler: Sampler = ScriptedSampler(policy, answer) if answer else NativeSampler(policy)
    algorithm = algorithm or Algorithm()
    optimizer = optimizer or torch.optim.AdamW(policy.model.parameters(), lr=0.01)
    return ZeroRL(
        policy=policy,
        sampler=sampler,
        tasks=tasks or make_tasks(3),
        prompt=lambda task: policy.encode(task.question),
        verifier=ScriptedVerifier(rule),
        reward=reward,
        algorithm=algorithm,
        updater=Updater(policy, optimizer, algorithm, UpdateSettings(temperature=learner_temperature)),
        decoding=decoding or Decoding(LIMIT),
        settings=LoopSettings(**{"steps": 2, "prompts_per_step": 3, "samples_per_prompt": 4, **settings}),
        run=Run(directory, seed),
        reference=reference,
        credit=credit,
        extra_reward=extra_reward,
    )


def weights(loop: ZeroRL) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in loop.policy.model.parameters()])


def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(("seconds/", "time"))} for row in rows]


def one_some_all(question: str, number: int) -> str:
    """q0: the first of its samples is right; q1: none is; q2: all are. Wrong answers have other lengths."""
    right = "a" + question[1:]
    if question == "q1":
        return "toolong" if number == 0 else "no"
    return right if question != "q0" or number == 0 else "wrong"[: 2 + number]


# --- one step, by hand


def test_metrics_of_a_step_by_hand(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, answer=one_some_all)
    rollouts, metrics = loop.step(1)
    # Tokens with the end token: a0 3, wro 4, wron 5, wrong 6; toolong cut at 6, no 3, 3, 3; a2 3, 3, 3, 3
    expected = {
        "reward": 5 / 12,
        "reward/highest": 1.0,
        "reward/lowest": 0.0,
        "correct": 5 / 12,
        "groups/informative": 1 / 3,
        "groups/all_wrong": 1 / 3,
        "groups/all_right": 1 / 3,
        "groups/rounds": 1.0,
        "response/length": (3 + 4 + 5 + 6 + 6 + 3 + 3 + 3 + 12) / 12,
        "response/clip_ratio": 1 / 12,
        "response/stopped_length": (3 + 4 + 5 + 6 + 3 + 3 + 3 + 12) / 11,
        "response/length_right": 3.0,
        "response/length_wrong": (4 + 5 + 6 + 6 + 9) / 7,
        "response/box_ratio": 0.0,
        "verifier/unscorable": 0.0,
        "verifier/timeout": 0.0,
        "advantage/highest": (1 - 0.25) / (0.5 + 1e-6),  # M9: G = 4, one right; the std is 0.5
        "advantage/lowest": -0.25 / (0.5 + 1e-6),
        "learning_rate": 0.01,
        "tasks/passes": 1.0,
        "update/rows": 4.0,
        "update/row_share": 1 / 3,
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name
    assert {name for name in metrics if name.startswith("seconds/")} == {
        f"seconds/{phase}" for phase in ("sample", "score", "credit", "update", "step")
    }
    by_task = {task.id: rollouts.advantages[rollouts.groups == group] for group, task in enumerate(rollouts.tasks)}
    torch.testing.assert_close(by_task["t0"], torch.tensor([1.5, -0.5, -0.5, -0.5]), rtol=1e-5, atol=0)
    assert by_task["t1"].tolist() == by_task["t2"].tolist() == [0.0] * 4


def test_responses_reach_the_verifier_without_their_prompt(tmp_path: Path) -> None:
    """Card, Pitfalls: else a response without a number is graded on the last number of the question."""
    loop = make_loop(tmp_path, answer=lambda question, number: "none")
    loop.step(1)
    assert set(loop.verifier.seen) == {"none"}


def test_verdicts_other_than_wrong_are_not_called_wrong(tmp_path: Path) -> None:
    """Trap 30."""
    verdicts = {"r": Verdict.RIGHT, "w": Verdict.WRONG, "unsc": Verdict.UNSCORABLE, "time": Verdict.TIMEOUT}
    texts = ("r", "w", "unsc", "time")
    loop = make_loop(tmp_path, answer=lambda _, number: texts[number], rule=lambda _, text: verdicts[text])
    _, metrics = loop.step(1)
    assert metrics["correct"] == metrics["reward"] == 0.25
    assert metrics["verifier/unscorable"] == metrics["verifier/timeout"] == 0.25
    assert metrics["response/length_wrong"] == 2.0  # "w" and its end; the unjudged ones have 5 tokens
    assert metrics["response/length_right"] == 2.0


def test_the_reward_may_be_anything_and_right_stays_right(tmp_path: Path) -> None:
    def strict(verification: Verification) -> float:
        return -1.0 if not verification.boxed else correctness(verification)

    loop = make_loop(tmp_path, answer=lambda question, number: ["box", "a" + question[1:]][number % 2], reward=strict)
    rollouts, metrics = loop.step(1)
    assert rollouts.rewards.tolist() == [0.0, -1.0] * 6
    assert metrics["reward"] == -0.5
    assert metrics["correct"] == 0.5
    assert metrics["response/box_ratio"] == 0.5


def test_truncated_rows_are_masked_but_count_in_their_group(tmp_path: Path) -> None:
    """Trap 25."""

    def answer(question: str, number: int) -> str:
        return ["a" + question[1:], "toolong", "no", "no"][number]

    kept, _ = make_loop(tmp_path / "a", answer=answer).step(1)
    masked, metrics = make_loop(tmp_path / "b", answer=answer, algorithm=Algorithm(overlong="mask")).step(1)
    assert kept.trained.tolist() == [True] * 12
    assert masked.trained.tolist() == [True, False, True, True] * 3
    assert torch.equal(masked.advantages, kept.advantages)
    assert metrics["update/rows"] == 9


# --- KL terms


def shifted(loop_of: list[ZeroRL], shift: float) -> Callable[[Rollouts], torch.Tensor]:
    """A reference whose log-probs are the policy's own, less `shift`."""

    def reference(rollouts: Rollouts) -> torch.Tensor:
        loop = loop_of[0]
        return loop.updater.scores(loop.policy.model, rollouts) - shift

    return reference


@pytest.mark.parametrize(("estimator", "per_token"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_kl_in_the_reward_by_hand(tmp_path: Path, estimator: str, per_token: float) -> None:
    """r' = r - 0.1 * tokens * KL, before the mean of the group is taken; padding costs nothing."""
    holder: list[ZeroRL] = []
    kl = KLPenalty(0.1, DIVERGENCES[estimator], place="reward")
    algorithm = Algorithm(advantage=ADVANTAGES["group-centred"], kl=kl)
    holder.append(make_loop(tmp_path, answer=one_some_all, algorithm=algorithm, reference=shifted(holder, 0.5)))
    rollouts, metrics = holder[0].step(1)
    group = {task.id: number for number, task in enumerate(rollouts.tasks)}
    right, cost = torch.tensor([1.0, 0.0, 0.0, 0.0]), 0.1 * per_token
    penalised = right - cost * torch.tensor([3.0, 4.0, 5.0, 6.0])
    got = rollouts.advantages[rollouts.groups == group["t0"]]
    torch.testing.assert_close(got, penalised - penalised.mean(), rtol=1e-5, atol=1e-6)
    # Even among four wrong answers the shorter ones now are better, so these rows are trained.
    penalised = -cost * torch.tensor([6.0, 3.0, 3.0, 3.0])
    got = rollouts.advantages[rollouts.groups == group["t1"]]
    torch.testing.assert_close(got, penalised - penalised.mean(), rtol=1e-5, atol=1e-6)
    assert metrics["update/rows"] >= 8
    assert metrics["reward"] == pytest.approx(5 / 12)  # the metric stays the task's reward
    assert "policy/kl" not in metrics


def test_kl_in_the_loss_is_measured_against_the_reference(tmp_path: Path) -> None:
    holder: list[ZeroRL] = []
    algorithm = Algorithm(kl=KLPenalty(0.1))
    holder.append(make_loop(tmp_path, answer=one_some_all, algorithm=algorithm, reference=shifted(holder, 0.5)))
    rollouts, metrics = holder[0].step(1)
    assert metrics["policy/kl"] == pytest.approx(math.exp(-0.5) + 0.5 - 1, rel=1e-4)
    assert metrics["update/row_share"] == 1.0
    assert rollouts.advantages.abs().max() == pytest.approx(1.5, rel=1e-5)  # the reward is as it was


def test_a_kl_term_without_a_reference_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a reference"):
        make_loop(tmp_path, algorithm=Algorithm(kl=KLPenalty(0.1)))


# --- refill


@pytest.mark.parametrize("rounds", [0, 1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_refill_replaces_uninformative_groups_by_fresh_tasks(tmp_path: Path, rounds: int, seed: int) -> None:
    """Three of nine tasks, numbers 0, 3 and 6, give mixed groups; two tasks a step."""

    def answer(question: str, number: int) -> str:
        return "a" + question[1:] if int(question[1:]) % 3 == 0 and number == 1 else "no"

    loop = make_loop(
        tmp_path,
        answer=answer,
        tasks=make_tasks(9),
        algorithm=Algorithm(refill_rounds=rounds),
        seed=seed,
        prompts_per_step=2,
    )
    rollouts, metrics = loop.step(1)
    order = torch.randperm(9, generator=Streams(seed).torch("tasks")).tolist()
    drawn = order[:2]
    deals = 1
    while deals <= rounds and sum(task % 3 == 0 for task in drawn) < 2:
        drawn = order[: len(drawn) + 2]
        deals += 1
    informative = [task for task in drawn if task % 3 == 0]
    expected = drawn if deals == 1 else (informative + [task for task in drawn if task % 3])[:2]
    assert [int(task.id[1:]) for task in rollouts.tasks] == expected
    assert metrics["groups/rounds"] == deals
    assert metrics["groups/informative"] == sum(task % 3 == 0 for task in order[:2]) / 2  # as first drawn
    assert rollouts.groups.tolist() == [0] * 4 + [1] * 4
    for group, task in enumerate(expected):
        rewards = rollouts.rewards[rollouts.groups == group].tolist()
        assert rewards == ([0.0, 1.0, 0.0, 0.0] if task % 3 == 0 else [0.0] * 4)
        assert loop.policy.decode(rollouts.prompts[group]) == f"q{task}"
    assert loop.deck.dealt == 2 * deals


# --- the whole run


def test_a_run_begins_and_ends_with_both_evaluations(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, answer=one_some_all, tasks=make_tasks(3, heldout=2), steps=3, evaluate_every=2)
    final = loop.train()
    history = loop.run.history()
    assert [row["step"] for row in history] == [0, 1, 2, 3]
    greedy = ["heldout/greedy_accuracy" in row for row in history]
    sampled = ["heldout/sampled_accuracy" in row for row in history]
    assert greedy == [True, False, True, True]
    assert sampled == [True, False, False, True]
    interval = proportion_interval(2, 2)
    for row in (history[0], history[-1], final):
        assert row["heldout/greedy_accuracy"] == 1.0
        assert (row["heldout/sampled_low"], row["heldout/sampled_high"]) == (interval.low, interval.high)
        assert row["heldout/greedy_length"] == 3.0
    assert "reward" not in history[0]
    assert final["step"] == 3
    assert final["mean/reward"] == pytest.approx(5 / 12)
    assert final["mean/groups/informative"] == pytest.approx(1 / 3)
    assert all(isinstance(value, int | float) for value in final.values())


def test_heldout_problems_are_answered_in_both_modes_and_never_trained_on(tmp_path: Path) -> None:
    decoding = Decoding(LIMIT, 0.7, stop_ids=(9,), stop_strings=("zz",))
    loop = make_loop(
        tmp_path,
        answer=one_some_all,
        tasks=make_tasks(3, heldout=2),
        decoding=decoding,
        learner_temperature=0.7,
        steps=2,
    )
    loop.train()
    heldout = {"q3", "q4"}
    greedy, sampled, *steps = loop.sampler.calls
    assert set(greedy[0]) == set(sampled[0]) == heldout
    assert greedy[1] == sampled[1] == 1
    assert greedy[2] == Decoding(LIMIT, 0.0, stop_ids=(9,), stop_strings=("zz",))
    assert sampled[2] == decoding
    training = steps[:2]
    assert all(not heldout & set(questions) and samples == 4 for questions, samples, _ in training)
    assert [call[0] for call in steps[2:]] == [greedy[0]] * 2
    with pytest.raises(UserError, match="also trained on"):
        TaskSet("both", make_tasks(3).train, make_tasks(3).train[:1], "math", "lenient", "{question}", (), 4)


def test_samples_are_logged_with_phase_step_and_verdict(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, answer=one_some_all, steps=2, samples_logged=5)
    loop.train()
    rows = loop.run.samples()
    phases = [(row["step"], row["phase"]) for row in rows]
    heldout = [("heldout-greedy",), ("heldout-greedy",), ("heldout-sampled",), ("heldout-sampled",)]
    expected = [(0, phase) for (phase,) in heldout] + [(1, "train")] * 5
    assert phases == expected + [(2, phase) for (phase,) in heldout] + [(2, "train")] * 5
    row = next(row for row in rows if row["phase"] == "train" and row["task"] == "t0")
    assert row["question"] == "q0"
    assert row["gold"] == "a0"
    assert row["response"] == "a0"
    assert row["verdict"] == "right"
    assert row["reward"] == 1.0
    assert row["advantage"] == pytest.approx(1.5, rel=1e-5)
    assert row["length"] == 3
    assert row["finish"] == "stop"


def test_evaluating_more_often_changes_no_training_run(tmp_path: Path) -> None:
    loops = [make_loop(tmp_path / str(every), rule=odd, steps=4, evaluate_every=every) for every in (1, 100)]
    start = weights(loops[0])
    for loop in loops:
        loop.train()
    assert torch.equal(weights(loops[0]), weights(loops[1]))
    assert not torch.equal(weights(loops[0]), start)
    often, seldom = (without_clock(loop.run.history()) for loop in loops)
    trained = [{name: value for name, value in row.items() if not name.startswith("heldout/")} for row in often]
    assert trained[1:4] == seldom[1:4]
    # The evaluation of a step draws the same numbers whenever it runs.
    assert often[4] == seldom[4]


def test_seeds_decide_the_run(tmp_path: Path) -> None:
    runs = [make_loop(tmp_path / name, rule=odd, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    for loop in runs:
        loop.train()
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert without_clock(runs[0].run.history()) == without_clock(runs[1].run.history())
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_the_loop_learns_what_is_rewarded_and_unlearns_what_is_punished(tmp_path: Path, advantage: str) -> None:
    """The sign of everything: responses that hold a "7" become common, or die out."""

    def seven(answer: str, response: str) -> Verdict:
        return Verdict.RIGHT if "7" in response else Verdict.WRONG

    rates = {}
    for sign in (1, -1):
        loop = make_loop(
            tmp_path / str(sign),
            rule=seven,
            reward=lambda verification, sign=sign: sign * correctness(verification),
            algorithm=Algorithm(advantage=ADVANTAGES[advantage]),
            vocabulary="0123456789q",
            steps=20,
            samples_per_prompt=16,
        )
        loop.train()
        rates[sign] = [row["correct"] for row in loop.run.history()[1:]]
    start = sum(rates[1][:2] + rates[-1][:2]) / 4
    assert 0.1 < start < 0.6
    assert sum(rates[1][-3:]) / 3 > 0.9
    assert sum(rates[-1][-3:]) / 3 < 0.05


def test_a_run_of_no_steps_measures_the_base_model(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, answer=one_some_all, steps=0)
    start = weights(loop)
    final = loop.train()
    assert final["heldout/sampled_accuracy"] == 1.0
    assert not any(name.startswith("mean/") for name in final)
    assert torch.equal(weights(loop), start)


@pytest.mark.parametrize("decoding", [Decoding(4, 1.0, top_p=0.9), Decoding(4, 0.0)])
def test_truncated_and_greedy_sampling_are_refused_for_training(tmp_path: Path, decoding: Decoding) -> None:
    """Trap 11."""
    with pytest.raises(UserError, match="whole distribution"):
        make_loop(tmp_path, decoding=decoding)


def test_sampler_and_learner_must_share_the_temperature(tmp_path: Path) -> None:
    """Trap 10."""
    with pytest.raises(ValueError, match=r"sampling temperature 0\.7 is not the learner's, 1\.0"):
        make_loop(tmp_path, decoding=Decoding(4, 0.7))


@pytest.mark.parametrize(("text", "warned"), [("toolong", True), ("no", False)])
def test_a_limit_that_is_too_short_to_answer_is_said(tmp_path: Path, text: str, warned: bool) -> None:
    """Trap 25: everything is cut off, so nothing is right, so nothing is learned."""
    loop = make_loop(tmp_path, answer=lambda question, number: text)
    said: list[str] = []
    loop.run.say = said.append
    loop.step(1)
    sentence = "Every response was cut off at max_new_tokens and earned nothing: raise max_new_tokens."
    assert said == ([sentence] if warned else [])


# --- learning rate


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 1.0]),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0]),
        ({"warmup_steps": 2}, [0.5, 1.0, 1.0, 1.0]),
        ({"schedule": "linear"}, [1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, 0.75, 0.5, 0.25]),
    ],
)
def test_learning_rates_by_hand(tmp_path: Path, options: dict[str, Any], expected: list[float]) -> None:
    loop = make_loop(tmp_path, answer=one_some_all, steps=4, **options)
    first, *rest = loop.policy.model.parameters()
    loop.updater.optimizer = torch.optim.SGD([{"params": rest, "lr": 0.01}, {"params": [first], "lr": 0.1}])
    loop.base_rates = [0.01, 0.1]
    used: list[list[float]] = []
    loop.updater.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append([group["lr"] for group in optimizer.param_groups])
    )
    loop.train()
    assert [row["learning_rate"] for row in loop.run.history()[1:]] == pytest.approx([0.01 * one for one in expected])
    assert [one for one, _ in used] == pytest.approx([0.01 * one for one in expected])
    assert [other for _, other in used] == pytest.approx([0.1 * one for one in expected])


# --- divergence and Ctrl-C


def poisoned_after(steps: int, rows: int = 12) -> Callable[[Verification], float]:
    """A reward that is no number from the given step on."""
    count = [0]

    def reward(verification: Verification) -> float:
        count[0] += 1
        return math.nan if count[0] > steps * rows else correctness(verification)

    return reward


@pytest.mark.parametrize(
    ("step", "kept"), [(1, "there was no checkpoint yet"), (4, "the checkpoint of step 2 is kept")]
)
def test_divergence_names_the_step_and_the_checkpoint_that_is_kept(tmp_path: Path, step: int, kept: str) -> None:
    loop = make_loop(tmp_path, answer=one_some_all, reward=poisoned_after(step - 1), steps=9, checkpoint_every=2)
    with pytest.raises(DivergedError, match=f"not taken. Training stopped at step {step}; {kept}. Try a lower"):
        loop.train()
    checkpoint = loop.run.load()
    assert (checkpoint.step if checkpoint else 0) == (step - 1) // 2 * 2
    assert [row["step"] for row in loop.run.history()] == list(range(step))


def test_a_model_that_breaks_is_found_by_the_sampler(tmp_path: Path) -> None:
    """All answers of a model that gives NaN are wrong, so no group has a gradient that could tell."""
    loop = make_loop(tmp_path, rule=odd, steps=3)
    loop.train()
    loop.settings = LoopSettings(9, 3, 4)
    with torch.no_grad():
        loop.policy.model.model.norm.weight.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"log-probs are not finite\. Training stopped at step 4"):
        loop._log_step(4)


def test_ctrl_c_saves_the_step_that_was_running_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    unbroken = make_loop(tmp_path / "unbroken", rule=odd, steps=5, checkpoint_every=100)
    unbroken.train()
    loop = make_loop(directory, rule=odd, steps=5, checkpoint_every=100)
    verify, said = loop.verifier.verify, []
    loop.run.say = said.append

    def interrupt(problems: Any, responses: Any) -> list[Verification]:
        if len(loop.run.history()) == 3:  # in the middle of step 3
            os.kill(os.getpid(), signal.SIGINT)
        return verify(problems, responses)

    loop.verifier.verify = interrupt
    with pytest.raises(KeyboardInterrupt):
        loop.train()
    assert said == ["Stopping after this step; press Ctrl-C again to stop at once."]
    assert [row["step"] for row in loop.run.history()] == [0, 1, 2, 3]
    resumed = make_loop(directory, rule=odd, steps=5, checkpoint_every=100)
    resumed.run.say = said.append
    resumed.train()
    assert said[1:] == ["Resuming after step 3."]
    assert torch.equal(weights(resumed), weights(unbroken))
    assert without_clock(resumed.run.history()) == without_clock(unbroken.run.history())
    assert resumed.run.samples() == unbroken.run.samples()


def test_divergence_after_an_interrupted_run_names_the_checkpoint_of_the_interrupt(tmp_path: Path) -> None:
    """It does not lie on a multiple of checkpoint_every."""
    first = make_loop(tmp_path, answer=one_some_all, steps=9, checkpoint_every=100)
    verify = first.verifier.verify

    def interrupt(problems: Any, responses: Any) -> list[Verification]:
        if len(first.run.history()) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return verify(problems, responses)

    first.verifier.verify = interrupt
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = make_loop(tmp_path, answer=one_some_all, reward=poisoned_after(1), steps=9, checkpoint_every=100)
    with pytest.raises(DivergedError, match="stopped at step 5; the checkpoint of step 3 is kept"):
        second.train()


# --- evaluation


def test_evaluation_of_several_samples_takes_its_interval_over_tasks() -> None:
    policy = tiny_model("llama", hidden=16, heads=2, kv_heads=1)
    tasks = make_tasks(4).train
    texts = {"q0": ["a0", "a0"], "q1": ["a1", "no"], "q2": ["no", "no"], "q3": ["unsc", "a3"]}
    sampler = ScriptedSampler(policy, lambda question, number: texts[question][number])
    verifier = ScriptedVerifier(lambda gold, text: Verdict.UNSCORABLE if text == "unsc" else equal(gold, text))
    prompts = [policy.encode(task.question) for task in tasks]
    result = evaluate_tasks(sampler, tasks, prompts, verifier, Decoding(LIMIT), torch.Generator(), samples=2)
    assert result.correct.tolist() == [[True, True], [True, False], [False, False], [False, True]]
    interval = mean_interval([1.0, 0.5, 0.0, 0.5])
    assert result.metrics["accuracy"] == 0.5
    assert (result.metrics["low"], result.metrics["high"]) == pytest.approx((interval.low, interval.high))
    assert result.metrics["verifier/unscorable"] == 1 / 8
    assert result.metrics["response/length_wrong"] == 3.0  # three times "no"; "unsc" is not among them
    assert verdict_shares(result.rollouts.verifications) == {"verifier/unscorable": 1 / 8, "verifier/timeout": 0.0}
    single = evaluate_tasks(sampler, tasks, prompts, verifier, Decoding(LIMIT), torch.Generator())
    wilson = proportion_interval(2, 4)
    assert (single.metrics["low"], single.metrics["high"]) == (wilson.low, wilson.high)


def test_both_modes_begin_their_stream_anew_whoever_samples() -> None:
    policy = tiny_model("llama", hidden=16, heads=2, kv_heads=1)
    tasks = make_tasks(4).train
    prompts, verifier = [policy.encode(task.question) for task in tasks], ScriptedVerifier(equal)
    for sampler in (NativeSampler(policy), TransformersSampler(policy)):
        drawn = {
            "greedy": sampler.sample(prompts, 1, Decoding(LIMIT, 0.0), torch.Generator()),
            "sampled": sampler.sample(prompts, 1, Decoding(LIMIT), Streams(3).torch("evaluation/7")),
        }
        for sampled in (True, False):
            results = evaluate_modes(sampler, tasks, prompts, verifier, Decoding(LIMIT), 3, "evaluation/7", sampled)
            assert list(results) == (["greedy", "sampled"] if sampled else ["greedy"])
            for mode, result in results.items():
                assert torch.equal(result.rollouts.samples.tokens, drawn[mode].tokens)


# --- rollouts


def small_rollouts(start: int, groups: int, longest: int) -> Rollouts:
    number = 2 * groups
    tasks = [Task(f"t{start + index}", f"q{start + index}", "0", "test") for index in range(groups)]
    samples = Samples(
        torch.arange(number * longest).view(number, longest) + 100 * start,
        torch.arange(number) % longest + 1,
        -torch.arange(number * longest).view(number, longest).float(),
        torch.arange(number) % 2 == 0,
        torch.arange(groups).repeat_interleave(2),
        [f"text {start} {row}" for row in range(number)],
    )
    verdicts = [Verification(Verdict.WRONG, f"{start}/{row}", 0.0, False, 0.0) for row in range(number)]
    prompts = [[start + index] for index in range(groups)]
    return Rollouts(tasks, prompts, samples, verdicts, torch.arange(number).float() + 10 * start)


def test_rows_keep_all_that_belongs_to_them_when_joined_and_picked() -> None:
    joined = join_rollouts([small_rollouts(1, 2, 3), small_rollouts(5, 1, 4)], pad_id=-1)
    assert joined.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert joined.samples.tokens.shape == (6, 4)
    assert joined.samples.tokens[:4, 3].tolist() == [-1] * 4
    picked = joined.take_groups([2, 0])
    assert [task.id for task in picked.tasks] == ["t5", "t1"]
    assert picked.prompts == [[5], [1]]
    assert picked.groups.tolist() == [0, 0, 1, 1]
    assert picked.rewards.tolist() == [50.0, 51.0, 10.0, 11.0]
    assert picked.samples.texts == ["text 5 0", "text 5 1", "text 1 0", "text 1 1"]
    assert [one.extracted for one in picked.verifications] == ["5/0", "5/1", "1/0", "1/1"]
    assert picked.samples.tokens[0].tolist() == [500, 501, 502, 503]
    assert picked.samples.lengths.tolist() == [1, 2, 1, 2]
    assert picked.samples.stopped.tolist() == [True, False, True, False]
    assert len(picked) == 4


def test_sequences_and_flat_values_line_up() -> None:
    rollouts = small_rollouts(1, 2, 3)  # lengths 1, 2, 3, 1
    rows = rollouts.sequences([2, 1])
    assert list(rows.prompts) == [[2], [1]]
    assert list(rows.responses) == [[106, 107, 108], [103, 104]]
    assert rollouts.flat(rollouts.samples.logprobs, [2, 1]).tolist() == [-6.0, -7.0, -8.0, -3.0, -4.0]


def test_verify_samples_pairs_rows_with_the_task_of_their_group() -> None:
    seen: list[tuple[str, str]] = []
    verifier = ScriptedVerifier(lambda answer, text: seen.append((answer, text)) or Verdict.WRONG)
    rollouts = small_rollouts(1, 2, 3)
    tasks = [Task("a", "qa", "gold a", "test"), Task("b", "qb", "gold b", "test")]
    verify_samples(tasks, rollouts.samples, verifier)
    assert seen == [("gold a", "text 1 0"), ("gold a", "text 1 1"), ("gold b", "text 1 2"), ("gold b", "text 1 3")]
