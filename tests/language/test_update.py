"""The update against an independent float64 implementation of the objective, and what may not change it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from zerozoo.language.algorithm import ADVANTAGES, DIVERGENCES, TOKEN_RATIO, Algorithm, Clip, KLPenalty
from zerozoo.language.families import tiny_model
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Samples
from zerozoo.language.update import Updater, UpdateSettings
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.tasks.task import Task

REWARDS = [1.0, 0.0, 0.0, 0.25, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.5, 0.0]  # four groups of four
LENGTHS = [5, 3, 7, 1, 2, 9, 4, 4, 3, 1, 6, 2, 8, 2, 5, 3]
GROUP = 4
TEMPERATURE = 0.8
CONSTANT = 12.0


def make_policy(dtype: str = "float64") -> LanguageModel:
    return tiny_model("llama", hidden=16, heads=2, kv_heads=1, dtype=dtype)


def make_rollouts(dtype: torch.dtype = torch.float64, rewards: Sequence[float] = REWARDS) -> Rollouts:
    """Random tokens with random sampler log-probs, so that nothing can lean on those."""
    generator = torch.Generator().manual_seed(4)
    number, longest = len(rewards), max(LENGTHS)
    lengths = torch.tensor(LENGTHS[:number])
    tokens = torch.randint(4, 90, (number, longest), generator=generator)
    prompts = [torch.randint(4, 90, (size,), generator=generator).tolist() for size in (4, 1, 8, 3)]
    prompts = prompts[: number // GROUP]
    logprobs = -torch.rand((number, longest), generator=generator, dtype=dtype)
    written = torch.arange(longest) < lengths[:, None]
    samples = Samples(
        tokens.masked_fill(~written, 0),
        lengths,
        logprobs * written,
        torch.ones(number, dtype=torch.bool),
        torch.arange(number) // GROUP,
        [""] * number,
    )
    tasks = [Task(f"t{index}", f"question {index}", "0", "test") for index in range(len(prompts))]
    verdicts = [Verification(Verdict.WRONG, "", 0.0, False, 0.0)] * number
    return Rollouts(tasks, prompts, samples, verdicts, torch.tensor(rewards, dtype=dtype))


# --- the reference: equation M1 of the card, written from the paper, sharing no code with the library


@dataclass(frozen=True)
class Choice:
    """One objective, in the words of the reference."""

    advantage: str = "group-normalised"
    aggregation: str = "token-mean"
    clip: tuple[float, float] = (0.2, 0.2)
    kl: float = 0.0
    estimator: str = "k3"
    entropy: float = 0.0
    masked: tuple[int, ...] = ()
    updates: int = 1
    epochs: int = 1

    def algorithm(self) -> Algorithm:
        return Algorithm(
            advantage=ADVANTAGES[self.advantage],
            clip=Clip(*self.clip),
            aggregation=self.aggregation,
            length_constant=CONSTANT if self.aggregation == "constant" else None,
            kl=KLPenalty(self.kl, DIVERGENCES[self.estimator]),
            entropy_coefficient=self.entropy,
        )


def advantages_by_hand(rewards: Sequence[float], kind: str) -> list[float]:
    result = []
    for start in range(0, len(rewards), GROUP):
        group = rewards[start : start + GROUP]
        mean = sum(group) / GROUP
        std = math.sqrt(sum((reward - mean) ** 2 for reward in group) / (GROUP - 1))
        for reward in group:
            others = (sum(group) - reward) / (GROUP - 1)
            result.append(
                {
                    "group-normalised": (reward - mean) / (std + 1e-6),
                    "group-centred": reward - mean,
                    "leave-one-out": reward - others,
                }[kind]
            )
    return result


def forward(model: torch.nn.Module, rollouts: Rollouts) -> tuple[Tensor, Tensor, Tensor]:
    """(N, L) log-prob and entropy of every next token and the mask of response tokens, from full logits."""
    rows = []
    for row, length in enumerate(rollouts.samples.lengths.tolist()):
        prompt = rollouts.prompts[row // GROUP]
        rows.append((len(prompt), prompt + rollouts.samples.tokens[row, :length].tolist()))
    longest = max(len(ids) for _, ids in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for _, row in rows])
    attention = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for _, row in rows])
    response = torch.tensor([[start <= place < len(row) for place in range(1, longest)] for start, row in rows])
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1] / TEMPERATURE
    table = logits.log_softmax(-1)
    return table.gather(-1, ids[:, 1:, None])[..., 0], -(table.exp() * table).sum(-1), response


def loss_by_hand(
    model: torch.nn.Module, rollouts: Rollouts, rows: range, choice: Choice, old: Tensor, anchor: Tensor
) -> Tensor:
    new, entropy, response = forward(model, rollouts)
    trained = torch.tensor([row not in choice.masked for row in range(len(rollouts))])
    mask = (response & trained[:, None])[rows.start : rows.stop].double()
    new, entropy, old, anchor = (values[rows.start : rows.stop] for values in (new, entropy, old, anchor))
    advantage = torch.tensor(advantages_by_hand(rollouts.rewards.tolist(), choice.advantage), dtype=torch.float64)
    advantage = advantage[rows.start : rows.stop, None]
    ratio = (new - old).exp()
    low, high = choice.clip
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    d = anchor - new
    penalty = (d.exp() - d - 1).clamp(-10, 10) if choice.estimator == "k3" else d**2 / 2
    value = gain - choice.kl * penalty + choice.entropy * entropy
    value = torch.where(mask > 0, value, 0.0)
    if choice.aggregation == "token-mean":
        return -value.sum() / mask.sum()
    if choice.aggregation == "sequence-mean":
        present = mask.sum(1) > 0
        return -(value.sum(1)[present] / mask.sum(1)[present]).mean()
    return -value.sum() / (len(mask) * CONSTANT)


def train_by_hand(
    policy: LanguageModel, rollouts: Rollouts, choice: Choice, anchor: Tensor, rate: float
) -> list[float]:
    """Plain gradient descent in place; the norm of each step's gradient."""
    model = policy.model
    with torch.no_grad():
        old = forward(model, rollouts)[0]
    share = len(rollouts) // choice.updates
    norms = []
    for _ in range(choice.epochs):
        for start in range(0, len(rollouts), share):
            loss = loss_by_hand(model, rollouts, range(start, start + share), choice, old, anchor)
            parameters = list(model.parameters())
            gradients = torch.autograd.grad(loss, parameters)
            norms.append(float(torch.cat([part.flatten() for part in gradients]).norm()))
            with torch.no_grad():
                for parameter, part in zip(parameters, gradients, strict=True):
                    parameter.sub_(rate * part)
    return norms


