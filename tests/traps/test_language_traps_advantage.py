"""Traps 17 to 28: how rewards become advantages, token losses one number, gradients a step, and steps metrics."""

from __future__ import annotations

import ast
import copy
import dataclasses
import statistics
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zerozoo.cli.display import WATCHED
from zerozoo.language.algorithm import ADVANTAGES, DIVERGENCES, Algorithm, KLPenalty
from zerozoo.language.build import make_algorithm, make_reference
from zerozoo.language.deck import Deck
from zerozoo.language.families import tiny_model
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.snapshot import restore, snapshot
from zerozoo.losses.advantages import group_centred, group_normalised, informative_groups, leave_one_out
from zerozoo.losses.aggregation import AGGREGATIONS, token_weights
from zerozoo.losses.divergences import categorical_kl, k1, k2, k3, kl_in_reward
from zerozoo.losses.weights import truncated_importance_weight
from zerozoo.recipes.reasoning.simplerl_zoo import CLAIM, PRESETS, Config
from zerozoo.rewards.countdown import CountdownVerifier
from zerozoo.rewards.terms import REWARDS
from zerozoo.rewards.verifier import MathVerifier
from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task

Make = Callable[..., Any]
LENGTHS = (5, 3, 7, 1, 2, 9, 4, 4)
ADVANTAGE = (1.5, -0.5, -1.0, 0.0, 0.7, -0.7, 2.0, -2.0)
MASKED = (2,)


def small_policy(seed: int = 0) -> LanguageModel:
    return tiny_model("llama", seed=seed, hidden=16, heads=2, kv_heads=1, layers=1, dtype="float64")


def uneven(hand_made: Make, columns: int = 0) -> Rollouts:
    """Two groups of four with unequal lengths, one row of them masked."""
    generator = torch.Generator().manual_seed(4)
    responses = [torch.randint(4, 90, (length,), generator=generator).tolist() for length in LENGTHS]
    rollouts = hand_made([[5, 6, 7], [8]], responses, ADVANTAGE, columns=columns)
    rollouts.trained[list(MASKED)] = False
    return rollouts


def objective(aggregation: str = "token-mean", **options: Any) -> Algorithm:
    constant = 12.0 if aggregation == "constant" else None
    return Algorithm(aggregation=aggregation, length_constant=constant, **options)


