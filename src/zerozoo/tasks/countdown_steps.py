"""Countdown with small numbers and the working as the answer, for a character-level tiny model.

"3 5 8 2, make 21?" is answered by "3*5=15\\n15+8=23\\n23-2=21". Every line is one step, so that a tree of partial
solutions has a plain meaning, and a wrong line can be told from one that only leads nowhere.
"""

from __future__ import annotations

import random

from zerozoo.tasks.prompts import TEMPLATES
from zerozoo.tasks.task import Task, TaskSet, check_sizes

TEMPLATE = "word-sums"
NUMBERS = 4
LARGEST = 50  # of every value on the way
MAX_NEW_TOKENS = 40


def countdown_steps(seed: int = 0, train_size: int = 2000, heldout_size: int = 200) -> TaskSet:
    """A task set of solvable instances; a pure function of its arguments.

    Metadata of a task: `numbers`, `target` and `solution`, the lines of one working. No held-out instance has the
    numbers and the target of a training instance, in whatever order.
    """
    check_sizes(train_size, heldout_size)
    rng = random.Random(f"countdown-steps/{seed}")
    tasks: dict[tuple[tuple[int, ...], int], Task] = {}
    while len(tasks) < train_size + heldout_size:
        task = _instance(rng)
        tasks.setdefault((tuple(sorted(task.metadata["numbers"])), task.metadata["target"]), task)
    problems = tuple(tasks.values())
    return TaskSet(
        name="countdown:steps",
        train=problems[heldout_size:],
        heldout=problems[:heldout_size],
        verifier="countdown-steps",
        extractor="lenient",
        template=TEMPLATE,
        stop=TEMPLATES[TEMPLATE].stop,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _instance(rng: random.Random) -> Task:
    """Random numbers, and a working that takes them one after another in a random order."""
    numbers = [rng.randint(1, 9) for _ in range(NUMBERS)]
    order = rng.sample(numbers, NUMBERS)
    value, lines = order[0], []
    for number in order[1:]:
        results = {"+": value + number, "-": value - number, "*": value * number}
        sign = rng.choice([sign for sign, result in results.items() if 0 <= result <= LARGEST])
        lines.append(f"{value}{sign}{number}={results[sign]}")
        value = results[sign]
    question = f"{' '.join(map(str, numbers))}, make {value}?"
    return Task(
        id=f"countdown-steps/{question}",
        question=question,
        answer=" " + "\n".join(lines),
        source="countdown-steps",
        metadata={"numbers": numbers, "target": value, "solution": lines},
    )
