"""The trainer: takes batches from the sample stream, makes updates, and publishes numbered weights.

`StreamTrainer` is what trainers share; `TrainerLoop` makes the updates of PPO, `replay_trainer.ReplayTrainer` those of
an agent that learns from a replay buffer.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from zerozoo.control.loop import Loop, Tensors, with_prefix
from zerozoo.control.on_policy import Minibatch, OnPolicy, with_advantages
from zerozoo.control.sources import RewardTransform
from zerozoo.distributed.messages import Message, flatten, unflatten
from zerozoo.distributed.policy_worker import acting_weights
from zerozoo.distributed.sample_buffer import Batch, Intake
from zerozoo.distributed.streams import Publisher
from zerozoo.runs.errors import UserError

WINDOW = 100  # episodes whose mean return must reach the target
LAST_SHARE = 0.1  # of the frames: what `final_return` is a mean over
WAIT = 0.1  # seconds between two looks at the workers while no batch is there
_LEARNED_FROM = ("obs", "action", "log_prob", "next_obs", "reward", "terminated", "ended")


class Workers(Protocol):
    """Actors and policy workers, wherever they are."""

    restarts: int  # workers that were lost and begun anew

    def start(self) -> None:
        """Returns when all are ready."""
        ...

    def work(self, waited: float) -> None:
        """Lets workers of this process go on, or looks after those of others; UserError if one is stuck or broken.

        waited: seconds since the trainer began to wait or last got a sample.
        """
        ...

    def inference(self) -> tuple[int, int, float]:
        """Batches, rows and seconds of inference so far."""
        ...

    def state(self) -> Message:
        """What an exact resume needs; nothing where there is none."""
        ...

    def load_state(self, state: Message) -> None:
        """Goes back to `state`."""
        ...

    def close(self) -> None:
        """Ends them."""
        ...


@dataclass
class Totals:
    """Numbers of the whole run, kept in checkpoints. Seconds are those of training: no start, no evaluation."""

    version: int = 0  # batches that changed the weights: what the newest weights are called
    frames: int = 0  # consumed by the trainer, each once
    seconds: float = 0.0
    samples: int = 0  # consumed
    staleness: float = 0.0  # sum over the consumed samples
    worst_staleness: float = 0.0
    final_sum: float = 0.0  # of the returns of the episodes that ended in the last tenth of the frames
    final_episodes: int = 0
    target_frames: float = math.nan  # when the mean of the last 100 episodes first reached the target
    target_seconds: float = math.nan
    stale: int = 0  # samples dropped, by reason
    overflow: int = 0
    restarts: int = 0


@dataclass(kw_only=True, eq=False)
class StreamTrainer(Loop):
    """See `Loop`; a step is a frame that came in, and a pass one batch of samples. What is made of it, `_learn` says.

    The number of a version is the number of batches after which there were updates: weights that did not change are not
    published again.

    Attributes:
        intake: where batches come from.
        publisher: where weights go.
        workers: who makes the samples.
        batch_size: rows of a gradient step.
        gamma: discount.
        target_return: mean return of the last 100 episodes at which the clock is read.
        reward: what is learned from; returns are logged as the environment gives them.
    """

    intake: Intake
    publisher: Publisher
    workers: Workers
    batch_size: int
    gamma: float
    target_return: float
    reward: RewardTransform = RewardTransform()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.totals = Totals()
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._started = False

    def train(self) -> dict[str, float]:
        try:
            summary = super().train()
        finally:
            self.intake.close()
            self.workers.close()
        return summary | self.results()

    def _start_clock(self, step: int) -> None:
        # Here the loop has its weights and has evaluated them, and has not looked at the clock yet.
        if not self._started and step < self.steps:
            self._started = True
            if self.publisher.published < 0:
                self.publisher.publish(self.totals.version, acting_weights(self.agent))
            self.workers.start()
        super()._start_clock(step)

    def advance(self, step: int) -> int:
        began = time.perf_counter()
        batch = self._wait_for_batch()
        totals, updates = self.totals, self.agent.updates
        self._count(batch, step, began)
        self._learn(batch)
        if self.agent.updates > updates:
            totals.version += 1
            self.publisher.publish(totals.version, acting_weights(self.agent))
        totals.seconds += time.perf_counter() - began
        return step + batch.new_frames

    def _wait_for_batch(self) -> Batch:
        since, received = time.monotonic(), self.intake.buffer.received
        while True:
            self.workers.work(time.monotonic() - since)
            self._receive()
            if self.intake.buffer.received > received:
                since, received = time.monotonic(), self.intake.buffer.received
            batch = self.intake.next(self.totals.version, WAIT)
            if batch is not None:
                return batch

    @abstractmethod
    def _receive(self) -> None:
        """Sees to it that samples come into the buffer; called again and again until there is a batch."""

    @abstractmethod
    def _learn(self, batch: Batch) -> None:
        """Makes the updates that are due after a batch, whose frames are counted already."""

    def _count(self, batch: Batch, step: int, began: float) -> None:
        """Books a batch: staleness, drops, and the episodes that ended in what is used for the first time."""
        totals, buffer = self.totals, self.intake.buffer
        staleness = batch.staleness(totals.version)
        totals.samples += len(staleness)
        totals.staleness += float(staleness.sum())
        totals.worst_staleness = max(totals.worst_staleness, float(staleness.max()))
        totals.frames += batch.new_frames
        drops = {"stale": buffer.stale - totals.stale, "overflow": buffer.overflow - totals.overflow}
        totals.stale, totals.overflow, totals.restarts = buffer.stale, buffer.overflow, self.workers.restarts
        self.meter.add({"staleness": torch.from_numpy(staleness)})
        self.meter.add({f"dropped_per_update/{name}": torch.tensor(float(count)) for name, count in drops.items()})
        for entry in batch.first:
            self._count_episodes(entry.sample, step + batch.new_frames, began)

    def _count_episodes(self, sample: Message, end: int, began: float) -> None:
        """Those of a sample; end: frames after its batch."""
        ended, totals = sample["ended"], self.totals
        returns = sample["returns"][ended]  # in the order of time
        if not len(returns):
            return
        lengths = sample["lengths"][ended].astype(np.float64)
        self.meter.add({"episode/return": torch.from_numpy(returns), "episode/length": torch.from_numpy(lengths)})
        if end > (1 - LAST_SHARE) * self.steps:
            totals.final_sum += float(returns.sum())
            totals.final_episodes += len(returns)
        for value in returns.tolist():
            self._recent.append(value)
            reached = len(self._recent) == WINDOW and sum(self._recent) / WINDOW >= self.target_return
            if reached and math.isnan(totals.target_frames):
                totals.target_frames = float(totals.frames)
                totals.target_seconds = totals.seconds + time.perf_counter() - began

    def results(self) -> dict[str, float]:
        """Numbers of the whole run; nan for what did not happen.

        With worker processes all of them but frames depend on the machine and its load and differ from run to run.
        """
        totals = self.totals
        batches, rows, seconds = self.workers.inference()
        return {
            "frames": float(totals.frames),
            "frames_per_second": totals.frames / max(totals.seconds, 1e-9),
            "final_return": totals.final_sum / totals.final_episodes if totals.final_episodes else math.nan,
            "frames_to_target": totals.target_frames,
            "seconds_to_target": totals.target_seconds,
            "mean_staleness": totals.staleness / max(totals.samples, 1),
            "worst_staleness": totals.worst_staleness,
            "stale_samples": float(totals.stale),
            "overflow_samples": float(totals.overflow),
            "restarts": float(totals.restarts),
            "rows_per_inference": rows / batches if batches else math.nan,
            "inference_milliseconds": 1000 * seconds / batches if batches else math.nan,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Totals and held weights; with workers in this process also those, and the samples that wait."""
        workers = self.workers.state()
        state: Message = {
            "totals": np.array(list(vars(self.totals).values()), dtype=np.float64),
            "recent": np.array(self._recent, dtype=np.float64),
            "publisher": self.publisher.state(),
        }
        if workers:
            state |= {"workers": workers, "buffer": self.intake.buffer.state()}
        return {name: torch.from_numpy(np.array(array)) for name, array in flatten(state).items()}

    def restore(self, tensors: Tensors) -> None:
        state = unflatten({name: value.numpy() for name, value in with_prefix(tensors, "").items()})
        for name, value in zip(vars(self.totals), state["totals"].tolist(), strict=True):
            setattr(self.totals, name, type(getattr(Totals, name))(value))
        self._recent = deque(state["recent"].tolist(), maxlen=WINDOW)
        self.publisher.load_state(state.get("publisher", {}))
        if "workers" in state:
            self.workers.load_state(state["workers"])
            self.intake.buffer.load_state(state["buffer"])
        else:
            self.intake.buffer.stale, self.intake.buffer.overflow = self.totals.stale, self.totals.overflow
            self.workers.restarts = self.totals.restarts


