"""The age of responses: what is measured, what is left out of the loss, and how the loss weights the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import make_loop, make_tasks, odd, weights
from test_update import TEMPERATURE, credited, make_policy, make_rollouts, make_updater

from zerozoo.language.algorithm import Algorithm, Clip
from zerozoo.language.build import check_numbers, make_loop_settings, make_update_settings
from zerozoo.language.device import Machine
from zerozoo.language.plan import describe_plan
from zerozoo.language.rollouts import Rollouts, join_rollouts
from zerozoo.language.samplers.interface import Decoding, Pending, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.staleness import row_ages, staleness_metrics, token_ages, written_by
from zerozoo.language.training import complete
from zerozoo.language.update import _Totals
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.losses.weights import truncated_importance_weight
from zerozoo.recipes.reasoning.simplerl_zoo import Config
from zerozoo.runs.errors import UserError

MACHINE = Machine("cpu", None, tokens_per_microbatch=64, rows_at_once=4)


def make_samples(versions: Sequence[Sequence[int]]) -> Samples:
    """One row for each list of versions of its tokens."""
    longest = max(map(len, versions))
    return Samples(
        tokens=torch.ones((len(versions), longest), dtype=torch.int64),
        lengths=torch.tensor([len(row) for row in versions]),
        logprobs=torch.zeros((len(versions), longest)),
        stopped=torch.ones(len(versions), dtype=torch.bool),
        groups=torch.arange(len(versions)),
        texts=[""] * len(versions),
        versions=torch.tensor([[*row, *[0] * (longest - len(row))] for row in versions], dtype=torch.int32),
    )


# --- the measures


def test_ages_by_hand() -> None:
    samples = make_samples([[7, 7, 7], [5, 6], [4, 4, 7, 7]])
    assert token_ages(samples, 7).tolist() == [[0, 0, 0, 0], [2, 1, 0, 0], [3, 3, 0, 0]]
    assert row_ages(samples, 7).tolist() == [0, 2, 3]  # the minimum of the versions counts
    assert staleness_metrics(samples, 7, max_lag=2) == pytest.approx(
        {
            "staleness/mean": 5 / 3,
            "staleness/highest": 3.0,
            "staleness/older_tokens": 4 / 9,
            "staleness/mixed_rows": 2 / 3,
            "staleness/dropped": 1 / 3,
        }
    )


def test_versions_are_zero_unless_said_and_stay_with_their_rows() -> None:
    samples = make_samples([[3, 3], [4, 5, 6]])
    assert dataclasses.replace(samples, versions=torch.empty(0)).versions.tolist() == [[0] * 3] * 2
    assert samples.versions.dtype == written_by(samples, 9).versions.dtype == torch.int32
    assert written_by(samples, 9).versions.tolist() == [[9, 9, 0], [9, 9, 9]]
    with pytest.raises(ValueError, match=r"versions are \(2, 2\), tokens \(2, 3\)"):
        dataclasses.replace(samples, versions=samples.versions[:, :2])
    whole = make_rollouts()
    parts = [
        dataclasses.replace(
            whole,
            tasks=whole.tasks[:2],
            prompts=[[4]] * 2,
            samples=part,
            verifications=whole.verifications[:2],
            **{name: getattr(whole, name)[:2] for name in ("rewards", "advantages", "trained")},
        )
        for part in (samples, make_samples([[1] * 4, [2]]))
    ]
    joined = join_rollouts(parts, pad_id=0)
    assert joined.samples.versions.tolist() == [[3, 3, 0, 0], [4, 5, 6, 0], [1, 1, 1, 1], [2, 0, 0, 0]]
    assert joined.take_groups([3, 1]).samples.versions.tolist() == [[2, 0, 0, 0], [4, 5, 6, 0]]


# --- what is too old


class Ancient(NativeSampler):
    """An asynchronous sampler whose tokens say that they are older than they should be."""

    def __init__(self, loop: ZeroRL, older: torch.Tensor) -> None:
        super().__init__(loop.policy)
        self.older, self.version = older, 0

    def publish(self, version: int) -> None:
        self.version = version

    def submit(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Pending:
        made = written_by(self.sample(prompts, samples, decoding, generator), self.version)
        made.versions[:, 0] -= self.older  # one token is enough

        class There:
            def result(self) -> Samples:
                return made

        return There()


def stale_loop(directory: Path, older: torch.Tensor, **options: Any) -> ZeroRL:
    loop = make_loop(directory, rule=odd, tasks=make_tasks(7), algorithm=Algorithm(skip_uninformative=False), **options)
    loop.collector.sampler = Ancient(loop, older)
    return loop


@pytest.mark.parametrize("lag", [0, 2])
def test_rows_that_are_too_old_never_reach_the_update(tmp_path: Path, lag: int) -> None:
    """They count in the mean of their group, as masked rows do, and in nothing else."""
    older = torch.tensor([lag, lag + 1, 0, 7] * 3)
    loop = stale_loop(tmp_path / "stale", older, max_lag=lag)
    rollouts, metrics = loop.step(1)
    kept = [True, False, True, False] * 3
    assert rollouts.trained.tolist() == kept
    assert metrics["update/rows"] == 6
    tokens = int(rollouts.samples.lengths[torch.tensor(kept)].sum())
    assert metrics["update/response_tokens"] == tokens
    if lag:
        assert metrics["staleness/dropped"] == 0.5
        assert metrics["staleness/highest"] == 7
    # The same step with these rows masked by hand.
    other = stale_loop(tmp_path / "masked", torch.zeros(12, dtype=torch.int64), max_lag=lag)
    credit = other._credit

    def masking(rollouts: Rollouts) -> Any:
        rollouts.trained = torch.tensor(kept)
        return credit(rollouts)

    other._credit = masking  # type: ignore[method-assign]
    other.step(1)
    assert torch.equal(weights(loop), weights(other))


def test_with_all_rows_too_old_the_weights_stay(tmp_path: Path) -> None:
    loop = stale_loop(tmp_path, torch.full((12,), 3), max_lag=2)
    before = weights(loop)
    _, metrics = loop.step(1)
    assert metrics["staleness/dropped"] == 1.0
    assert metrics["update/skipped_steps"] == 1
    assert torch.equal(weights(loop), before)


# --- the loss: behaviour, proximal and current policy


@pytest.mark.parametrize("cap", [1.5, 1e6])
def test_decoupled_loss_against_float64_with_three_policies(cap: float) -> None:
    """One gradient step with L = -1/M sum min(prox/behave, cap) min(r A, clip(r) A), r = current/prox.

    The reference goes one row at a time through transformers' own forward and differentiates the formula.
    """
    algorithm = Algorithm(clip=Clip(0.1, 0.3), skip_uninformative=False)
    rollouts = credited(make_rollouts(), algorithm)
    current, proximal = make_policy(), make_policy()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in proximal.model.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    logprobs = {name: by_row(one.model, rollouts) for name, one in (("current", current), ("proximal", proximal))}
    behaviour = [row.detach() + 0.6 * torch.randn(row.shape, generator=generator) for row in logprobs["proximal"]]
    for row, values in enumerate(behaviour):
        rollouts.samples.logprobs[row, : len(values)] = values
    total, tokens, clipped, capped, weight_sum = torch.zeros((), dtype=torch.float64), 0, 0, 0, 0.0
    for row, (new, prox, behave) in enumerate(zip(logprobs["current"], logprobs["proximal"], behaviour, strict=True)):
        advantage = float(rollouts.advantages[row])
        for new_token, prox_token, behave_token in zip(new, prox.detach(), behave, strict=True):
            weight = min(float((prox_token - behave_token).exp()), cap)
            ratio = (new_token - prox_token).exp()
            moved = float(ratio.detach())
            total = total - weight * torch.min(ratio * advantage, ratio.clamp(0.9, 1.3) * advantage)
            tokens, capped, weight_sum = tokens + 1, capped + (weight == cap), weight_sum + weight
            clipped += (advantage > 0 and moved > 1.3) or (advantage < 0 and moved < 0.9)
    loss = total / tokens
    loss.backward()
    expected = {name: -0.3 * value.grad for name, value in current.model.named_parameters() if value.grad is not None}
    current.model.zero_grad()

    updater = make_updater(current, algorithm, 0.3, importance_cap=cap, max_gradient_norm=1e9)
    old = torch.zeros_like(rollouts.samples.logprobs)
    for row, values in enumerate(logprobs["proximal"]):
        old[row, : len(values)] = values.detach()
    before = {name: value.detach().clone() for name, value in current.model.named_parameters()}
    metrics = second_step(updater, rollouts, old)
    for name, value in current.model.named_parameters():
        assert torch.allclose(value - before[name], expected[name], atol=1e-7), name
    assert metrics["policy/loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["policy/clip_fraction"] == pytest.approx(clipped / tokens)
    assert metrics["policy/importance_weight"] == pytest.approx(weight_sum / tokens, rel=1e-6)
    assert metrics["policy/importance_capped"] == pytest.approx(capped / tokens)
    assert clipped > 0  # a case that tells the three policies apart
    assert (capped > 0) == (cap == 1.5)


def second_step(updater: Any, rollouts: Rollouts, old: torch.Tensor) -> dict[str, float]:
    """One gradient step as those after the first, whose old log-probs are `old`."""
    totals = _Totals(has_kl=False, has_importance=True)
    updater._gradient_step(rollouts, list(range(len(rollouts))), old, None, totals)
    return totals.metrics()


def by_row(model: torch.nn.Module, rollouts: Rollouts) -> list[torch.Tensor]:
    """Log-probs of the tokens of each row."""
    result = []
    for row, length in enumerate(rollouts.samples.lengths.tolist()):
        prompt, response = rollouts.prompts[int(rollouts.groups[row])], rollouts.samples.tokens[row, :length]
        ids = torch.cat([torch.tensor(prompt), response])
        logits = model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        result.append((logits - logits.logsumexp(-1, keepdim=True)).gather(-1, response[:, None])[:, 0])
    return result


def test_weighted_gradients_are_on_average_those_of_fresh_responses() -> None:
    """Over all tokens of a vocabulary: sum_a b(a) min(p/b, inf) A(a) grad log p = sum_a p(a) A(a) grad log p."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    behaviour = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)
    advantages = torch.randn(6, generator=generator, dtype=torch.float64)
    logprobs = logits.log_softmax(0)
    weight = truncated_importance_weight(logprobs, behaviour, 1e9)
    (stale,) = torch.autograd.grad((behaviour.exp() * weight * advantages * logprobs).sum(), logits, retain_graph=True)
    (fresh,) = torch.autograd.grad((logprobs.detach().exp() * advantages * logprobs).sum(), logits)
    (ignored,) = torch.autograd.grad((behaviour.exp() * advantages * logits.log_softmax(0)).sum(), logits)
    assert torch.allclose(stale, fresh, atol=1e-12)
    assert not torch.allclose(ignored, fresh, atol=1e-2)


