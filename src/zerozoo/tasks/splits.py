"""Which problems to train on: held-out parts, difficulty splits, and problems worth a group of samples."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task, question_key, unique_tasks

# SimpleRL-Zoo (arXiv 2503.18892, section 2): levels of MATH in each split; easy holds all of GSM8K as well.
DIFFICULTY = {"easy": ("1",), "medium": ("1", "2", "3", "4"), "hard": ("3", "4", "5")}


def hash_order(tasks: Iterable[Task], seed: int) -> list[Task]:
    """The tasks in an order that depends on each question and the seed alone, not on where a task stands in its file.

    Adding or removing other problems leaves the relative order of the rest as it was.
    """

    def digest(task: Task) -> bytes:
        return hashlib.sha256(f"{seed}/{question_key(task.question)}".encode()).digest()

    return sorted(tasks, key=digest)


def split_heldout(tasks: Sequence[Task], size: int, seed: int = 0) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """(train, heldout): `size` problems chosen by the hash of their question; both keep the order of `tasks`.

    The questions must be distinct (`unique_tasks`). Raises `UserError` unless there is at least one for each part.
    """
    if size < 1:
        raise UserError(f"The held-out part needs at least 1 problem, not {size}.")
    if len(tasks) <= size:
        raise UserError(
            f"There are only {len(tasks)} problems, which is too few for a held-out part of {size};"
            " give a smaller heldout_size or more problems."
        )
    chosen = {question_key(task.question) for task in hash_order(tasks, seed)[:size]}
    train = tuple(task for task in tasks if question_key(task.question) not in chosen)
    return train, tuple(task for task in tasks if question_key(task.question) in chosen)


def parse_level(level: object) -> str:
    """A difficulty level as it is compared: 5, 5.0, "5" and "Level 5" are "5"; "Level ?" and None are ""."""
    if isinstance(level, bool) or level is None:
        return ""
    text = str(level).strip()
    match = re.fullmatch(r"(?:level\s*)?(\d+)(?:\.0)?", text, flags=re.IGNORECASE)
    if match:
        return match.group(1)
    return "" if text.casefold() in ("", "nan", "level ?") else text


def difficulty_split(tasks: Iterable[Task], split: str) -> tuple[Task, ...]:
    """The easy, medium or hard part of a pool of GSM8K and MATH problems.

    easy = GSM8K + MATH level 1, medium = MATH levels 1 to 4, hard = MATH levels 3 to 5 (SimpleRL-Zoo). GSM8K problems
    are those whose source has "gsm8k" in its name; every other problem goes by its `level`, and one without a level
    belongs to no split. Raises `UserError` for an unknown split or an empty result.
    """
    if split not in DIFFICULTY:
        raise UserError(f"Unknown difficulty split '{split}'; choose from: {', '.join(DIFFICULTY)}.")
    chosen = []
    found: set[str] = set()
    for task in tasks:
        is_gsm8k = "gsm8k" in task.source.casefold()
        found.add("GSM8K" if is_gsm8k else parse_level(task.level) or "no level")
        if (split == "easy") if is_gsm8k else (parse_level(task.level) in DIFFICULTY[split]):
            chosen.append(task)
    if not chosen:
        raise UserError(
            f"No problem belongs to the split '{split}' (it takes {'GSM8K and ' if split == 'easy' else ''}"
            f"MATH levels {', '.join(DIFFICULTY[split])}); found: {', '.join(sorted(found)) or 'nothing'}."
        )
    return tuple(chosen)


def exclude(tasks: Iterable[Task], evaluation: Iterable[Task]) -> tuple[Task, ...]:
    """The tasks whose question is not in the evaluation set, each once; keeps MATH500 out of a pool made from MATH."""
    return unique_tasks(tasks, excluded=evaluation)


def informative(pass_rate: float, group_size: int) -> float:
    """Probability that a group of G samples holds a right and a wrong one: 1 - (1-p)^G - p^G.

    Only such groups give a group-relative advantage. Raises ValueError for a pass rate outside 0..1 or G < 1.
    """
    if not 0.0 <= pass_rate <= 1.0 or group_size < 1:
        raise ValueError(f"pass rate {pass_rate} must be in 0..1 and group size {group_size} at least 1")
    # Exactly 0 for G = 1, where (1-p) + p may miss 1 by rounding.
    return max(0.0, 1.0 - (1.0 - pass_rate) ** group_size - pass_rate**group_size) if group_size > 1 else 0.0


def select_informative(
    tasks: Sequence[Task], pass_rates: Mapping[str, float], group_size: int, minimum: float
) -> tuple[Task, ...]:
    """The tasks whose `informative` probability is at least `minimum`: what `--split auto` trains on.

    `pass_rates` gives the measured pass rate of the base model by task id; a task that was not measured is left out.
    Raises `UserError` when nothing is left.
    """
    chosen = tuple(
        task for task in tasks if task.id in pass_rates and informative(pass_rates[task.id], group_size) >= minimum
    )
    if not chosen:
        raise UserError(
            f"None of the {len(tasks)} problems reaches an informative share of {minimum} in groups of {group_size};"
            " the problems are too hard or too easy for this model: lower the minimum or choose another task."
        )
    return chosen


def repeat_by_difficulty(
    tasks: Sequence[Task], pass_rates: Mapping[str, float], bands: Sequence[tuple[float, int]]
) -> tuple[Task, ...]:
    """Each task as often as the first of the bands (below this pass rate, so often) says that it falls into.

    Tasks beyond the last band and those that were not measured are left out. OREAL (arXiv 2502.06781, released
    configs): six times below a pass rate of 0.2, four times below 0.6, twice below 0.8. Raises `UserError` when nothing
    is left.
    """
    chosen = [
        task
        for task in tasks
        if task.id in pass_rates
        for _ in range(next((times for below, times in bands if pass_rates[task.id] < below), 0))
    ]
    if not chosen:
        raise UserError(f"None of the {len(tasks)} problems has a pass rate that is trained on: all are too easy.")
    return tuple(chosen)
