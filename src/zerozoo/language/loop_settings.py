"""How long the zero-RL loop runs, how much a step holds and how often the loop looks."""

from __future__ import annotations

from dataclasses import dataclass

SCHEDULES = ("constant", "linear")


@dataclass(frozen=True)
class LoopSettings:
    """How long and how much; words as everywhere in zerozoo.

    Attributes:
        steps: rollouts, each followed by its gradient steps.
        prompts_per_step: tasks a step.
        samples_per_prompt: responses to each of them, the group.
        evaluate_every: steps between greedy evaluations; step 0 and the last are always evaluated, also sampled.
        checkpoint_every: steps between checkpoints; the last step is always saved.
        samples_logged: responses a step that go to samples.jsonl.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        schedule: "constant", or "linear" down to 0 at the last step.
        frozen_steps: first steps in which the policy stays as it is and only what gives the credit learns.
        max_lag: steps of tasks that are drawn and answered ahead of the step that trains on them (see `collect`);
            not with episodes or with groups that are replaced.
    """

    steps: int
    prompts_per_step: int
    samples_per_prompt: int
    evaluate_every: int = 5
    checkpoint_every: int = 10
    samples_logged: int = 16
    warmup_steps: int = 0
    schedule: str = "constant"
    frozen_steps: int = 0
    max_lag: int = 0

    @property
    def falls_until(self) -> int | None:
        """The step at which the learning rate reaches 0; None when it stays."""
        return self.steps if self.schedule == "linear" else None

    def learning_rate_factor(self, step: int) -> float:
        """Factor on the learning rate at step 1, 2, ..."""
        warmup = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return warmup * (1 - (step - 1) / self.steps if self.schedule == "linear" else 1.0)
