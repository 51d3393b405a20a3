"""Word sums for a character-level tiny base model: generated problems, and the noisy corpus it is pretrained on.

A problem reads "ann had 27 nuts, got 45, ate 18?" and asks how many there are now. The corpus is the text that makes
a *base* model: answers in mixed styles, a share of them wrong, few in a box, some running on into a new question.

Whether a problem is held out is a fixed property of the problem, not of a seed: one in eight, by a hash of its key.
So no corpus, of any seed, contains a problem that any `word_sums` set measures on. For the splits of several steps the
key is the sum itself (27+45-18), so a held-out sum appears nowhere in other words either; the split of one step has
too few sums for that (126), its key is the question, and its sums do occur in training with other names and nouns.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from zerozoo.runs.errors import UserError
from zerozoo.tasks.prompts import TEMPLATES, render
from zerozoo.tasks.task import Task, TaskSet, check_sizes

# Every character that prompts, answers and boxes are written with: 52, so that a vocabulary with the special
# tokens stays under 64.
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:?=+-*/()\\{}"
TEMPLATE = "word-sums"
MAX_NEW_TOKENS = 64

_NAMES = ("ann", "bob", "eva", "ian", "kim", "leo", "max", "sue", "tom", "zoe")
_NOUNS = ("nuts", "figs", "eggs", "pies", "buns", "peas", "yams", "kiwi")
_MISSES = 2000  # draws in a row without a new problem after which a split counts as used up
_VERBS = {"+": ("got", "won"), "-": ("ate", "hid")}


@dataclass(frozen=True)
class Split:
    """Numbers lie in low..high; `carry` asks for at least one step that carries or borrows."""

    low: int
    high: int
    steps: int
    carry: bool


SPLITS: dict[str, Split] = {
    "easy": Split(1, 9, 1, False),
    "medium": Split(10, 99, 2, False),
    "hard": Split(10, 99, 3, True),
}
# Long enough that an answer without working is often wrong, though every step is easy. In no corpus by default.
CHAIN = {"chain": Split(1, 9, 3, False)}
MIXED = "mixed"
STYLES = ("plain", "sentence", "boxed", "steps")


@dataclass(frozen=True)
class CorpusMix:
    """What the base corpus is made of; shares are relative weights, `wrong` and `run_on` are probabilities."""

    styles: Mapping[str, float] = field(
        default_factory=lambda: {"plain": 0.40, "sentence": 0.32, "boxed": 0.03, "steps": 0.25}
    )
    splits: Mapping[str, float] = field(default_factory=lambda: {"easy": 0.5, "medium": 0.3, "hard": 0.2})
    wrong: float = 0.3  # share of answers that are wrong
    run_on: float = 0.2  # share of texts that go on with a second question instead of ending


def word_sums(
    split: str = "easy",
    seed: int = 0,
    train_size: int = 2000,
    heldout_size: int = 500,
    heldout_split: str | None = None,
) -> TaskSet:
    """A task set of one split, "chain" included, or of the other three in equal parts ("mixed").

    `seed` draws the problems. `heldout_split` measures on another split than is trained on, for example "mixed".
    Raises `UserError` for an unknown split, or for more problems than there are.
    """
    check_sizes(train_size, heldout_size)
    name = f"word-sums:{split}" if heldout_split in (None, split) else f"word-sums:{split}:{heldout_split}"
    return TaskSet(
        name=name,
        train=_draw(split, heldout=False, count=train_size, seed=seed),
        heldout=_draw(heldout_split or split, heldout=True, count=heldout_size, seed=seed),
        verifier="math",
        extractor="lenient",
        template=TEMPLATE,
        stop=TEMPLATES[TEMPLATE].stop,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def corpus(seed: int, count: int, mix: CorpusMix | None = None) -> Iterator[str]:
    """`count` texts of the base corpus: rendered prompt and response, without an end marker.

    Each text starts with "question: ". A text that runs on holds a second prompt and response after a newline. The
    same seed gives the same texts, and the first n texts do not depend on `count`. Raises ValueError for a mix with
    unknown names, or with probabilities outside 0..1.
    """
    mix = mix or CorpusMix()
    for names, known in ((mix.styles, STYLES), (mix.splits, tuple(SPLITS))):
        if not names or not set(names) <= set(known):
            raise ValueError(f"{sorted(names)} must be some of {known}")
    if not (0 <= mix.wrong <= 1 and 0 <= mix.run_on <= 1):
        raise ValueError(f"wrong {mix.wrong} and run_on {mix.run_on} must be in 0..1")
    rng = random.Random(f"word-sums/corpus/{seed}")
    for _ in range(count):
        text = _worked_text(mix, rng)
        if rng.random() < mix.run_on:
            text += "\n" + _worked_text(mix, rng)
        yield text


def worked_response(task: Task, style: str, rng: random.Random, wrong: float = 0.0) -> str:
    r"""A response to a word sum as the base corpus writes it, at most 64 characters, with a blank in front.

    plain: " 54"; sentence: " the answer is 54."; boxed: " \boxed{54}"; steps: " 27+45=72\n72-18=54\nthe answer is
    54.". With probability `wrong` one step of the working is off by 1, 2 or 10 and the later ones follow from it, so
    the answer is wrong for certain.
    """
    numbers: Sequence[int] = task.metadata["numbers"]
    operators: str = task.metadata["operators"]
    values = _running_values(numbers, operators)
    if rng.random() < wrong:
        step = rng.randrange(1, len(values))
        errors = [error for error in (-10, -2, -1, 1, 2, 10) if min(values[step:]) + error >= 0]
        error = rng.choice(errors)
        values = [value + error if place >= step else value for place, value in enumerate(values)]
    answer = values[-1]
    if style == "plain":
        return f" {answer}"
    if style == "sentence":
        return f" the answer is {answer}."
    if style == "boxed":
        return f" \\boxed{{{answer}}}"
    if style != "steps":
        raise ValueError(f"style {style!r} must be one of {STYLES}")
    lines = [
        f"{before}{operator}{number}={after}"
        for (before, after), operator, number in zip(pairwise(values), operators, numbers[1:], strict=True)
    ]
    return " " + "\n".join(lines) + f"\nthe answer is {answer}."


def is_heldout(task: Task) -> bool:
    """Whether this word sum is one of those that no corpus and no training part ever contains."""
    numbers, operators = task.metadata["numbers"], task.metadata["operators"]
    key = task.question if len(operators) == 1 else _expression(numbers, operators)
    return hashlib.sha256(f"word-sums/{key}".encode()).digest()[0] < 32


def _draw(split: str, heldout: bool, count: int, seed: int) -> tuple[Task, ...]:
    """`count` distinct problems of a split, all held out or none."""
    known = (*SPLITS, MIXED, *CHAIN)
    if split not in known:
        raise UserError(f"Unknown split of word sums '{split}'; choose from: {', '.join(known)}.")
    part = "heldout" if heldout else "train"
    rng = random.Random(f"word-sums/{part}/{split}/{seed}")
    names = tuple(SPLITS) if split == MIXED else (split,)
    drawn: dict[str, Task] = {}
    misses = 0
    while len(drawn) < count and misses < _MISSES:
        task = _problem(names[len(drawn) % len(names)], rng)
        misses += 1
        if task.question not in drawn and is_heldout(task) == heldout:
            drawn[task.question] = task
            misses = 0
    if len(drawn) < count:
        raise UserError(f"There are fewer than {count} word sums of the split '{split}' to draw; ask for fewer.")
    return tuple(drawn.values())


def _worked_text(mix: CorpusMix, rng: random.Random) -> str:
    """One prompt with its response; never a held-out problem."""
    split = rng.choices(list(mix.splits), list(mix.splits.values()))[0]
    task = _problem(split, rng)
    while is_heldout(task):
        task = _problem(split, rng)
    style = rng.choices(list(mix.styles), list(mix.styles.values()))[0]
    return render(TEMPLATES[TEMPLATE], task.question) + worked_response(task, style, rng, mix.wrong)


def _problem(split: str, rng: random.Random) -> Task:
    """A random problem of one split, held out or not. Nobody ever has fewer than none."""
    spec = {**SPLITS, **CHAIN}[split]
    while True:
        numbers = [rng.randint(spec.low, spec.high) for _ in range(spec.steps + 1)]
        operators = "".join(rng.choice("+-") for _ in range(spec.steps))
        values = _running_values(numbers, operators)
        if min(values) >= 0 and not (spec.carry and not _carries(numbers, operators, values)):
            break
    question = f"{rng.choice(_NAMES)} had {numbers[0]} {rng.choice(_NOUNS)}"
    for operator, number in zip(operators, numbers[1:], strict=True):
        question += f", {rng.choice(_VERBS[operator])} {number}"
    question += "?"
    return Task(
        id=f"word-sums/{question}",
        question=question,
        answer=str(values[-1]),
        source="word-sums",
        level=split,
        metadata={"numbers": numbers, "operators": operators},
    )


def _running_values(numbers: Sequence[int], operators: str) -> list[int]:
    """The first number and the result of each step."""
    values = [numbers[0]]
    for operator, number in zip(operators, numbers[1:], strict=True):
        values.append(values[-1] + number if operator == "+" else values[-1] - number)
    return values


def _carries(numbers: Sequence[int], operators: str, values: Sequence[int]) -> bool:
    """Whether the units of some step carry (sum of 10 or more) or borrow (take more than there is)."""
    return any(
        before % 10 + number % 10 >= 10 if operator == "+" else before % 10 < number % 10
        for before, operator, number in zip(values, operators, numbers[1:], strict=False)
    )


def _expression(numbers: Sequence[int], operators: str) -> str:
    text = str(numbers[0])
    for operator, number in zip(operators, numbers[1:], strict=True):
        text += f"{operator}{number}"
    return text
