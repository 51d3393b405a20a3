"""Held-out problems, answered and judged during a training: the metrics that every language recipe shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zerozoo.language.evaluation import evaluate_modes
from zerozoo.language.samplers.interface import Decoding, Sampler
from zerozoo.rewards.verifier import Verifier
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task


@dataclass(frozen=True)
class Heldout:
    """Problems that are never trained on, and how they are answered and judged.

    Attributes:
        sampler: draws from the policy's current weights.
        tasks: the problems.
        prompts: token ids of their prompts.
        verifier: judges the responses.
        decoding: of the sampled mode; greedy otherwise the same.
        run: whose samples.jsonl gets the responses of a thorough evaluation.
    """

    sampler: Sampler
    tasks: Sequence[Task]
    prompts: Sequence[list[int]]
    verifier: Verifier
    decoding: Decoding
    run: Run

    def metrics(self, step: int, thorough: bool) -> dict[str, float]:
        """Accuracy with its interval, lengths and monitors: greedy, and if `thorough` also sampled.

        The random numbers depend on the step alone, so evaluating more often changes no training run.
        """
        results = evaluate_modes(
            self.sampler,
            self.tasks,
            self.prompts,
            self.verifier,
            self.decoding,
            self.run.seed,
            f"evaluation/{step}",
            thorough,
        )
        metrics: dict[str, float] = {}
        for mode, result in results.items():
            for name, value in result.metrics.items():
                short = name.removeprefix("response/")
                if short != name or name in ("accuracy", "low", "high"):
                    metrics[f"heldout/{mode}_{short}"] = value
            if thorough:
                rows = result.rollouts.rows_for_log(step)
                self.run.sample({**row, "phase": f"heldout-{mode}"} for row in rows)
        return metrics
