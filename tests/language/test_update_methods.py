"""Every policy loss, advantages of single tokens and masks of tokens, against float64 implementations of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from test_update import (
    GROUP,
    LENGTHS,
    credited,
    forward,
    make_policy,
    make_rollouts,
    make_updater,
    other_model,
    weights,
)
from torch import Tensor

from zerozoo.language.algorithm import (
    ADVANTAGES,
    CLIPPED_WEIGHT,
    DIVERGENCES,
    SEQUENCE_RATIO,
    TOKEN_RATIO,
    Algorithm,
    Clip,
    KLPenalty,
    PolicyLoss,
)
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts

NUMBER, LONGEST = len(LENGTHS), max(LENGTHS)
RATE = 0.5
UPDATES, EPOCHS = 2, 2
CONSTANT = 12.0

# --- references: the loss of one row, a value for each of its tokens; equations from the papers, no code of the library

Rule = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


def ppo_row(new: Tensor, old: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    ratio = (new - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def gspo_row(new: Tensor, old: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """The sequence form of the paper, the same number at every token."""
    ratio = (new.sum() - old.sum()).div(len(new)).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def cispo_row(new: Tensor, old: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    return -((new - old).exp().clamp(1 - low, 1 + high).detach() * advantage * new)


@dataclass(frozen=True)
class Method:
    loss: PolicyLoss
    rule: Rule
    clip: tuple[float, float] = (0.2, 0.2)
    aggregation: str = "token-mean"
    advantage: str = "group-normalised"
    by_token: bool = False
    masked: bool = False
    kl: float = 0.0

    def algorithm(self) -> Algorithm:
        return Algorithm(
            advantage=ADVANTAGES[self.advantage],
            clip=Clip(*self.clip),
            aggregation=self.aggregation,
            length_constant=CONSTANT if self.aggregation == "constant" else None,
            kl=KLPenalty(self.kl, DIVERGENCES["k2"]),
            policy_loss=self.loss,
        )


METHODS = {
    "dapo": Method(TOKEN_RATIO, ppo_row, (0.02, 0.28)),
    "dr-grpo": Method(TOKEN_RATIO, ppo_row, aggregation="constant", advantage="group-centred"),
    "rloo": Method(TOKEN_RATIO, ppo_row, (0.05, 0.05), "constant", "leave-one-out"),
    "reinforce++ with a baseline": Method(TOKEN_RATIO, ppo_row, (0.05, 0.05), advantage="batch-scaled"),
    "gspo": Method(SEQUENCE_RATIO, gspo_row, (0.2, 0.3), "sequence-mean"),
    "gspo, everything clipped": Method(SEQUENCE_RATIO, gspo_row, (0.0, 0.0), "sequence-mean"),
    "gspo, own tokens only": Method(SEQUENCE_RATIO, gspo_row, (0.2, 0.3), "sequence-mean", masked=True),
    "cispo": Method(CLIPPED_WEIGHT, cispo_row, (1.0, 0.05)),
    "cispo, two bounds": Method(CLIPPED_WEIGHT, cispo_row, (0.03, 0.05), "sequence-mean"),
    "advantages of tokens": Method(TOKEN_RATIO, ppo_row, (0.05, 0.05), by_token=True),
    "advantages of tokens, constant": Method(TOKEN_RATIO, ppo_row, (0.05, 0.05), "constant", by_token=True),
    "advantages of tokens, cispo": Method(CLIPPED_WEIGHT, cispo_row, (1.0, 0.05), by_token=True),
    "own tokens only": Method(TOKEN_RATIO, ppo_row, (0.05, 0.05), masked=True),
    "all at once": Method(TOKEN_RATIO, ppo_row, (0.05, 0.1), "sequence-mean", by_token=True, masked=True, kl=0.2),
}


def advantages_of_rows(rewards: Tensor, kind: str) -> Tensor:
    """(N,), by the definitions."""
    groups = rewards.view(-1, GROUP)
    centred = groups - groups.mean(1, keepdim=True)
    if kind == "group-normalised":
        return (centred / (groups.std(1, keepdim=True) + 1e-6)).flatten()
    if kind == "leave-one-out":
        return (centred * GROUP / (GROUP - 1)).flatten()
    if kind == "batch-scaled":
        return centred.flatten() / (centred.flatten().square().mean() + 1e-8).sqrt()
    return centred.flatten()


def prepared(method: Method) -> Rollouts:
    """Rollouts with credit, of tokens and with a mask where the method has them; one row has neither."""
    rollouts = credited(make_rollouts(), method.algorithm())
    generator = torch.Generator().manual_seed(9)
    if method.by_token:
        values = torch.randn((NUMBER, LONGEST), generator=generator, dtype=torch.float64)
        rollouts.advantages = values * rollouts.written()
        rollouts.advantages[3] = 0.0
    if method.masked:
        rollouts.trained = (torch.rand((NUMBER, LONGEST), generator=generator) < 0.6) | ~rollouts.written()
        rollouts.trained[5] = False
    return rollouts


def loss_by_hand(
    model: torch.nn.Module, rollouts: Rollouts, rows: range, method: Method, old: Tensor, anchor: Tensor
) -> Tensor:
    new, _, response = forward(model, rollouts)
    of_rows = advantages_of_rows(rollouts.rewards, method.advantage)
    parts, lengths = [], []
    for row in rows:
        length = LENGTHS[row]
        own = rollouts.trained[row, :length] if method.masked else torch.ones(length, dtype=torch.bool)
        now, before, reference = (values[row, response[row]][own] for values in (new, old, anchor))
        credit = rollouts.advantages[row, :length][own] if method.by_token else of_rows[row].expand(int(own.sum()))
        lengths.append(len(now))
        if len(now):
            tokens = method.rule(now, before, credit, *method.clip)
            tokens = tokens + method.kl * (now - reference) ** 2 / 2
            parts.append(tokens.mean() if method.aggregation == "sequence-mean" else tokens.sum())
    divisor = {"token-mean": sum(lengths), "sequence-mean": len(parts), "constant": len(lengths) * CONSTANT}
    return torch.stack(parts).sum() / divisor[method.aggregation]


def train_by_hand(policy: LanguageModel, method: Method) -> None:
    rollouts = prepared(method)
    with torch.no_grad():
        old, anchor = forward(policy.model, rollouts)[0], forward(other_model().model, rollouts)[0]
    share = NUMBER // UPDATES
    for _ in range(EPOCHS):
        for start in range(0, NUMBER, share):
            loss = loss_by_hand(policy.model, rollouts, range(start, start + share), method, old, anchor)
            parameters = list(policy.model.parameters())
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(RATE * gradient)


def trained(
    method: Method, rollouts: Rollouts | None = None, rate: float = RATE, **options: Any
) -> tuple[Tensor, dict[str, float]]:
    """Weights and metrics after one update by the library."""
    policy, rollouts = make_policy(), rollouts or prepared(method)
    settings = {"updates_per_step": UPDATES, "epochs": EPOCHS, "share_prompts": False, **options}
    updater = make_updater(policy, method.algorithm(), rate, **settings)
    reference = updater.scores(other_model().model, rollouts) if method.kl else None
    metrics = updater.update(rollouts, reference)
    return weights(policy), metrics


@pytest.mark.parametrize("name", METHODS)
def test_weights_after_the_update_are_those_of_the_reference(name: str) -> None:
    method, start = METHODS[name], weights(make_policy())
    theirs = make_policy()
    train_by_hand(theirs, method)
    ours, metrics = trained(method)
    moved = float((weights(theirs) - start).abs().max())
    assert moved > 1e-3
    # Not 1e-12: the weights of the aggregation are float32.
    assert float((ours - weights(theirs)).abs().max()) < 1e-6 * moved
    if method.clip != (0.2, 0.2):
        assert 0.02 < metrics["policy/clip_fraction"] < 0.98  # the clip takes part in what was compared


def test_the_references_tell_the_methods_apart() -> None:
    """The comparison above could fail."""
    results = []
    for method in METHODS.values():
        policy = make_policy()
        train_by_hand(policy, method)
        results.append(weights(policy))
    for index, first in enumerate(results):
        for other, second in enumerate(results[:index]):
            assert float((first - second).abs().max()) > 1e-4, (list(METHODS)[index], list(METHODS)[other])


# --- what may not change the result

NAMES = ["gspo", "cispo", "gspo, own tokens only", "all at once"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [{}, {"packed": True}, {"share_prompts": True}], ids=["padded", "packed", "shared"])
@pytest.mark.parametrize("budget", [1, 30, 10**6])
def test_micro_batches_padding_packing_and_sharing_change_nothing(
    name: str, budget: int, layout: dict[str, bool]
) -> None:
    expected, metrics = trained(METHODS[name], rate=0.1, tokens_per_microbatch=40)
    result, others = trained(METHODS[name], rate=0.1, tokens_per_microbatch=budget, **layout)
    # The norms work in float32 inside: a shared prompt passes its gradient through them as one sum, not as many.
    assert float((result - expected).abs().max()) < (1e-6 if layout.get("share_prompts") else 1e-12)
    assert others["policy/clip_fraction"] == pytest.approx(metrics["policy/clip_fraction"], abs=1e-9)
    assert others["update/response_tokens"] == metrics["update/response_tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_wider_padding_changes_nothing(name: str) -> None:
    method, rollouts = METHODS[name], prepared(METHODS[name])
    wide = prepared(method)

    def widen(values: Tensor, filling: float) -> Tensor:
        return torch.nn.functional.pad(values, (0, 4), value=filling)

    wide.samples.tokens, wide.samples.logprobs = widen(wide.samples.tokens, 77), widen(wide.samples.logprobs, -3.0)
    if method.by_token:
        wide.advantages = widen(wide.advantages, 0.0)
    if method.masked:
        wide.trained = widen(wide.trained.int(), 1).bool()
    assert torch.equal(trained(method, rollouts)[0], trained(method, wide)[0])


# --- credit of tokens, in particular


def test_one_advantage_for_all_tokens_of_a_row_is_the_advantage_of_the_row() -> None:
    """Bit for bit: the group methods are a case of the methods with token credit."""
    method = METHODS["dapo"]
    rollouts = prepared(method)
    rollouts.advantages = rollouts.advantages[:, None] * rollouts.written()
    for first, second in zip(trained(method), trained(method, rollouts), strict=True):
        assert torch.equal(first, second) if isinstance(first, Tensor) else first == second


def test_a_row_with_one_token_that_matters_is_trained() -> None:
    method, rollouts = METHODS["dapo"], prepared(METHODS["dapo"])
    rollouts.advantages = torch.zeros((NUMBER, LONGEST), dtype=torch.float64)
    rollouts.advantages[2, 6] = 1.0
    _, metrics = trained(method, rollouts, updates_per_step=1, epochs=1)
    assert metrics["update/rows"] == 1
    rollouts.advantages[2, 6] = 0.0
    _, metrics = trained(method, rollouts, updates_per_step=1, epochs=1)
    assert metrics["update/skipped_steps"] == 1


def test_tokens_that_an_environment_wrote_are_in_no_number() -> None:
    """Their log-probs may be anything: neither loss, ratio, means nor the comparison with the sampler sees them."""
    method = METHODS["gspo, own tokens only"]
    rollouts, other = prepared(method), prepared(method)
    foreign = ~other.trained & other.written()
    assert int(foreign.sum()) > 10
    other.samples.logprobs = torch.where(foreign, -50.0, other.samples.logprobs)
    first, metrics = trained(method, rollouts)
    second, others = trained(method, other)
    assert torch.equal(first, second)
    assert metrics == others
    own = (rollouts.trained & rollouts.written()).sum(1)
    own[8:12] = 0  # the third group is all right
    assert metrics["update/response_tokens"] == EPOCHS * int(own.sum())


def test_old_logprobs_that_are_known_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS["dapo"]
    expected, _ = trained(method)
    policy, rollouts = make_policy(), prepared(method)
    updater = make_updater(
        policy, method.algorithm(), RATE, updates_per_step=UPDATES, epochs=EPOCHS, share_prompts=False
    )
    old = updater.scores(policy.model, rollouts)
    monkeypatch.setattr(type(updater), "scores", lambda *_: pytest.fail("computed a second time"))
    updater.update(rollouts, old=old)
    assert torch.equal(weights(policy), expected)


def test_leaving_out_rows_without_any_advantage_changes_no_gradient() -> None:
    method = METHODS["advantages of tokens"]
    rollouts = prepared(method)
    rollouts.advantages[3] = 0.0
    kept = make_policy()
    algorithm = replace(method.algorithm(), skip_uninformative=False)
    make_updater(kept, algorithm, RATE, updates_per_step=UPDATES, epochs=EPOCHS, share_prompts=False).update(rollouts)
    assert math.isclose(float((trained(method, rollouts)[0] - weights(kept)).abs().max()), 0.0, abs_tol=1e-12)
