"""Copying a few words: a skill that is easily checked, and so can stand for the ones that nobody checks in training.

"copy figs kale." wants the answer "figs kale", which is judged by constraints: these words in this order and no others,
apart from letter case and marks behind them. A hash of the words says which of them are held out, one in four; that
does not depend on the seed. Every character is one of `word_sums.ALPHABET`.
"""

from __future__ import annotations

import hashlib
import random

from zerozoo.runs.errors import UserError
from zerozoo.tasks.prompts import TEMPLATES
from zerozoo.tasks.task import Task, TaskSet, check_sizes

WORDS = (
    *("nuts", "figs", "eggs", "pies", "buns", "peas", "yams", "kiwi"),
    *("corn", "rice", "plum", "lime", "beet", "milk", "tofu", "kale"),
)
LENGTHS = (1, 2, 3)
TEMPLATE = "word-sums"
MAX_NEW_TOKENS = 32
MISSES = 2000  # draws in a row without a new problem after which a part counts as used up


def copying(seed: int = 0, train_size: int = 1000, heldout_size: int = 200) -> TaskSet:
    """A task set of 1 to 3 words to be copied; `seed` draws the problems.

    Raises `UserError` for more problems than there are.
    """
    check_sizes(train_size, heldout_size)
    return TaskSet(
        name="copying",
        train=_draw("train", train_size, seed),
        heldout=_draw("heldout", heldout_size, seed),
        verifier="constraints",
        extractor="lenient",
        template=TEMPLATE,
        stop=TEMPLATES[TEMPLATE].stop,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def is_heldout(phrase: str) -> bool:
    """Whether these words are among those, 1 in 4, that no training problem has."""
    return hashlib.sha256(f"copying/{phrase}".encode()).digest()[0] < 64


def _draw(part: str, count: int, seed: int) -> tuple[Task, ...]:
    rng = random.Random(f"copying/{part}/{seed}")
    drawn: dict[str, Task] = {}
    misses = 0
    while len(drawn) < count and misses < MISSES:
        phrase = " ".join(rng.choices(WORDS, k=rng.choice(LENGTHS)))
        misses += 1
        if phrase not in drawn and is_heldout(phrase) == (part == "heldout"):
            drawn[phrase] = _task(phrase)
            misses = 0
    if len(drawn) < count:
        raise UserError(f"There are fewer than {count} problems in the part '{part}' of copying.")
    return tuple(drawn.values())


def _task(phrase: str) -> Task:
    length = {"kind": "words", "relation": "exactly", "count": len(phrase.split())}
    constraints = [{"kind": f"{place}-phrase", "phrase": phrase} for place in ("start", "end")]
    return Task(
        id=f"copying/{phrase}",
        question=f"copy {phrase}.",
        answer=phrase,
        source="copying",
        metadata={"constraints": [*constraints, length]},
    )
