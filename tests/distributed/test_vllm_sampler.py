"""The vLLM sampler without vLLM: an engine of a few lines stands in, which can be told to go wrong."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_engine import FakeEngine
from zerozoo.distributed import vllm_engine
from zerozoo.distributed.chunks import Chunk
from zerozoo.distributed.named_samplers import offer_samplers
from zerozoo.distributed.rollout_worker import RolloutWorker
from zerozoo.distributed.vllm_engine import as_written, describe_model, needs_untying
from zerozoo.distributed.vllm_sampler import (
    PROBE_TOKENS,
    Request,
    VllmSampler,
    Written,
    first_end,
    full_weights,
    probe_prompt,
    tolerance,
)
from zerozoo.distributed.vllm_writer import VllmWriter
from zerozoo.distributed.weights import Publisher
from zerozoo.language.build import make_sampler
from zerozoo.language.device import choose_machine
from zerozoo.language.families import tiny_model
from zerozoo.language.logprobs import Sequences, response_scores
from zerozoo.language.lora import add_lora, merge_lora
from zerozoo.language.models import LanguageModel
from zerozoo.language.precision import importance_cap
from zerozoo.language.samplers.interface import AsyncSampler, Decoding, Ends, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.samplers.partial import PartialSampler, SliceWriter
from zerozoo.recipes.reasoning.simplerl_zoo import Config
from zerozoo.runs.errors import DivergedError, UserError


def pair(seed: int = 0) -> tuple[VllmSampler, FakeEngine]:
    policy = tiny_model("llama", seed)
    engine = FakeEngine(policy)
    return VllmSampler(policy, lambda: engine), engine


def change(policy: LanguageModel) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter).cumsum(0).sin())


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompts(policy: LanguageModel, *texts: str) -> list[list[int]]:
    return [policy.encode(text) for text in texts or ("What is 1?", "Nothing")]


# --- from what the engine wrote to samples


def test_samples_hold_what_the_engine_wrote() -> None:
    sampler, engine = pair()
    samples = sampler.sample(prompts(sampler.policy), 3, Decoding(6, 0.7), generator())
    requests = engine.asked[-1]
    again = engine.write(requests, 0.7, sampler.policy.eos_ids, ())
    assert samples.groups.tolist() == [0, 0, 0, 1, 1, 1]
    assert [request.tokens for request in requests] == [p for p in prompts(sampler.policy) for _ in range(3)]
    assert len({request.seed for request in requests}) == 6  # trap 15
    for row, written in enumerate(again):
        length = int(samples.lengths[row])
        assert samples.tokens[row, :length].tolist() == written.tokens
        assert torch.equal(samples.logprobs[row, :length], torch.tensor(written.logprobs))
        assert samples.tokens[row, length:].eq(sampler.policy.pad_id).all()
        assert samples.logprobs[row, length:].eq(0).all()
        assert bool(samples.stopped[row]) == written.stopped
        assert samples.texts[row] == sampler.policy.tokenizer.decode(written.tokens, skip_special_tokens=True)
    assert samples.drawn == int(samples.lengths.sum())


def test_the_seed_of_the_generator_makes_the_responses() -> None:
    sampler, _ = pair()
    given = prompts(sampler.policy)
    first, same, other = (sampler.sample(given, 2, Decoding(6), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.tokens, same.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    # A row is its own: the same seeds beside fewer rows write the same.
    uniforms = sampler.uniforms(4, Decoding(6), generator(1))
    assert torch.equal(sampler.write(given[1:], 2, Decoding(6), uniforms[2:]).tokens[:, :3], first.tokens[2:, :3])


def test_prompts_that_leave_less_room_end_with_length() -> None:
    sampler, engine = pair()
    engine.room = PROBE_TOKENS + 30
    samples = sampler.sample([[5] * 36, [5] * 4], 1, Decoding(9), generator())
    assert samples.lengths[0] <= 2
    with pytest.raises(UserError, match="A prompt has 38 tokens, but the model has room for 38 in all"):
        sampler.sample([[5] * 38], 1, Decoding(9), generator())


@pytest.mark.parametrize("given", [[], [[4, 5], []]])
def test_an_empty_prompt_is_refused(given: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        pair()[0].sample(given, 2, Decoding(4), generator())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"top_p": 0.9}, "top_p is 0.9, take 1"), ({"temperature": 0.005}, "temperatures from 0.01 on, or 0 for greedy")],
)
def test_what_vllm_would_do_otherwise_is_refused(options: dict[str, float], message: str) -> None:
    sampler, _ = pair()
    with pytest.raises(UserError, match=message):
        sampler.sample(prompts(sampler.policy), 1, Decoding(4, **options), generator())


def test_a_completion_of_vllm_becomes_ids_and_log_probs() -> None:
    def logprob(value: float) -> SimpleNamespace:
        return SimpleNamespace(logprob=value)

    # The table of a place may hold likelier tokens beside the drawn one.
    logprobs = [{7: logprob(-0.5)}, {3: logprob(-0.1), 9: logprob(-2.5)}]
    completion = SimpleNamespace(token_ids=(7, 9), logprobs=logprobs, finish_reason="stop")
    assert as_written(completion) == Written([7, 9], [-0.5, -2.5], True)
    assert not as_written(SimpleNamespace(token_ids=(7, 9), logprobs=logprobs, finish_reason="length")).stopped


# --- where responses end


def ends_of(policy: LanguageModel, *strings: str, ids: tuple[int, ...] = ()) -> Ends:
    return Ends(policy, Decoding(9, stop_ids=ids, stop_strings=strings))


def test_first_end_finds_the_token_that_completes_a_stop_string() -> None:
    policy = tiny_model("llama")
    tokens = policy.encode("one two three")[1:]
    assert first_end(ends_of(policy), tokens, 0) is None
    assert first_end(ends_of(policy, "four"), tokens, 0) is None
    assert first_end(ends_of(policy, "two"), tokens, 0) == 7
    assert first_end(ends_of(policy, "two"), tokens[:7], 6) == 7
    assert first_end(ends_of(policy, "three", "wo t"), tokens, 0) == 9
    by_id = (policy.encode("w")[-1],)
    assert first_end(ends_of(policy, ids=by_id), tokens, 0) == 6
    assert first_end(ends_of(policy, "two", ids=by_id), tokens, 0) == 6
    assert first_end(ends_of(policy, "on", ids=by_id), tokens, 0) == 2
    assert first_end(ends_of(policy, ids=by_id), tokens, 6) is None


def test_first_end_is_where_the_rule_of_the_other_samplers_says() -> None:
    policy = tiny_model("qwen2")  # a token a byte: "é" is two
    text = "aé∑b aé∑ c"
    tokens = policy.encode(text)
    for stop in ("é", "∑b", "b a", "∑ c", "z", " "):
        ends = ends_of(policy, stop)
        reached = [bool(ends.reached(torch.tensor([tokens[: end + 1]]))) for end in range(len(tokens))]
        assert first_end(ends, tokens, 0) == (reached.index(True) + 1 if any(reached) else None)


def test_a_stop_of_the_engine_that_is_none_by_our_rule_is_written_on() -> None:
    """What decides is the rule that all samplers share."""
    sampler, engine = pair()
    policy = sampler.policy
    policy.eos_ids = (98,)
    engine.stops = lambda tokens: len(tokens) == 2
    samples = sampler.sample(prompts(policy, "ab"), 1, Decoding(5, stop_strings=("never",)), generator())
    assert (samples.lengths.tolist(), samples.stopped.tolist(), samples.drawn) == ([5], [False], 5)
    first, second, third = (requests[0] for requests in engine.asked[-3:])
    written = samples.tokens[0].tolist()
    assert second == Request([*first.tokens, *written[:2]], first.seed + 2, 3)
    assert third == Request([*first.tokens, *written[:4]], first.seed + 4, 1)


def test_what_the_engine_wrote_behind_the_end_is_cut_off() -> None:
    sampler, engine = pair()
    policy = sampler.policy
    text = policy.encode("abSTOPmore")[1:]
    engine.write = lambda requests, *_: [Written(text, [-1.0] * len(text), False)]  # type: ignore[method-assign]
    sampler._check = lambda engine: None  # type: ignore[method-assign]
    samples = sampler.sample(prompts(policy, "q"), 1, Decoding(10, stop_strings=("TOP",)), generator())
    assert samples.tokens.tolist() == [text[:6]]
    assert (samples.lengths.tolist(), samples.stopped.tolist(), samples.texts) == ([6], [True], ["abS"])
    assert samples.drawn == 10


def test_special_tokens_stop_by_their_id() -> None:
    sampler, engine = pair()
    seen = []

    def write(requests: Sequence[Request], temperature: float, *stops: Sequence[Any]) -> list[Written]:
        seen.append(stops)
        return [Written([5, 6, 2, 7], [-1.0, -2.0, -3.0, -4.0], False)]

    sampler.publish(0)
    engine.write = write  # type: ignore[method-assign]
    samples = sampler.sample([[4]], 1, Decoding(6, stop_strings=("zz", "<unk>")), generator())
    assert samples.tokens.tolist() == [[5, 6, 2]]
    assert samples.stopped.tolist() == [True]
    assert samples.logprobs.tolist() == [[-1.0, -2.0, -3.0]]
    assert seen == [([1, 2], ["zz"])]  # <eos> and <unk>


def test_responses_go_on_where_they_were_begun() -> None:
    sampler, engine = pair()
    assert isinstance(sampler, SliceWriter)
    given = prompts(sampler.policy)
    begun = torch.tensor([[20, 21], [22, 23]])
    uniforms = sampler.uniforms(2, Decoding(5), generator())
    samples = sampler.begin(given, 1, Decoding(5), uniforms, begun).result()
    assert samples.tokens[:, :2].tolist() == begun.tolist()
    assert samples.logprobs[:, :2].tolist() == [[0.0, 0.0]] * 2
    assert samples.drawn == int(samples.lengths.sum()) - 4
    first = engine.asked[-1][0]
    assert (first.tokens, first.most) == ([*given[0], 20, 21], 3)
    with pytest.raises(ValueError, match="has a prompt of its own"):
        sampler.write(given, 2, Decoding(5), uniforms, begun)


def test_slices_of_a_response_have_random_numbers_of_their_own() -> None:
    sampler, engine = pair()
    partial = PartialSampler(sampler, 2)
    partial.publish(0)
    pending = partial.submit(prompts(sampler.policy), 2, Decoding(6, stop_ids=()), generator())
    change(sampler.policy)
    partial.publish(1)
    samples = pending.result()
    seeds = [[request.seed for request in requests] for requests in engine.asked if len(requests) == 4]
    assert len(seeds) == 2
    assert seeds[1] == [seed + 2 for seed in seeds[0]]
    assert samples.versions[samples.lengths == 6].tolist() == [[0, 0, 1, 1, 1, 1]] * int((samples.lengths == 6).sum())


# --- weights


def test_a_new_version_is_loaded_once_and_stamped() -> None:
    """Traps 13 and 14."""
    sampler, engine = pair()
    assert isinstance(sampler, AsyncSampler)
    given = prompts(sampler.policy)
    sampler.publish(7)
    samples = sampler.sample(given, 2, Decoding(6), generator())
    assert engine.loads == 1
    written = torch.arange(samples.tokens.shape[1]) < samples.lengths[:, None]
    assert torch.equal(samples.versions, (7 * written).int())
    before = sampler.sample(given, 2, Decoding(6, 0.0), generator())
    change(sampler.policy)
    sampler.publish(8)
    pending = sampler.submit(given, 2, Decoding(6, 0.0), generator())
    after = pending.result()
    assert engine.loads == 2
    assert int(after.versions.max()) == 8
    assert not torch.equal(before.tokens, after.tokens)


def test_weights_that_nobody_published_are_noticed() -> None:
    sampler, engine = pair()
    given = prompts(sampler.policy)
    assert int(sampler.sample(given, 1, Decoding(3), generator()).versions.max()) == 0
    sampler.sample(given, 1, Decoding(3), generator())
    assert engine.loads == 1
    optimizer = torch.optim.AdamW(sampler.policy.model.parameters(), lr=1e-3, fused=True)
    for parameter in sampler.policy.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert int(sampler.sample(given, 1, Decoding(3), generator()).versions.max()) == 1
    assert engine.loads == 2
    sampler.policy.model.load_state_dict(tiny_model("llama", 5).model.state_dict())
    assert int(sampler.sample(given, 1, Decoding(3), generator()).versions.max()) == 2


def test_the_probe_finds_weights_that_were_not_delivered() -> None:
    sampler, engine = pair()
    sampler.publish(0)
    engine.deaf = True
    sampler.publish(1)  # the same weights: nothing to find
    change(sampler.policy)
    with pytest.raises(UserError, match="vLLM does not have the learner's weights of version 2"):
        sampler.publish(2)
    with pytest.raises(UserError, match="vLLM does not have the learner's weights"):  # nothing is written with them
        sampler.sample(prompts(sampler.policy), 1, Decoding(3), generator())
    engine.deaf = False
    sampler.sample(prompts(sampler.policy), 1, Decoding(3), generator())


def test_the_probe_finds_one_update_of_a_small_learning_rate() -> None:
    sampler, engine = pair()
    sampler.publish(0)
    engine.deaf = True
    with torch.no_grad():  # what one step of AdamW does at a learning rate of 1e-3, on weights of 0.2
        for parameter in sampler.policy.model.parameters():
            parameter.add_(1e-3)
    with pytest.raises(UserError, match="log-probs of a probe differ"):
        sampler.publish(1)


def test_the_probe_finds_log_probs_of_another_temperature() -> None:
    """Trap 10."""
    sampler, engine = pair()
    engine.raw = True
    with pytest.raises(UserError, match="log-probs of a probe differ"):
        sampler.publish(0)


def test_the_probe_finds_a_prefix_of_old_weights() -> None:
    """Trap 13. The probe's prompt is the same every time and longer than a block of the cache."""
    sampler, engine = pair()
    engine.known = {}
    assert len(probe_prompt(sampler.policy, engine)) > engine.block
    sampler.publish(0)
    change(sampler.policy)
    with pytest.raises(UserError, match="weights of version 1"):
        sampler.publish(1)


