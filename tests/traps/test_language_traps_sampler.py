"""Traps 10 to 16: the distribution that is sampled is the one that is differentiated, with the weights of now."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_engine import FakeEngine
from zerozoo.distributed.vllm_sampler import VllmSampler
from zerozoo.language.algorithm import Algorithm
from zerozoo.language.build import make_reference, make_sampler, make_update_settings
from zerozoo.language.device import choose_machine
from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import Sequences, response_scores
from zerozoo.language.lora import add_lora, merge_lora
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import Ranks, ShardedSampler
from zerozoo.language.samplers import native
from zerozoo.language.samplers.draw import draw
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.samplers.reference import TransformersSampler
from zerozoo.language.update import Updater
from zerozoo.losses.weights import truncated_importance_weight
from zerozoo.recipes.reasoning.simplerl_zoo import Config
from zerozoo.runs.errors import UserError
from zerozoo.runs.streams import Streams

Make = Callable[..., Any]
PROMPTS = ("7", "What is 12 - 4?")
SAMPLERS = (NativeSampler, TransformersSampler)


def distance(first: Tensor, second: Tensor) -> float:
    return float((first.double() - second.double()).detach().abs().max())


@torch.no_grad()
def learner(policy: LanguageModel, rows: Sequences, temperature: float = 1.0) -> Tensor:
    with policy.precision():
        return response_scores(policy.model, rows, temperature).logprobs


@contextmanager
def ratios(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(new, old) log-probs of every call of the policy loss inside the update."""
    seen: list[tuple[Tensor, Tensor]] = []
    loss = Updater._loss

    def watched(updater: Updater, *arguments: Any) -> Tensor:
        policy_loss = updater.algorithm.policy_loss

        def tokens(logprobs: Tensor, old: Tensor, *rest: Any) -> Tensor:
            seen.append((logprobs.detach().clone(), old.detach().clone()))
            return policy_loss.tokens(logprobs, old, *rest)

        updater.algorithm = dataclasses.replace(
            updater.algorithm, policy_loss=dataclasses.replace(policy_loss, tokens=tokens)
        )
        result = loss(updater, *arguments)
        updater.algorithm = dataclasses.replace(updater.algorithm, policy_loss=policy_loss)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "_loss", watched)
        yield seen


def train_away(policy: LanguageModel, rows: Sequences, rate: float = 1.0) -> None:
    """One large in-place step of an optimiser that makes the given rows less likely."""
    optimizer = torch.optim.SGD([value for value in policy.model.parameters() if value.requires_grad], lr=rate)
    with policy.precision():
        loss = response_scores(policy.model, rows).logprobs.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 2.0)
    optimizer.step()
    optimizer.zero_grad()


# --- 10, 11


@pytest.mark.parametrize("make", SAMPLERS)
def test_trap_10_sampler_and_learner_share_the_temperature(make: Make, drawn: Make) -> None:
    """Mistake: log-probs without the sampling temperature. Rule: both sides divide the logits by it."""
    policy = tiny_model("llama")
    rows, recorded, _ = drawn(policy, PROMPTS, Decoding(8, temperature=0.6), sampler=make(policy))
    assert distance(recorded, learner(policy, rows, 0.6)) < 1e-4
    assert distance(recorded, learner(policy, rows, 1.0)) > 0.1


def test_trap_10_the_loop_trains_at_the_temperature_it_samples_at(make_loop: Make, tmp_path: Path) -> None:
    """Mistake: the temperature reaches one side only. Rule: one field feeds both, and a metric shows any difference."""
    settings = make_update_settings(Config(temperature=0.6), choose_machine("cpu"))
    assert settings.temperature == 0.6
    mismatch = {}
    for learner_temperature in (0.6, 1.0):
        algorithm = Algorithm(skip_uninformative=False)
        loop = make_loop(tmp_path / str(learner_temperature), temperature=learner_temperature, algorithm=algorithm)
        loop.collector.decoding = Decoding(5, 0.6)
        mismatch[learner_temperature] = loop.step(1)[1]["policy/sampler_mismatch"]
    assert mismatch[0.6] < 1e-4
    assert mismatch[1.0] > 0.1


def test_trap_10_the_loop_refuses_two_temperatures(make_loop: Make, tmp_path: Path) -> None:
    """Mistake: nothing stops a recipe that wires up two temperatures. Rule: the loop refuses them."""
    with pytest.raises((UserError, ValueError), match="temperature"):
        make_loop(tmp_path, temperature=1.0, decoding=Decoding(5, 0.6))