def weights(policy: LanguageModel) -> Tensor:
    return torch.cat([value.detach().flatten() for value in policy.model.parameters()])


def make_updater(
    policy: LanguageModel, algorithm: Algorithm, rate: float = 1.0, optimizer: Any = None, **options: Any
) -> Updater:
    settings = {"max_gradient_norm": 1e9, "temperature": TEMPERATURE, "tokens_per_microbatch": 40, **options}
    optimizer = optimizer or torch.optim.SGD(policy.model.parameters(), lr=rate)
    return Updater(policy, optimizer, algorithm, UpdateSettings(**settings))


def credited(rollouts: Rollouts, algorithm: Algorithm, masked: Sequence[int] = ()) -> Rollouts:
    rollouts.advantages = algorithm.advantage(rollouts.rewards, rollouts.groups)
    rollouts.trained[list(masked)] = False
    return rollouts


def other_model() -> LanguageModel:
    """A reference model that is not the policy."""
    policy = make_policy()
    with torch.no_grad():
        for number, parameter in enumerate(policy.model.parameters()):
            parameter.mul_(1 + 0.05 * math.sin(number))
    return policy


CHOICES = {
    "paper": Choice(),
    "sequence mean": Choice(aggregation="sequence-mean"),
    "constant": Choice(aggregation="constant"),
    "centred": Choice(advantage="group-centred"),
    "leave one out": Choice(advantage="leave-one-out", aggregation="sequence-mean"),
    "k3": Choice(kl=0.3),
    "k2": Choice(kl=0.3, estimator="k2", aggregation="constant"),
    "entropy": Choice(entropy=0.2),
    "entropy, k3 and masked rows": Choice(entropy=0.1, kl=0.1, masked=(0, 5, 9), aggregation="sequence-mean"),
    "masked rows": Choice(masked=(0, 6, 15)),
    "masked rows, constant": Choice(masked=(0, 6, 15), aggregation="constant"),
    "four steps": Choice(updates=4),
    "two epochs": Choice(epochs=2, updates=2),
    "two epochs, narrow clip": Choice(epochs=2, updates=2, clip=(0.05, 0.02)),
    "two epochs, high clip": Choice(epochs=2, updates=2, clip=(0.1, 0.3), aggregation="constant"),
    "all at once": Choice("leave-one-out", "sequence-mean", (0.1, 0.25), 0.2, "k3", 0.05, (3,), 2, 2),
}


