"""Several task sets as one: each problem keeps the verifier that it came with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task, TaskSet

JOIN = "+"  # between the names of the parts


def mixture(parts: Sequence[TaskSet]) -> TaskSet:
    """All problems of all parts, in order; their shares are those of their numbers.

    The verifier is "by-problem": each problem names its own in `metadata["verifier"]`, with the extractor. All parts
    must be asked with the same prompt and end with the same stop strings. Raises `UserError` when they are not, and for
    a question that is trained on in one part and held out in another.
    """
    if len({(part.template, part.stop) for part in parts}) != 1:
        asked = ", ".join(f"{part.name} with {part.template}" for part in parts)
        raise UserError(f"A mixture is asked with one prompt, but here it is {asked}: give one template for all.")
    return TaskSet(
        name=JOIN.join(part.name for part in parts),
        train=tuple(_marked(task, part) for part in parts for task in part.train),
        heldout=tuple(_marked(task, part) for part in parts for task in part.heldout),
        verifier="by-problem",
        extractor="lenient",
        template=parts[0].template,
        stop=parts[0].stop,
        max_new_tokens=max(part.max_new_tokens for part in parts),
        notes=tuple(note for part in parts for note in part.notes),
    )


def _marked(task: Task, part: TaskSet) -> Task:
    return replace(task, metadata={**task.metadata, "verifier": part.verifier, "extractor": part.extractor})
