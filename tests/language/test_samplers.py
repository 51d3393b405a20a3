"""Samplers: the same distribution as the learner for every family, and where responses end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from zerozoo.language.decoder import OwnDecoder
from zerozoo.language.families import SUPPORTED, WITH_SLIDING_WINDOW, tiny_model
from zerozoo.language.logprobs import Sequences, response_scores
from zerozoo.language.models import LanguageModel, wrap_model
from zerozoo.language.samplers import native
from zerozoo.language.samplers.decoders import TransformersDecoder
from zerozoo.language.samplers.interface import Decoding, Sampler, Samples, cut_at_stop, join_samples, pad_rows
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.samplers.reference import TransformersSampler
from zerozoo.runs.errors import DivergedError

MakeModel = Callable[..., LanguageModel]
MakeSampler = Callable[[LanguageModel], Sampler]
SAMPLERS: tuple[MakeSampler, ...] = (NativeSampler, TransformersSampler)
PROMPTS = ("7", "What is 12 - 4?", "Question: a rather long one, longer than the window?\nAnswer:")
# Every supported family, with and without a sliding window where there is a choice, plain and grouped attention,
# tied and untied embeddings.
VARIANTS: dict[str, dict[str, Any]] = {
    **{family: {"family": family} for family in SUPPORTED},
    **{f"{family} window": {"family": family, "sliding_window": 6} for family in WITH_SLIDING_WINDOW},
    "llama plain heads": {"family": "llama", "kv_heads": 4},
    "llama one key head": {"family": "llama", "kv_heads": 1},
    "llama tied": {"family": "llama", "tied": True},
    "qwen2 tied": {"family": "qwen2", "tied": True},
    "gemma untied": {"family": "gemma", "tied": False},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def encoded(policy: LanguageModel, *prompts: str) -> list[list[int]]:
    return [policy.encode(prompt) for prompt in prompts or PROMPTS]


def drawn(
    policy: LanguageModel, decoding: Decoding, *prompts: str, make: MakeSampler = NativeSampler, **options: Any
) -> Samples:
    seed, samples = options.get("seed", 0), options.get("samples", 1)
    return make(policy).sample(encoded(policy, *prompts), samples, decoding, generator(seed))


def rows_of(prompts: list[list[int]], samples: Samples) -> Sequences:
    lengths = samples.lengths.tolist()
    return Sequences(
        [prompts[group] for group in samples.groups.tolist()],
        [samples.tokens[row, :length].tolist() for row, length in enumerate(lengths)],
    )


def recorded(samples: Samples) -> torch.Tensor:
    return torch.cat([samples.logprobs[row, :length] for row, length in enumerate(samples.lengths.tolist())])


@torch.no_grad()
def plain_logprobs(policy: LanguageModel, rows: Sequences, temperature: float) -> torch.Tensor:
    """One sequence at a time through transformers' own forward: no cache, no padding, softmax in float64."""
    parts = []
    for prompt, response in zip(rows.prompts, rows.responses, strict=True):
        logits = policy.model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
        table = (logits.double() / temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        parts.append(table.gather(-1, torch.tensor(response)[:, None])[:, 0])
    return torch.cat(parts)


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.double() - second.double()).abs().max())


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sampler_learner_and_plain_forward_agree(variant: str, make: MakeSampler) -> None:
    """Traps 1, 2, 8, 10: padding on either side, positions, the shift by one and the temperature."""
    policy = tiny_model(**VARIANTS[variant])
    prompts = encoded(policy)
    for temperature in (1.0, 0.7):
        samples = make(policy).sample(prompts, 2, Decoding(14, temperature), generator())
        rows = rows_of(prompts, samples)
        assert sum(map(len, rows.responses)) > 40
        plain = plain_logprobs(policy, rows, temperature)
        with torch.no_grad():
            padded = response_scores(policy.model, rows, temperature).logprobs
            packed = response_scores(policy.model, rows, temperature, packed=True).logprobs
        for values in (recorded(samples), padded, packed):
            assert distance(values, plain) < 1e-4
        if temperature != 1:  # the comparison sees a temperature that is left out
            assert distance(plain_logprobs(policy, rows, 1.0), plain) > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_those_of_transformers(variant: str) -> None:
    policy = tiny_model(**VARIANTS[variant])
    ours, theirs = (drawn(policy, Decoding(20, 0.0), make=make) for make in SAMPLERS)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.lengths, theirs.lengths)
    assert distance(ours.logprobs, theirs.logprobs) < 1e-4


