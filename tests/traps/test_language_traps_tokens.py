"""Traps 1 to 9: padding, positions, end and begin tokens, and which log-prob belongs to which token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from zerozoo.language.algorithm import Algorithm
from zerozoo.language.build import prompt_maker
from zerozoo.language.cache import cache_dir
from zerozoo.language.families import seeded_model, tiny_model
from zerozoo.language.logprobs import Sequences, response_scores
from zerozoo.language.models import LanguageModel, padding_id, wrap_model
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers import decoders
from zerozoo.language.samplers.interface import Decoding, pad_rows
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.tasks.task import Task

Make = Callable[..., Any]
PROMPTS = ("7", "What is 12 - 4?", "a rather long prompt, so that the others are padded")
COUNTING = {"a": "b", "b": "c", "c": "<eos>", "<eos>": "d", "d": "e", "e": "f", "f": "d"}


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.double() - second.double()).abs().max())


@torch.no_grad()
def learner(policy: LanguageModel, rows: Sequences, temperature: float = 1.0, packed: bool = False) -> torch.Tensor:
    return response_scores(policy.model, rows, temperature, packed).logprobs


def logprob_of(policy: LanguageModel, before: str, token: int) -> float:
    return float(learner(policy, Sequences([policy.encode(before)], [[token]]))[0])


def small_table(size: int = 10) -> torch.Tensor:
    return 0.5 * torch.randn(size, size, generator=torch.Generator().manual_seed(3))


# --- 1, 2


# transformers' eager attention, the one of gemma2, gives NaN to rows that are all padding in float64
@pytest.mark.parametrize(("family", "dtype", "accuracy"), [("llama", "float64", 1e-10), ("gemma2", "float32", 1e-5)])
def test_trap_01_no_token_attends_to_padding(
    family: str, dtype: str, accuracy: float, drawn: Make, alone: Make
) -> None:
    """Mistake: a batch goes in without its attention mask. Rule: a row scores the same as it would by itself."""
    policy = tiny_model(family, dtype=dtype)
    rows, recorded, samples = drawn(policy, PROMPTS, Decoding(10))
    expected = alone(policy, rows)
    assert distance(recorded, expected) < 1e-5  # the sampler keeps float32
    assert distance(learner(policy, rows), expected) < accuracy
    assert distance(learner(policy, rows, packed=True), expected) < accuracy
    policy.pad_id = policy.encode("z")[-1]  # were it ever looked at, another padding would change something
    again = drawn(policy, PROMPTS, Decoding(10))[2]
    assert torch.equal(again.lengths, samples.lengths)
    assert torch.equal(again.logprobs, samples.logprobs)


def test_trap_01_the_comparison_sees_a_missing_mask() -> None:
    """Mistake: no mask at all, looked at by itself. Rule: it must be visible, or the test above would show nothing."""
    policy = tiny_model("llama", dtype="float64")
    ids, mask = pad_rows([policy.encode(prompt) for prompt in PROMPTS], policy.pad_id, "left")
    with torch.no_grad():
        masked, blind = (policy.model(input_ids=ids, attention_mask=part).logits[0, -1] for part in (mask, None))
    assert distance(masked, blind) > 0.1


def test_trap_02_positions_start_behind_the_padding(drawn: Make, alone: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistake: positions count the padding. Rule: every row counts from 0, so learned positions are right as well."""
    policy = tiny_model("llama", dtype="float64")
    learned = torch.randn(200, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def add_positions(decoder: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        ids, positions = options.pop("input_ids"), options.get("position_ids")
        positions = torch.arange(ids.shape[1])[None] if positions is None else positions
        options["inputs_embeds"] = decoder.embed_tokens(ids) + learned[positions]
        return arguments, options

    policy.model.model.register_forward_pre_hook(add_positions, with_kwargs=True)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = decoders.decoder_hidden

    def watched(model: Any, ids: Any, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        seen.append((mask.clone(), positions.clone()))
        return forward(model, ids, mask, positions, cache)

    monkeypatch.setattr(decoders, "decoder_hidden", watched)
    rows, recorded, _ = drawn(policy, PROMPTS, Decoding(6))
    expected = alone(policy, rows)
    assert distance(recorded, expected) < 1e-5
    assert distance(learner(policy, rows), expected) < 1e-10
    assert distance(learner(policy, rows, packed=True), expected) < 1e-10
    mask, positions = seen[0]
    assert not bool(mask.all())  # there is padding
    assert bool(mask[:, -1].all())  # on the left
    for row in range(len(PROMPTS)):
        assert positions[row][mask[row]].tolist() == list(range(int(mask[row].sum())))


# --- 3, 4, 5


def test_trap_03_the_end_is_trained_although_it_pads(
    bigram: Make, end_padded: Make, hand_made: Make, make_updater: Make, weights: Make
) -> None:
    """Mistake: a mask of `!= pad_id` drops the end when both are one id. Rule: masks come from lengths, never ids."""
    results = []
    for same in (False, True):
        policy = bigram("abcdef", torch.zeros(10, 10))
        end = policy.eos_ids[0]
        if same:
            policy = end_padded(policy)
            assert policy.tokenizer.pad_token_id == end
            policy.pad_id = end  # as where the vocabulary has no spare token
        before = logprob_of(policy, "b", end)
        a, b, c = policy.encode("abc")[1:]
        rollouts = hand_made([policy.encode("a")], [[b, end], [b, c, c, c]], [1.0, 0.0], pad_id=policy.pad_id)
        metrics = make_updater(policy, Algorithm(), tokens_per_microbatch=1000).update(rollouts)
        assert metrics["update/rows"] == 1
        assert logprob_of(policy, "b", end) > before + 0.1
        results.append(weights(policy))
    assert torch.equal(results[0], results[1])


def test_trap_03_the_sampler_keeps_the_end_that_pads(bigram: Make, end_padded: Make, drawn: Make, alone: Make) -> None:
    """Mistake: as above, in the sampler. Rule: the end counts in length, log-probs and text; what follows does not."""
    policy = end_padded(bigram("abcdef", COUNTING))
    policy.pad_id = policy.eos_ids[0]
    rows, recorded, samples = drawn(policy, ("a", "c"), Decoding(5), samples=1)
    assert samples.lengths.tolist() == [3, 1]
    assert [row[-1] for row in rows.responses] == [policy.pad_id] * 2
    assert samples.stopped.tolist() == [True, True]
    assert distance(recorded, alone(policy, rows)) < 1e-6
    assert samples.logprobs[1, 1:].tolist() == [0.0, 0.0]


def test_trap_03_padding_avoids_the_ends_where_it_can(bigram: Make, end_padded: Make) -> None:
    """Mistake: pad falls back to the end id. Rule: a spare token pads; the end only where there is no other."""
    policy = end_padded(bigram("abc", torch.zeros(7, 7)))
    assert policy.tokenizer.pad_token_id in policy.eos_ids
    assert policy.pad_id not in policy.eos_ids
    bare = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 2}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<eos>", pad_token="<eos>")
    policy.model.config.pad_token_id = 0
    assert padding_id(policy.model, tokenizer, (0,)) == 0


def test_trap_03_smollm2_ships_with_pad_equal_to_end(drawn: Make, alone: Make) -> None:
    """Mistake: SmolLM2-Instruct, whose pad IS its end token, never learns to stop. Rule: we pad with another one."""
    folders = sorted(Path(cache_dir()).glob("smollm2-135m-*/tokenizer.json"))
    if not folders:
        pytest.skip("smollm2-135m is not in the model cache")
    tokenizer = AutoTokenizer.from_pretrained(str(folders[-1].parent))
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end
    size, heads = len(tokenizer), {"num_attention_heads": 1, "num_key_value_heads": 1}
    config = AutoConfig.for_model(
        "llama", vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, eos_token_id=end,
        pad_token_id=end, bos_token_id=tokenizer.bos_token_id, max_position_embeddings=64, **heads,
    )  # fmt: skip
    policy = wrap_model(seeded_model(config, seed=0), tokenizer, "smollm2-tokens")
    assert policy.eos_ids == (end,)
    assert policy.pad_id not in (end, tokenizer.bos_token_id)
    assert tokenizer.convert_ids_to_tokens(policy.pad_id) == "<|endoftext|>"
    head = policy.model.lm_head  # with about one end in three tokens
    head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(end), size) * 9.0)
    rows, recorded, samples = drawn(policy, ("Question: 7 + 5", "1"), Decoding(4), samples=8)
    ended = [row for row in rows.responses if row[-1] == end]
    assert 0 < len(ended) < 16
    assert all(row.count(end) == 1 for row in ended)
    assert int(samples.stopped.sum()) == len(ended)
    assert distance(recorded, alone(policy, rows)) < 1e-4


