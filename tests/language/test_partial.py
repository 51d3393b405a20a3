"""Responses in slices: those of one piece while the weights stay; else each token is of the version that wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import make_loop, make_tasks, odd, weights, without_clock

from zerozoo.language.build import write_in_slices
from zerozoo.language.families import tiny_model
from zerozoo.language.models import LanguageModel, save_model
from zerozoo.language.samplers import decoders
from zerozoo.language.samplers.interface import AsyncSampler, Decoding, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.samplers.partial import PartialSampler
from zerozoo.language.samplers.reference import TransformersSampler
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.recipes.reasoning import simplerl_zoo
from zerozoo.recipes.reasoning.simplerl_zoo import EXTENDABLE, Config
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

LONGEST = 12
QUESTIONS = ("7", "What is 12 - 4?", "a rather long one, for a question")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompts_of(policy: LanguageModel) -> list[list[int]]:
    return [policy.encode(question) for question in QUESTIONS]


def moved(policy: LanguageModel, seed: int) -> None:
    """Other weights, as after an update."""
    with torch.no_grad():
        for value in policy.model.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator(seed))


@torch.no_grad()
def recomputed(
    policy: LanguageModel, prompts: Sequence[list[int]], samples: Samples, temperature: float
) -> torch.Tensor:
    """(N, T) log-probs of the responses, one row at a time through transformers' own forward."""
    result = torch.zeros_like(samples.logprobs)
    for row, length in enumerate(samples.lengths.tolist()):
        prompt, response = prompts[int(samples.groups[row])], samples.tokens[row, :length]
        ids = torch.cat([torch.tensor(prompt), response])
        logits = policy.model(input_ids=ids[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        table = (logits.double() / temperature).log_softmax(-1)
        result[row, :length] = table.gather(-1, response[:, None])[:, 0].float()
    return result


def assert_same_responses(first: Samples, second: Samples) -> None:
    for name in ("tokens", "lengths", "stopped", "groups"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert first.texts == second.texts
    assert torch.allclose(first.logprobs, second.logprobs, atol=1e-5)


# --- unchanged weights


@pytest.mark.parametrize("slice_tokens", [1, 2, 5, LONGEST, 100])
@pytest.mark.parametrize("family", ["llama", "gemma2", "llama in transformers"])
def test_slices_make_the_responses_of_one_piece(
    family: str, slice_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written version by version, then the rest; by our own decoder and by that of transformers."""
    policy = tiny_model(family.partition(" ")[0])
    if "transformers" in family:
        monkeypatch.setattr(decoders, "why_not", lambda model: "a reason")
    prompts, decoding = prompts_of(policy), Decoding(LONGEST, temperature=0.7, stop_ids=tuple(range(4, 12)))
    whole = NativeSampler(policy, max_rows=5).sample(prompts, 4, decoding, generator())
    assert len(set(whole.lengths.tolist())) > 3
    assert whole.stopped.any()
    assert not whole.stopped.all()
    for versions in (1, 3, LONGEST + 2):
        sampler = PartialSampler(NativeSampler(policy, max_rows=5), slice_tokens)
        sampler.publish(0)
        pending = sampler.submit(prompts, 4, decoding, generator())
        for version in range(1, versions):
            sampler.publish(version)
            sampler.submit(prompts[:1], 1, decoding, generator(version))
        samples = pending.result()
        assert_same_responses(samples, whole)
        # Token i is of version i // slice_tokens, the rest of the last one.
        place = torch.arange(samples.tokens.shape[1]).expand_as(samples.tokens)
        wanted = (place // slice_tokens).clamp(max=versions - 1)
        written = place < samples.lengths[:, None]
        assert torch.equal(samples.versions, torch.where(written, wanted, 0).int())
        assert samples.drawn >= int(samples.lengths.sum())


@pytest.mark.parametrize("slice_tokens", [1, 2, 3])
def test_a_stop_string_is_found_across_slices(chain_model: Any, slice_tokens: int) -> None:
    """abcdefab...: "def" may begin in one slice and end in the next; so may "fab", around the end of the text."""
    policy = chain_model("abcdef")
    for stop, ends in ((("def",), "abc"), (("fab",), "abcde")):
        decoding = Decoding(20, stop_strings=stop)
        sampler = PartialSampler(NativeSampler(policy), slice_tokens)
        pending = sampler.submit([policy.encode("f")], 2, decoding, generator())
        for version in range(1, 9):
            sampler.publish(version)
            sampler.submit([policy.encode("a")], 1, decoding, generator())
        samples = pending.result()
        assert samples.texts == [ends, ends]
        assert samples.lengths.tolist() == [len(ends) + len("def" if ends == "abc" else "fab")] * 2
        assert samples.stopped.all()


def test_a_stop_string_in_the_prompt_ends_nothing(chain_model: Any) -> None:
    """Only what was written before counts, not the question: "ab" is in both."""
    policy = chain_model("abcd")
    sampler = PartialSampler(NativeSampler(policy), 1)
    pending = sampler.submit([policy.encode("a")], 1, Decoding(5, stop_strings=("ab",)), generator())
    sampler.publish(1)
    assert pending.result().texts == ["bcd"]  # b c d a b: the second b completes "ab"


# --- weights that change


def test_every_token_is_of_the_version_that_wrote_it() -> None:
    """Log-probs against both models; and what was written stays when the weights change."""
    policy, temperature = tiny_model("llama"), 0.9
    prompts, decoding = prompts_of(policy), Decoding(LONGEST, temperature)
    old = tiny_model("llama")
    whole = NativeSampler(old).sample(prompts, 3, decoding, generator())
    sampler = PartialSampler(NativeSampler(policy), 5)
    sampler.publish(7)
    pending = sampler.submit(prompts, 3, decoding, generator())
    moved(policy, 1)
    sampler.publish(8)
    samples = pending.result()
    written = torch.arange(samples.tokens.shape[1]) < samples.lengths[:, None]
    first = written & (torch.arange(samples.tokens.shape[1]) < 5)
    assert (samples.versions[first] == 7).all()
    assert (samples.versions[written & ~first] == 8).all()
    assert torch.equal(samples.tokens[:, :5], whole.tokens[:, :5])
    assert not torch.equal(samples.tokens, whole.tokens)
    by_old, by_new = recomputed(old, prompts, samples, temperature), recomputed(policy, prompts, samples, temperature)
    assert (samples.logprobs - by_old)[first].abs().max() < 1e-5
    assert (samples.logprobs - by_new)[written & ~first].abs().max() < 1e-5
    assert (samples.logprobs - by_new)[first].abs().max() > 1e-2
    assert (samples.logprobs - by_old)[written & ~first].abs().max() > 1e-2


def test_the_rest_of_a_response_is_drawn_by_its_own_random_numbers() -> None:
    """As the new weights would have drawn it behind what is there: by `write` with the prefix as a prompt."""
    policy = tiny_model("llama")
    prompts, decoding = prompts_of(policy)[:1], Decoding(9, stop_ids=())
    native = NativeSampler(policy)
    sampler = PartialSampler(native, 4)
    pending = sampler.submit(prompts, 2, decoding, generator(5))
    moved(policy, 2)
    sampler.publish(1)
    samples = pending.result()
    uniforms = native.uniforms(2, decoding, generator(5))
    for row in range(2):
        prefix = [*prompts[0], *samples.tokens[row, :4].tolist()]
        rest = native.write([prefix], 1, Decoding(5), uniforms[row : row + 1, 4:])
        assert samples.tokens[row, 4 : 4 + int(rest.lengths)].tolist() == rest.tokens[0].tolist()


def test_what_is_unfinished_goes_on_before_anything_new(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_model("llama")
    calls: list[tuple[int, int, int]] = []
    write = NativeSampler.write

    def noting(self: NativeSampler, prompts: Any, samples: int, decoding: Decoding, *rest: Any) -> Samples:
        begun = 0 if rest[1] is None else rest[1].shape[1]
        calls.append((len(prompts) * samples, begun, decoding.max_new_tokens))
        return write(self, prompts, samples, decoding, *rest)

    monkeypatch.setattr(NativeSampler, "write", noting)
    sampler, prompts = PartialSampler(NativeSampler(policy), 2), prompts_of(policy)
    policy.eos_ids = ()
    pending = []
    for version, number in enumerate((1, 2, 3)):
        sampler.publish(version)
        pending.append(sampler.submit(prompts[:number], 2, Decoding(5), generator(version)))
    assert calls == [(2, 0, 2), *[(2, 2, 4), (4, 0, 2)], *[(2, 4, 5), (4, 2, 4), (6, 0, 2)]]
    sampler.submit(prompts[:1], 1, Decoding(5), generator(3))
    assert calls[6:] == [(1, 0, 2)]  # the same weights write nothing twice
    assert [len(one.result().lengths) for one in pending] == [2, 4, 6]
    assert calls[7:] == [(4, 4, 5), (6, 2, 5)]  # all that was left; the others have had their slice


def test_refusals() -> None:
    policy = tiny_model("llama")
    native = NativeSampler(policy)
    assert isinstance(PartialSampler(native, 1), AsyncSampler)
    assert not isinstance(native, AsyncSampler)
    with pytest.raises(ValueError, match="at least 1"):
        PartialSampler(native, 0)
    with pytest.raises(ValueError, match="every prompt needs"):
        PartialSampler(native, 1).submit([], 1, Decoding(3), generator())
    uniforms = torch.zeros((2, 3), dtype=torch.float64)
    with pytest.raises(ValueError, match="a prompt of its own"):
        native.write([[5]], 2, Decoding(3), uniforms, torch.tensor([[6]]))
    config = Config(slice_tokens=4, max_lag=1)
    assert write_in_slices(dataclasses.replace(config, slice_tokens=0), native) is native
    made = write_in_slices(config, native)
    assert isinstance(made, PartialSampler)
    assert (made.sampler, made.slice_tokens) == (native, 4)
    with pytest.raises(UserError, match="cannot go on with what other weights have begun: leave out --slice-tokens"):
        write_in_slices(config, TransformersSampler(policy))


# --- in the loop


def sliced_loop(directory: Path, slice_tokens: int, lag: int, **options: Any) -> ZeroRL:
    loop = make_loop(directory, rule=odd, tasks=make_tasks(7), max_lag=lag, evaluate_every=100, **options)
    loop.evaluation_sampler = loop.sampler
    loop.collector.sampler = PartialSampler(loop.sampler, slice_tokens)
    return loop


def test_rows_of_the_loop_mix_versions_within_the_lag(tmp_path: Path) -> None:
    """Step t is begun by version max(0, t - 3); slices of two tokens, the rest by version t - 1."""
    loop = sliced_loop(tmp_path, 2, 2, steps=6)
    seen = []
    update = loop.updater.update
    loop.updater.update = lambda rollouts, *rest: (seen.append(rollouts), update(rollouts, *rest))[1]
    loop.train()
    for step, rollouts in enumerate(seen, start=1):
        first = max(0, step - 3)
        place = torch.arange(rollouts.samples.tokens.shape[1])
        wanted = (first + place // 2).clamp(max=step - 1).expand_as(rollouts.samples.tokens)
        written = rollouts.written()
        assert torch.equal(rollouts.samples.versions[written].long(), wanted[written])
    rows = loop.run.history()[1:]
    assert [row["staleness/highest"] for row in rows] == [0, 1, 2, 2, 2, 2]
    assert rows[0]["staleness/mixed_rows"] == 0
    assert all(0 < row["staleness/older_tokens"] <= 1 for row in rows[1:])
    assert any(row["staleness/mixed_rows"] > 0 for row in rows[1:])
    assert {row["staleness/dropped"] for row in rows} == {0}


def test_without_updates_slices_change_no_response(tmp_path: Path) -> None:
    results = []
    for lag, slice_tokens in ((0, 1), (1, 2), (3, 1)):
        loop = sliced_loop(tmp_path / str(lag), slice_tokens, lag, steps=4, frozen_steps=4)
        loop.train()
        results.append([(row["step"], row["task"], row["response"]) for row in loop.run.samples()])
    assert results[0] == results[1] == results[2]


# --- from a config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "digits"
    save_model(tiny_model("llama", vocabulary="0123 ", hidden=16, heads=2, kv_heads=1), folder)
    return str(folder)


def train(model: str, directory: Path, **changes: Any) -> list[dict[str, Any]]:
    fields: dict[str, Any] = {
        **{"data": "arithmetic", "level": "one-digit", "heldout_size": 6, "max_new_tokens": 4},
        **{"prompts_per_step": 16, "samples_per_prompt": 4, "updates_per_step": 2, "kl_coefficient": 0.01},
        **{"learning_rate": 0.003, "steps": 5, "evaluate_every": 5, "checkpoint_every": 2},
    }
    config = Config(model=model, **{**fields, **changes})
    with Run.start(directory, "simplerl-zoo", dataclasses.asdict(config), config.seed, extendable=EXTENDABLE) as run:
        simplerl_zoo.train(config, run)
        return without_clock(run.history())


def test_a_recipe_trains_with_lag_and_slices(model: str, tmp_path: Path) -> None:
    plain = train(model, tmp_path / "plain")
    first = train(model, tmp_path / "first", max_lag=2, slice_tokens=1)
    assert first == train(model, tmp_path / "again", max_lag=2, slice_tokens=1)
    assert first[0] == plain[0]
    names = {"reward", "correct", "tokens/responses", "policy/entropy", "policy/sampler_kl"}
    assert {name: first[1][name] for name in names} == {name: plain[1][name] for name in names}  # nothing is old yet
    assert first[1:] != plain[1:]
    assert max(row["staleness/highest"] for row in first[1:]) == 2
    assert max(row["staleness/mixed_rows"] for row in first[1:]) > 0
    trained = [row for row in first[3:] if "policy/sampler_mismatch" in row]
    assert trained
    for row in trained:  # tokens of older weights
        assert row["policy/sampler_mismatch"] > 1e-4
        assert row["policy/importance_weight"] != 1
    assert all("policy/importance_weight" not in row for row in plain)


def test_a_finished_run_with_a_lag_run_again_changes_nothing(model: str, tmp_path: Path) -> None:
    rows = train(model, tmp_path / "run", max_lag=2, slice_tokens=1)
    assert train(model, tmp_path / "run", max_lag=2, slice_tokens=1) == rows


def test_the_weights_of_a_lag_differ_only_where_something_was_old(tmp_path: Path) -> None:
    """The first step of every lag is the same to the bit: nothing is old then, and nothing weighs other than 1."""
    results = []
    for lag in (0, 3):
        loop = sliced_loop(tmp_path / str(lag), 2, lag, steps=4)
        loop.step(1)
        results.append(weights(loop))
    assert torch.equal(results[0], results[1])