def test_a_window_changes_what_is_sampled() -> None:
    """Otherwise the parity of windowed models would say nothing about the window."""
    narrow, wide = (tiny_model("mistral", sliding_window=window) for window in (6, None))
    rows = rows_of(encoded(wide), drawn(wide, Decoding(14)))
    assert distance(plain_logprobs(narrow, rows, 1.0), plain_logprobs(wide, rows, 1.0)) > 0.1


@pytest.mark.parametrize("make", SAMPLERS)
def test_nucleus_sampling_records_the_logprob_before_the_cut(make: MakeSampler) -> None:
    policy = tiny_model("llama")
    prompts = encoded(policy)
    samples = make(policy).sample(prompts, 2, Decoding(14, 1.0, top_p=0.5), generator())
    rows = rows_of(prompts, samples)
    assert distance(recorded(samples), plain_logprobs(policy, rows, 1.0)) < 1e-4
    with torch.no_grad():
        for prompt, response in zip(rows.prompts, rows.responses, strict=True):
            table = (
                policy.model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].softmax(-1)
            )
            chosen = table.gather(-1, torch.tensor(response)[:, None])
            assert bool(((table * (table > chosen)).sum(-1) < 0.5).all())


# --- refilling, compaction, random numbers


@pytest.mark.parametrize("variant", ["llama", "gemma2", "qwen2 window"])
def test_refilling_and_compaction_change_no_token(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_model(**VARIANTS[variant])
    prompts = encoded(policy, *PROMPTS, "5 + 5 =", "b")
    # Many ends, so that rows finish at all times; about one token in six is one of them.
    decoding = Decoding(24, stop_ids=tuple(range(10, 26)))

    def sample(max_rows: int, drop_below: float, look_every: int = 1) -> Samples:
        monkeypatch.setattr(native, "DROP_FINISHED_BELOW", drop_below)
        monkeypatch.setitem(native.LOOK_EVERY, "cpu", look_every)
        return NativeSampler(policy, max_rows).sample(prompts, 3, decoding, generator(5))

    expected = sample(256, 0.0)  # all at once, finished rows stay to the end
    assert len(set(expected.lengths.tolist())) > 4
    settings = ((256, 0.75), (256, 1.0), (1, 0.75), (4, 1.0), (7, 0.75), (15, 0.5), (6, 0.9, 5), (256, 0.75, 8), (6, 0))
    for setting in settings:
        same(sample(*setting), expected)


def same(samples: Samples, expected: Samples) -> None:
    assert torch.equal(samples.tokens, expected.tokens)
    assert torch.equal(samples.lengths, expected.lengths)
    assert torch.equal(samples.stopped, expected.stopped)
    assert torch.equal(samples.groups, expected.groups)
    assert samples.texts == expected.texts
    assert distance(samples.logprobs, expected.logprobs) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("stops", [("x", "7"), ("ab", "b", "1", "zz", "Q!")])
def test_stop_strings_are_found_however_seldom_one_looks(
    family: str, stops: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that computes ahead, what a row draws behind its end must neither stay nor end it anew."""
    policy = tiny_model(family)
    prompts = encoded(policy, *PROMPTS, "5 + 5 =", "b")
    decoding = Decoding(40, stop_ids=(30,), stop_strings=stops)
    results = []
    for look_every, max_rows in ((1, 256), (3, 256), (8, 6), (64, 256), (64, 3)):
        monkeypatch.setitem(native.LOOK_EVERY, "cpu", look_every)
        results.append(NativeSampler(policy, max_rows).sample(prompts, 3, decoding, generator(5)))
    assert len(set(results[0].lengths.tolist())) > 4
    assert len(set(results[0].stopped.tolist())) == 2
    for result in results[1:]:
        same(result, results[0])


def batch_sizes(monkeypatch: pytest.MonkeyPatch, decoder: Any) -> list[int]:
    """Rows of every step that a decoder makes from now on."""
    sizes: list[int] = []
    advance = decoder.advance

    def watched(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return advance(self, tokens)

    monkeypatch.setattr(decoder, "advance", watched)
    return sizes


def test_finished_rows_leave_the_batch_and_waves_bound_it(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_model("gemma")  # a model for which transformers runs
    sizes = batch_sizes(monkeypatch, TransformersDecoder)
    decoding = Decoding(30, stop_ids=tuple(range(10, 22)))
    NativeSampler(policy, 8).sample(encoded(policy), 4, decoding, generator())
    assert 4 < max(sizes) <= 8  # at most two groups of four
    assert min(sizes) < 4
    assert len(sizes) < 2 * 30


def test_new_prompts_take_the_places_of_finished_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_model("llama")
    sizes = batch_sizes(monkeypatch, OwnDecoder)
    prompts = encoded(policy, *[f"{number} + {number} =" for number in range(30)])
    decoding = Decoding(30, stop_ids=tuple(range(10, 22)))
    samples = NativeSampler(policy, 12).sample(prompts, 2, decoding, generator())
    drawn_behind_ends = samples.drawn - int(samples.lengths.sum())
    assert sum(sizes) + 60 == samples.drawn  # the first token of each of the 60 rows comes from its prompt
    busy = next(index for index in range(len(sizes)) if sizes[index] < 12)
    assert set(sizes[:busy]) == {12}
    assert sum(sizes[busy:]) < 0.3 * sum(sizes)  # the batch is full until there is no prompt left
    assert drawn_behind_ends < 0.35 * samples.drawn
    assert sizes[busy:] == sorted(sizes[busy:], reverse=True)


def test_the_first_token_may_be_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that end with the token drawn from their prompt make place at once."""
    policy = tiny_model("llama")
    sizes = batch_sizes(monkeypatch, OwnDecoder)
    prompts = encoded(policy, *[f"{number} + {number} =" for number in range(9)])
    samples = NativeSampler(policy, 4).sample(prompts, 2, Decoding(1), generator())
    assert (samples.lengths.tolist(), samples.drawn, sizes) == ([1] * 18, 18, [])


@pytest.mark.parametrize("make", SAMPLERS)
def test_the_generator_alone_decides(make: MakeSampler) -> None:
    policy = tiny_model("qwen2")
    sampler, prompts, decoding = make(policy), encoded(policy), Decoding(10)
    state = torch.get_rng_state()
    source = generator(1)
    first = sampler.sample(prompts, 2, decoding, source)
    second = sampler.sample(prompts, 2, decoding, source)
    torch.manual_seed(99)
    again = sampler.sample(prompts, 2, decoding, generator(1))
    torch.set_rng_state(state)
    other = sampler.sample(prompts, 2, decoding, generator(2))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left as it was
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.logprobs, again.logprobs)
    assert not torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    group = first.tokens[:2]
    assert not torch.equal(group[0], group[1])  # trap 15: samples of one prompt have random numbers of their own


@pytest.mark.parametrize("make", SAMPLERS)
def test_groups_are_adjacent_and_every_row_is_complete(make: MakeSampler) -> None:
    policy = tiny_model("llama")
    samples = drawn(policy, Decoding(6), make=make, samples=3)
    assert samples.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert samples.tokens.shape == samples.logprobs.shape == (9, int(samples.lengths.max()))
    assert len(samples.texts) == len(samples.stopped) == 9
    padding = torch.arange(samples.tokens.shape[1]) >= samples.lengths[:, None]
    assert bool((samples.tokens[padding] == policy.pad_id).all())
    assert bool((samples.logprobs[padding] == 0).all())
    assert bool((samples.logprobs[~padding] < 0).all())


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize("prompts", [[], [[4, 5], []]])
def test_an_empty_prompt_is_refused(make: MakeSampler, prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        make(tiny_model("llama")).sample(prompts, 2, Decoding(4), generator())


@pytest.mark.parametrize("make", SAMPLERS)
def test_training_mode_is_put_back_and_dropout_is_off(make: MakeSampler) -> None:
    """Trap 16."""
    policy = tiny_model("llama")
    policy.model.config.attention_dropout = 0.5
    for layer in policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    expected = drawn(policy, Decoding(8), make=make)
    policy.model.train()
    samples = drawn(policy, Decoding(8), make=make)
    assert policy.model.training
    assert torch.equal(samples.logprobs, expected.logprobs)


def test_new_weights_are_used_at_once() -> None:
    """Traps 13 and 14: no cache of the weights or of a prefix outlives a call."""
    policy = tiny_model("llama")
    sampler = NativeSampler(policy)
    prompts = encoded(policy)
    sampler.sample(prompts, 2, Decoding(8), generator())
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter).cumsum(0).sin())
    samples = sampler.sample(prompts, 2, Decoding(8), generator())
    assert distance(recorded(samples), plain_logprobs(policy, rows_of(prompts, samples), 1.0)) < 1e-4


