"""Programs of one number to write in postfix notation, for a character-level tiny model.

"take x, times 3, at most 20" is answered by "x 3 * 20 min". The last part always cuts some of the hidden tests off and
not all, so a program that forgets it, or has one number wrong, passes a share of them: true scores lie at 0, at 1 and
between.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from zerozoo.rewards.postfix import run_postfix
from zerozoo.tasks.prompts import TEMPLATES
from zerozoo.tasks.task import Task, TaskSet, check_sizes

TEMPLATE = "word-sums"
INPUTS = range(-9, 10)
TESTS = 8
LARGEST = 60  # number that is added or taken away
WORDS = {"*": "times", "+": "plus", "-": "minus", "min": "at most", "max": "at least"}
MAX_NEW_TOKENS = 32

Step = tuple[str, int]  # operation, number


def postfix(seed: int = 0, train_size: int = 1500, heldout_size: int = 200) -> TaskSet:
    """A task set; a pure function of its arguments. Metadata of a task: `inputs`, `expected` and `steps`."""
    check_sizes(train_size, heldout_size)
    rng = random.Random(f"postfix/{seed}")
    tasks: dict[str, Task] = {}
    while len(tasks) < train_size + heldout_size:
        task = _problem(rng)
        tasks.setdefault(task.question, task)
    problems = tuple(tasks.values())
    return TaskSet(
        name="postfix",
        train=problems[heldout_size:],
        heldout=problems[:heldout_size],
        verifier="postfix",
        extractor="lenient",
        template=TEMPLATE,
        stop=TEMPLATES[TEMPLATE].stop,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def program(steps: Sequence[Step]) -> str:
    """The program that takes x and does one step after the other."""
    return " ".join(["x", *(f"{number} {operation}" for operation, number in steps)])


def written_program(task: Task, rng: random.Random, wrong: float = 0.0) -> str:
    """A response with a blank in front, with probability `wrong` another program: a number off by 1, 2 or 10, min and
    max exchanged, or a step left out. Now and then such a slip passes all tests nevertheless."""
    steps: list[Step] = [(operation, number) for operation, number in task.metadata["steps"]]
    if rng.random() < wrong:
        place = rng.randrange(len(steps))
        operation, number = steps[place]
        kind = rng.choice(("number", "number", "left out", "exchanged"))
        if kind == "left out":
            del steps[place]
        elif kind == "exchanged":
            last, bound = steps[-1]
            steps[-1] = ("max" if last == "min" else "min", bound)
        else:
            steps[place] = (operation, max(0, number + rng.choice((-10, -2, -1, 1, 2, 10))))
    return f" {program(steps)}"


def _problem(rng: random.Random) -> Task:
    while True:
        operation = rng.choice("*+-")
        steps: list[Step] = [(operation, rng.randint(2, 9) if operation == "*" else rng.randint(1, LARGEST))]
        inputs = sorted(rng.sample(INPUTS, TESTS))
        free = [run_postfix(program(steps), x) for x in inputs]
        values = [value for value in free if value is not None]
        if max(values) < 0:
            continue  # no number is written with a sign
        steps.append((rng.choice(("min", "max")), rng.randint(max(0, min(values)), max(values))))
        bound = steps[-1][1]
        cut = sum(value > bound if steps[-1][0] == "min" else value < bound for value in values)
        if TESTS // 4 <= cut <= TESTS - TESTS // 4:
            break
    question = ", ".join(["take x", *(f"{WORDS[operation]} {number}" for operation, number in steps)])
    return Task(
        id=f"postfix/{question}",
        question=question,
        answer=program(steps),
        source="postfix",
        metadata={"inputs": inputs, "expected": [run_postfix(program(steps), x) for x in inputs], "steps": steps},
    )
