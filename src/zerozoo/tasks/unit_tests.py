"""Small functions to write unit tests for, and the tests that their careless developers wrote.

A problem is a function of one of some thirty families (arithmetic, texts, lists) under a random name; the response
carries on "def test_". There is no one answer: `rewards.unit_test_verifier` reads what the test is like. The corpus
pairs functions with template tests into which smells are put at set rates, so that a model which has learned from it
writes tests of all qualities. What a template test expects is always right, but what it checks may be little.

Held out are functions by a hash of their text, and all functions of `UNSEEN` families; no corpus has any of them. A
held-out function of a seen family may have a sibling in the corpus that does the same under another name.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task, TaskSet, check_sizes

START = "def test_"  # where the prompt ends
TEMPLATE = "{question}\n\n\n" + START
STOP = ("\n\n",)  # a test has no blank line, so what follows one is a second test
MAX_NEW_TOKENS = 96
UNSEEN_SHARE = 5  # one held-out problem of so many is of an unseen family
VERBS = ("get", "make", "calc", "find", "take", "apply", "run", "build")
NOUNS = ("value", "item", "total", "part", "mark", "score", "size", "code")
LETTERS, OTHER_LETTERS = "abc", "xyz"
_MISSES = 10_000  # draws without a new problem before there seem to be none

Draw = Callable[[random.Random], Any]


@dataclass(frozen=True)
class Family:
    """`expression` is a text with the names of the constants in braces; `draw` makes one argument of `parameter`."""

    name: str
    parameter: str
    expression: str
    draw: Draw


def _number(rng: random.Random) -> int:
    return rng.randint(0, 9)


def _numbers(rng: random.Random) -> list[int]:
    return [rng.randint(0, 9) for _ in range(rng.randint(1, 3))]


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 4)))


def _families(parameter: str, draw: Draw, **expressions: str) -> tuple[Family, ...]:
    return tuple(Family(name, parameter, expression, draw) for name, expression in expressions.items())


# {a}, {b} and {c} are numbers from 1 to 5, {u} is one of LETTERS, {v} one of OTHER_LETTERS.
SEEN: tuple[Family, ...] = (
    *_families(
        "x",
        _number,
        add="x + {a}",
        subtract="x - {a}",
        scale="x * {a}",
        linear="x * {a} + {b}",
        quotient="x // {a}",
        floor="max(x, {a})",
        cap="min(x, {a})",
        above="x > {a}",
        multiple="x % {a} == 0",
        mirror="{a} - x",
        choice="{a} if x > {b} else {c}",
    ),
    *_families(
        "text",
        _word,
        append="text + '{v}'",
        prepend="'{v}' + text",
        repeat="text * {a}",
        first="text[:{a}]",
        drop="text[{a}:]",
        count="text.count('{u}')",
        starts="text.startswith('{u}')",
        replace="text.replace('{u}', '{v}')",
        longer="len(text) > {a}",
    ),
    *_families(
        "xs",
        _numbers,
        total="sum(xs) + {a}",
        length="len(xs) + {a}",
        head="xs[:{a}]",
        extend="xs + [{a}]",
        contains="{a} in xs",
        occurrences="xs.count({a})",
    ),
)
UNSEEN: tuple[Family, ...] = (
    *_families("x", _number, remainder="x % {a}", distance="abs(x - {a})"),
    *_families("text", _word, reverse="text[::-1] + '{v}'", ends="text.endswith('{u}')"),
    *_families("xs", _numbers, largest="max(xs) + {a}", above_all="[x for x in xs if x > {a}]"),
)


@dataclass(frozen=True)
class Habits:
    """How careless the developers are: chances, each drawn apart from the others.

    The first three are the rates of faults that a paper citing RLSQM gives for a model before its training.
    """

    no_assertion: float = 0.31  # an assertion is left out
    no_focal_call: float = 0.37  # the function is not called
    syntax: float = 0.17  # the text does not parse
    duplicate: float = 0.15  # the last assertion stands twice
    conditional: float = 0.15  # in a loop or a try
    descriptive: float = 0.5  # the name says what is tested
    comment: float = 0.3
    weak: float = 0.3  # an assertion that hardly any value fails
    run_on: float = 0.1  # a second test follows

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is a chance, but {value}")


HABITS = Habits()


@dataclass(frozen=True)
class Focal:
    """A function to be tested: its text, and what draws arguments for it."""

    name: str
    family: Family
    source: str
    function: Callable[[Any], Any] = field(compare=False)


def unit_tests(seed: int = 0, train_size: int = 2000, heldout_size: int = 300) -> TaskSet:
    """The task set; `seed` draws the functions. Metadata: `focal` (its name), `source`, `start`, `family`, `seen`.

    Of the held-out problems one in five is of an unseen family. Raises `UserError` for sizes of no use.
    """
    check_sizes(train_size, heldout_size)
    unseen = heldout_size // UNSEEN_SHARE
    rng = random.Random(f"unit-tests/{seed}")
    heldout = _draw(rng, heldout_size - unseen, SEEN, heldout=True) + _draw(rng, unseen, UNSEEN, heldout=True)
    return TaskSet(
        name="unit-tests",
        train=_draw(rng, train_size, SEEN, heldout=False),
        heldout=heldout,
        verifier="unit-tests",
        extractor="lenient",
        template=TEMPLATE,
        stop=STOP,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def corpus(seed: int, count: int, habits: Habits = HABITS) -> Iterator[str]:
    """`count` texts, a function with its test each, without an end marker; never a held-out function.

    The first n texts do not depend on `count`.
    """
    for focal, response in written_tests(seed, count, habits):
        yield TEMPLATE.replace("{question}", focal.source) + response


def written_tests(seed: int | str, count: int, habits: Habits = HABITS) -> Iterator[tuple[Focal, str]]:
    """Functions with the responses of the corpus. The first n do not depend on `count`."""
    rng = random.Random(f"unit-tests/corpus/{seed}")
    for _ in range(count):
        focal = _focal(rng, SEEN)
        while is_heldout(focal):
            focal = _focal(rng, SEEN)
        response = written_test(focal, rng, habits)
        if rng.random() < habits.run_on:
            response += "\n\n\n" + START + written_test(focal, rng, habits)
        yield focal, response


def written_test(focal: Focal, rng: random.Random, habits: Habits = HABITS) -> str:
    """One test as a developer of these habits writes it, without `START`."""
    name = focal.name + (f"_{rng.choice(WORDS_OF_NAMES)}" if rng.random() < habits.descriptive else "")
    lines = _statements(focal, rng, habits)
    if rng.random() < habits.conditional:
        opening, closing = rng.choice((("for _ in range(2):", ()), ("try:", ("except ValueError:", "    pass"))))
        lines = [*lines[:-1], opening, f"    {lines[-1]}", *closing]
    if rng.random() < habits.comment:
        lines = [f"# {rng.choice(WORDS_OF_NAMES)} {focal.family.parameter}", *lines]
    text = "\n".join([f"{name}():", *(f"    {line}" for line in lines)])
    return _damaged(text, rng) if rng.random() < habits.syntax else text


def is_heldout(focal: Focal) -> bool:
    """Whether no corpus and no training part ever contains this function."""
    return focal.family in UNSEEN or hashlib.sha256(f"unit-tests/{focal.source}".encode()).digest()[0] < 32


WORDS_OF_NAMES = ("small", "large", "simple", "returns", "works", "basic")
PIECES = (
    *("    ", "\n\n\n", "def ", START, "return ", "assert ", "():\n    ", "):\n    ", "\n    ", " == ", ", ", "# "),
    *("is not None", "isinstance(", "for _ in range(2):", "try:", "except ValueError:", "pass", "result", " = "),
    *(" if ", " else ", " for ", " in ", " + ", " - ", " * ", " // ", " % ", " > ", "True", "False"),
)


def vocabulary() -> tuple[str, ...]:
    """The pieces of more than one character from which functions and tests are put together, each once."""
    words = [word for family in (*SEEN, *UNSEEN) for word in re.findall(r"[a-z]{2,}", family.expression)]
    types = [type(family.draw(random.Random(0))).__name__ for family in SEEN]
    parameters = [family.parameter for family in SEEN if len(family.parameter) > 1]
    known = (*PIECES, *VERBS, *NOUNS, *WORDS_OF_NAMES, *parameters, *types, "bool", *words)
    return tuple(dict.fromkeys(known))


def _statements(focal: Focal, rng: random.Random, habits: Habits) -> list[str]:
    """The body of a test: one or two cases, of which the developer may forget what matters."""
    asserts = rng.random() >= habits.no_assertion
    calls = rng.random() >= habits.no_focal_call
    lines: list[str] = []
    drawn = [focal.family.draw(rng) for _ in range(rng.randint(1, 2))]
    for argument in drawn if drawn[0] != drawn[-1] else drawn[:1]:  # the same case twice is a smell of its own
        value = focal.function(argument)
        call = f"{focal.name}({argument!r})"
        if calls and rng.random() < 0.3:
            lines.append(f"result = {call}")
            call = "result"
        if not calls:
            lines.append(f"result = {value!r}")
            call = "result"
        if asserts:
            lines.append(f"assert {_expectation(call, value, rng, habits)}")
        elif call != "result":
            lines.append(call)
    if asserts and rng.random() < habits.duplicate:
        lines.append(lines[-1])
    return lines


def _expectation(call: str, value: Any, rng: random.Random, habits: Habits) -> str:
    if rng.random() >= habits.weak:
        return f"{call} == {value!r}"
    return rng.choice((f"{call} is not None", f"isinstance({call}, {type(value).__name__})"))


def _damaged(text: str, rng: random.Random) -> str:
    """A text that does not parse: a closing bracket, a colon or the end is missing."""
    cuts = [text[:place] + text[place + 1 :] for place, letter in enumerate(text) if letter in "):"]
    broken = [cut for cut in (*cuts, text[: len(text) // 2]) if not _parses(cut)]
    return rng.choice(broken)


def _parses(text: str) -> bool:
    try:
        ast.parse(START + text)
    except SyntaxError:
        return False
    return True


def _focal(rng: random.Random, families: Sequence[Family]) -> Focal:
    family = rng.choice(families)
    constants: Mapping[str, Any] = {
        **{name: rng.randint(1, 5) for name in "abc"},
        **{"u": rng.choice(LETTERS), "v": rng.choice(OTHER_LETTERS)},
    }
    expression = family.expression.format(**constants)
    name = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    # Text of this module's own making, never of a model's.
    function = eval(f"lambda {family.parameter}: {expression}")
    return Focal(name, family, f"def {name}({family.parameter}):\n    return {expression}", function)


def _draw(rng: random.Random, count: int, families: Sequence[Family], heldout: bool) -> tuple[Task, ...]:
    """`count` different functions, all held out or none."""
    drawn: dict[str, Task] = {}
    misses = 0
    while len(drawn) < count and misses < _MISSES:
        focal = _focal(rng, families)
        misses += 1
        if focal.source not in drawn and is_heldout(focal) == heldout:
            drawn[focal.source] = _task(focal)
            misses = 0
    if len(drawn) < count:
        raise UserError(f"There are fewer than {count} functions of these families to draw; ask for fewer.")
    return tuple(drawn.values())


def _task(focal: Focal) -> Task:
    best = Habits(**{**dict.fromkeys(vars(HABITS), 0.0), "descriptive": 1.0, "comment": 1.0})
    return Task(
        id=f"unit-tests/{focal.source}",
        question=focal.source,
        answer=START + written_test(focal, random.Random(focal.source), best),
        source="unit-tests",
        level=focal.family.name,
        metadata={
            "focal": focal.name,
            "source": focal.source,
            "start": START,
            "family": focal.family.name,
            "seen": focal.family not in UNSEEN,
        },
    )
