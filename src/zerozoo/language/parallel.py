"""Several processes that train one model together, each on a device of its own: `torchrun` starts them.

Every process holds the whole model, or its part of it (`sharding`), and the same random streams. The groups of a step
are shared out for sampling, judging and the backward pass; responses and verdicts are exchanged and gradients added up,
so all processes take the same step and the numbers are those of one process, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from zerozoo.language.samplers.interface import Decoding, Samples, check_prompts, join_samples
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.sharding import whole_weights
from zerozoo.rewards.verifier import Problem, Verification, Verifier
from zerozoo.runs.errors import UserError
from zerozoo.runs.processes import process_count

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together: `rank` of 0 .. size - 1. One process is `ALONE`."""

    rank: int = 0
    size: int = 1

    def share(self, items: int) -> slice:
        """This process's part of a list of that length: contiguous, sizes differ by one at most."""
        return slice(items * self.rank // self.size, items * (self.rank + 1) // self.size)

    def gather(self, part: Sequence[T]) -> list[T]:
        """The parts of all processes as one list, in the order of their ranks."""
        if self.size == 1:
            return list(part)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(part))
        return [item for one in parts for item in one]

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its sum over the processes."""
        if self.size > 1:
            waiting = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in waiting:
                work.wait()

    def highest(self, value: float) -> float:
        """The largest of the processes' values."""
        return max(self.gather([value]))

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the process of rank 0, in all of them."""
        return self.gather([make()] if self.rank == 0 else [])[0]


ALONE = Ranks()


def check_processes(config: Any) -> None:
    """Raises UserError for a config that the number of processes does not suit."""
    count = process_count()
    if count > config.prompts_per_step:
        raise UserError(
            f"{count} processes train together, but a step has only {config.prompts_per_step} prompts to share among"
            " them: start fewer, or raise prompts_per_step."
        )
    if not config.shard:
        return
    if count == 1:
        raise UserError(
            "--shard divides the weights among several processes, and this is the only one: start more with torchrun"
            " --nproc-per-node, or train with --no-shard."
        )
    if config.precision != "full":
        raise UserError(f"--precision {config.precision} is not made for sharded weights: leave out one of the two.")


def join_ranks(device: str) -> Ranks:
    """Meet the other processes that torchrun has started; `ALONE` when there are none."""
    if process_count() == 1:
        return ALONE
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Objects travel over gloo, gradients over the backend of their device.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size())


class ShardedSampler:
    """Every process writes the responses to its share of the prompts; all get all of them.

    The random numbers are drawn for all rows everywhere, so a response does not depend on the number of processes.
    """

    def __init__(self, sampler: NativeSampler, ranks: Ranks) -> None:
        self.sampler, self.ranks = sampler, ranks

    def sample(
        self, prompts: Sequence[Sequence[int]], samples: int, decoding: Decoding, generator: torch.Generator
    ) -> Samples:
        """See `Sampler`."""
        check_prompts(prompts)
        uniforms = self.sampler.uniforms(len(prompts) * samples, decoding, generator)
        share = self.ranks.share(len(prompts))
        rows = slice(share.start * samples, share.stop * samples)
        mine = prompts[share]
        with whole_weights(self.sampler.policy.model):
            parts = [self.sampler.write(mine, samples, decoding, uniforms[rows])] if mine else []
        return join_samples(self.ranks.gather(parts), self.sampler.policy.pad_id)


class ShardedVerifier:
    """Every process judges its share of the responses; all get all verdicts."""

    def __init__(self, verifier: Verifier, ranks: Ranks) -> None:
        self.verifier, self.ranks = verifier, ranks

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verification]:
        """See `Verifier`."""
        share = self.ranks.share(len(responses))
        return self.ranks.gather(self.verifier.verify(problems[share], responses[share]))

    def close(self) -> None:
        self.verifier.close()