def on_one_group(rewards: list[float], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.tensor(rewards, dtype=dtype), torch.zeros(len(rewards), dtype=torch.int64)


# --- 17


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_trap_17_no_cut_into_microbatches_changes_the_gradient(
    aggregation: str, hand_made: Make, make_updater: Make, weights: Make
) -> None:
    """Mistake: a mean inside each micro-batch, then a mean of means. Rule: one divisor, of the whole mini-batch."""
    results, losses = [], []
    for budget, packed in [(1, False), (12, False), (25, True), (10**6, False), (10**6, True)]:
        policy = small_policy()
        updater = make_updater(policy, objective(aggregation), tokens_per_microbatch=budget, packed=packed)
        losses.append(updater.update(uneven(hand_made))["policy/loss"])
        results.append(weights(policy))
    for result in results[1:]:
        assert float((result - results[0]).abs().max()) < 1e-12
    # On-policy the loss is -sum(weight A): known by hand, over what is left after masking.
    rows = [(length, value) for row, (length, value) in enumerate(zip(LENGTHS, ADVANTAGE, strict=True)) if row != 2]
    by_hand = {
        "token-mean": sum(length * value for length, value in rows) / sum(length for length, _ in rows),
        "sequence-mean": sum(value for _, value in rows) / len(rows),
        "constant": sum(length * value for length, value in rows) / (len(LENGTHS) * 12.0),
    }
    assert losses == pytest.approx([-by_hand[aggregation]] * 5, rel=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_trap_17_shares_of_two_ranks_add_up(aggregation: str) -> None:
    """Mistake: each rank normalises its own share. Rule: weights come from all rows, so shares add up to the mean."""
    lengths = torch.tensor([*LENGTHS, 0, 0])
    losses = torch.linspace(-1, 2, 10)
    weight = token_weights(lengths, aggregation, 12.0 if aggregation == "constant" else None)
    whole = float((weight * losses * lengths).sum())
    cuts = [float((weight * losses * lengths)[part].sum()) for part in (slice(0, 3), slice(3, 10))]
    assert sum(cuts) == pytest.approx(whole, abs=1e-6)
    assert weight[8:].tolist() == [0.0, 0.0]
    own = token_weights(lengths[:3], aggregation, 12.0 if aggregation == "constant" else None)
    assert not torch.allclose(own, weight[:3])  # the mistake would show


class LoneRank(Ranks):
    """One of two processes whose other one is not there: what it would add to the sum is written down."""

    def gather(self, part: Any) -> list[Any]:
        return list(part)

    def add(self, tensors: Any) -> None:
        brought.append([tensor.clone() for tensor in tensors])


brought: list[list[Tensor]] = []


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_trap_17_gradients_of_two_ranks_add_up(aggregation: str, hand_made: Make, make_updater: Make) -> None:
    """Mistake: gradients of ranks are averaged after a local mean. Rule: the count is global, gradients are summed."""
    # The real processes of test_parallel.py exchange what is added here by hand.
    brought.clear()
    for ranks in (LoneRank(0, 2), LoneRank(1, 2), ALONE):
        updater = make_updater(small_policy(), objective(aggregation), max_gradient_norm=1e9)
        updater.ranks = ranks
        updater.update(uneven(hand_made))
    gradients = [step for step in brought if len(step) == len(updater.parameters)]
    assert len(gradients) == 2
    for parameter, first, second in zip(updater.parameters, *gradients, strict=True):
        torch.testing.assert_close(first + second, parameter.grad, atol=1e-12, rtol=1e-9)
        assert not torch.allclose((first + second) / 2, parameter.grad) or not parameter.grad.any()


# --- 18 to 22


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trap_18_equal_rewards_give_exactly_zero(dtype: torch.dtype) -> None:
    """Mistake: (r - mean) / (std + eps) of equal rewards is rounding over almost nothing. Rule: equal means zero."""
    for reward, size in product((0.1, 0.3, 0.6, 0.7, 0.9, 1.0, 1 / 3, 1e-8), (2, 5, 6, 8, 12, 31)):
        rewards, groups = on_one_group([reward] * size, dtype)
        for advantage in ADVANTAGES.values():
            assert advantage(rewards, groups).tolist() == [0.0] * size
        assert group_normalised(rewards, groups, eps=0.0).tolist() == [0.0] * size
        assert not bool(informative_groups(rewards, groups).any())
    naive = [on_one_group([0.1] * size, torch.float64)[0] for size in (6, 12)]
    assert any(float((one - one.mean()).abs().max()) > 0 for one in naive)  # the mistake would show


def test_trap_18_groups_without_signal_do_not_move_the_weights(
    hand_made: Make, make_updater: Make, weights: Make
) -> None:
    """Mistake: rounding of 0.1 is trained on. Rule: not even the optimiser's momentum or decay moves a weight."""
    policy = small_policy()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.1)
    updater = make_updater(policy, Algorithm(), optimizer=optimizer)
    updater.update(uneven(hand_made))
    before = weights(policy)
    rollouts = hand_made([[5], [6]], [[7, 8]] * 12, rewards=[0.1] * 6 + [0.7] * 6)
    rollouts.advantages = Algorithm().advantage(rollouts.rewards, rollouts.groups)
    assert updater.update(rollouts)["update/skipped_steps"] == 1
    assert torch.equal(weights(policy), before)


def test_trap_19_the_deviation_divides_by_one_less_than_the_group() -> None:
    """Mistake: numpy's n and torch's n - 1 differ by 6.5 % at eight. Rule: n - 1; without std is a named choice."""
    rewards = [1.0, 0.0, 0.0, 1.0, 0.25, 0.0, 0.0, 1.0]
    values = group_normalised(*on_one_group(rewards))
    mean, unbiased, biased = statistics.fmean(rewards), statistics.stdev(rewards), statistics.pstdev(rewards)
    assert values.tolist() == pytest.approx([(reward - mean) / (unbiased + 1e-6) for reward in rewards], rel=1e-12)
    assert float(values[0]) != pytest.approx((1 - mean) / biased, rel=0.05)
    # The division makes the one exception of an easy prompt weigh as much as of a hard one; centring does not.
    easy, even = ([1.0] * 7 + [0.0], [1.0] * 4 + [0.0] * 4)
    sizes = {name: [float(ADVANTAGES[name](*on_one_group(part)).abs().mean()) for part in (easy, even)]
             for name in ("group-normalised", "group-centred")}  # fmt: skip
    assert sizes["group-centred"] == pytest.approx([0.21875, 0.5])
    assert sizes["group-normalised"][0] / sizes["group-normalised"][1] > 0.6


def test_trap_20_a_group_of_one_is_refused() -> None:
    """Mistake: one response a prompt trains on the raw reward, or on nothing. Rule: a run with groups of one stops."""
    for advantage in ADVANTAGES:
        with pytest.raises(UserError, match="samples_per_prompt is 1"):
            make_algorithm(Config(samples_per_prompt=1, advantage=advantage))
    rewards, groups = torch.tensor([1.0, 0.0, 0.3]), torch.arange(3)
    assert group_normalised(rewards, groups).tolist() == rewards.tolist()  # documented: the paper's convention
    assert group_centred(rewards, groups).tolist() == [0.0, 0.0, 0.0]  # documented: trains nothing
    with pytest.raises(ValueError, match="at least two rows"):
        leave_one_out(rewards, groups)


def test_trap_21_small_differences_are_not_shrunk() -> None:
    """Mistake: a floor under the variance flattens close rewards. Rule: no floor; only the eps of the formula."""
    wide, groups = on_one_group([1.0, 0.0, 0.0, 1.0, 0.5])
    narrow = 0.5 + 1e-3 * wide
    assert group_normalised(narrow, groups).tolist() == pytest.approx(group_normalised(wide, groups).tolist(), rel=3e-3)
    both = torch.cat([narrow, 100 * wide])  # nor does another group in the batch matter
    beside = group_normalised(both, torch.tensor([0] * 5 + [1] * 5))
    assert beside[:5].tolist() == pytest.approx(group_normalised(narrow, groups).tolist(), rel=1e-12)


def test_trap_22_the_constant_divisor_knows_no_length(hand_made: Make, make_updater: Make, weights: Make) -> None:
    """Mistake: 1/length favours long wrong answers, padded length changes by batch. Rule: divide by a fixed number."""
    lengths = torch.tensor([2, 200])
    short, long = token_weights(lengths, "constant", 256.0).tolist()
    assert short == long == pytest.approx(1 / (2 * 256))
    short, long = token_weights(lengths, "sequence-mean").tolist()
    assert short == pytest.approx(100 * long)  # the bias of the other choice
    algorithm = make_algorithm(Config(aggregation="constant", max_new_tokens=77, kl_coefficient=0.0))
    assert algorithm.length_constant == 77
    results = []
    for columns in (0, 40):
        policy = small_policy()
        make_updater(policy, algorithm).update(uneven(hand_made, columns))
        results.append(weights(policy))
    assert torch.equal(results[0], results[1])


# --- 23


def test_trap_23_gradients_of_the_estimators() -> None:
    """Mistake: k1 or k3 in the loss for the reverse KL. Rule: each one's expected gradient is known and documented."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(6, generator=generator, dtype=torch.float64)

    def expected(estimator: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Gradient of the estimator's mean, with samples of the policy held fixed."""
        logprobs = logits.log_softmax(-1)
        mean = (logprobs.detach().exp() * estimator(logprobs, reference.log_softmax(-1))).sum()
        return torch.autograd.grad(mean, logits)[0]

    reverse = torch.autograd.grad(categorical_kl(logits, reference), logits)[0]
    forward = torch.autograd.grad(categorical_kl(reference, logits), logits)[0]
    assert float((reverse - forward).abs().max()) > 0.05
    assert float(expected(k1).abs().max()) < 1e-12
    assert torch.allclose(expected(k2), reverse, atol=1e-12)
    assert torch.allclose(expected(k3), forward, atol=1e-12)
    with pytest.raises(UserError, match="expected gradient of zero"):
        Algorithm(kl=KLPenalty(0.1, DIVERGENCES["k1"]))
    assert Algorithm(kl=KLPenalty(0.1, DIVERGENCES["k1"], "reward")).kl.in_reward
    lower = kl_in_reward(torch.tensor([1.0]), torch.tensor([[0.5, 0.25]]), torch.ones(1, 2), coefficient=0.1)
    assert float(lower) == pytest.approx(1 - 0.1 * 0.75)  # leaving the reference costs reward


def test_trap_23_the_clamp_lets_go_where_drift_is_largest() -> None:
    """Mistake: a clamped k3 lets go unnoticed. Rule: the clamp is the paper's; k2 or clamp=None pulls everywhere."""
    for drift, pulls in ((0.5, True), (4.0, False), (-12.0, False)):
        for estimator, always in ((k3, False), (k2, True), (lambda new, old: k3(new, old, clamp=None), True)):
            logprob = torch.tensor([-20.0], dtype=torch.float64, requires_grad=True)
            estimator(logprob, logprob.detach() + drift).sum().backward()
            assert bool(logprob.grad.abs() > 0.1) == (pulls or always)


# --- 24, 25


def test_trap_24_form_earns_nothing_by_itself() -> None:
    """Mistake: in a group nobody solves, boxes and tags set the sign. Rule: the reward is correctness, form is free."""
    assert Config().reward == "correctness"
    assert all(preset.get("reward", "correctness") == "correctness" for preset in PRESETS.values())
    task = Task("1", "What is 7 + 5?", "12", "test")
    responses = ["\\boxed{13}", "13", "<think>12</think> <answer>13</answer>", "", "no idea, perhaps 12 but 13"]
    verifications = MathVerifier().verify([task] * 5, responses)
    rewards = [REWARDS["correctness"](one) for one in verifications]
    assert group_normalised(*on_one_group(rewards)).tolist() == [0.0] * 5
    right = MathVerifier().verify([task] * 3, ["\\boxed{12}", "12", "The answer is 12."])
    assert [REWARDS["correctness"](one) for one in right] == [1.0] * 3
    formed = [REWARDS["strict"](one) for one in verifications]
    assert float(group_normalised(*on_one_group(formed))[0]) > 1  # what a format penalty does to such a group
    # A target that is mentioned somewhere is not an answer.
    problem = Task("2", "?", "50", "test", metadata={"numbers": [55, 7, 2], "target": 50})
    texts = ["The target is 50.", "<think>50</think><answer>55-7</answer>", "<answer>50</answer>"]
    assert [one.score for one in CountdownVerifier(use_all=True).verify([problem] * 3, texts)] == [0.0] * 3


def test_trap_25_a_run_that_is_all_truncated_says_so(make_loop: Make, tmp_path: Path, weights: Make) -> None:
    """Mistake: everything is cut off, reward 0, gradient 0, no sign of it. Rule: the metrics that are shown tell."""
    loop = make_loop(tmp_path, right=lambda text: False)
    loop.policy.eos_ids = (10**6,)  # never drawn
    before = weights(loop.policy)
    rollouts, metrics = loop.step(1)
    assert metrics["response/clip_ratio"] == 1.0
    assert metrics["reward"] == metrics["groups/informative"] == 0.0
    assert metrics["groups/all_wrong"] == metrics["update/skipped_steps"] == 1.0
    assert not bool(rollouts.advantages.any())
    assert torch.equal(weights(loop.policy), before)
    assert {"response/clip_ratio", "groups/informative", "reward"} <= {name for name, _, _ in WATCHED}


def test_trap_25_masked_rows_leave_the_loss_but_not_the_group(
    make_loop: Make, tmp_path: Path, hand_made: Make, make_updater: Make, weights: Make
) -> None:
    """Mistake: masked rows still bend the group mean, unsaid. Rule: they do, as in DAPO; the loss never sees them."""
    rewards, groups = on_one_group([1.0, 0.0, 0.0, 0.0])  # were the last two not counted, the mean would be 0.5
    assert group_centred(rewards, groups).tolist() == [0.75, -0.25, -0.25, -0.25]
    loop = make_loop(tmp_path, algorithm=Algorithm(overlong="mask"))
    rollouts, _ = loop.step(1)
    assert rollouts.trained.tolist() == rollouts.samples.stopped.tolist()
    assert not bool(rollouts.trained.all())
    assert torch.equal(rollouts.advantages, group_normalised(rollouts.rewards, rollouts.groups))
    results = []
    for tokens in ([9, 9, 9], [50, 60, 70]):  # whatever stands in a masked row
        policy = small_policy()
        rollouts = hand_made([[5]], [[7, 8], tokens], [1.0, -1.0])
        rollouts.trained[1] = False
        make_updater(policy, Algorithm()).update(rollouts)
        results.append(weights(policy))
    assert torch.equal(results[0], results[1])


# --- 26, 27


def test_trap_26_one_optimiser_step_a_minibatch_and_no_gradient_left_over(
    hand_made: Make, make_updater: Make, weights: Make
) -> None:
    """Mistake: steps inside an accumulation, or gradients kept over it. Rule: micro-batches add up, then one step."""
    policy, calls = small_policy(), []
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.5)
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    updater = make_updater(policy, Algorithm(), optimizer=optimizer, tokens_per_microbatch=10, updates_per_step=2)
    updater.update(uneven(hand_made))
    assert len(calls) == 2
    middle = copy.deepcopy(policy)
    updater.update(uneven(hand_made))
    optimizer = torch.optim.SGD(middle.model.parameters(), lr=0.5)  # a new optimiser, nothing left over
    make_updater(middle, Algorithm(), optimizer=optimizer, updates_per_step=2).update(uneven(hand_made))
    assert float((weights(middle) - weights(policy)).abs().max()) < 1e-12


