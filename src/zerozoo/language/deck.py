"""Drawing tasks: shuffled passes over all of them, resumed at the very next task."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from zerozoo.runs.errors import UserError
from zerozoo.tasks.task import Task


class Deck:
    """Deals tasks from shuffled passes; what is left of a pass and too small for one deal is dropped (card M2).

    Its state is the order of this pass and the number of tasks dealt, that is of tasks that were trained on and
    not of tasks that some loader has read ahead (trap 35).
    """

    def __init__(self, tasks: Sequence[Task], per_step: int, generator: torch.Generator) -> None:
        if len(tasks) < per_step:
            raise UserError(
                f"There are {len(tasks)} training problems but prompts_per_step is {per_step}:"
                " give more problems or lower prompts_per_step."
            )
        self.tasks, self.generator = tasks, generator
        self.order: list[int] = []
        self.dealt = 0
        self.passes = 0
        self.fingerprint = _fingerprint(tasks)

    def deal(self, count: int) -> list[Task]:
        """The next `count` tasks, all different."""
        if self.dealt + count > len(self.order):
            self.order = torch.randperm(len(self.tasks), generator=self.generator).tolist()
            self.dealt = 0
            self.passes += 1
        picked = self.order[self.dealt : self.dealt + count]
        self.dealt += count
        return [self.tasks[index] for index in picked]

    def state(self) -> dict[str, Any]:
        return {"order": self.order, "dealt": self.dealt, "passes": self.passes, "tasks": self.fingerprint}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises UserError when the tasks are others than then."""
        if state["tasks"] != self.fingerprint:
            raise UserError(
                "The training problems are not those of the checkpoint:"
                " resume with the same data or start in another directory."
            )
        self.order, self.dealt, self.passes = list(state["order"]), state["dealt"], state["passes"]


def _fingerprint(tasks: Sequence[Task]) -> str:
    """Digest of all questions and answers, in order."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(f"{task.question}\0{task.answer}\0".encode())
    return digest.hexdigest()