def test_settings_of_the_models_generation_config_do_not_bend_the_distribution() -> None:
    """Trap 11: published models carry a repetition penalty, top_k or top_p of their own, and `generate` reads them."""
    plain, bent = (tiny_model("llama") for _ in range(2))
    settings = bent.model.generation_config
    settings.repetition_penalty, settings.top_k, settings.top_p, settings.min_p = 5.0, 3, 0.2, 0.5
    settings.no_repeat_ngram_size, settings.suppress_tokens, settings.temperature = 2, list(range(4, 60)), 0.1
    for temperature in (1.0, 0.0):
        samples = [drawn(policy, Decoding(20, temperature), make=TransformersSampler) for policy in (plain, bent)]
        assert torch.equal(samples[0].tokens, samples[1].tokens)
    assert settings.repetition_penalty == 5.0  # what is saved with the model stays what it was


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_broken_model_is_reported(make: MakeSampler) -> None:
    policy = tiny_model("llama")
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(float("nan"))
    for temperature in (1.0, 0.0):
        with pytest.raises(DivergedError, match="not finite"):
            drawn(policy, Decoding(4, temperature), make=make)


# --- where responses end


@pytest.mark.parametrize("make", SAMPLERS)
def test_stop_string_keeps_the_token_that_completes_it_and_cuts_the_text_before_it(
    chain_model: MakeModel, make: MakeSampler
) -> None:
    policy = chain_model("abcSTOPdef")
    samples = drawn(policy, Decoding(9, stop_strings=("never", "TOP")), "a", "b", make=make)
    assert policy.decode(samples.tokens[0, :6]) == "bcSTOP"
    assert samples.lengths.tolist() == [6, 5]
    assert samples.stopped.tolist() == [True, True]
    assert samples.texts == ["bcS", "cS"]
    assert samples.tokens[1, 5:].tolist() == [policy.pad_id]