def test_trap_26_the_optimisers_state_comes_back(hand_made: Make, make_updater: Make, weights: Make) -> None:
    """Mistake: weights are restored, Adam's moments are not. Rule: the step after a resume is the same, bit for bit."""
    results = []
    for resumed in (False, True):
        policy = small_policy()
        optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.01)
        make_updater(policy, Algorithm(), optimizer=optimizer).update(uneven(hand_made))
        if resumed:
            saved = {name: tensor.clone() for name, tensor in snapshot(policy.model, optimizer).items()}
            policy = small_policy(seed=1)
            optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.01)
            restore(policy.model, optimizer, saved)
        make_updater(policy, Algorithm(), optimizer=optimizer).update(uneven(hand_made))
        results.append(weights(policy))
    assert torch.equal(results[0], results[1])


def test_trap_26_the_reference_stays_the_start(hand_made: Make, make_updater: Make) -> None:
    """Mistake: the reference is made at the wrong time or shares the weights. Rule: it scores as the start for ever."""
    policy, rollouts = small_policy(), uneven(hand_made)
    updater = make_updater(policy, Algorithm())
    reference, start = make_reference(policy, updater), updater.scores(policy.model, rollouts)
    updater.update(rollouts)
    assert torch.equal(reference(rollouts), start)
    assert float((updater.scores(policy.model, rollouts) - start).abs().max()) > 1e-3


