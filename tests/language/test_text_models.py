"""Tiny text models: the corpus and its control, a pretraining that learns, the same weights every time, the cache."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from zerozoo.language import text_models
from zerozoo.language.text_models import (
    Pretraining,
    documentation,
    drawn_model,
    fingerprint,
    pretrain,
    rate,
    text_bytes,
    text_model,
    tiny_text_model,
)
from zerozoo.runs.errors import UserError

SMALL = Pretraining(blocks=1, width=16, heads=2, steps=40, batch=4, length=32, learning_rate=1e-2)


def test_the_text_is_english_and_its_control_has_the_same_bytes() -> None:
    text, shuffled = text_bytes("text"), text_bytes("shuffled")
    assert bytes(text.tolist()) == documentation()
    assert documentation().count(b" the ") > 1000
    assert Counter(text.tolist()) == Counter(shuffled.tolist())
    assert bytes(shuffled.tolist()).count(b" the ") < 50
    assert torch.equal(shuffled, text_bytes("shuffled"))


def test_pretraining_learns_language_where_there_is_one() -> None:
    """Shuffled bytes cannot be predicted better than by their frequencies."""
    counts = torch.bincount(text_bytes("text")).double()
    shares = counts[counts > 0] / counts.sum()
    entropy = -float((shares * shares.log()).sum())
    longer = Pretraining(blocks=1, width=32, heads=2, steps=250, batch=8, length=64, learning_rate=1e-2)
    losses = pretrain(longer)[1]
    assert len(losses) == 10
    assert losses[0] > losses[-1]
    assert losses[-1] < entropy - 0.3
    shuffled = pretrain(Pretraining(**{**vars(longer), "corpus": "shuffled", "steps": 100}))[1]
    assert shuffled[-1] == pytest.approx(entropy, abs=0.1)


def test_the_same_recipe_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROZOO_CACHE", str(tmp_path))
    before = torch.get_rng_state()
    first = tiny_text_model(SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    again = pretrain(SMALL)[0]
    other = dict(again.named_parameters())
    assert all(torch.equal(value, other[name]) for name, value in first.named_parameters())
    monkeypatch.setattr(text_models, "pretrain", lambda recipe: pytest.fail("it lies in the cache"))
    loaded = dict(tiny_text_model(SMALL).named_parameters())
    assert all(torch.equal(value, other[name]) for name, value in loaded.items())
    assert [path.name for path in tmp_path.iterdir()] == [f"tiny-gpt2-{fingerprint(SMALL)}"]


def test_a_model_that_has_read_nothing_is_as_it_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROZOO_CACHE", str(tmp_path))
    recipe = Pretraining(**{**vars(SMALL), "corpus": "none"})
    model, drawn = tiny_text_model(recipe), dict(drawn_model(SMALL).named_parameters())
    assert all(torch.equal(value, drawn[name]) for name, value in model.named_parameters())
    assert not list(tmp_path.iterdir())
    assert len({fingerprint(SMALL), fingerprint(recipe), fingerprint(Pretraining())}) == 3
    rows = torch.arange(20)[None]
    assert float(model(input_ids=rows, labels=rows).loss.detach()) == pytest.approx(math.log(256), abs=0.3)


def test_the_rate_rises_and_falls() -> None:
    rates = [rate(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 95)
    assert sorted(rates[5:], reverse=True) == rates[5:]
    assert rate(0, 1) == 1.0


def test_models_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROZOO_CACHE", str(tmp_path))
    model, tokens = text_model("tiny", Pretraining(**{**vars(SMALL), "corpus": "none"}))
    assert (model.config.n_embd, tokens.dtype, int(tokens.max()) < 256) == (16, torch.int64, True)
    monkeypatch.setattr(text_models, "hub_is_known", lambda: False)
    with pytest.raises(UserError, match="The model gpt2-nowhere cannot be loaded"):
        text_model("gpt2-nowhere", SMALL)
    with pytest.raises(UserError, match="there is no model folder"):
        text_model("/nowhere/at/all", SMALL)
    for bad, message in (({"corpus": "poems"}, "corpus must be text"), ({"heads": 3}, "not a multiple of its 3 heads")):
        with pytest.raises(UserError, match=message):
            Pretraining(**{**vars(SMALL), **bad})