@dataclass(kw_only=True, eq=False)
class TrainerLoop(StreamTrainer):
    """See `StreamTrainer`; a batch is learned from by PPO, at once and as it is.

    The update is that of `OnPolicyLoop`: advantages by the state values of now, the clipped ratio against the log-probs
    that the actors stored. What differs is where the rows come from, and how old they may be. With epochs = 0 nothing
    is learned, versions stay at 0, and only the throughput is measured.

    Attributes:
        epochs, batch_size, gamma, lam, reward: as in `OnPolicyLoop`.
        prefetch: receive and stack in a thread of its own; the order of samples then depends on the clock.
    """

    epochs: int
    lam: float
    prefetch: bool = False

    def _receive(self) -> None:
        if self.prefetch:
            self.intake.start()
        else:
            self.intake.receive()

    def _learn(self, batch: Batch) -> None:
        if self.epochs == 0:
            return
        agent = cast(OnPolicy, self.agent)
        rows = self.rows(batch.content)
        size = len(rows.log_prob)
        for _ in range(self.epochs):
            order = torch.randperm(size, generator=self.run.stream("batches"))
            for index in order.split(self.batch_size):
                self.meter.add(self.agent.update(rows.take(index)))
        agent.seen(rows.obs)

    def rows(self, content: Message) -> Minibatch:
        """What a batch of samples, arrays (T, N, ...), is learned from: T * N rows with advantages."""
        taken = {name: torch.from_numpy(content[name]) for name in _LEARNED_FROM if name != "reward"}
        taken["reward"] = torch.from_numpy(self.reward(content["reward"])).float()
        return with_advantages(cast(OnPolicy, self.agent), taken, self.gamma, self.lam)


def check_rows(rows: int, batch_size: int) -> None:
    """UserError unless minibatches of `batch_size` rows fill a batch of `rows`."""
    if batch_size < 1 or rows % batch_size:
        raise UserError(f"batch_size {batch_size} does not divide the {rows} steps of an update.")
