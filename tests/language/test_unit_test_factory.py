"""The tiny test writer: what it reads and writes in, made once, and the same from the same recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zerozoo.language import unit_test_factory
from zerozoo.language.families import character_tokenizer
from zerozoo.language.models import BUILT_IN, load_model
from zerozoo.language.plan import BUILT_IN_SIZES
from zerozoo.language.unit_test_factory import (
    BLOCK,
    MAX_CONTEXT,
    SIZES,
    fingerprint,
    pretrain,
    tiny_tester_directory,
    untrained,
)
from zerozoo.tasks.prompts import render
from zerozoo.tasks.unit_tests import HABITS, MAX_NEW_TOKENS, START, STOP, corpus, unit_tests, vocabulary

SHORT = replace(SIZES["tiny-tester-micro"], steps=6)


def test_pieces_are_one_token_and_the_longest_goes_first() -> None:
    tokenizer = character_tokenizer("abc +\n.", pieces=("ab", "abc", " + ", "\n  ", "a.c"))
    ids = tokenizer.encode("abcab + c\n  abca.c", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["abc", "ab", " + ", "c", "\n  ", "abc", "a.c"]
    assert tokenizer.decode(ids) == "abcab + c\n  abca.c"
    assert tokenizer.decode(tokenizer.encode("b.b", add_special_tokens=False)) == "b.b"


def test_the_corpus_is_written_in_the_vocabulary_and_fits_the_context() -> None:
    model = untrained(SHORT, seed=0)
    tasks = unit_tests(train_size=50, heldout_size=100)
    prompts = [render(tasks.template, task.question) for task in (*tasks.train, *tasks.heldout)]
    for text in [*corpus(0, 300), *prompts]:
        ids = model.encode(text)
        assert model.tokenizer.unk_token_id not in ids
        assert model.decode(ids) == text
    assert max(len(model.encode(prompt)) for prompt in prompts) + MAX_NEW_TOKENS <= BLOCK < MAX_CONTEXT
    tests = [text.split("\n\n\n" + START)[1] for text in corpus(0, 500)]
    assert max(len(model.encode(START + test.split(STOP[0])[0])) for test in tests) < MAX_NEW_TOKENS


def test_a_prompt_and_its_response_are_split_between_tokens() -> None:
    """Or a test that is learned would begin with another token than one that is written."""
    model = untrained(SHORT, seed=0)
    for text in corpus(1, 50):
        end = text.index(START) + len(START)
        start = model.encode(text[:end])
        assert model.encode(text)[: len(start)] == start
        assert model.tokenizer.convert_ids_to_tokens(start)[-1] == START


def test_pretraining_learns_and_repeats_itself_bit_for_bit() -> None:
    first, losses = pretrain(SHORT, 7)
    again, same = pretrain(SHORT, 7)
    assert losses == same
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    pairs = zip(first.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_writer_is_made_once_and_loaded_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZEROZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(unit_test_factory.SIZES, "tiny-tester-micro", replace(SHORT, steps=1))
    folder = tiny_tester_directory("tiny-tester-micro")
    monkeypatch.setattr(unit_test_factory, "pretrain", None)  # a second time would fail
    assert tiny_tester_directory("tiny-tester-micro") == folder
    assert load_model("tiny-tester-micro").name == "tiny-tester-micro"
    assert set(SIZES) <= set(BUILT_IN)


@pytest.mark.parametrize("name", SIZES)
def test_a_plan_knows_the_size(name: str) -> None:
    matrices = [weight.numel() for weight in untrained(SIZES[name], 0).model.parameters() if weight.dim() > 1]
    assert BUILT_IN_SIZES[name].parameters == sum(matrices)


def test_the_fingerprint_changes_with_all_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    base = fingerprint(SHORT, 0)
    others = [
        fingerprint(SHORT, 1),
        fingerprint(replace(SHORT, steps=7), 0),
        fingerprint(replace(SHORT, habits=replace(HABITS, comment=0.31)), 0),
    ]
    monkeypatch.setattr(unit_test_factory, "vocabulary", lambda: vocabulary()[1:])
    others.append(fingerprint(SHORT, 0))
    assert len({base, *others}) == 5
