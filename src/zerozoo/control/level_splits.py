"""Levels of training, validation and test, told apart by their seeds, and the evaluator that plays all three."""

from __future__ import annotations

from typing import Any

import numpy as np

from zerozoo.control.evaluation import Evaluator, evaluate
from zerozoo.environments.make import make_levels
from zerozoo.environments.vector import VecEnv
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

# First seeds of the levels that may choose a result and of those that are the result; training has those from 0 on.
VALIDATION, TEST = 9_000, 10_000


class LevelEvaluator(Evaluator):
    """Plays every level of the three splits once: success/... and return/... of each, and the gap.

    The gap is the mean return on levels of training minus that on levels of test (Cobbe et al. 2019, arXiv 1812.02341).
    Rows of samples.jsonl say the split and the level.

    Args:
        kind: see `make_levels`.
        training: number of levels that were trained on, seeds 0, 1, ...; the first `test` of them are played.
        validation, test: numbers of levels, from seeds VALIDATION and TEST on.

    Raises UserError for an empty split and where one would reach into another.
    """

    def __init__(self, kind: str, training: int, validation: int, test: int) -> None:
        if not 1 <= training <= VALIDATION or not 1 <= validation <= TEST - VALIDATION or test < 1:
            raise UserError(
                f"There can be 1 to {VALIDATION} levels of training, 1 to {TEST - VALIDATION} of validation and any"
                f" number of test, not {training}, {validation} and {test}."
            )
        self.splits = {
            "train": range(min(training, test)),
            "validation": range(VALIDATION, VALIDATION + validation),
            "test": range(TEST, TEST + test),
        }
        self.levels = [level for levels in self.splits.values() for level in levels]
        self.split_of = np.repeat(list(self.splits), [len(levels) for levels in self.splits.values()])
        world = make_levels(len(self.levels), kind, self.levels, cycle=True)
        # Nothing is drawn: each copy plays its own level, and what it plays after its first episode does not count.
        self.environment = VecEnv(world, np.random.Generator(np.random.PCG64(0)), ["success"])

    def __call__(self, agent: Any, run: Run, step: int) -> dict[str, float]:
        played = evaluate(agent, self.environment, len(self.levels), success="success")
        named = zip(played.rows(step), self.split_of.tolist(), self.levels, strict=True)
        run.sample({**row, "split": split, "level": level} for row, split, level in named)
        success, metrics = np.asarray(played.success), {}
        for split in self.splits:
            chosen = self.split_of == split
            metrics[f"success/{split}"] = float(success[chosen].mean())
            metrics[f"return/{split}"] = float(played.returns[chosen].mean())
        return {**metrics, "gap": metrics["return/train"] - metrics["return/test"]}


def chosen_by_validation(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of metrics.jsonl with the highest return on the validation levels, the last among equals.

    The last, because where no level of validation is solved at all the first would be that of the untrained agent.
    """
    rows = [row for row in history if "return/validation" in row]
    return max(reversed(rows), key=lambda row: row["return/validation"])
