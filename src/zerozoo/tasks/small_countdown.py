"""Countdown with three small numbers, for a character-level tiny model, and transcripts of searches.

"make 24 with 3 5 9" is answered by expressions with their values, one a line, until one of them is the target:

    3+5+9=17
    3*5+9=24

Each number is used once, with + - * and no parentheses. The last expression counts, so that guesses earn nothing.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import permutations, product

from zerozoo.rewards.expressions import evaluate_expression
from zerozoo.runs.errors import UserError
from zerozoo.tasks.prompts import TEMPLATES
from zerozoo.tasks.task import Task, TaskSet, check_sizes

TEMPLATE = "word-sums"
NUMBERS = range(1, 10)
TARGETS = range(1, 100)
MAX_NEW_TOKENS = 64


def small_countdown(seed: int = 0, train_size: int = 1000, heldout_size: int = 200) -> TaskSet:
    """A task set; a pure function of its arguments. Metadata of a task: `numbers` and `target`.

    No held-out instance has the numbers and the target of a training instance, in whatever order. Raises `UserError`
    for more instances than there are.
    """
    check_sizes(train_size, heldout_size)
    every = list(_instances())
    if train_size + heldout_size > len(every):
        raise UserError(f"There are {len(every)} instances of small-countdown; ask for fewer.")
    random.Random(f"small-countdown/{seed}").shuffle(every)
    tasks = [_task(numbers, target, random.Random(f"{numbers}={target}")) for numbers, target in every]
    return TaskSet(
        name="small-countdown",
        train=tuple(tasks[heldout_size : heldout_size + train_size]),
        heldout=tuple(tasks[:heldout_size]),
        verifier="countdown",
        extractor="lenient",
        template=TEMPLATE,
        stop=TEMPLATES[TEMPLATE].stop,
        max_new_tokens=MAX_NEW_TOKENS,
    )


@cache
def expressions(numbers: tuple[int, ...]) -> dict[str, int]:
    """Every expression of the numbers in every order, with its value; only positive values below 100."""
    found = {}
    for order in sorted(set(permutations(numbers))):
        for operators in product("+-*", repeat=len(order) - 1):
            text = str(order[0]) + "".join(f"{one}{number}" for one, number in zip(operators, order[1:], strict=True))
            value = evaluate_expression(text)
            if value is not None and value in TARGETS:
                found[text] = int(value)
    return found


def written_search(task: Task, rng: random.Random, searching: float, most: int = 5) -> str:
    """A response with a blank in front, as one writes who searches now and then.

    With probability `searching` expressions are tried at random, none twice, until the target is met, at most `most`;
    else there is one try and no second one, met or not. Every value is right.
    """
    numbers, target = tuple(sorted(task.metadata["numbers"])), task.metadata["target"]
    every = expressions(numbers)
    tries = rng.sample(sorted(every), min(len(every), most if rng.random() < searching else 1))
    lines = []
    for text in tries:
        lines.append(f"{text}={every[text]}")
        if every[text] == target:
            break
    return " " + "\n".join(lines)


def _instances() -> list[tuple[tuple[int, ...], int]]:
    """Sorted numbers and a target that they can reach."""
    triples = sorted({tuple(sorted(one)) for one in product(NUMBERS, repeat=3)})
    return [(numbers, target) for numbers in triples for target in sorted(set(expressions(numbers).values()))]


def _task(numbers: tuple[int, ...], target: int, rng: random.Random) -> Task:
    shown = rng.sample(numbers, len(numbers))
    listed = " ".join(map(str, shown))
    return Task(
        id=f"small-countdown/{listed}={target}",
        question=f"make {target} with {listed}",
        answer=next(text for text, value in expressions(numbers).items() if value == target),
        source="small-countdown",
        metadata={"numbers": shown, "target": target},
    )
