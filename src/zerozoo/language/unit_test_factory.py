"""The tiny test writer: a small base model that has read functions with careless tests, made as the tiny base model is.

What it writes parses mostly, and has about the share of each smell that its corpus has (`tasks.unit_tests.Habits`):
reinforcement learning has something to mend. Pieces of code such as "assert " are one token, all else is spelled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from zerozoo.language.factory import (
    Advance,
    Training,
    fit,
    library_versions,
    made_once,
    packed_blocks,
    small_llama,
)
from zerozoo.language.families import CHARACTERS, character_tokenizer
from zerozoo.language.models import LanguageModel
from zerozoo.tasks.unit_tests import HABITS, Habits, corpus, vocabulary

MAX_CONTEXT = 192
BLOCK = 128  # tokens of a training row


@dataclass(frozen=True)
class Pretraining(Training):
    """How a tiny test writer is made."""

    habits: Habits = HABITS


SIZES = {
    "tiny-tester": Pretraining(4, 128, 344, 4, steps=1300, batch=8, learning_rate=1.5e-3),
    "tiny-tester-micro": Pretraining(2, 48, 128, 4, steps=200, batch=8, learning_rate=5e-3),
}


def tiny_tester_directory(name: str = "tiny-tester", seed: int = 0) -> Path:
    """The folder of this test writer in Hugging Face format, from the cache or pretrained now (minutes, or seconds)."""
    recipe = SIZES[name]
    folder = f"{name}-{fingerprint(recipe, seed)}"
    return made_once(folder, name, recipe, seed, lambda advance: pretrain(recipe, seed, advance))


def fingerprint(recipe: Pretraining, seed: int) -> str:
    """Twelve hex digits that change with everything the weights depend on: recipe, seed, corpus, library versions."""
    texts = list(corpus(seed, 200, recipe.habits))
    parts = [asdict(recipe), seed, texts, vocabulary(), CHARACTERS, MAX_CONTEXT, BLOCK, library_versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def pretrain(recipe: Pretraining, seed: int, advance: Advance | None = None) -> tuple[LanguageModel, list[float]]:
    """Train a test writer from scratch on fresh text of the corpus; the model and the loss of each step."""
    language_model = untrained(recipe, seed)
    texts = recipe.steps * recipe.batch * BLOCK  # enough: a text has more than one token
    rows = packed_blocks(language_model, corpus(seed, texts, recipe.habits), BLOCK)
    return language_model, fit(language_model, recipe, rows, advance)


def untrained(recipe: Training, seed: int) -> LanguageModel:
    """The model before its first step."""
    tokenizer = character_tokenizer(CHARACTERS, pieces=vocabulary())
    return small_llama(recipe, seed, tokenizer, MAX_CONTEXT, "tiny-tester")