def test_trap_04_the_end_is_in_the_loss_once_and_nothing_behind_it(
    bigram: Make, drawn: Make, hand_made: Make, make_updater: Make
) -> None:
    """Mistake: no end in the loss, or tokens behind it. Rule: the end is the last token of a response, exactly once."""
    policy = bigram("abcdef", COUNTING)
    end = policy.eos_ids[0]
    rows, _, samples = drawn(policy, ("a", "b", "c"), Decoding(9), samples=1)
    assert [row.count(end) for row in rows.responses] == [1, 1, 1]
    assert all(row[-1] == end for row in rows.responses)
    assert samples.texts == ["bc", "c", ""]
    policy = bigram("abcdef", small_table())
    prompt, b = policy.encode("a"), policy.encode("b")[-1]
    before = logprob_of(policy, "b", end)
    rollouts = hand_made([prompt], [[b, end], [b, end]], [1.0, 1.0], pad_id=policy.pad_id, columns=6)
    make_updater(policy, Algorithm()).update(rollouts)
    gradient = policy.model.model.embed_tokens.weight.grad
    assert float(gradient[b].abs().sum()) > 0  # the end is predicted from b
    assert float(gradient[end].abs().sum()) == 0  # and nothing from the end
    assert float(gradient[policy.pad_id].abs().sum()) == 0
    assert logprob_of(policy, "b", end) > before + 0.1