def test_the_probe_leaves_room_for_its_tokens() -> None:
    sampler, engine = pair()
    engine.room = 20
    assert len(probe_prompt(sampler.policy, engine)) == 20 - PROBE_TOKENS
    sampler.publish(0)
    assert engine.asked[-1][0].most == PROBE_TOKENS


def test_a_broken_model_is_reported() -> None:
    sampler, _ = pair()
    sampler.publish(0)
    with torch.no_grad():
        sampler.policy.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises((DivergedError, RuntimeError)):
        sampler.publish(1)


def test_tolerance_is_wider_where_products_are_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, engine = pair()
    assert tolerance(sampler.policy, engine) == 3e-4
    engine.dtype = "bfloat16"
    assert tolerance(sampler.policy, engine) == 0.25
    engine.dtype = "float32"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert tolerance(sampler.policy, engine) == 0.25


def test_training_mode_is_put_back() -> None:
    sampler, _ = pair()
    sampler.policy.model.train()
    sampler.publish(0)
    assert sampler.policy.model.training


def test_adapters_are_folded_into_the_weights_that_travel() -> None:
    pytest.importorskip("peft")
    policy = tiny_model("llama")
    plain = {name: weight.clone() for name, weight in full_weights(policy)}
    add_lora(policy, 2, 4, seed=0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator())
    folded = dict(full_weights(policy))
    merge_lora(policy)
    merged = dict(policy.model.named_parameters())
    assert folded.keys() == plain.keys() == merged.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(folded[name], weight.detach())
    changed = [name for name in plain if not torch.equal(plain[name], folded[name])]
    assert len(changed) == 14  # seven matrices in each of two layers