def test_trap_26_accumulation_under_deepspeed(absent: Make) -> None:
    """Mistake: the engine counts accumulation steps on its own. Rule: to be checked if such an engine is used."""
    absent("DeepSpeed engine (not planned; FSDP)", "deepspeed", "accelerate")


def test_trap_27_what_is_documented_happens(hand_made: Make, make_updater: Make, weights: Make) -> None:
    """Mistake: comment and code apart. Rule: what a docstring promises is tested: capped weights, shuffles, skips."""
    far = truncated_importance_weight(torch.tensor([0.0]), torch.tensor([-9.0]), cap=2.0)
    assert far.tolist() == [2.0]  # the capped ratio, not the ratio
    tasks = [Task(str(index), "?", "0", "test") for index in range(12)]
    deck = Deck(tasks, 4, torch.Generator().manual_seed(0))
    passes = [[task.id for _ in range(3) for task in deck.deal(4)] for _ in range(3)]
    assert all(sorted(one) == sorted(task.id for task in tasks) for one in passes)
    assert len({tuple(one) for one in passes}) == 3  # a fresh shuffle in each pass
    results = []
    for skip in (False, True):  # "their advantages are exactly zero, so the gradient is the same"
        policy = small_policy()
        make_updater(policy, Algorithm(skip_uninformative=skip)).update(uneven(hand_made))
        results.append(weights(policy))
    assert float((results[0] - results[1]).abs().max()) < 1e-12


