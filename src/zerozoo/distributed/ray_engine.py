"""The engine of `--backend ray`: samplers over rollout workers, one pool of them for a whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zerozoo.distributed.pulse import State
from zerozoo.distributed.ray_sampler import RaySampler
from zerozoo.distributed.rollout_worker import MakeWriter, NativeWriter
from zerozoo.distributed.vllm_writer import VllmWriter
from zerozoo.distributed.worker_pool import WorkerPool
from zerozoo.language.device import Machine
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import Ranks
from zerozoo.language.samplers.interface import Sampler
from zerozoo.runs.errors import UserError

WRITERS: dict[str, MakeWriter] = {"native": NativeWriter, "vllm": VllmWriter}  # by the name of the sampler


class RayEngine:
    """See `language.engine.Engine`. The first learner has the workers; they start when it is made.

    Args:
        workers: how many.
        first: whether this is the first learner.
        resources, say, patience: see `WorkerPool`.
        writers: what a worker writes with, by the name of the sampler.
    """

    def __init__(
        self,
        workers: int,
        first: bool = True,
        resources: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda text: None,
        patience: float = 120.0,
        writers: Mapping[str, MakeWriter] | None = None,
    ) -> None:
        self.workers, self.first = workers, first
        self.writers = {**WRITERS, **(writers or {})}
        self._how = (dict(resources or {}), say, patience)
        self._pools: dict[str, WorkerPool] = {}

    def sampler(self, name: str, policy: LanguageModel, machine: Machine, ranks: Ranks) -> Sampler:
        """See `Engine`."""
        if name not in self.writers:
            raise UserError(f"Rollout workers do not write with --sampler {name}: take {' or '.join(self.writers)}.")
        return RaySampler(policy, machine, self.pool(name) if self.first else None, self.workers, ranks)

    def pool(self, name: str) -> WorkerPool:
        """The workers that write with the sampler of this name."""
        if name not in self._pools:
            self._pools[name] = WorkerPool(self.workers, self.writers[name], *self._how)
        return self._pools[name]

    def states(self) -> list[State]:
        """What the workers do."""
        return [state for pool in list(self._pools.values()) for state in pool.states()]

    def close(self) -> None:
        """End all workers."""
        for pool in self._pools.values():
            pool.close()
