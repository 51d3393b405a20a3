"""The trainer of an agent that learns from a replay buffer, such as SAC, with experience that actors send."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zerozoo.control.loop import Tensors, with_prefix
from zerozoo.control.online import updates_due
from zerozoo.control.replay import Replay
from zerozoo.distributed.messages import Message
from zerozoo.distributed.sample_buffer import Batch
from zerozoo.distributed.trainer import WAIT, StreamTrainer

_KEPT = ("obs", "action", "next_obs", "terminated")  # of a sample, beside its reward


@dataclass(kw_only=True, eq=False)
class ReplayTrainer(StreamTrainer):
    """See `StreamTrainer`; every sample goes into a replay buffer once, then come the updates that are due.

    The updates are those of `OnlineLoop`: after f frames int(max(f - warmup, 0) * updates_per_step) of them have been
    made, so what is due depends on the number of frames alone, and fractions are never lost. What differs is that the
    frames of a batch come together: their updates are made in a row, and the weights are published after the last.

    What bounds the replay ratio: a frame that came in has its updates, neither more nor fewer, whoever is faster. Slow
    actors are waited for. Fast ones fill the sample stream, `queue_size` samples each, and then wait themselves: the
    trainer takes samples out of the stream only when it has learned from all that it took before. No frame is lost, and
    an actor is ahead by no more than the samples that were taken together, its full stream, and its own ring.

    Attributes:
        replay: where the steps go, with transformed rewards, true successors and `terminated` apart from a time limit.
        warmup: frames before the first update.
        updates_per_step: for each frame after these, also a fraction.
    """

    replay: Replay
    warmup: int = 0
    updates_per_step: float = 1.0

    def _wait_for_batch(self) -> Batch:
        taken_before = self.intake.next(self.totals.version)
        return super()._wait_for_batch() if taken_before is None else taken_before

    def _receive(self) -> None:
        self.intake.receive(WAIT)

    def _learn(self, batch: Batch) -> None:
        for entry in batch.first:
            self.keep(entry.sample)
        for _ in range(self._due(self.totals.frames) - self._due(self.totals.frames - batch.new_frames)):
            rows = self.replay.sample(self.batch_size, self.run.stream("batches"), self.gamma)
            self.meter.add(self.agent.update(rows))

    def keep(self, sample: Message) -> None:
        """Puts the T * N steps of a sample, arrays (T, N, ...), into the replay buffer in the order of time."""
        steps = {name: sample[name] for name in _KEPT} | {"reward": self.reward(sample["reward"])}
        self.replay.add(**{name: array.reshape(-1, *array.shape[2:]) for name, array in steps.items()})

    def _due(self, frames: int) -> int:
        return updates_due(frames, self.warmup, self.updates_per_step)

    def results(self) -> dict[str, float]:
        """See `StreamTrainer.results`; and the updates of the whole run."""
        return {**super().results(), "updates": float(self.agent.updates)}

    def tensors(self) -> dict[str, Tensor]:
        """See `StreamTrainer.tensors`; and the replay buffer."""
        return super().tensors() | {f"replay/{name}": value for name, value in self.replay.state().items()}

    def restore(self, tensors: Tensors) -> None:
        super().restore(tensors)
        self.replay.load_state(with_prefix(tensors, "replay/"))
