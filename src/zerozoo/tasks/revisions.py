"""Two answers to one word sum, as a model with a bias gives them: the second one mostly repeats the first.

Fine-tuning on such transcripts makes the base model that self-correction starts from: its first answer is often wrong
and its second one hardly ever changes it, though it could work the sum out.
"""

from __future__ import annotations

import random

from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task
from zerozoo.tasks.word_sums import worked_response


def revision(task: Task, rng: random.Random, wrong: float = 0.5, copied: float = 0.9) -> tuple[str, str]:
    """(first answer, second answer), each with a blank in front and no more than 64 characters.

    The first is a bare number, with probability `wrong` off by 1, 2 or 10. The second is the same number with
    probability `copied`, else the sum worked out step by step, which is right.

    Raises UserError for a task that is no word sum.
    """
    if task.source != "word-sums":
        raise UserError(f"Transcripts with a second answer exist for word sums only, not for {task.source}.")
    first = worked_response(task, "plain", rng, wrong)
    repeated = rng.random() < copied
    return first, first if repeated else worked_response(task, "steps", rng)
