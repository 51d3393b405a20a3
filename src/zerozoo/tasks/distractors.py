"""Worked chains of sums with steps that do not matter: true lines that bring the solution no further."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import permutations

from zerozoo.rewards.steps import StepLabel, check_steps
from zerozoo.tasks.task import Task
from zerozoo.tasks.word_sums import worked_response


def distracted_response(task: Task, share: float, rng: random.Random, most: int = 1) -> str:
    """The right worked response to a word sum, with probability `share` with 1 to `most` idle lines in it.

    A line repeats the one before, or adds or takes two numbers of the question from one another. The oracle of
    `rewards.steps` calls it idle and every other line right. Raises ValueError for a share outside 0..1 and for a
    number of lines below 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share {share} must be in 0..1")
    if most < 1:
        raise ValueError(f"the number of idle lines {most} must be at least 1")
    response = worked_response(task, "steps", rng)
    if rng.random() >= share:
        return response
    lines = response.strip().split("\n")
    labels = [StepLabel.RIGHT] * len(lines)
    for _ in range(rng.randint(1, most) if most > 1 else 1):
        lines, labels = _with_idle_line(task, lines, labels, rng)
    return " " + "\n".join(lines)


def _with_idle_line(
    task: Task, lines: list[str], labels: list[StepLabel], rng: random.Random
) -> tuple[list[str], list[StepLabel]]:
    """One more idle line at a random place, the other labels as they were; nothing new where there is no such line."""
    numbers, operators = task.metadata["numbers"], task.metadata["operators"]
    choices = [(place, line) for place in range(len(lines)) for line in _lines(numbers, lines[:place])]
    rng.shuffle(choices)
    for place, line in choices:
        longer = [*lines[:place], line, *lines[place:]]
        wanted = [*labels[:place], StepLabel.IDLE, *labels[place:]]
        if check_steps(longer, numbers, operators) == wanted:
            return longer, wanted
    return lines, labels


def _lines(numbers: Sequence[int], before: Sequence[str]) -> Iterator[str]:
    yield from before[-1:]
    for left, right in permutations(numbers, 2):
        yield f"{left}+{right}={left + right}"
        if left >= right:
            yield f"{left}-{right}={left - right}"
