"""The offline loop: a step is one update on a batch of recorded experience."""

from __future__ import annotations

from dataclasses import dataclass

from zerozoo.control.loop import Loop
from zerozoo.control.views import Sampler


@dataclass(kw_only=True, eq=False)
class OfflineLoop(Loop):
    """See `Loop`.

    Attributes:
        data: a view of the episodes, or a mixture of several; batches are drawn from the stream "batches".
        batch_size: rows of a batch.
    """

    data: Sampler
    batch_size: int

    def advance(self, step: int) -> int:
        self.meter.add(self.agent.update(self.data.sample(self.batch_size, self.run.stream("batches"))))
        return step + 1
