from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from zerozoo.language.example_files import (
    Example,
    kept_rows,
    prompt_text,
    read_examples,
    read_rows,
    split_off,
    tokenise,
)
from zerozoo.language.families import tiny_model
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run


@pytest.fixture(scope="module")
def policy() -> LanguageModel:
    return tiny_model("llama", vocabulary="abc 123", hidden=8, heads=2, kv_heads=1, layers=1)


def spell(policy: LanguageModel, ids: list[int]) -> list[str]:
    return policy.tokenizer.convert_ids_to_tokens(ids)


def test_a_text_gets_its_end_token_once_and_its_beginning_once(policy):
    prompt, response = tokenise(policy, "ab", "c 1")
    assert spell(policy, prompt) == ["<bos>", "a", "b"]
    assert spell(policy, response) == ["c", " ", "1", "<eos>"]
    assert spell(policy, tokenise(policy, "ab", "c<eos>")[1]) == ["c", "<eos>"]  # it has one already
    assert spell(policy, tokenise(policy, "ab", "c", ends=False)[1]) == ["c"]


def test_ids_are_taken_as_they_are(policy):
    assert tokenise(policy, [3, 4], [5, 6]) == ([3, 4], [5, 6])  # no end was drawn: none is learned (trap 7)
    for ids in ([99], [-1], [True], ["a"], 5):
        with pytest.raises(UserError, match="neither text nor a list of token ids"):
            tokenise(policy, "a", ids)
    with pytest.raises(UserError, match="empty"):
        tokenise(policy, "a", [])


def test_tokens_never_merge_across_the_border():
    """The sampler gets the prompt alone, so a token that begins inside of it can never be drawn."""
    core = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "<eos>": 3, "bb": 4}, merges=[("a", "b"), ("b", "b")]))
    policy = tiny_model("llama", hidden=8, heads=2, kv_heads=1, layers=1)
    policy.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    policy.eos_ids = (3,)
    assert policy.encode("aab") == [0, 2]
    assert tokenise(policy, "aa", "b") == ([0, 0], [1, 3])
    assert tokenise(policy, "ab", "bb") == ([2], [4, 3])


def test_rows_of_a_file(tmp_path, policy):
    path = tmp_path / "examples.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n\n{"prompt": [4], "response": "1", "ends": false}\n')
    rows = read_rows(path, ("prompt", "response"))
    first, second = read_examples(policy, rows)
    assert (spell(policy, first.response), first.tokens) == (["b", "<eos>"], 4)
    assert (second.prompt, spell(policy, second.response)) == ([4], ["1"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"prompt": "a"}\n', r"Line 1 of .* needs the column\(s\) response"),
        ('{"prompt": "a", "response": "b"}\n{oops\n', "Line 2 of .* is no JSON"),
        ("[1, 2]\n", r"needs the column\(s\) prompt, response"),
        ("\n", "has no examples"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "examples.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_rows(path, ("prompt", "response"))


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match="cannot be read"):
        read_rows("nowhere.jsonl", ())


def test_prompts_of_text_are_put_into_a_template(policy):
    assert prompt_text(policy, "1", "a{question}b") == "a1b"
    assert prompt_text(policy, "1", "") == "1"
    assert prompt_text(policy, [1, 2], "a{question}b") == [1, 2]


def test_held_out_examples_share_no_prompt_with_the_rest_whatever_the_order():
    examples = [Example([number % 6], [number]) for number in range(24)]
    rest, measured = split_off(examples, 7, lambda one: one.prompt)
    assert len(measured) == 8  # whole prompts of four examples each
    assert sorted(one.response for one in rest + measured) == [[number] for number in range(24)]
    assert not {tuple(one.prompt) for one in rest} & {tuple(one.prompt) for one in measured}
    assert {one.response[0] for one in split_off(examples[::-1], 7, lambda one: one.prompt)[1]} == {
        one.response[0] for one in measured
    }
    assert split_off(examples, 0, lambda one: one.prompt) == (examples, [])
    with pytest.raises(UserError, match="leaves none of the 24"):
        split_off(examples, 24, lambda one: one.prompt)


def test_made_rows_are_made_once(tmp_path):
    run, made = Run(tmp_path / "run"), []

    def make() -> list[dict[str, object]]:
        made.append(1)
        return [{"prompt": [1, 2], "text": "ü\ud800"}]  # half a surrogate pair, as models write now and then

    first = kept_rows(run, make, ("prompt",), ALONE)
    again = kept_rows(Run(tmp_path / "run"), make, ("prompt",), ALONE)
    assert (first, len(made)) == (again, 1)
    assert json.loads((tmp_path / "run" / "examples.jsonl").read_text())["prompt"] == [1, 2]