@pytest.mark.parametrize("name", CHOICES)
def test_weights_after_the_update_are_those_of_the_reference(name: str) -> None:
    choice, rate = CHOICES[name], 0.5
    ours, theirs, start = make_policy(), make_policy(), weights(make_policy())
    rollouts, algorithm = make_rollouts(), choice.algorithm()
    with torch.no_grad():
        anchor = forward(other_model().model, rollouts)[0]
    norms = train_by_hand(theirs, rollouts, choice, anchor, rate)
    updater = make_updater(
        ours, algorithm, rate, updates_per_step=choice.updates, epochs=choice.epochs, share_prompts=False
    )
    reference = updater.scores(other_model().model, rollouts) if choice.kl else None
    metrics = updater.update(credited(rollouts, algorithm, choice.masked), reference)
    moved = float((weights(theirs) - start).abs().max())
    assert moved > 1e-3
    # Not 1e-12: the weights of the aggregation are float32.
    # Norms are float32 inside on both sides, and round differently on the way back.
    assert float((weights(ours) - weights(theirs)).abs().max()) < 1e-5 * moved
    taken = [norm for norm in norms if norm > 0]  # a step without any informative group is not taken
    assert metrics["policy/gradient_norm"] == pytest.approx(sum(taken) / len(taken), rel=1e-6)
    if choice.epochs > 1:
        assert 0.05 < metrics["policy/clip_fraction"] < 0.95  # the clip takes part in what was compared


def test_the_reference_tells_the_choices_apart() -> None:
    """The comparison above could fail: every choice gives weights of its own."""
    results = []
    for choice in CHOICES.values():
        policy, rollouts = make_policy(), make_rollouts()
        with torch.no_grad():
            anchor = forward(other_model().model, rollouts)[0]
        train_by_hand(policy, rollouts, choice, anchor, 0.5)
        results.append(weights(policy))
    for index, first in enumerate(results):
        for second in results[:index]:
            assert float((first - second).abs().max()) > 1e-4


# --- what may not change the result


def updated(
    rollouts: Rollouts | None = None, choice: Choice = CHOICES["all at once"], skip: bool = True, **options: Any
) -> Tensor:
    """Weights after one update with the given cut into micro-batches."""
    policy, algorithm = make_policy(), replace(choice.algorithm(), skip_uninformative=skip)
    rollouts = credited(rollouts or make_rollouts(), algorithm)
    updater = make_updater(policy, algorithm, 0.5, updates_per_step=choice.updates, epochs=choice.epochs, **options)
    reference = updater.scores(other_model().model, rollouts) if choice.kl else None
    updater.update(rollouts, reference)
    return weights(policy)