@pytest.mark.parametrize("make", SAMPLERS)
def test_the_first_of_several_stop_strings_ends_the_response(chain_model: MakeModel, make: MakeSampler) -> None:
    policy = chain_model("abcdefgh")
    samples = drawn(policy, Decoding(9, stop_strings=("fg", "cd", "cde")), "a", make=make)
    assert samples.texts == ["b"]
    assert samples.lengths.tolist() == [3]


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_stop_string_in_the_prompt_does_not_end_the_response(chain_model: MakeModel, make: MakeSampler) -> None:
    policy = chain_model("abcdefgh")
    samples = drawn(policy, Decoding(5, stop_strings=("abc", "cd")), "abc", make=make)
    assert samples.texts == ["defgh"]  # neither a match inside the prompt nor one across its end
    assert samples.stopped.tolist() == [False]


@pytest.mark.parametrize("make", SAMPLERS)
def test_stop_string_that_spans_tokens_of_several_characters(make: MakeSampler) -> None:
    pieces = ["<pad>", "<eos>", "ab", "cd", "ef", "é", "gh"]
    core = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    policy = tiny_model("llama")
    policy = wrap_model(policy.model, tokenizer, "pieces")
    with torch.no_grad():  # every token is followed by the next of 2, 3, 4, 5, 6, 2, ...
        for layer in policy.model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        policy.model.model.norm.weight.fill_(1.0)
        policy.model.model.embed_tokens.weight.copy_(torch.eye(100, 32))
        policy.model.lm_head.weight.zero_()
        for token, following in ((2, 3), (3, 4), (4, 5), (5, 6), (6, 2)):
            policy.model.lm_head.weight[following, token] = 20.0
    for stop, length, text in (("de", 2, "c"), ("féghabc", 6, "cde"), ("é", 3, "cdef"), ("cdefé", 3, "")):
        samples = make(policy).sample([[2]], 1, Decoding(8, stop_strings=(stop,)), generator())
        assert (samples.lengths.tolist(), samples.texts, samples.stopped.tolist()) == ([length], [text], [True])


