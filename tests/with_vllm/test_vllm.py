"""The sampler against real vLLM on a CPU. `make test-vllm` runs this in an environment of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here; make test-vllm makes an environment for these tests")

from chain_model import with_table  # noqa: E402

from zerozoo.distributed import vllm_engine  # noqa: E402
from zerozoo.distributed.chunks import Chunk  # noqa: E402
from zerozoo.distributed.rollout_worker import RolloutWorker  # noqa: E402
from zerozoo.distributed.vllm_engine import VllmEngine  # noqa: E402
from zerozoo.distributed.vllm_sampler import PROBE_TOKENS, VllmSampler, probe_prompt  # noqa: E402
from zerozoo.distributed.vllm_writer import VllmWriter  # noqa: E402
from zerozoo.distributed.weights import Publisher  # noqa: E402
from zerozoo.language.logprobs import Sequences, response_scores  # noqa: E402
from zerozoo.language.lora import add_lora  # noqa: E402
from zerozoo.language.models import LanguageModel, load_model  # noqa: E402
from zerozoo.language.parity import THRESHOLD, sampler_parity  # noqa: E402
from zerozoo.language.samplers.interface import Decoding, Samples  # noqa: E402
from zerozoo.language.samplers.native import NativeSampler  # noqa: E402
from zerozoo.runs.errors import DivergedError, UserError  # noqa: E402

Chain = Callable[..., LanguageModel]


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoded(policy: LanguageModel, *texts: str) -> list[list[int]]:
    return [policy.encode(text) for text in texts or ("0 1 2", "abc", "d")]


def change(policy: LanguageModel, size: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(size * torch.ones_like(parameter).cumsum(0).sin())


def same(first: Samples, second: Samples) -> bool:
    tensors = ("tokens", "lengths", "stopped", "groups", "logprobs", "versions")
    return first.texts == second.texts and all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in tensors
    )


# --- tokens and log-probs


def test_the_ids_are_those_that_the_engine_drew(sampler: VllmSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, outputs = sampler.make_engine().llm, []  # type: ignore[attr-defined]
    generate = llm.generate

    def spy(*given: Any, **options: Any) -> Any:
        outputs.append(generate(*given, **options))
        return outputs[-1]

    monkeypatch.setattr(llm, "generate", spy)
    prompts = encoded(sampler.policy)
    samples = sampler.sample(prompts, 2, Decoding(12), generator())
    drawn = [list(output.outputs[0].token_ids) for output in outputs[-1]]
    assert [
        row[:length] for row, length in zip(samples.tokens.tolist(), samples.lengths.tolist(), strict=True)
    ] == drawn
    assert [list(output.prompt_token_ids) for output in outputs[-1]] == [prompt for prompt in prompts for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 0.0])
def test_log_probs_are_the_learners(sampler: VllmSampler, temperature: float) -> None:
    """Traps 2, 8, 10 and 12, against padded and packed rows of the learner and transformers' own forward pass."""
    parity = sampler_parity(sampler.policy, Decoding(24, temperature), samples=4, sampler=sampler)
    assert parity.largest < THRESHOLD
    assert parity.tokens > 100
    assert parity.untempered > 0.1 if temperature == 0.7 else parity.untempered < THRESHOLD


def test_tokens_come_as_often_as_the_model_says(folder: Any, sampler: VllmSampler) -> None:
    probabilities = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.4, 0.3, 0.2, 0.1])
    policy = sampler.policy
    table = torch.full((len(policy.tokenizer), len(policy.tokenizer)), -30.0)
    table[:, : len(probabilities)] = (0.7 * probabilities.log()).clamp(min=-30.0)  # divided by 0.7 when drawn
    sampler.policy = with_table(policy, table)
    rows = 2000
    samples = sampler.sample(encoded(policy, "0"), rows, Decoding(1, 0.7), generator())
    counts = samples.tokens[:, 0].bincount(minlength=len(probabilities))
    error = (probabilities * (1 - probabilities) / rows).sqrt()
    assert bool(((counts / rows - probabilities).abs() <= 4 * error + 1e-9).all())
    torch.testing.assert_close(samples.logprobs[:, 0].exp(), probabilities[samples.tokens[:, 0]], rtol=1e-4, atol=1e-5)


def test_groups_of_n_samples(sampler: VllmSampler) -> None:
    """Trap 15."""
    samples = sampler.sample(encoded(sampler.policy), 8, Decoding(10), generator())
    assert samples.groups.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert len(samples.texts) == len(samples.tokens) == 24
    for group in range(3):
        assert len(set(map(tuple, samples.tokens[samples.groups == group].tolist()))) > 4


