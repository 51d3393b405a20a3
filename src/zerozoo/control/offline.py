"""The offline loop: a step is one update on a batch of recorded experience."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zerozoo.control.loop import Loop
from zerozoo.control.views import Sampler
from zerozoo.runs.errors import DivergedError
from zerozoo.runs.run import Run


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


def divergence_as_result(
    train: Callable[[], dict[str, float]], run: Run, worst: Mapping[str, float]
) -> dict[str, float]:
    """What `train()` returns and "diverged": 0; where a number became infinite `worst` and "diverged": 1.

    For comparisons in which divergence is a result, since the last policy counts; elsewhere it is an error.
    """
    try:
        return {**train(), "diverged": 0.0}
    except DivergedError as error:
        run.say(str(error))
        return {**worst, "diverged": 1.0}