def test_a_long_stop_string_of_many_single_byte_tokens_is_found() -> None:
    """The window that is searched must be as long in tokens as the stop string is in bytes."""
    policy = tiny_model("qwen2")  # one token a byte: "∑" is three tokens
    stop = "∑∑∑∑∑end"
    text = policy.encode("xyz" + stop + "more")
    sampler = NativeSampler(policy)

    class Script(torch.nn.Module):
        step = -1

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            self.step += 1
            return 100.0 * torch.nn.functional.one_hot(torch.tensor(text[self.step]), 258).expand(len(hidden), -1)

    policy.model.lm_head = Script()
    samples = sampler.sample(encoded(policy, "a"), 1, Decoding(40, stop_strings=(stop,)), generator())
    assert samples.texts == ["xyz"]
    assert samples.lengths.tolist() == [len("xyz" + stop) + 10]


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_stop_string_that_is_a_special_token_ends_the_response(table_model: MakeModel, make: MakeSampler) -> None:
    """`<|im_end|>` is one special token of Qwen and no text: decoding that leaves special tokens out cannot see it."""
    table = torch.zeros(8, 8)
    table[4, 5] = table[5, 6] = table[6, 2] = table[2, 7] = table[7, 4] = 50.0  # a -> b -> c -> <unk> -> d -> a
    policy = table_model(table, "abcd")
    samples = drawn(policy, Decoding(6, stop_strings=("zz", "<unk>")), "a", make=make)
    assert samples.tokens.tolist() == [[5, 6, 2]]
    assert samples.stopped.tolist() == [True]
    assert samples.texts == ["bc"]


@pytest.mark.parametrize("make", SAMPLERS)
def test_end_of_text_and_stop_ids(chain_model: MakeModel, make: MakeSampler) -> None:
    """Traps 3 to 5: two end-of-text ids, the end kept once, nothing behind it."""
    policy = chain_model("abcdefgh", ends="f")
    vocabulary = policy.tokenizer.get_vocab()
    plain = drawn(policy, Decoding(9), "a", make=make)
    assert plain.tokens.tolist() == [[*policy.encode("bcdef")[1:], policy.eos_ids[0]]]
    assert (plain.lengths.tolist(), plain.stopped.tolist(), plain.texts) == ([6], [True], ["bcdef"])
    with_stop_id = drawn(policy, Decoding(9, stop_ids=(vocabulary["d"],)), "a", make=make)
    assert (with_stop_id.lengths.tolist(), with_stop_id.stopped.tolist()) == ([3], [True])
    assert with_stop_id.texts == ["bcd"]  # a stop id is no stop string: its text belongs to the response
    policy.eos_ids = (policy.eos_ids[0], vocabulary["e"])
    two_ends = drawn(policy, Decoding(9), "a", "f", make=make)
    assert (two_ends.lengths.tolist(), two_ends.stopped.tolist()) == ([4, 1], [True, True])
    assert two_ends.tokens[0, 3] == vocabulary["e"]


@pytest.mark.parametrize("make", SAMPLERS)
def test_padding_with_an_end_id_loses_no_end(chain_model: MakeModel, make: MakeSampler) -> None:
    """Trap 3: SmolLM2 pads with its end-of-text id."""
    policy = chain_model("abcdefgh", ends="f")
    policy.pad_id = policy.eos_ids[0]
    samples = drawn(policy, Decoding(9), "a", "e", make=make)
    assert samples.lengths.tolist() == [6, 2]
    assert samples.texts == ["bcdef", "f"]
    assert samples.logprobs[1, 2:].tolist() == [0.0] * 4