def test_the_same_generator_gives_the_same_responses(sampler: VllmSampler) -> None:
    prompts = encoded(sampler.policy)
    state = torch.random.get_rng_state()
    first = sampler.sample(prompts, 4, Decoding(10), generator())
    assert same(first, sampler.sample(prompts, 4, Decoding(10), generator()))
    assert not torch.equal(first.tokens, sampler.sample(prompts, 4, Decoding(10), generator(4)).tokens)
    assert torch.equal(torch.random.get_rng_state(), state)
    # Which rows are written beside a row does not matter.
    part = sampler.write(prompts[1:], 4, Decoding(10), sampler.uniforms(12, Decoding(10), generator())[4:])
    assert part.texts == first.texts[4:]


# --- where responses end


@pytest.mark.parametrize(
    ("text", "ends", "prompts", "decoding"),
    [
        ("abcSTOPd", "", ["a", "b"], Decoding(9, stop_strings=("never", "TOP"))),
        ("abcSTOPd", "", ["a"], Decoding(9, stop_strings=("ST", "bc", "bcS"))),
        ("abcSTOPd", "", ["abc"], Decoding(5, stop_strings=("abc", "bc"))),
        ("abcSTOPd", "", ["a"], Decoding(12, stop_strings=("da",))),
        ("abcSTOPd", "T", ["a", "O"], Decoding(9)),
        ("abcSTOPd", "T", ["a", "c", "P"], Decoding(4, stop_strings=("OP",))),
        ("abcSTOPd", "", ["a"], Decoding(9, stop_ids=(9, 10))),
        ("abcSTOPd", "S", ["a"], Decoding(3)),
        ("abcSTOPd", "S", ["a"], Decoding(4)),
        ("abcSTOPd", "", ["a"], Decoding(1)),
    ],
)
def test_responses_end_where_the_native_sampler_ends_them(
    engine: VllmEngine, chain: Chain, text: str, ends: str, prompts: list[str], decoding: Decoding
) -> None:
    """Traps 4 and 5. The model is all but certain of every token, so both write the same."""
    policy = chain(text, ends)
    given = encoded(policy, *prompts)
    ours = NativeSampler(policy).sample(given, 2, decoding, generator())
    theirs = VllmSampler(policy, lambda: engine).sample(given, 2, decoding, generator())
    assert theirs.tokens.tolist() == ours.tokens.tolist()
    assert theirs.lengths.tolist() == ours.lengths.tolist()
    assert theirs.stopped.tolist() == ours.stopped.tolist()
    assert theirs.texts == ours.texts
    torch.testing.assert_close(theirs.logprobs, ours.logprobs, rtol=0, atol=1e-5)


def test_a_special_token_stops_by_its_id(engine: VllmEngine, chain: Chain) -> None:
    policy = chain("abcd")
    ids = policy.tokenizer.get_vocab()
    with torch.no_grad():  # c is followed by <unk> in place of d
        head = policy.model.lm_head.weight
        head[[ids["d"], ids["<unk>"]], ids["c"]] = head[[ids["<unk>"], ids["d"]], ids["c"]]
    sampler = VllmSampler(policy, lambda: engine)
    samples = sampler.sample(encoded(policy, "a"), 1, Decoding(6, stop_strings=("zz", "<unk>")), generator())
    assert samples.tokens.tolist() == [[ids["b"], ids["c"], ids["<unk>"]]]
    assert (samples.texts, samples.stopped.tolist()) == (["bc"], [True])


def test_settings_of_the_models_generation_config_do_not_bend_the_distribution(sampler: VllmSampler) -> None:
    """Trap 11. vLLM would take them from a folder; ours has none."""
    settings = sampler.make_engine().llm.get_default_sampling_params()  # type: ignore[attr-defined]
    assert (settings.repetition_penalty, settings.top_k, settings.top_p, settings.min_p) == (1.0, 0, 1.0, 0.0)


# --- weights


def test_new_weights_are_followed(sampler: VllmSampler) -> None:
    """Traps 13 and 14: four versions, small and large steps, tied to what the learner has."""
    prompts = encoded(sampler.policy)
    for version, size in enumerate((0.0, 1e-4, 0.05, 0.3)):
        change(sampler.policy, size)
        sampler.publish(version)
        samples = sampler.sample(prompts, 2, Decoding(8, 0.7), generator())
        assert int(samples.versions.max()) == version
        assert sampler_parity(sampler.policy, Decoding(8, 0.7), sampler=sampler).largest < THRESHOLD


