"""What the oracle for chains of sums says of written responses: how many steps they have, and which were needed.

It measures and is no reward: is a learned process reward farmed, and is a pit where a trace went wrong?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zerozoo.rewards.steps import StepLabel, check_steps, split_steps
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task


def is_chain(task: Task) -> bool:
    """Whether the oracle of `rewards.steps` knows the steps of this task."""
    return {"numbers", "operators"} <= set(task.metadata)


def step_labels(task: Task, steps: Sequence[str]) -> list[StepLabel]:
    """What the oracle says of the steps of a response to a chain of sums."""
    return check_steps(steps, task.metadata["numbers"], task.metadata["operators"])


def audit(responses: Iterable[tuple[Task, str]], rule: str = "lines") -> dict[str, float]:
    """Steps of responses to chains of sums; nothing where no task is one.

    steps/number: mean; steps/excess: mean number of steps beyond one for each operation and one for the answer, at
    least 0 in each response; steps/idle, steps/wrong, steps/repeated: shares of all steps. A repeated step spells like
    an earlier one of the same response, apart from blanks around it.
    """
    numbers, excess = [], []
    idle = wrong = repeated = 0
    for task, text in responses:
        if not is_chain(task):
            continue
        steps = [step.text for step in split_steps(text, rule)]
        labels = step_labels(task, steps)
        numbers.append(len(steps))
        excess.append(max(len(steps) - len(task.metadata["operators"]) - 1, 0))
        idle += labels.count(StepLabel.IDLE)
        wrong += labels.count(StepLabel.WRONG)
        repeated += len(steps) - len({step.strip() for step in steps})
    if not numbers:
        return {}
    total = max(sum(numbers), 1)
    return {
        "steps/number": sum(numbers) / len(numbers),
        "steps/excess": sum(excess) / len(numbers),
        "steps/idle": idle / total,
        "steps/wrong": wrong / total,
        "steps/repeated": repeated / total,
    }


def audit_samples(run: Run, tasks: Iterable[Task], mode: str, rule: str = "lines") -> dict[str, float]:
    """`audit` of the newest held-out responses in a run's samples.jsonl, under names heldout/MODE_...

    Args:
        mode: greedy or sampled.
    """
    by_id = {task.id: task for task in tasks}
    rows = [row for row in run.samples() if row["phase"] == f"heldout-{mode}" and row["task"] in by_id]
    newest = max((row["step"] for row in rows), default=0)
    found = audit(((by_id[row["task"]], row["response"]) for row in rows if row["step"] == newest), rule)
    return {f"heldout/{mode}_{name.replace('/', '_')}": value for name, value in found.items()}