def test_trap_04_truncated_responses_get_no_end(bigram: Make, drawn: Make, hand_made: Make, make_updater: Make) -> None:
    """Mistake: an end is forced on truncated text. Rule: only drawn tokens are trained; truncation is a flag."""
    policy = bigram("abcdef", COUNTING)
    end = policy.eos_ids[0]
    rows, _, samples = drawn(policy, ("d",), Decoding(4), samples=2)
    assert samples.stopped.tolist() == [False, False]
    assert all(len(row) == 4 and end not in row for row in rows.responses)
    policy = bigram("abcdef", small_table())
    a, b, c = policy.encode("abc")[1:]
    make_updater(policy, Algorithm()).update(hand_made([[a]], [[b, c]], [1.0]))
    gradient = policy.model.model.embed_tokens.weight.grad
    assert float(gradient[b].abs().sum()) > 0
    assert float(gradient[c].abs().sum()) == 0  # nothing was predicted from the last token, least of all an end


def test_trap_05_every_end_id_stops_a_response(bigram: Make, drawn: Make) -> None:
    """Mistake: config and tokenizer name two ends and one is forgotten. Rule: the union of all that are named stops."""
    policy = bigram("abcdef", COUNTING)
    own = policy.tokenizer.eos_token_id
    second = policy.encode("f")[-1]
    policy.model.generation_config.eos_token_id = [second, own]
    policy = wrap_model(policy.model, policy.tokenizer, policy.name)
    assert policy.eos_ids == (second, own)
    assert policy.pad_id not in policy.eos_ids
    rows, _, samples = drawn(policy, ("a", "d"), Decoding(6), samples=1)
    assert [row[-1] for row in rows.responses] == [own, second]
    assert samples.stopped.tolist() == [True, True]


def test_trap_05_truncated_is_what_the_sampler_says(bigram: Make, drawn: Make) -> None:
    """Mistake: truncation guessed from the last id. Rule: it is recorded where it happens, stop strings included."""
    policy = bigram("abcdef", COUNTING)
    limits = {3: [True, False, True], 2: [False, False, True]}
    for most, stopped in limits.items():
        rows, _, samples = drawn(policy, ("a", "d", "b"), Decoding(most), samples=1)
        assert samples.stopped.tolist() == stopped
        assert samples.lengths.tolist() == [most, most, 2]
    by_text = drawn(policy, ("d",), Decoding(3, stop_strings=("f",)), samples=1)
    assert by_text[2].stopped.tolist() == [True]  # ended on purpose, with an id that is no end
    assert by_text[0].responses[0][-1] not in policy.eos_ids


