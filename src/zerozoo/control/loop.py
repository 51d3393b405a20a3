"""What the loops of control share: resume, interrupts, means of what updates return, evaluation, checkpoints.

A run that was killed and resumed equals one that was not, bit for bit: a checkpoint holds the agent, what it learns
from, the environments, the random streams and the means that were not logged yet, all as they are between two steps.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zerozoo.control.agent import Agent
from zerozoo.control.evaluation import Evaluator
from zerozoo.control.pictures import draw_episode
from zerozoo.runs.checkpoints import Checkpoint
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.runs.interrupts import Interrupts
from zerozoo.runs.run import Run

Tensors = Mapping[str, Tensor]
_JOINED = 1024  # values of a metric that are joined into one tensor, so that long logging intervals stay small


class Meter:
    """Means of tensors since the last reading. Values stay tensors until then: nothing waits for a number."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, metrics: Tensors) -> None:
        """Values by name, () or (n,); every number counts the same."""
        for name, value in metrics.items():
            values = self._values.setdefault(name, [])
            values.append(value.reshape(-1))
            if len(values) >= _JOINED:
                values[:] = [torch.cat(values)]

    def means(self) -> dict[str, float]:
        """The means so far. DivergedError if one is not finite."""
        means = {name: float(values.double().mean()) for name, values in self.state().items()}
        for name, mean in means.items():
            if not math.isfinite(mean):
                raise DivergedError(f"The mean of {name} is {mean}: try a lower learning rate.")
        return means

    def clear(self) -> None:
        self._values.clear()

    def state(self) -> dict[str, Tensor]:
        """Every value so far, (n,) by name."""
        return {name: torch.cat(values) for name, values in self._values.items()}

    def load_state(self, state: Tensors) -> None:
        self._values = {name: [values] for name, values in state.items()}


@dataclass(kw_only=True, eq=False)
class Loop(ABC):
    """Trains an agent for a number of steps; what a step is, the loop says.

    Attributes:
        agent: what learns; the metrics are what its updates return, as means since the last row.
        run: directory, streams and metrics.
        steps: how many; the last may go over it where several are taken at once.
        evaluator: measures the agent before the first step, every `evaluate_every` steps and at the end; or None.
        log_every: steps between rows of metrics.
        checkpoint_every: steps between checkpoints; there is always one at the end.
    """

    agent: Agent
    run: Run
    steps: int
    evaluator: Evaluator | None = None
    evaluate_every: int = 10_000
    log_every: int = 1_000
    checkpoint_every: int = 50_000
    meter: Meter = field(init=False, default_factory=Meter)

    def __post_init__(self) -> None:
        for name in ("evaluate_every", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")

    @abstractmethod
    def advance(self, step: int) -> int:
        """Goes on after `step` steps; how many there are then."""

    def tensors(self) -> dict[str, Tensor]:
        """What a resume needs beside the agent; `restore` gets it back, with the random streams already restored."""
        return {}

    def restore(self, tensors: Tensors) -> None:
        """Goes back to what `tensors` gave."""
        if tensors:
            raise ValueError(f"this loop keeps nothing, but got {sorted(tensors)}")

    def train(self) -> dict[str, float]:
        """Runs to the last step from wherever the run directory stands; the numbers of the last evaluation.

        Raises:
            DivergedError: a loss or an action is not finite; no checkpoint was written after that.
            UserError: an environment failed; the newest checkpoint is kept.
            KeyboardInterrupt: after a checkpoint was saved.
        """
        step = self.run.resume(self._go_back)
        if step == 0 and self.evaluator is not None:
            self.run.log(0, self.evaluator(self.agent, self.run, 0))
        self._start_clock(step)
        finished = step >= self.steps
        with Interrupts(self.run.say) as interrupts:
            while step < self.steps:
                before = step
                try:
                    step = self._advance(before)
                    last, interrupted = step >= self.steps, interrupts.requested
                    self._measure(before, step)
                    if last or interrupted or crosses(self.checkpoint_every, before, step):
                        self._save(step)
                except UserError as error:
                    stopped = f"Training stopped after step {before}; {self.run.kept()}."
                    raise type(error)(f"{str(error).rstrip('.')}. {stopped}") from error
                if interrupted and not last:
                    raise KeyboardInterrupt
        world = getattr(self.evaluator, "drawn", None)  # an evaluator may be any function
        if world is not None and not finished:
            draw_episode(self.agent, world, self.run)
        return self._summary()

    def _advance(self, step: int) -> int:
        began = time.perf_counter()
        step = self.advance(step)
        self._seconds += time.perf_counter() - began
        return step

    def _start_clock(self, step: int) -> None:
        self._seconds, self._first_step, self._first_update = 0.0, step, self.agent.updates

    def _measure(self, before: int, step: int) -> None:
        """Writes the row that is due, if one is."""
        last = step >= self.steps
        metrics: dict[str, float] = {}
        if last or crosses(self.log_every, before, step):
            metrics |= self.meter.means()
            self.meter.clear()
            seconds = max(self._seconds, 1e-9)
            metrics |= {
                "seconds/train": self._seconds,
                "steps_per_second": (step - self._first_step) / seconds,
                "updates_per_second": (self.agent.updates - self._first_update) / seconds,
            }
            self._start_clock(step)
        if self.evaluator is not None and (last or crosses(self.evaluate_every, before, step)):
            metrics |= self.evaluator(self.agent, self.run, step)
        if metrics:
            self.run.log(step, metrics)

    def _save(self, step: int) -> None:
        self.meter.means()  # diverged networks do not replace the checkpoint of sound ones
        parts = {"agent": self.agent.state(), "meter": self.meter.state(), "loop": self.tensors()}
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        self.run.save(step, tensors, {})

    def _go_back(self, checkpoint: Checkpoint) -> None:
        self.agent.load_state(with_prefix(checkpoint.tensors, "agent/"))
        self.meter.load_state(with_prefix(checkpoint.tensors, "meter/"))
        self.restore(with_prefix(checkpoint.tensors, "loop/"))

    def _summary(self) -> dict[str, float]:
        """Numbers of the last row, which has those of the last evaluation; nan for what was not finite."""
        history = self.run.history()
        rows = [row for row in history if "evaluation/return" in row] or history
        left_out = ("step", "time")
        last: dict[str, Any] = rows[-1] if rows else {}
        return {name: math.nan if value is None else value for name, value in last.items() if name not in left_out}


def crosses(every: int, before: int, step: int) -> bool:
    """Whether a multiple of `every` lies in (before, step]."""
    return step // every > before // every


def with_prefix(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