@pytest.mark.parametrize("make", SAMPLERS)
@pytest.mark.parametrize(("most", "length", "stopped"), [(1, 1, False), (5, 5, False), (6, 6, True), (7, 6, True)])
def test_length_and_finish_reason_at_the_limit(
    chain_model: MakeModel, make: MakeSampler, most: int, length: int, stopped: bool
) -> None:
    """A response whose end token is the last one allowed has stopped by itself (trap 5)."""
    policy = chain_model("abcdefgh", ends="f")
    samples = drawn(policy, Decoding(most), "a", make=make)
    assert (samples.lengths.tolist(), samples.stopped.tolist()) == ([length], [stopped])
    string = drawn(policy, Decoding(most, stop_strings=("f",)), "b", make=make)
    assert string.stopped.tolist() == [most >= 4]
    assert string.texts == ["cdef"[:most].removesuffix("f")]


def test_rows_of_one_batch_end_each_by_their_own_rule(chain_model: MakeModel) -> None:
    policy = chain_model("abcdefgh", ends="c")
    samples = drawn(policy, Decoding(5, stop_strings=("h",)), "a", "d", "f", "h")
    assert samples.lengths.tolist() == [3, 4, 2, 4]
    assert samples.texts == ["bc", "efg", "g", "abc"]
    samples = drawn(policy, Decoding(3, stop_strings=("h",)), "a", "d", "f")
    assert samples.stopped.tolist() == [True, False, True]


# --- the interface's helpers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"stop_strings": ("a", "")}, "empty stop string"),
    ],
)
def test_decoding_refuses_nonsense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**{"max_new_tokens": 4, **options})


def test_cut_at_stop_cuts_at_the_earliest() -> None:
    assert cut_at_stop("one two three", ("three", "two")) == "one "
    assert cut_at_stop("one two", ("four",)) == "one two"
    assert cut_at_stop("one two", ()) == "one two"


def test_pad_rows_on_both_sides() -> None:
    ids, mask = pad_rows([[1, 2, 3], [4]], 9, "left")
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[True] * 3, [False, False, True]]
    ids, mask = pad_rows([[1, 2, 3], [4]], 9, "right")
    assert ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]


def test_join_samples_pads_and_numbers_on() -> None:
    def part(tokens: list[list[int]], groups: list[int]) -> Samples:
        rows = torch.tensor(tokens)
        lengths = torch.full((len(rows),), rows.shape[1])
        return Samples(
            rows, lengths, -rows.float(), torch.tensor([True] * len(rows)), torch.tensor(groups), ["x"] * len(rows)
        )

    joined = join_samples([part([[1], [2]], [0, 1]), part([[3, 4], [5, 6]], [0, 0])], pad_id=9)
    assert joined.tokens.tolist() == [[1, 9], [2, 9], [3, 4], [5, 6]]
    assert joined.logprobs.tolist() == [[-1, 0], [-2, 0], [-3, -4], [-5, -6]]
    assert joined.groups.tolist() == [0, 1, 2, 2]
    assert joined.lengths.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("max_rows", [2, 5, 256])
def test_greedy_and_drawn_responses_of_one_call_are_those_of_two(temperature: float, max_rows: int) -> None:
    policy = tiny_model("llama")
    sampler, prompts = NativeSampler(policy, max_rows), encoded(policy, *PROMPTS, "8 + 8 =", "and one more")
    decoding = Decoding(9, temperature, stop_strings=("e",))
    both = sampler.sample_with_greedy(prompts, decoding, generator(3))
    alone = [
        NativeSampler(policy).sample(prompts, 1, one, generator(3))
        for one in (Decoding(9, 0.0, 1.0, (), ("e",)), decoding)
    ]
    for one, other in zip(both, alone, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.lengths, other.lengths)
        assert torch.equal(one.stopped, other.stopped)
        assert torch.equal(one.groups, other.groups)
        assert one.texts == other.texts
        assert torch.allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert not torch.equal(both[0].tokens[0], both[1].tokens[0])
    assert sum(one.drawn for one in both) >= sum(int(one.lengths.sum()) for one in both)


def test_greedy_and_drawn_responses_share_the_prompt_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_model("llama")
    read: list[int] = []

    def watched(decoder: OwnDecoder, prompts: Any, slots: Any) -> torch.Tensor:
        read.append(len(prompts))
        return plain(decoder, prompts, slots)

    plain = OwnDecoder.read
    monkeypatch.setattr(OwnDecoder, "read", watched)
    NativeSampler(policy).sample_with_greedy(encoded(policy), Decoding(4), generator())
    assert read == [len(PROMPTS)]