@pytest.mark.parametrize("layout", [{"packed": False}, {"packed": True}, {"share_prompts": True}])
@pytest.mark.parametrize("budget", [1, 17, 60, 10**6])
def test_micro_batches_padding_packing_and_sharing_change_nothing(budget: int, layout: dict[str, bool]) -> None:
    """Trap 17: the normaliser belongs to the mini-batch."""
    expected = updated(tokens_per_microbatch=40, share_prompts=False)
    difference = updated(tokens_per_microbatch=budget, **({"share_prompts": False} | layout)) - expected
    # The norms work in float32 inside: a shared prompt passes its gradient through them as one sum, not as many.
    assert float(difference.abs().max()) < (1e-6 if layout.get("share_prompts") else 1e-12)


def test_wider_padding_with_other_values_in_it_changes_nothing() -> None:
    """Trap 22."""
    rollouts = make_rollouts()
    wide = make_rollouts()
    written = torch.arange(20) < wide.samples.lengths[:, None]
    tokens = torch.full((len(wide), 20), 77)
    tokens[:, : max(LENGTHS)] = torch.where(written[:, : max(LENGTHS)], wide.samples.tokens, 77)
    wide.samples.tokens = tokens
    wide.samples.logprobs = torch.full((len(wide), 20), -3.0, dtype=torch.float64)
    assert torch.equal(updated(rollouts), updated(wide))


def test_the_order_of_rows_changes_nothing() -> None:
    """Card M8: the group of a row is known by its id, not by its place."""
    rollouts = make_rollouts()
    order = torch.randperm(len(rollouts), generator=torch.Generator().manual_seed(0))
    samples = rollouts.samples
    shuffled = replace(
        rollouts,
        samples=Samples(
            samples.tokens[order],
            samples.lengths[order],
            samples.logprobs[order],
            samples.stopped[order],
            samples.groups[order],
            samples.texts,
        ),
        rewards=rollouts.rewards[order],
    )
    assert float((updated(shuffled) - updated(rollouts)).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["paper", "sequence mean", "constant", "two epochs"])
def test_leaving_out_uninformative_rows_changes_no_gradient(name: str) -> None:
    choice = CHOICES[name]
    difference = updated(choice=choice, skip=True) - updated(choice=choice, skip=False)
    assert float(difference.abs().max()) < 1e-12


def test_only_rows_with_an_advantage_go_through_the_model() -> None:
    algorithm = Algorithm()
    rollouts = credited(make_rollouts(), algorithm)
    rollouts.trained[0] = False
    metrics = make_updater(make_policy(), algorithm).update(rollouts)
    # The third group is all right. Of the other twelve rows one is masked, and none has the mean of its group.
    assert metrics["update/rows"] == 11
    assert metrics["update/row_share"] == 11 / 16
    kept = make_updater(make_policy(), Algorithm(skip_uninformative=False)).update(rollouts)
    assert kept["update/row_share"] == 15 / 16
    # A KL or entropy term gives the other rows a gradient.
    assert not Algorithm(entropy_coefficient=0.1).skips_rows
    assert not Algorithm(kl=KLPenalty(0.1)).skips_rows
    assert Algorithm(kl=KLPenalty(0.1, place="reward")).skips_rows


def test_no_optimiser_step_without_any_informative_row() -> None:
    """Otherwise Adam's momentum and the weight decay would move the weights on no evidence."""
    policy = make_policy()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.1, weight_decay=0.1)
    algorithm = Algorithm()
    updater = make_updater(policy, algorithm, optimizer=optimizer)
    updater.update(credited(make_rollouts(), algorithm))
    before = weights(policy)
    metrics = updater.update(credited(make_rollouts(rewards=[1.0] * 16), algorithm))
    assert torch.equal(weights(policy), before)
    counted = dict.fromkeys(("rows", "row_share", "response_tokens", "tokens", "padded_tokens"), 0.0)
    assert metrics == {f"update/{name}": value for name, value in {**counted, "skipped_steps": 1.0}.items()}


# --- on-policy, old log-probs, mini-batches