def test_weights_that_were_not_delivered_are_found(
    sampler: VllmSampler, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler.publish(0)
    monkeypatch.setattr(engine, "load", lambda weights: engine.llm.reset_prefix_cache())
    change(sampler.policy, 3e-3)
    with pytest.raises(UserError, match="vLLM does not have the learner's weights of version 1"):
        sampler.publish(1)


def test_weights_that_were_delivered_in_part_are_found(
    sampler: VllmSampler, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler.publish(0)
    load = engine.load
    monkeypatch.setattr(engine, "load", lambda weights: load(list(weights)[:-4]))
    change(sampler.policy)
    with pytest.raises(UserError, match="weights of version 1"):
        sampler.publish(1)


def test_prefixes_of_old_weights_are_forgotten(
    sampler: VllmSampler, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same prompt before and after, longer than a block: used again under the same weights only."""
    prompt = [[4 + place % 13 for place in range(engine.block + 40)]]
    cached: list[int] = []
    generate = engine.llm.generate

    def spy(*given: Any, **options: Any) -> Any:
        outputs = generate(*given, **options)
        cached.append(outputs[0].num_cached_tokens)
        return outputs

    monkeypatch.setattr(engine.llm, "generate", spy)
    sampler.publish(0)
    for _ in range(2):
        sampler.sample(prompt, 1, Decoding(4), generator())
    change(sampler.policy)
    sampler.publish(1)
    samples = sampler.sample(prompt, 1, Decoding(4), generator())
    assert cached == [0, 0, engine.block, 0, 0]  # probe, prompt, prompt again; probe, prompt
    assert int(samples.versions.max()) == 1


def test_a_prefix_that_was_kept_is_found(
    sampler: VllmSampler, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 13: the probe's prompt is longer than a block, so old keys and values would show in its log-probs."""
    assert len(probe_prompt(sampler.policy, engine)) > engine.block
    sampler.publish(0)
    change(sampler.policy)
    monkeypatch.setattr(engine.llm, "reset_prefix_cache", lambda: True)
    with pytest.raises(UserError, match="weights of version 1"):
        sampler.publish(1)


def test_adapters_are_followed(sampler: VllmSampler) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft")
    add_lora(sampler.policy, 2, 4, seed=0)
    for name, parameter in sampler.policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator())
    sampler.publish(0)
    assert sampler_parity(sampler.policy, Decoding(8, 0.7), sampler=sampler).largest < THRESHOLD


def test_a_broken_model_is_reported(sampler: VllmSampler) -> None:
    with torch.no_grad():
        sampler.policy.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="not finite"):
        sampler.publish(0)


# --- limits


def test_prompts_up_to_the_end_of_the_context(sampler: VllmSampler, engine: VllmEngine) -> None:
    room = sampler.policy.max_context
    assert engine.room == room == 512
    samples = sampler.sample([[4] * (room - 2)], 1, Decoding(9), generator())
    assert int(samples.lengths[0]) <= 2
    with pytest.raises(UserError, match="has room for 512 in all"):
        sampler.sample([[4] * room], 1, Decoding(9), generator())


def test_the_process_is_left_as_it_was(engine: VllmEngine) -> None:
    """vLLM's worker for CPUs replaces torch.set_num_threads by one that does nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert engine.room > PROBE_TOKENS


# --- in a rollout worker


def test_a_rollout_worker_writes_with_the_weights_that_it_was_sent(
    folder: Path, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "VllmEngine", lambda *given: engine)
    policy = load_model(folder)
    publisher = Publisher(policy, lambda thing: thing, "cpu", 32)
    worker = RolloutWorker(0, VllmWriter, fetch=copy.deepcopy)
    decoding = Decoding(8, 0.7)
    for version in (3, 4):
        change(policy)
        uniforms = NativeSampler(policy).uniforms(6, decoding, generator()).numpy()
        asked = (encoded(policy), 2, decoding, uniforms, publisher.model, publisher.publish(), version)
        samples = worker.write(Chunk(*asked))
        lengths = samples.lengths.tolist()
        rows = [row[:length] for row, length in zip(samples.tokens.tolist(), lengths, strict=True)]
        written = Sequences([encoded(policy)[group] for group in samples.groups.tolist()], rows)
        recorded = torch.cat([row[:length] for row, length in zip(samples.logprobs, lengths, strict=True)])
        learner = response_scores(policy.model, written, 0.7).logprobs.detach()
        assert float((recorded - learner).abs().max()) < THRESHOLD
        assert int(samples.versions.max()) == version
