"""Countdown: reach a target from given numbers with + - * / and parentheses, each number used exactly once.

The instances are those of TinyZero (3 or 4 numbers, a target of two digits), but every instance is made from an
expression, so that it has a solution; the expression is kept as the answer, one of perhaps many.
"""

from __future__ import annotations

import random

from zerozoo.runs.errors import UserError
from zerozoo.tasks.countdown_steps import countdown_steps
from zerozoo.tasks.prompts import TEMPLATES
from zerozoo.tasks.task import Task, TaskSet, check_sizes

# How many numbers an instance has, by level.
LEVELS: dict[str, tuple[int, ...]] = {"three": (3,), "four": (4,), "mixed": (3, 4)}
STEPS = "steps"  # small numbers, answered by the working: see `countdown_steps`
DEFAULT_LEVEL = "mixed"
LARGEST_NUMBER = 99
TARGETS = range(10, 100)

# Larger products cannot come back to a target of two digits with what is left.
_LARGEST_VALUE = 10_000


def countdown(level: str = DEFAULT_LEVEL, seed: int = 0, train_size: int = 2000, heldout_size: int = 200) -> TaskSet:
    """A task set of solvable instances; a pure function of its arguments.

    Metadata of a task: `numbers` (as they stand in the question) and `target`. No held-out instance has the numbers
    and the target of a training instance, in whatever order. Raises `UserError` for an unknown level.
    """
    if level == STEPS:
        return countdown_steps(seed, train_size, heldout_size)
    if level not in LEVELS:
        raise UserError(f"Unknown countdown level '{level}'; choose from: {', '.join((*LEVELS, STEPS))}.")
    check_sizes(train_size, heldout_size)
    rng = random.Random(f"countdown/{level}/{seed}")
    total = train_size + heldout_size
    tasks: dict[tuple[tuple[int, ...], int], Task] = {}
    while len(tasks) < total:
        task = _instance(level, rng)
        tasks.setdefault((tuple(sorted(task.metadata["numbers"])), task.metadata["target"]), task)
    problems = tuple(tasks.values())
    return TaskSet(
        name=f"countdown:{level}",
        train=problems[heldout_size:],
        heldout=problems[:heldout_size],
        verifier="countdown",
        extractor="lenient",
        template="r1-tags",
        stop=TEMPLATES["r1-tags"].stop,
        max_new_tokens=512,
    )


def _instance(level: str, rng: random.Random) -> Task:
    """One instance: random numbers joined by random operations until one value is left that can be a target."""
    while True:
        numbers = [rng.randint(1, LARGEST_NUMBER) for _ in range(rng.choice(LEVELS[level]))]
        solution = _combine(numbers, rng)
        if solution is not None:
            break
    value, expression = solution
    listed = ", ".join(str(number) for number in numbers)
    return Task(
        id=f"countdown/{'-'.join(str(number) for number in numbers)}={value}",
        question=(
            f"Using each of the numbers {listed} exactly once, together with +, -, * and / and parentheses,"
            f" write an expression that equals {value}."
        ),
        answer=expression,
        source="countdown",
        level=level,
        metadata={"numbers": numbers, "target": value},
    )


def _combine(numbers: list[int], rng: random.Random) -> tuple[int, str] | None:
    """(value, expression) of all numbers joined at random, or None when the value is not a target.

    Every intermediate value is a positive whole number, as in the television game, so that checking needs no fractions.
    """
    parts = [(number, str(number)) for number in numbers]
    while len(parts) > 1:
        left, right = (parts.pop(rng.randrange(len(parts))) for _ in range(2))
        if left[0] < right[0]:
            left, right = right, left
        outcomes = [(left[0] + right[0], "+")]
        if left[0] > right[0]:
            outcomes.append((left[0] - right[0], "-"))
        if left[0] * right[0] <= _LARGEST_VALUE:
            outcomes.append((left[0] * right[0], "*"))
        if left[0] % right[0] == 0:
            outcomes.append((left[0] // right[0], "/"))
        value, operator = rng.choice(outcomes)
        parts.append((value, f"({left[1]} {operator} {right[1]})"))
    value, expression = parts[0]
    return (value, expression[1:-1]) if value in TARGETS else None