def test_trap_11_training_refuses_truncated_sampling(make_loop: Make, tmp_path: Path) -> None:
    """Mistake: sampled with top_p .999, trained on the full softmax. Rule: the loop refuses it; no recipe offers it."""
    for decoding in (Decoding(5, top_p=0.999), Decoding(5, temperature=0.0)):
        with pytest.raises(UserError, match="whole distribution"):
            make_loop(tmp_path, decoding=decoding)
    assert not {"top_p", "top_k", "min_p", "repetition_penalty"} & {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("make", SAMPLERS)
def test_trap_11_a_models_own_generation_settings_are_not_used(make: Make, drawn: Make) -> None:
    """Mistake: top_k or a penalty from the model's generation config sneaks in. Rule: only `Decoding` decides."""
    plain, bent = tiny_model("llama"), tiny_model("llama")
    settings = bent.model.generation_config
    settings.top_k, settings.top_p, settings.min_p, settings.repetition_penalty = 2, 0.3, 0.4, 3.0
    results = [drawn(policy, PROMPTS, Decoding(10), sampler=make(policy)) for policy in (plain, bent)]
    assert results[0][0].responses == results[1][0].responses
    assert torch.equal(results[0][1], results[1][1])


def test_trap_11_the_tail_of_the_distribution_is_sampled() -> None:
    """Mistake: rare tokens can never be drawn. Rule: with top_p 1 the last thousandth is drawn and scored."""
    probabilities = torch.tensor([[0.6, 0.399, 0.001]])
    places = {0.9995: (2, 1), 0.5: (0, 0), 0.7: (1, 1)}  # uniform number -> token drawn from all, from a nucleus of .99
    for uniform, (of_all, of_nucleus) in places.items():
        uniforms = torch.tensor([uniform], dtype=torch.float64)
        token, logprob = draw(probabilities.log(), 1.0, 1.0, uniforms)
        assert int(token) == of_all
        assert float(logprob) == pytest.approx(float(probabilities[0, of_all].log()), abs=1e-6)
        assert int(draw(probabilities.log(), 1.0, 0.99, uniforms)[0]) == of_nucleus


# --- 12


def test_trap_12_old_logprobs_are_the_learners_and_behaviour_stays_the_samplers(
    make_loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistake: old and behaviour log-probs are taken for one. Rule: the learner makes the old; both are kept."""
    loop = make_loop(tmp_path, learner={"epochs": 2, "tokens_per_microbatch": 10**6})
    rollouts, _ = loop.collector.collect(1)
    loop._credit(rollouts)
    before = copy.deepcopy(loop.policy.model)
    rollouts.samples.logprobs = rollouts.samples.logprobs - 0.5  # as from another program
    recorded = rollouts.samples.logprobs.clone()
    with ratios(monkeypatch) as seen:
        metrics = loop.updater.update(rollouts)
    live = (rollouts.advantages != 0).nonzero()[:, 0].tolist()
    order = loop.updater._microbatches(rollouts, live)[0].rows
    old = rollouts.flat(loop.updater.scores(before, rollouts), order)
    assert len(seen) == 2
    assert distance(seen[1][1], old) < 1e-5  # of the policy before the first step, also in the second step
    assert distance(seen[1][0], old) > 1e-3  # by then the ratio is no longer 1
    assert torch.equal(rollouts.samples.logprobs, recorded)
    assert metrics["policy/sampler_mismatch"] == pytest.approx(0.5, abs=1e-3)


def test_trap_12_importance_weights_compare_with_the_sampler() -> None:
    """Mistake: the correction divides by recomputed log-probs and is always 1. Rule: it divides by the sampler's."""
    old = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    behaviour = torch.tensor([-1.0, -2.5, -9.0], dtype=torch.float64)
    weight = truncated_importance_weight(old, behaviour, cap=2.0)
    assert weight.tolist() == pytest.approx([1.0, 1.6487212707, 2.0])
    assert not weight.requires_grad


# --- 13, 14


@pytest.mark.parametrize(
    ("autocast", "products", "accuracy"),
    [(None, "highest", 1e-4), (None, "medium", 0.05), (torch.bfloat16, "highest", 0.15)],
)
def test_trap_13_nothing_stale_after_an_optimiser_step(
    autocast: torch.dtype | None, products: str, accuracy: float, drawn: Make, make_updater: Make
) -> None:
    """Mistake: a cache outlives the weights it was made with. Rule: none does, rounded copies of weights included."""
    torch.set_float32_matmul_precision(products)
    policy = tiny_model("llama")
    policy.autocast = autocast
    sampler = NativeSampler(policy)
    rows, first, _ = drawn(policy, PROMPTS, Decoding(8), sampler=sampler)
    assert distance(first, learner(policy, rows)) < accuracy
    train_away(policy, rows)
    fresh = copy.deepcopy(policy)  # cannot have seen the old weights
    assert distance(learner(policy, rows), learner(fresh, rows)) == 0
    assert distance(learner(policy, rows), first) > 0.5
    again, recorded, _ = drawn(policy, PROMPTS, Decoding(8), sampler=sampler)
    assert again.responses != rows.responses
    assert distance(recorded, drawn(fresh, PROMPTS, Decoding(8))[1]) == 0
    assert distance(recorded, learner(fresh, again)) < accuracy


def test_trap_13_later_gradient_steps_of_a_rollout_see_new_weights_in_bfloat16(
    make_loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistake: autocast keeps the first rounded copy of a weight. Rule: its context ends before each optimiser step."""
    loop = make_loop(tmp_path, learner={"epochs": 3, "tokens_per_microbatch": 10**6})
    loop.policy.autocast = torch.bfloat16
    rollouts, _ = loop.collector.collect(1)
    loop._credit(rollouts)
    with ratios(monkeypatch) as seen:
        loop.updater.update(rollouts)
    new = [values[0] for values in seen]
    assert distance(new[0], new[1]) > 1e-3
    assert distance(new[1], new[2]) > 1e-3
    assert all(value.dtype == torch.float32 for value in loop.policy.model.parameters())


def test_trap_13_server_prefix_cache() -> None:
    """Mistake: a server answers from a prefix cache of old weights. Rule: a probe behind a cached prefix finds it."""
    # That vLLM's own cache is emptied with every delivery is a test in tests/with_vllm.
    policy = tiny_model("llama")
    engine = FakeEngine(policy)
    engine.known = {}
    sampler = VllmSampler(policy, lambda: engine)
    sampler.publish(0)
    move(policy)
    with pytest.raises(UserError, match="does not have the learner's weights of version 1"):
        sampler.publish(1)
    engine.known = {}
    sampler.publish(1)


@pytest.mark.parametrize("name", ["native", "transformers"])
def test_trap_14_the_weights_reach_the_sampler(name: str, make_loop: Make, drawn: Make, tmp_path: Path) -> None:
    """Mistake: the sampler goes on with old weights. Rule: a probe prompt scores the same on both sides, every step."""
    policy = tiny_model("llama", hidden=16, heads=2, kv_heads=1)
    loop = make_loop(tmp_path, policy=policy, sampler=make_sampler(name, policy, choose_machine("cpu")))
    assert loop.sampler.policy.model is loop.updater.policy.model
    probe, before, _ = drawn(policy, ("probe",), Decoding(6), sampler=loop.sampler)
    for step in (1, 2):
        loop.step(step)
        rows, recorded, _ = drawn(policy, ("probe",), Decoding(6), sampler=loop.sampler)
        assert distance(recorded, learner(policy, rows)) < 1e-4
        assert distance(learner(policy, probe), before) > 1e-3


def test_trap_14_adapters_reach_the_sampler(drawn: Make) -> None:
    """Mistake: adapters are trained but never delivered. Rule: the sampler reads them, as merged weights would act."""
    pytest.importorskip("peft")
    policy = tiny_model("llama")
    add_lora(policy, rank=2, alpha=8, seed=0)
    rows, before, _ = drawn(policy, PROMPTS, Decoding(8))
    train_away(policy, rows)
    train_away(policy, rows)
    again, recorded, _ = drawn(policy, PROMPTS, Decoding(8))
    merged = copy.deepcopy(policy)
    merge_lora(merged)
    assert distance(recorded, learner(merged, again)) < 1e-3
    assert distance(learner(policy, rows), before) > 0.1


def test_trap_14_delivery_of_weights_to_a_server(drawn: Make) -> None:
    """Mistake: weights do not arrive at the server. Rule: without a probe that agrees nothing is written."""
    policy = tiny_model("llama")
    engine = FakeEngine(policy)
    sampler = VllmSampler(policy, lambda: engine)
    prompts = [policy.encode(text) for text in PROMPTS]
    for _ in range(2):
        samples = sampler.sample(prompts, 1, Decoding(5), torch.Generator().manual_seed(0))
        rows = Sequences(
            prompts, [row[:n] for row, n in zip(samples.tokens.tolist(), samples.lengths.tolist(), strict=True)]
        )
        flat = torch.cat([row[:n] for row, n in zip(samples.logprobs, samples.lengths.tolist(), strict=True)])
        assert torch.allclose(flat, response_scores(policy.model, rows).logprobs, atol=1e-4)
        move(policy)
    engine.deaf = True
    with pytest.raises(UserError, match="does not have the learner's weights"):
        sampler.sample(prompts, 1, Decoding(5), torch.Generator().manual_seed(0))


def move(policy: LanguageModel) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter).cumsum(0).sin())


# --- 15, 16


def test_trap_15_every_response_has_random_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistake: copies of a stream draw the same twice. Rule: prompts x samples rows, no random number shared."""
    policy, uniforms = tiny_model("llama"), []

    def watched(logits: Tensor, temperature: float, top_p: float, numbers: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        uniforms.append(numbers.clone())
        return draw(logits, temperature, top_p, numbers, *rest)

    monkeypatch.setattr(native, "draw", watched)
    policy.eos_ids = ()  # no response ends early
    prompt, generator = policy.encode("the same"), torch.Generator().manual_seed(0)
    sampler = NativeSampler(policy, max_rows=4)  # three waves
    first = sampler.sample([prompt] * 3, 4, Decoding(6), generator)
    assert first.tokens.shape == (12, 6)
    assert len({tuple(row) for row in first.tokens.tolist()}) == 12
    second = sampler.sample([prompt] * 3, 4, Decoding(6), generator)
    numbers = torch.cat(uniforms)
    assert len(numbers) == 2 * 12 * 6
    assert len(numbers.unique()) == len(numbers)
    assert not torch.equal(first.tokens, second.tokens)


def test_trap_15_samples_per_prompt_is_applied_once(make_loop: Make, tmp_path: Path) -> None:
    """Mistake: n is applied by loop and sampler, n squared in all. Rule: a step has exactly prompts x samples rows."""
    loop = make_loop(tmp_path)
    rollouts, metrics = loop.step(1)
    assert len(rollouts) == len(rollouts.verifications) == len(rollouts.samples.texts) == 3 * 4
    assert rollouts.groups.tolist() == [group for group in range(3) for _ in range(4)]
    assert len({task.id for task in rollouts.tasks}) == 3
    assert loop.verifier.seen == [[task.id for task in rollouts.tasks for _ in range(4)]]


def test_trap_15_streams_of_different_names_differ() -> None:
    """Mistake: all replicas start from one seed. Rule: a stream's seed comes from its name, a replica's too."""
    streams = Streams(0)
    numbers = [torch.rand(4, generator=streams.torch(f"sampler/{replica}")).tolist() for replica in range(8)]
    assert len({tuple(row) for row in numbers}) == 8


def test_trap_15_replicas_of_the_sampler() -> None:
    """Mistake: every replica draws the same responses. Rule: all rows of a step differ, whoever drew them."""

    class LoneRank(Ranks):
        def gather(self, part: Any) -> list[Any]:
            return list(part)

    policy = tiny_model("llama", seed=0)
    prompts = [policy.encode(PROMPTS[0])] * 4
    decoding = Decoding(max_new_tokens=8)

    def draws(sampler: Any) -> list[list[int]]:
        return sampler.sample(prompts, 2, decoding, torch.Generator().manual_seed(0)).tokens.tolist()

    replicas = [draws(ShardedSampler(NativeSampler(policy), LoneRank(rank, 2))) for rank in range(2)]
    assert replicas[0] + replicas[1] == draws(NativeSampler(policy))
    assert len({tuple(row) for replica in replicas for row in replica}) == 8


def test_trap_16_scores_are_made_without_dropout(make_loop: Make, tmp_path: Path) -> None:
    """Mistake: old or reference log-probs in training mode. Rule: scoring switches dropout off, mode put back."""
    loop = make_loop(tmp_path)
    model = loop.policy.model
    rollouts, _ = loop.collector.collect(1)
    reference = make_reference(loop.policy, loop.updater)
    expected = loop.updater.scores(model, rollouts)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    dropped = response_scores(model, rollouts.sequences(range(4))).logprobs
    assert distance(dropped, rollouts.flat(expected, range(4))) > 0.01  # the mistake would show
    assert torch.equal(loop.updater.scores(model, rollouts), expected)
    assert torch.equal(reference(rollouts), expected)
    assert model.training


@pytest.mark.parametrize("updates", [1, 3])
def test_trap_16_the_ratio_is_exactly_one_on_policy(
    updates: int, make_loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistake: another batch shape makes the ratio 1 +- rounding. Rule: on-policy the old are the new, detached."""
    cut = {"tokens_per_microbatch": 25, "share_prompts": False, "updates_per_step": updates}
    loop = make_loop(tmp_path, learner=cut, algorithm=Algorithm(skip_uninformative=False))
    for layer in loop.policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    loop.policy.model.train()
    scores = loop.updater.scores
    loop.updater.scores = lambda *arguments: scores(*arguments) + 0.01  # the rounding of another batch, made large
    with ratios(monkeypatch) as seen:
        rollouts, metrics = loop.step(1)
    first = len(loop.updater._microbatches(rollouts, loop.updater._minibatches(rollouts)[0]))
    assert first > 1
    assert all(torch.equal(new, old) for new, old in seen[:first])
    assert (len(seen) > first) == (updates > 1)
    assert updates == 1 or max(distance(new, old) for new, old in seen[first:]) > 1e-3
    assert metrics["policy/sampler_mismatch"] < 1e-4  # no dropout between sampler and learner either
