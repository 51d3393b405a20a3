"""Countdown with small numbers and the working as the answer, for a character-level tiny model.

"3 5 2 6 4, make 8?" is answered by "3+5=8\\n8-2=6\\n6+6=12\\n12-4=8". Every line is one step, so that a tree of partial
solutions has a plain meaning, and a wrong line can be told from one that only leads nowhere. Workings take the numbers
as they stand, with small sums: else the smallest model errs in copying and adding and hardly ever in planning.
"""

from __future__ import annotations

import random

from zerozoo.tasks.prompts import TEMPLATES
from zerozoo.tasks.task import Task, TaskSet, check_sizes

TEMPLATE = "word-sums"
NUMBERS = 5
HIGHEST = 6  # number
LARGEST = 12  # of every value on the way
MAX_NEW_TOKENS = 40

Key = tuple[tuple[int, ...], int]  # numbers in order of size, target


def countdown_steps(seed: int = 0, train_size: int = 2000, heldout_size: int = 200) -> TaskSet:
    """A task set of solvable instances; a pure function of its arguments.

    Metadata of a task: `numbers`, `target` and `solution`, the lines of one working. No two held-out instances have the
    same numbers and target, and none has those of a training instance, in whatever order. Training instances differ as
    questions: the same numbers may come back in another order, with another working.
    """
    check_sizes(train_size, heldout_size)
    rng = random.Random(f"countdown-steps/{seed}")
    heldout: dict[Key, Task] = {}
    while len(heldout) < heldout_size:
        task = _instance(rng)
        heldout.setdefault(_key(task), task)
    train: dict[str, Task] = {}
    while len(train) < train_size:
        task = _instance(rng)
        if _key(task) not in heldout:
            train.setdefault(task.question, task)
    return TaskSet(
        name="countdown:steps",
        train=tuple(train.values()),
        heldout=tuple(heldout.values()),
        verifier="countdown-steps",
        extractor="lenient",
        template=TEMPLATE,
        stop=TEMPLATES[TEMPLATE].stop,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _key(task: Task) -> Key:
    return tuple(sorted(task.metadata["numbers"])), task.metadata["target"]


def _instance(rng: random.Random) -> Task:
    """Random numbers, and a working that takes them one after another as they stand."""
    numbers = [rng.randint(1, HIGHEST) for _ in range(NUMBERS)]
    value, lines = numbers[0], []
    for number in numbers[1:]:
        results = {"+": value + number, "-": value - number}
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
