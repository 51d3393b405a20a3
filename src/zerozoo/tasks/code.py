"""Small functions to write, in graded levels: every problem has hidden tests, and a reference solution as its answer.

A problem is one family (say: "x times a, plus b") with constants filled in. Problems are a pure function of the level,
and the seed of the split is its own, apart from the training seed, so that every run is measured on the same held-out
problems. No two problems of a level are the same function on the inputs that a level draws from, so a held-out problem
is never a training problem in other words; it may be its sibling with other constants.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from zerozoo.runs.errors import UserError
from zerozoo.tasks.splits import hash_order
from zerozoo.tasks.task import Task, TaskSet

FUNCTION = "f"
TESTS = 8
PROBES = 400  # inputs by which functions are told apart
TEMPLATE = "{question}\n```python\n"  # the response stands in the fence
LETTERS = "abcde"


@dataclass(frozen=True)
class Family:
    """`says` and `expression` are texts with the names of the constants in braces; `draw` makes one argument."""

    name: str
    parameter: str
    says: str
    expression: str
    constants: Mapping[str, Sequence[int | str]]
    draw: Callable[[random.Random], Any]


def _number(rng: random.Random) -> int:
    return rng.randint(-20, 20)


def _numbers(rng: random.Random) -> list[int]:
    return [rng.randint(-9, 20) for _ in range(rng.randint(0, 8))]


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(0, 9)))


_SMALL, _MEDIUM = range(2, 8), range(1, 13)
LEVELS: dict[str, tuple[Family, ...]] = {
    "numbers": (
        Family(
            "linear", "x", "{a} times the integer x, plus {b}", "{a} * x + {b}", {"a": _SMALL, "b": _MEDIUM}, _number
        ),
        Family(
            "remainder",
            "x",
            "the remainder of the integer x plus {b} divided by {a}",
            "(x + {b}) % {a}",
            {"a": range(3, 12), "b": range(1, 4)},
            _number,
        ),
        Family(
            "distance", "x", "the distance of the integer x from {b}", "abs(x - {b})", {"b": range(-9, 10)}, _number
        ),
        Family(
            "clamp",
            "x",
            "the integer x, but at least {a} and at most {b}",
            "min(max(x, {a}), {b})",
            {"a": range(-9, 0), "b": _MEDIUM},
            _number,
        ),
        Family(
            "choice",
            "x",
            "the square of the integer x if x is above {a}, otherwise {b}",
            "x * x if x > {a} else {b}",
            {"a": range(-6, 7), "b": _SMALL},
            _number,
        ),
    ),
    "lists": (
        Family(
            "sum-above",
            "xs",
            "the sum of the numbers in the list xs that are above {a}",
            "sum(x for x in xs if x > {a})",
            {"a": range(-6, 16)},
            _numbers,
        ),
        Family(
            "count-multiples",
            "xs",
            "how many numbers in the list xs are multiples of {a}",
            "sum(x % {a} == 0 for x in xs)",
            {"a": range(2, 10)},
            _numbers,
        ),
        Family(
            "map",
            "xs",
            "the list of every number in the list xs times {a}, plus {b}",
            "[{a} * x + {b} for x in xs]",
            {"a": _SMALL, "b": _MEDIUM},
            _numbers,
        ),
        Family(
            "drop-below",
            "xs",
            "the list of the numbers in the list xs that are at least {a}, each times {b}",
            "[{b} * x for x in xs if x >= {a}]",
            {"a": range(-6, 16), "b": range(2, 5)},
            _numbers,
        ),
        Family(
            "smallest",
            "xs",
            "the list of the {a} smallest numbers of the list xs in ascending order, each minus {b}",
            "[x - {b} for x in sorted(xs)[:{a}]]",
            {"a": range(2, 6), "b": range(1, 7)},
            _numbers,
        ),
    ),
    "strings": (
        Family(
            "count-letter",
            "text",
            "{a} times the number of letters {c} in the string text",
            "{a} * text.count('{c}')",
            {"a": range(2, 9), "c": LETTERS},
            _word,
        ),
        Family(
            "replace",
            "text",
            "the string text with every {c} replaced by {d}",
            "text.replace('{c}', '{d}')",
            {"c": LETTERS, "d": "vwxyz"},
            _word,
        ),
        Family(
            "cut",
            "text",
            "the first {a} letters of the string text, followed by {d}",
            "text[:{a}] + '{d}'",
            {"a": range(2, 7), "d": "vwxyz"},
            _word,
        ),
        Family(
            "reverse-long",
            "text",
            "the string text, reversed if it has more than {a} letters",
            "text[::-1] if len(text) > {a} else text",
            {"a": range(2, 8)},
            _word,
        ),
        Family(
            "repeat",
            "text",
            "the string text {a} times in a row, with {d} between",
            "'{d}'.join([text] * {a})",
            {"a": range(2, 7), "d": "vwxyz"},
            _word,
        ),
    ),
}
DEFAULT_LEVEL = "numbers"
HELDOUT_SHARE = 4  # one problem of so many is held out


def code(level: str = DEFAULT_LEVEL, seed: int = 0, heldout_size: int | None = None) -> TaskSet:
    """The task set of one level. `seed` chooses the split, `heldout_size` replaces a quarter of the problems.

    Metadata of a task: `function`, `calls` (lists of arguments) and `expected`, for `rewards.code.CodeVerifier`. The
    question shows one more call and its value. Raises `UserError` for an unknown level or a held-out part that leaves
    nothing to train on.
    """
    if level not in LEVELS:
        raise UserError(f"Unknown code level '{level}'; choose from: {', '.join(LEVELS)}.")
    tasks = hash_order(_problems(level), seed)
    heldout = len(tasks) // HELDOUT_SHARE if heldout_size is None else heldout_size
    if not 0 < heldout < len(tasks):
        raise UserError(
            f"The code level '{level}' has {len(tasks)} problems,"
            f" so the held-out part must be between 1 and {len(tasks) - 1}, not {heldout}."
        )
    return TaskSet(
        name=f"code:{level}",
        train=tuple(tasks[heldout:]),
        heldout=tuple(tasks[:heldout]),
        verifier="code",
        extractor="lenient",
        template=TEMPLATE,
        stop=("```",),
        max_new_tokens=96,
    )


@cache
def _problems(level: str) -> tuple[Task, ...]:
    """Every problem of the level, in a fixed order; of equal functions the first."""
    tasks: dict[str, Task] = {}
    for family in LEVELS[level]:
        for values in product(*family.constants.values()):
            constants = dict(zip(family.constants, values, strict=True))
            expression = family.expression.format(**constants)
            # Text of this module's own making, never of a model's.
            function = eval(f"lambda {family.parameter}: {expression}")
            probes = random.Random(f"code/{level}")
            behaviour = repr([function(family.draw(probes)) for _ in range(PROBES)])
            if behaviour not in tasks:
                tasks[behaviour] = _task(level, family, constants, expression, function)
    return tuple(tasks.values())


def _task(
    level: str, family: Family, constants: Mapping[str, Any], expression: str, function: Callable[[Any], Any]
) -> Task:
    name = f"code/{level}/{family.name}/{'-'.join(str(value) for value in constants.values())}"
    *calls, shown = _inputs(family, function, random.Random(name))
    return Task(
        id=name,
        question=(
            f"Write the Python function {FUNCTION}({family.parameter}) that returns"
            f" {family.says.format(**constants)}. For example, {FUNCTION}({shown!r}) is {function(shown)!r}."
        ),
        answer=f"def {FUNCTION}({family.parameter}):\n    return {expression}",
        source="code",
        level=level,
        metadata={
            "function": FUNCTION,
            "calls": [[value] for value in calls],
            "expected": [function(value) for value in calls],
        },
    )


def _inputs(family: Family, function: Callable[[Any], Any], rng: random.Random) -> list[Any]:
    """Different inputs, one more than there are tests; no value is right for more than half of the tests."""
    while True:
        drawn = {repr(value): value for value in (family.draw(rng) for _ in range(4 * TESTS))}
        inputs = list(drawn.values())[: TESTS + 1]
        values = [repr(function(value)) for value in inputs[:TESTS]]
        if len(inputs) > TESTS and max(map(values.count, values)) <= TESTS // 2:
            return inputs
