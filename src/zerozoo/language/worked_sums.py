"""Worked word sums as examples for fine-tuning, some with a step that does not matter."""

from __future__ import annotations

import random
from collections.abc import Iterable

from zerozoo.language.example_files import Row
from zerozoo.language.models import LanguageModel
from zerozoo.runs.errors import UserError
from zerozoo.tasks.distractors import distracted_response
from zerozoo.tasks.prompts import render
from zerozoo.tasks.task import Task


def worked_sums(
    tasks: Iterable[Task], policy: LanguageModel, template: str, distractors: float, seed: int, idle_lines: int = 1
) -> list[Row]:
    """Rows {"prompt", "response"} with the right worked response to every problem.

    A share `distractors` of them has 1 to `idle_lines` idle steps.

    What a problem gets depends on the seed and on itself alone. Raises UserError for problems that are no word sums.
    """
    rows: list[Row] = []
    for task in tasks:
        if task.source != "word-sums":
            raise UserError(f"The problems of {task.source} come without worked solutions.")
        response = distracted_response(task, distractors, random.Random(f"{seed}/{task.id}"), idle_lines)
        rows.append({"prompt": render(template, task.question, policy.tokenizer), "response": response})
    return rows