def test_tied_weights_travel_once() -> None:
    names = [name for name, _ in full_weights(tiny_model("llama", tied=True))]
    assert "lm_head.weight" not in names
    assert "lm_head.weight" in dict(full_weights(tiny_model("llama", tied=False)))


# --- in a rollout worker


def test_a_rollout_worker_writes_with_the_weights_that_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[FakeEngine] = []

    def make(policy: LanguageModel, dtype: str, rows: int, device: str, share: float) -> FakeEngine:
        assert (dtype, rows, device, share) == ("float32", 32, "cpu", vllm_engine.SHARE_ALONE)
        engines.append(FakeEngine(policy))
        return engines[-1]

    monkeypatch.setattr(vllm_engine, "VllmEngine", make)
    monkeypatch.setattr(vllm_engine, "check_installed", lambda: None)
    policy = tiny_model("llama")
    publisher = Publisher(policy, lambda thing: thing, "cpu", 32)
    worker = RolloutWorker(0, VllmWriter, fetch=copy.deepcopy)

    def write(version: int) -> Samples:
        uniforms = NativeSampler(policy).uniforms(4, Decoding(6, 0.7), generator()).numpy()
        asked = (prompts(policy), 2, Decoding(6, 0.7), uniforms, publisher.model, publisher.publish(), version)
        return worker.write(Chunk(*asked))

    def learner(samples: Samples) -> Tensor:
        rows = [row[:length] for row, length in zip(samples.tokens.tolist(), samples.lengths.tolist(), strict=True)]
        both = Sequences([prompts(policy)[group] for group in samples.groups.tolist()], rows)
        return response_scores(policy.model, both, 0.7).logprobs

    for version in (3, 4, 5):
        samples = write(version)
        recorded = torch.cat([row[:length] for row, length in zip(samples.logprobs, samples.lengths, strict=True)])
        torch.testing.assert_close(recorded, learner(samples), rtol=0, atol=1e-5)
        assert int(samples.versions.max()) == version
        change(policy)
    assert len(engines) == 1
    assert engines[0].loads == 3
    engines[0].deaf = True
    with pytest.raises(UserError, match="vLLM does not have the learner's weights"):
        write(6)


