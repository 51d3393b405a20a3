"""The supervised loop: gradient steps on batches of a fixed data set, whatever is learned from it.

Fine-tuning, preference losses and reward models are an `Objective` each; the loop knows none of them by name. A batch
is a function of seed and step, the loss of a batch is a sum of weighted shares whose weights come from the WHOLE batch
(all micro-batches, all processes; trap 17), and a run that was killed goes on bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from zerozoo.language.algorithm import choose
from zerozoo.language.batches import prepare, take_step
from zerozoo.language.logprobs import split_by_tokens
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.snapshot import restore, snapshot
from zerozoo.runs.checkpoints import Checkpoint
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.runs.interrupts import Interrupts
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams

SCHEDULES = ("constant", "linear", "cosine")
Evaluate = Callable[[int, bool], Mapping[str, float]]  # (step, first or last) -> metrics


class Share(NamedTuple):
    """What some items add to their batch.

    Attributes:
        loss: () their part of the batch's loss, with its gradient.
        metrics: their parts of the batch's means, (): parts add up, as those of the loss do.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Objective(Protocol):
    """A data set with a loss: items are numbered from 0."""

    def __len__(self) -> int: ...

    def cost(self, item: int) -> int:
        """Positions that the item takes in a forward pass, as if it stood alone."""
        ...

    def prepare(self, items: Sequence[int]) -> Any:
        """What a share has to know of the whole batch: weights, a reference point. Called in every process alike."""
        ...

    def share(self, items: Sequence[int], whole: Any) -> Share:
        """The share of some items of the batch that `prepare` saw; one forward pass."""
        ...

    def fingerprint(self) -> str:
        """Digest of the data."""
        ...