def test_trap_27_every_option_has_an_effect(source_trees: dict[str, ast.Module]) -> None:
    """Mistake: a setting is accepted and ignored. Rule: each field of the recipe's config is read somewhere."""
    read = {
        node.attr
        for tree in source_trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"
    }
    assert {field.name for field in dataclasses.fields(Config)} - read - {"seed"} == set()  # the seed is the run's


# --- 28


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_trap_28_metrics_keep_their_unit(aggregation: str, hand_made: Make, make_updater: Make) -> None:
    """Mistake: entropy changes its unit with the loss and its value with the split. Rule: nats a token, always."""
    rollouts = uneven(hand_made)
    kl = KLPenalty(0.1)
    first: dict[str, float] = {}
    for budget in (12, 10**6):
        policy = small_policy()
        updater = make_updater(policy, objective(aggregation, kl=kl), tokens_per_microbatch=budget)
        reference = updater.scores(small_policy(seed=1).model, rollouts)
        current = updater.scores(policy.model, rollouts)
        metrics = updater.update(rollouts, reference)
        live = [row for row in range(8) if row not in MASKED]
        drift = k3(rollouts.flat(current, live), rollouts.flat(reference, live))
        assert metrics["policy/kl"] == pytest.approx(float(drift.mean()), rel=1e-6)
        assert 0 < metrics["policy/entropy"] < torch.tensor(100.0).log()  # of a vocabulary of 100, in nats
        first = first or metrics
        assert metrics["policy/entropy"] == pytest.approx(first["policy/entropy"], rel=1e-9)
    token_mean = make_updater(small_policy(), objective(kl=kl)).update(rollouts, reference)
    assert metrics["policy/entropy"] == pytest.approx(token_mean["policy/entropy"], rel=1e-9)


