"""Worked chains of sums with steps that do not matter: true lines that bring the solution no further."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import permutations

from zerozoo.rewards.steps import StepLabel, check_steps
from zerozoo.tasks.task import Task
from zerozoo.tasks.word_sums import worked_response


def distracted_response(task: Task, share: float, rng: random.Random) -> str:
    """The right worked response to a word sum, with probability `share` with one idle line in it.

    The line repeats the one before, or adds or takes two numbers of the question from one another. The oracle of
    `rewards.steps` calls it idle and every other line right. Raises ValueError for a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share {share} must be in 0..1")
    response = worked_response(task, "steps", rng)
    if rng.random() >= share:
        return response
    lines = response.strip().split("\n")
    numbers, operators = task.metadata["numbers"], task.metadata["operators"]
    choices = [(place, line) for place in range(len(lines)) for line in _lines(numbers, lines[:place])]
    rng.shuffle(choices)
    for place, line in choices:
        longer = [*lines[:place], line, *lines[place:]]
        wanted = [StepLabel.RIGHT] * len(lines)
        wanted.insert(place, StepLabel.IDLE)
        if check_steps(longer, numbers, operators) == wanted:
            return " " + "\n".join(longer)
    return response


def _lines(numbers: Sequence[int], before: Sequence[str]) -> Iterator[str]:
    yield from before[-1:]
    for left, right in permutations(numbers, 2):
        yield f"{left}+{right}={left + right}"
        if left >= right:
            yield f"{left}-{right}={left - right}"