# --- 6, 7


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2"])
def test_trap_06_one_begin_token_at_most(family: str) -> None:
    """Mistake: template and tokenizer both write a BOS. Rule: prompts get it once, or never where none is used."""
    policy = tiny_model(family)
    begin, expected = policy.tokenizer.bos_token_id, 0 if family == "qwen2" else 1
    policy.tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}!"
    for template in ("chat", "plain-qa", "{question}"):
        ids = prompt_maker(policy, template)(Task("1", "What is 7 + 5?", "12", "test"))
        assert ids.count(begin) == expected, template
        assert ids[:1] == [begin] or expected == 0
    # the mistake: the tokenizer's default on a rendered chat
    text = policy.tokenizer.apply_chat_template([{"content": "7"}], tokenize=False)
    assert policy.tokenizer(text)["input_ids"].count(begin) == 2 * expected


def test_trap_07_the_ids_that_were_drawn_are_the_ids_that_are_trained(drawn: Make, alone: Make) -> None:
    """Mistake: text is tokenised again for the learner. Rule: the sampler's ids go all the way to the loss."""
    policy = tiny_model("qwen2", dtype="float64")  # a token a byte: random bytes are no valid text
    rows, recorded, samples = drawn(policy, ("7", "What?"), Decoding(12))
    retokenised = [policy.encode(policy.decode(row)) for row in rows.responses]
    assert retokenised != [list(row) for row in rows.responses]  # the mistake would show
    tasks = [Task(str(index), "?", "0", "test") for index in range(2)]
    prompts = [rows.prompts[0], rows.prompts[2]]
    verdicts = [Verification(Verdict.WRONG, "", 0.0, False, 0.0)] * 4
    rollouts = Rollouts(tasks, prompts, samples, verdicts, torch.zeros(4))
    again = rollouts.sequences([2, 0, 3, 1])
    assert list(again.responses) == [rows.responses[row] for row in (2, 0, 3, 1)]
    assert list(again.prompts) == [rows.prompts[row] for row in (2, 0, 3, 1)]
    assert rollouts.take_groups([1]).sequences([0, 1]).responses == rows.responses[2:]
    assert distance(recorded, alone(policy, rows)) < 1e-5


# --- 8, 9


@pytest.mark.parametrize("packed", [False, True])
def test_trap_08_each_logprob_is_that_of_its_own_token(packed: bool, bigram: Make, drawn: Make) -> None:
    """Mistake: labels shifted twice or never. Rule: a table whose log-probs are known gives them, first token too."""
    table = 3 * torch.randn(12, 12, generator=torch.Generator().manual_seed(2))
    policy = bigram("abcdefgh", table, dtype="float64")
    known = table.double().log_softmax(-1)
    rows = Sequences([[3, 4, 5], [6], [7, 8]], [[9, 4, 1], [10, 11, 11, 2], [5]])
    expected = torch.cat([
        known[[prompt[-1], *response[:-1]], response]
        for prompt, response in zip(rows.prompts, rows.responses, strict=True)
    ])  # fmt: skip
    assert distance(learner(policy, rows, packed=packed), expected) < 1e-6  # the table is float32 in the model
    with torch.no_grad():
        assert distance(response_scores(policy.model, rows, packed=packed, chunk=2).logprobs, expected) < 1e-6
    rows, recorded, _ = drawn(policy, ("abc", "h"), Decoding(7))
    expected = torch.cat([
        known[[prompt[-1], *response[:-1]], response]
        for prompt, response in zip(rows.prompts, rows.responses, strict=True)
    ])  # fmt: skip
    assert distance(recorded, expected) < 1e-6


def test_trap_09_a_drawn_pad_id_keeps_its_own_logprob(
    bigram: Make, drawn: Make, hand_made: Make, make_updater: Make
) -> None:
    """Mistake: label ids equal to pad are replaced before the gather. Rule: no id is ever replaced inside a length."""
    policy = bigram("abcdef", {"a": "<pad>", "<pad>": "b", "b": "<pad>"})
    rows, recorded, samples = drawn(policy, ("a",), Decoding(6), samples=1)
    pad, b = policy.pad_id, policy.encode("b")[-1]
    assert rows.responses == [[pad, b, pad, b, pad, b]]  # a legal, if odd, response
    assert float(recorded.min()) > -1e-6
    assert float(learner(policy, rows).min()) > -1e-6
    flat = bigram("abcdef", torch.zeros(10, 10))
    before = logprob_of(flat, "a", pad)
    rollouts = hand_made([flat.encode("a")], [[pad], [b, pad, pad]], [1.0, 0.0], pad_id=pad)
    make_updater(flat, Algorithm()).update(rollouts)
    assert logprob_of(flat, "a", pad) > before + 0.1