def test_trap_28_uniform_entropy_is_the_log_of_the_vocabulary(
    bigram: Make, hand_made: Make, make_updater: Make
) -> None:
    """Mistake: entropy divided by tokens twice. Rule: a uniform model of ten tokens has ln 10 at any length."""
    policy = bigram("abcdef", torch.zeros(10, 10))
    rollouts = hand_made([[5], [6]], [[7, 8, 9], [7], [4, 4, 5, 6, 7], [9, 9]], [1.0, -1.0, 1.0, -1.0])
    metrics = make_updater(policy, Algorithm(), tokens_per_microbatch=6).update(rollouts)
    assert metrics["policy/entropy"] == pytest.approx(2.302585093, rel=1e-6)


def test_trap_28_the_gradient_norm_is_of_this_step(hand_made: Make, make_updater: Make, weights: Make) -> None:
    """Mistake: the norm of the step before is logged. Rule: it is the length of the step that plain descent takes."""
    policy = small_policy()
    updater = make_updater(policy, Algorithm(), rate=1.0)
    norms = []
    for _ in range(2):
        before = weights(policy)
        norms.append(updater.update(uneven(hand_made))["policy/gradient_norm"])
        assert norms[-1] == pytest.approx(float((weights(policy) - before).norm()), rel=1e-6)
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)


def test_trap_28_the_loss_is_no_headline(hand_made: Make, make_updater: Make) -> None:
    """Mistake: a loss of about 0 is read as "nothing happens". Rule: headlines are accuracy and reward."""
    rollouts = hand_made([[5]], [[7, 8, 9], [9, 8, 7]], [1.0, -1.0])
    metrics = make_updater(small_policy(), Algorithm()).update(rollouts)
    assert metrics["policy/loss"] == pytest.approx(0, abs=1e-9)
    assert metrics["policy/gradient_norm"] > 0.1
    claims = CLAIM if isinstance(CLAIM, tuple) else (CLAIM,)
    headlines = [name for name, _, _ in WATCHED] + [claim.metric for claim in claims]
    assert not [name for name in headlines if "loss" in name]


def test_trap_28_rows_that_are_left_out_are_in_no_mean(hand_made: Make, make_updater: Make) -> None:
    """Mistake: nobody knows which rows a mean is over. Rule: over those in the update, whose share is logged."""
    live, dead = [1.0, -1.0], [0.0, 0.0]
    both = hand_made([[5], [6]], [[7, 8, 9], [7], [4, 4, 5], [9, 9]], live + dead)
    alone = hand_made([[5]], [[7, 8, 9], [7]], live)
    metrics = make_updater(small_policy(), Algorithm()).update(both)
    assert metrics["update/row_share"] == 0.5
    expected = make_updater(small_policy(), Algorithm()).update(alone)["policy/entropy"]
    assert metrics["policy/entropy"] == pytest.approx(expected, rel=1e-9)