@pytest.mark.parametrize(("updates", "epochs"), [(1, 1), (2, 1), (2, 2), (1, 2)])
def test_the_first_gradient_step_has_a_ratio_of_exactly_one(
    updates: int, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 16: not even the rounding of another cut into micro-batches enters, here exaggerated to 0.01."""
    ratios: list[float] = []

    def watched(logprobs: Tensor, old: Tensor, *rest: Any) -> Tensor:
        ratios.append(float((logprobs.detach() - old).abs().max()))
        return TOKEN_RATIO.tokens(logprobs, old, *rest)

    scores = Updater.scores
    monkeypatch.setattr(Updater, "scores", lambda *arguments: scores(*arguments) + 0.01)
    loss = replace(TOKEN_RATIO, tokens=watched)
    policy, algorithm = make_policy("float32"), Algorithm(skip_uninformative=False, policy_loss=loss)
    updater = make_updater(policy, algorithm, 0.5, updates_per_step=updates, epochs=epochs, tokens_per_microbatch=10**6)
    updater.update(credited(make_rollouts(torch.float32), algorithm))
    assert len(ratios) == updates * epochs
    assert ratios[0] == 0.0
    assert all(ratio > 0.01 for ratio in ratios[1:])


def test_the_samplers_logprobs_do_not_enter_the_gradient() -> None:
    """Card M1: the old log-probs are the learner's own; the sampler's are compared, not used."""
    other = make_rollouts()
    other.samples.logprobs = other.samples.logprobs * 3 - 1
    assert torch.equal(updated(), updated(other))


@pytest.mark.parametrize(
    ("updates", "expected"),
    [(1, [[0, 1, 2, 3]]), (2, [[0, 1], [2, 3]]), (3, [[0, 1], [2], [3]]), (9, [[0], [1], [2], [3]])],
)
def test_mini_batches_are_whole_groups_in_order(updates: int, expected: list[list[int]]) -> None:
    updater = make_updater(make_policy(), Algorithm(), updates_per_step=updates)
    rollouts = make_rollouts()
    batches = updater._minibatches(rollouts)
    assert [sorted(set(rollouts.groups[rows].tolist())) for rows in batches] == expected
    assert [row for rows in batches for row in rows] == list(range(16))


def test_scores_are_those_of_the_given_model_and_leave_its_mode() -> None:
    policy = make_policy()
    updater = make_updater(policy, Algorithm(), tokens_per_microbatch=30)
    rollouts = make_rollouts()
    other = other_model().model.train()
    scores = updater.scores(other, rollouts)
    assert other.training
    assert not scores.requires_grad
    expected, _, response = forward(other.eval(), rollouts)
    mask = torch.arange(scores.shape[1]) < rollouts.samples.lengths[:, None]
    assert float((scores[mask] - expected[response].detach()).abs().max()) < 1e-12
    assert float(scores[~mask].abs().max()) == 0.0


# --- dropout and checkpointing


def test_dropout_is_off_and_checkpointing_runs_every_layer_twice() -> None:
    """transformers checkpoints only in training mode, and training mode turns dropout on (trap 16)."""
    results, calls = [], []
    for checkpointing in (False, True):
        policy, algorithm = make_policy(), Algorithm()
        count = [0]
        for layer in policy.model.model.layers:
            layer.self_attn.attention_dropout = 0.5
            layer.mlp.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        if checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.model.train()
        updater = make_updater(policy, algorithm, tokens_per_microbatch=10**6)
        updater.update(credited(make_rollouts(), algorithm))
        results.append(weights(policy))
        calls.append(count[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], _without_dropout())
    assert calls == [2, 4]  # two layers, one micro-batch


def _without_dropout() -> Tensor:
    policy, algorithm = make_policy(), Algorithm()
    policy.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: None)  # the same code runs for hooked models
    make_updater(policy, algorithm, tokens_per_microbatch=10**6).update(credited(make_rollouts(), algorithm))
    return weights(policy)


# --- divergence, clipping of the gradient, metrics


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run_and_touches_nothing(poison: float) -> None:
    policy, algorithm = make_policy(), Algorithm()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.1)
    updater = make_updater(policy, algorithm, optimizer=optimizer)
    rollouts = credited(make_rollouts(), algorithm)
    rollouts.advantages[2] = poison
    before = weights(policy)
    with pytest.raises(DivergedError, match="gradient norm became (nan|inf); the step was not taken"):
        updater.update(rollouts)
    assert torch.equal(weights(policy), before)
    assert not optimizer.state
    rollouts.advantages[2] = 0.5
    updater.update(rollouts)  # the bad gradient has left nothing behind
    assert bool(torch.isfinite(weights(policy)).all())


def test_divergence_in_a_later_step_keeps_the_steps_before_it() -> None:
    policy, algorithm = make_policy(), Algorithm()
    rollouts = credited(make_rollouts(), algorithm)
    rollouts.advantages[-1] = math.nan
    with pytest.raises(DivergedError):
        make_updater(policy, algorithm, 0.5, updates_per_step=2).update(rollouts)
    half = make_policy()
    make_updater(half, algorithm, 0.5).update(credited(make_rollouts().take_groups([0, 1]), algorithm))
    assert float((weights(policy) - weights(half)).abs().max()) < 1e-12


def test_gradients_are_scaled_down_to_the_norm_and_the_norm_before_is_reported() -> None:
    algorithm = Algorithm()
    start = weights(make_policy())
    free, held = make_policy(), make_policy()
    full = make_updater(free, algorithm).update(credited(make_rollouts(), algorithm))
    clipped = make_updater(held, algorithm, max_gradient_norm=0.01).update(credited(make_rollouts(), algorithm))
    norm = float((weights(free) - start).norm())
    assert norm > 0.1
    assert full["policy/gradient_norm"] == clipped["policy/gradient_norm"] == pytest.approx(norm, rel=1e-6)
    step = weights(held) - start
    assert float(step.norm()) == pytest.approx(0.01, rel=1e-3)
    assert float((step / step.norm() - (weights(free) - start) / norm).abs().max()) < 1e-6


def test_the_gradient_norm_is_that_of_this_update() -> None:
    """Trap 28: not the one before."""
    algorithm = Algorithm()
    policy = make_policy()
    updater = make_updater(policy, algorithm)
    updater.update(credited(make_rollouts(), algorithm))
    before = weights(policy)
    metrics = updater.update(credited(make_rollouts(), algorithm))
    assert metrics["policy/gradient_norm"] == pytest.approx(float((weights(policy) - before).norm()), rel=1e-6)


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "constant"])
@pytest.mark.parametrize("budget", [20, 10**6])
def test_entropy_and_kl_are_means_per_token_whatever_the_loss(aggregation: str, budget: int) -> None:
    """Trap 28."""
    choice = Choice(aggregation=aggregation, kl=0.1, entropy=0.01)
    policy, rollouts, algorithm = make_policy(), make_rollouts(), choice.algorithm()
    with torch.no_grad():
        new, entropy, response = forward(policy.model, rollouts)
        anchor = forward(other_model().model, rollouts)[0]
    d = (anchor - new)[response]
    updater = make_updater(policy, algorithm, tokens_per_microbatch=budget)
    reference = updater.scores(other_model().model, rollouts)
    metrics = updater.update(credited(rollouts, algorithm), reference)
    assert metrics["policy/entropy"] == pytest.approx(float(entropy[response].mean()), rel=1e-9)
    assert metrics["policy/kl"] == pytest.approx(float((d.exp() - d - 1).mean()), rel=1e-9)
    assert metrics["policy/clip_fraction"] == 0.0


def test_loss_is_a_mean_over_the_gradient_steps() -> None:
    """Its unit does not change with the number of steps; it is -mean(w A) on-policy (M9)."""
    algorithm = Algorithm(aggregation="constant", length_constant=CONSTANT)
    rollouts = credited(make_rollouts(), algorithm)
    one = make_updater(make_policy(), algorithm, rate=0.0).update(rollouts)
    four = make_updater(make_policy(), algorithm, rate=0.0, updates_per_step=4).update(rollouts)
    expected = -float((rollouts.advantages * rollouts.samples.lengths).sum()) / (16 * CONSTANT)
    assert one["policy/loss"] == pytest.approx(expected, rel=1e-5)
    assert four["policy/loss"] == pytest.approx(expected, rel=1e-5)
    assert four["update/skipped_steps"] == 1  # the third group is all right


def test_sampler_mismatch_is_the_largest_difference_of_the_first_step() -> None:
    policy, algorithm = make_policy(), Algorithm(skip_uninformative=False)
    rollouts = credited(make_rollouts(), algorithm)
    updater = make_updater(policy, algorithm, 0.5, updates_per_step=2)
    rollouts.samples.logprobs = updater.scores(policy.model, rollouts)
    rollouts.samples.logprobs[3, 0] += 0.125
    rollouts.samples.logprobs[12:] += 5.0  # second step: the weights have moved, nothing to compare
    metrics = updater.update(rollouts)
    assert metrics["policy/sampler_mismatch"] == pytest.approx(0.125, abs=1e-9)
    # k3 of one token, over those of the first half: log-prob of the learner minus that of the sampler is -1/8
    assert metrics["policy/sampler_kl"] == pytest.approx((math.exp(-0.125) + 0.125 - 1) / sum(LENGTHS[:8]), rel=1e-6)


@pytest.mark.parametrize("updates", [1, 2])
def test_importance_weights_multiply_the_gradient_of_each_token(updates: int) -> None:
    """The gradient is -1/M sum w A grad rho with w = min(pi_old / sampler, cap), in every gradient step."""
    cap, algorithm = 1.5, Algorithm(clip=Clip(1.0, 1e9))
    rollouts = credited(make_rollouts(), algorithm)
    policy = make_policy()
    updater = make_updater(policy, algorithm, 0.3, importance_cap=cap, updates_per_step=updates)
    noise = torch.randn(
        rollouts.samples.logprobs.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    old = updater.scores(policy.model, rollouts)
    written = torch.arange(old.shape[1]) < rollouts.samples.lengths[:, None]
    rollouts.samples.logprobs = old + noise * written
    expected = make_policy()
    optimizer = torch.optim.SGD(expected.model.parameters(), lr=0.3)
    for half in torch.arange(16).chunk(updates):
        logprobs, _, response = forward(expected.model, rollouts)
        new = torch.zeros_like(old).masked_scatter(written, logprobs[response])
        weight = (-noise).exp().clamp(max=cap)
        token_loss = -weight * rollouts.advantages[:, None] * (new - old).exp()
        loss = (token_loss * written)[half].sum() / written[half].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    updater.update(rollouts)
    assert (weight[written] == cap).any()
    assert (weight[written] < cap).any()
    assert torch.allclose(weights(policy), weights(expected), atol=1e-6)  # norms are float32 inside
    assert not torch.allclose(weights(policy), weights(make_policy()), atol=1e-3)


# --- the choices themselves


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Algorithm(aggregation="mean"), "Unknown aggregation 'mean'; choose one of: token-mean"),
        (lambda: Algorithm(overlong="drop"), "Unknown overlong 'drop'"),
        (lambda: Algorithm(kl=KLPenalty(0.1, place="advantage")), "Unknown kl place 'advantage'"),
        (lambda: Algorithm(kl=KLPenalty(0.1, DIVERGENCES["k1"])), "k1 as a term of the loss"),
    ],
)
def test_algorithms_refuse_what_makes_no_sense(make: Callable[[], Algorithm], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_k1_is_allowed_in_the_reward_and_without_a_coefficient() -> None:
    Algorithm(kl=KLPenalty(0.1, DIVERGENCES["k1"], "reward"))
    Algorithm(kl=KLPenalty(0.0, DIVERGENCES["k1"]))
