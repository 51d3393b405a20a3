"""A process that writes responses with weights that it is sent. It is a Ray actor, and an object like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from zerozoo.distributed.chunks import Chunk, Parcel
from zerozoo.distributed.pulse import Activity, State
from zerozoo.distributed.weights import Blueprint, Probe, Update, check_probe, load_bytes, probe_logprobs
from zerozoo.language.models import LanguageModel
from zerozoo.language.samplers.interface import Decoding, Samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.staleness import written_by


class Writer(Protocol):
    """What a worker writes with."""

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take these weights (bytes by name) in place of its own."""

    def check(self, probe: Probe) -> None:
        """Raises UserError when its weights are not those of the probe."""

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
        begun: Tensor | None = None,
    ) -> Samples:
        """See `NativeSampler.write`."""


MakeWriter = Callable[[Blueprint, int], Writer]  # (what to write with, number of the worker)


class PolicyWriter:
    """A `Writer` that has the policy itself, where weights arrive, and a sampler over it.

    Args:
        policy: the language model.
        sampler: with a `write` as that of `NativeSampler`.
    """

    def __init__(self, policy: LanguageModel, sampler: Any) -> None:
        self.policy, self.sampler = policy, sampler

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """See `Writer`."""
        load_bytes(self.policy.model, tensors)

    def check(self, probe: Probe) -> None:
        """See `Writer`."""
        check_probe(probe, probe_logprobs(self.policy, probe.tokens), self.policy.autocast)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
        begun: Tensor | None = None,
    ) -> Samples:
        """See `Writer`."""
        written: Samples = self.sampler.write(prompts, samples, decoding, uniforms, begun)
        return written


class NativeWriter(PolicyWriter):
    """Writes with the native sampler."""

    def __init__(self, blueprint: Blueprint, worker: int) -> None:
        model: Any = blueprint.policy.model
        model.to(blueprint.device).eval()
        super().__init__(blueprint.policy, NativeSampler(blueprint.policy, blueprint.rows_at_once))


class RolloutWorker:
    """Writes chunk after chunk; fetches a model or weights when a chunk wants others than it has.

    Args:
        number: of the worker.
        make_writer: makes what it writes with.
        fetch: (reference) -> object; None: from Ray's object store.
    """

    def __init__(self, number: int, make_writer: MakeWriter, fetch: Callable[[Any], Any] | None = None) -> None:
        self.number, self.make_writer = number, make_writer
        self.fetch = fetch or _from_store
        self.writer: Writer | None = None
        self.model = self.weights = 0  # serial numbers of what it has; 0 is none
        self.moved: set[str] = set()  # weights that are others than the model's
        self.activity = Activity(f"rollout worker {number}")

    def write(self, chunk: Chunk) -> Samples:
        """The responses of a chunk."""
        with self.activity.working():
            writer = self._prepare(chunk.model, chunk.weights)
            # Copies: what lies in the store is read only, which torch warns of.
            uniforms = torch.from_numpy(np.array(chunk.uniforms))
            begun = None if chunk.begun is None else torch.from_numpy(np.array(chunk.begun))
            written = writer.write(chunk.prompts, chunk.samples, chunk.decoding, uniforms, begun)
            return written_by(written, chunk.version)

    def pulse(self) -> State:
        """What it does now; called from another thread than `write`."""
        return self.activity.state()

    def _prepare(self, model: Parcel, weights: Parcel) -> Writer:
        if self.writer is None or self.model != model.serial:
            self._make(model)
        assert self.writer is not None
        if self.weights != weights.serial:
            update: Update = self.fetch(weights.reference[0])
            if not self.moved <= set(update.tensors):  # an earlier version, in which these were those of the start
                self._make(model)
            self.weights = 0  # neither old nor new while they are loaded
            self.moved = set(update.tensors)
            self.writer.load(update.tensors)
            self.writer.check(update.probe)
            self.weights = weights.serial
        return self.writer

    def _make(self, model: Parcel) -> None:
        self.writer, self.model, self.weights, self.moved = None, 0, 0, set()  # frees the old one first
        blueprint: Blueprint = self.fetch(model.reference[0])
        torch.set_float32_matmul_precision(blueprint.matmul)  # of this process, which has no other work
        self.writer = self.make_writer(blueprint, self.number)
        self.model = model.serial


def _from_store(reference: Any) -> Any:
    import ray

    return ray.get(reference)