# --- what a config says


def test_fields_of_a_config_reach_the_loop_and_the_update() -> None:
    config = complete(Config(max_lag=2))
    assert make_loop_settings(config).max_lag == 2
    assert make_update_settings(config, MACHINE).importance_cap == 2.0
    assert make_update_settings(dataclasses.replace(config, importance_cap=0.0), MACHINE).importance_cap == 0.0
    assert make_update_settings(complete(Config()), MACHINE).importance_cap == 0.0
    for name in ("max_lag", "slice_tokens"):
        with pytest.raises(UserError, match=f"{name} is -1, but must be at least 0"):
            check_numbers(dataclasses.replace(config, **{name: -1}))
    with pytest.raises(UserError, match="set max_lag, too"):
        complete(Config(slice_tokens=8))


def test_the_plan_says_how_far_ahead_and_what_weighs() -> None:
    def line(**fields: Any) -> str | None:
        return dict(describe_plan(complete(Config(model="Qwen/Qwen2.5-7B", **fields)), MACHINE)).get("ahead")

    assert line() is None
    written = "responses are written up to 3 steps before they are trained on"
    assert line(max_lag=3) == (
        f"{written}; a token weighs at most 2 (probability before the update / when it was written)"
    )
    advice = "all tokens weigh 1: set --importance-cap (2) to weight them by how likely the policy would write them now"
    assert line(max_lag=3, slice_tokens=512, importance_cap=0.0) == f"{written}, 512 tokens a version; {advice}"