@dataclass(frozen=True)
class SupervisedSettings:
    """How the data is gone through.

    Attributes:
        batch_size: items of a gradient step.
        epochs: passes over the data; the last batch takes what is left.
        steps: gradient steps in place of epochs; 0: epochs count.
        warmup: share of the steps in which the learning rate rises from 0.
        schedule: what follows: "constant", or "linear" or "cosine" down to 0.
        max_gradient_norm: longer gradients are scaled down to it.
        tokens_per_microbatch: most positions in a forward pass; changes memory, not the numbers.
        evaluate_every: steps between evaluations; there is one before the first and after the last step.
        checkpoint_every: steps between checkpoints; the last step is always saved.
    """

    batch_size: int
    epochs: int = 1
    steps: int = 0
    warmup: float = 0.0
    schedule: str = "linear"
    max_gradient_norm: float = 1.0
    tokens_per_microbatch: int = 2048
    evaluate_every: int = 50
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        choose("schedule", self.schedule, SCHEDULES)

    def total_steps(self, items: int) -> int:
        """Gradient steps of the whole run."""
        return self.steps or math.ceil(self.epochs * items / self.batch_size)

    def learning_rate_factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate at step 1, 2, ... `steps`: never 0 on the way up, never above 1."""
        warmup = math.ceil(self.warmup * steps)
        if step <= warmup:
            return step / warmup
        gone = (step - warmup - 1) / (steps - warmup)
        if self.schedule == "linear":
            return 1 - gone
        return 0.5 * (1 + math.cos(math.pi * gone)) if self.schedule == "cosine" else 1.0


class Order:
    """Shuffled passes over the items, one behind another: a function of the seed, so there is no state to lose.

    No item is left out at the end of a pass (trap 36), and every pass has an order of its own (trap 27).
    """

    def __init__(self, items: int, seed: int) -> None:
        self.items, self.seed = items, seed
        self._number, self._pass = -1, [0]

    def batch(self, first: int, end: int) -> list[int]:
        """The items at the places `first` to `end` - 1 of the endless row of passes."""
        return [self._item(*divmod(place, self.items)) for place in range(first, end)]

    def _item(self, number: int, place: int) -> int:
        if number != self._number:
            generator = Streams(self.seed).torch(f"order/{number}")
            self._number, self._pass = number, torch.randperm(self.items, generator=generator).tolist()
        return self._pass[place]


@dataclass
class SupervisedLoop:
    """One training run on a data set.

    Attributes:
        model: the network whose trainable weights are saved and restored.
        optimizer: over these weights.
        objective: data and loss.
        settings: how the data is gone through.
        run: directory, seed and metrics.
        evaluate: (step, whether it is the first or the last) -> metrics of the row of that step; None: none.
        ranks: the processes that train together; the objective must know of them, too.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    settings: SupervisedSettings
    run: Run
    evaluate: Evaluate | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        if not len(self.objective):
            raise UserError("There is nothing to learn from: the data set is empty.")
        items = len(self.objective)
        self.steps = self.settings.total_steps(items)
        self.end = self.settings.steps * self.settings.batch_size or self.settings.epochs * items
        self.order = Order(items, self.run.seed)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]

    def train(self) -> dict[str, float]:
        """Run to the last step from wherever the run directory stands; the newest value of every metric.

        Raises:
            DivergedError: loss or gradient is not finite; the newest checkpoint is from before that.
            KeyboardInterrupt: after a checkpoint was saved.
        """
        start = self.run.resume(self._go_back)
        if start == 0 and self.evaluate is not None:
            self.run.log(0, self._evaluate(0))
        with Interrupts(self.run.say) as interrupts:
            for step in range(start + 1, self.steps + 1):
                last = step == self.steps
                self.run.log(step, self._row(step))
                interrupted = bool(self.ranks.highest(interrupts.requested))  # all of them stop after the same step
                if last or interrupted or step % self.settings.checkpoint_every == 0:
                    self._save(step)
                if interrupted and not last:
                    raise KeyboardInterrupt
        return self.ranks.from_first(self._summary)

    def step(self, step: int) -> dict[str, float]:
        """One gradient step on the batch of that number."""
        began = time.perf_counter()
        settings = self.settings
        factor = settings.learning_rate_factor(step, self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        first = (step - 1) * settings.batch_size
        items = self.order.batch(first, min(first + settings.batch_size, self.end))
        self.optimizer.zero_grad(set_to_none=True)
        means = batch_means(self.objective, items, settings.tokens_per_microbatch, self.ranks, self.model)
        if not math.isfinite(means["loss"]):
            self.optimizer.zero_grad(set_to_none=True)
            raise DivergedError(f"The loss became {means['loss']}; the step was not taken.")
        norm = take_step(self.optimizer, self.parameters, settings.max_gradient_norm, self.ranks)
        return {
            **means,
            "gradient_norm": float(norm),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "data/passes": (first + len(items)) / len(self.objective),
            "seconds/step": time.perf_counter() - began,
        }

    def _row(self, step: int) -> dict[str, float]:
        try:
            metrics = self.step(step)
            if self.evaluate is not None and (step == self.steps or step % self.settings.evaluate_every == 0):
                metrics |= self._evaluate(step)
            return metrics
        except DivergedError as error:
            raise DivergedError(
                f"{error} Training stopped at step {step}; {self.run.kept()}. Try a lower learning rate."
            ) from error

    def _evaluate(self, step: int) -> dict[str, float]:
        assert self.evaluate is not None
        began = time.perf_counter()
        metrics = dict(self.evaluate(step, step in (0, self.steps)))
        return {**metrics, "seconds/evaluate": time.perf_counter() - began}

    def _summary(self) -> dict[str, float]:
        newest: dict[str, float] = {}
        for row in self.run.history():
            newest |= {name: value for name, value in row.items() if value is not None and name != "time"}
        return newest

    def _save(self, step: int) -> None:
        state = {"data": self.objective.fingerprint(), "steps": self.steps}
        self.run.save(step, snapshot(self.model, self.optimizer), state)

    def _go_back(self, checkpoint: Checkpoint) -> None:
        if checkpoint.state["data"] != self.objective.fingerprint():
            raise UserError(
                "The training data is not that of the checkpoint:"
                " resume with the same data or start in another directory."
            )
        if checkpoint.state["steps"] != self.steps:
            raise UserError(
                f"This run has {checkpoint.state['steps']} steps and cannot be made longer or shorter:"
                " start another one with the number of steps that you want."
            )
        restore(self.model, self.optimizer, checkpoint.tensors)


def batch_means(
    objective: Objective,
    items: Sequence[int],
    tokens_per_microbatch: int,
    ranks: Ranks = ALONE,
    model: nn.Module | None = None,
) -> dict[str, float]:
    """Loss and metrics of the items as one batch, the same however it is split into micro-batches and processes.

    Args:
        model: accumulate the gradient of the loss in this model's weights; None: only measure.
    """
    whole = objective.prepare(items)
    if model is not None:
        prepare(model)
    mine = list(items)[ranks.rank :: ranks.size]
    totals: dict[str, Tensor] = {}
    for batch in split_by_tokens([objective.cost(item) for item in mine], tokens_per_microbatch):
        with torch.set_grad_enabled(model is not None):
            share = objective.share([mine[place] for place in batch], whole)
        if model is not None:
            share.loss.backward()
        for name, value in {"loss": share.loss, **share.metrics}.items():
            totals[name] = totals[name] + value.detach() if name in totals else value.detach()
    sums: dict[str, float] = {}
    for part in ranks.gather([{name: float(value) for name, value in totals.items()}]):
        for name, number in part.items():
            sums[name] = sums.get(name, 0.0) + number
    return sums


def measure(objective: Objective, tokens_per_microbatch: int, ranks: Ranks = ALONE) -> dict[str, float]:
    """Loss and metrics over a whole data set, held-out data say; nothing is trained."""
    return batch_means(objective, range(len(objective)), tokens_per_microbatch, ranks)
