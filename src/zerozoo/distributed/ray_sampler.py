"""The sampler of a learner whose responses are written by rollout workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch
from torch import Tensor

from zerozoo.distributed.chunks import Chunk, Job, groups_per_chunk
from zerozoo.distributed.weights import Publisher
from zerozoo.distributed.worker_pool import WorkerPool
from zerozoo.language.device import Machine
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.samplers.interface import Decoding, Samples, check_prompts, join_samples
from zerozoo.language.samplers.native import NativeSampler


@dataclass(frozen=True)
class Ordered:
    """Responses that rollout workers write; only the first learner has the job."""

    job: Job | None
    ranks: Ranks
    pad_id: int

    def result(self) -> Samples:
        """See `Pending`."""
        job = self.job
        return self.ranks.from_first(lambda: join_samples(job.result() if job else [], self.pad_id))


class RaySampler:
    """An `AsyncSampler` and `SliceWriter` over a pool of workers.

    The learner draws the random numbers of all rows, and they travel with the prompts: a response depends neither on
    the number of workers nor on who writes it nor on how often it was begun. With several learners each draws them,
    which keeps their streams alike, and the first one hands them out.

    Args:
        policy: whose weights are published; at once, and whenever they have changed when responses are asked for.
        pool: of the first learner; None in the others.
        workers: in how many parts a batch is worth being cut.
    """

    def __init__(
        self, policy: LanguageModel, machine: Machine, pool: WorkerPool | None, workers: int, ranks: Ranks = ALONE
    ) -> None:
        self.policy, self.pool, self.workers, self.ranks = policy, pool, workers, ranks
        self.rows_at_once = machine.rows_at_once
        self.draws = NativeSampler(policy)
        self.publisher = Publisher(policy, ray.put, machine.device, machine.rows_at_once, ranks)
        self.version = 0

    def publish(self, version: int) -> None:
        """See `AsyncSampler`."""
        self.version = version
        self.publisher.publish()

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Samples:
        """See `Sampler`."""
        return self.submit(prompts, samples, decoding, generator).result()

    def submit(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Ordered:
        """See `AsyncSampler`. Loops that publish nothing get the weights of now all the same."""
        check_prompts(prompts)
        return self.begin(prompts, samples, decoding, self.uniforms(len(prompts) * samples, decoding, generator))

    def uniforms(self, rows: int, decoding: Decoding, generator: torch.Generator) -> Tensor:
        """See `NativeSampler.uniforms`."""
        return self.draws.uniforms(rows, decoding, generator)

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        decoding: Decoding,
        uniforms: Tensor,
        begun: Tensor | None = None,
    ) -> Ordered:
        """See `partial.SliceWriter`."""
        weights, model = self.publisher.publish(), self.publisher.model
        if self.pool is None:
            return Ordered(None, self.ranks, self.policy.pad_id)
        numbers, parts = uniforms.numpy(), None if begun is None else begun.numpy()
        groups = groups_per_chunk(len(prompts), samples, self.workers, self.rows_at_once)
        chunks = [
            Chunk(
                prompts=[list(prompt) for prompt in prompts[start : start + groups]],
                samples=samples,
                decoding=decoding,
                uniforms=numbers[start * samples : (start + groups) * samples],
                model=model,
                weights=weights,
                version=self.version,
                begun=None if parts is None else parts[start : start + groups],
            )
            for start in range(0, len(prompts), groups)
        ]
        return Ordered(self.pool.submit(chunks), self.ranks, self.policy.pad_id)