def test_the_workers_of_ray_have_it() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from zerozoo.distributed.ray_engine import WRITERS

    assert WRITERS["vllm"] is VllmWriter


# --- choosing it


def test_the_command_line_offers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    offer_samplers()
    policy, machine = tiny_model("llama"), choose_machine("cpu", "float32", 0, 0)
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None if name == "vllm" else name)
    with pytest.raises(UserError, match=r"--sampler vllm needs the package vllm: pip install 'zerozoo\[vllm\]'"):
        make_sampler("vllm", policy, machine)
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: name)
    assert isinstance(make_sampler("vllm", policy, machine), VllmSampler)
    with pytest.raises(UserError, match="choose one of: native, transformers, vllm"):
        make_sampler("vlm", policy, machine)
    assert "vllm" not in sys.modules  # nothing is loaded before the first use
    policy.outline = policy.model
    with pytest.raises(UserError, match="--shard and --sampler vllm go together with --backend ray alone"):
        make_sampler("vllm", policy, machine)


def test_tokens_that_vllm_wrote_are_weighted() -> None:
    config = Config(importance_cap=3.0)
    assert importance_cap(config) == 0.0
    assert importance_cap(dataclasses.replace(config, sampler="vllm")) == 3.0


def test_a_model_is_described_without_its_weights(tmp_path: Path) -> None:
    policy = tiny_model("llama")
    describe_model(policy, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (tmp_path / "tokenizer.json").is_file()
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_head_that_shares_the_embedding_gets_its_weights_on_a_cpu(tmp_path: Path) -> None:
    tied, untied = (tiny_model("llama", tied=tied) for tied in (True, False))
    assert needs_untying(tied)
    assert not needs_untying(untied)
    assert not needs_untying(tiny_model("qwen2", tied=True))  # its head is the embedding itself
    describe_model(tied, tmp_path, untied=True)
    assert not json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    assert tied.model.config.tie_word_embeddings
    describe_model(tied, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
