"""From a setup to a run: streams, workers and trainer of a placement, put together."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from zerozoo.distributed.sample_buffer import Intake, SampleBuffer
from zerozoo.distributed.streams import InlineSamples, InlineWeights, Publisher, SampleReceiver, WeightsWriter
from zerozoo.distributed.trainer import StreamTrainer, Workers
from zerozoo.distributed.workers import InlineWorkers, Setup
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run


def run_workers(
    setup: Setup,
    loop: Callable[..., StreamTrainer],
    *,
    run: Run,
    placement: str,
    streams: str,
    policy_workers: int,
    queue_size: int,
    buffer_size: int,
    reuses: int,
    batch_samples: int,
    preemption_steps: float,
    publish_delay: int,
    stuck_seconds: float,
    **trainer: Any,
) -> dict[str, float]:
    """Trains in a placement (see `workers`) with "shared" or "ray" streams; numbers of the run.

    loop: the class of the trainer. trainer: its other fields. Returns its summary and `StreamTrainer.results`.
    """
    workers: Workers
    samples: SampleReceiver
    weights: WeightsWriter
    servers = policy_workers if placement == "central" else 0
    if placement == "inline":
        samples, weights = InlineSamples(), InlineWeights()
        workers = InlineWorkers(setup, run.streams, samples, weights)
    else:
        remote = _remote_workers(streams)(setup, servers, queue_size, stuck_seconds, run.say)
        workers, samples, weights = remote, remote.samples, remote.weights
    here = 0 if placement == "inline" or streams == "ray" else setup.actors + servers
    threads = torch.get_num_threads()
    torch.set_num_threads(trainer_threads(threads, usable_cores(), here))
    try:
        return loop(
            run=run,
            intake=Intake(samples, SampleBuffer(buffer_size, reuses), batch_samples, preemption_steps),
            publisher=Publisher(weights, publish_delay),
            workers=workers,
            **trainer,
        ).train()
    finally:
        workers.close()  # also where the loop could not be made
        torch.set_num_threads(threads)


def _remote_workers(streams: str) -> Any:
    """What makes workers in other processes; Ray is imported only where it is asked for."""
    if streams == "ray":
        if importlib.util.find_spec("ray") is None:
            raise UserError("Streams over Ray need the package ray: pip install 'zerozoo[ray]'.")
        from zerozoo.distributed.ray_streams import RayWorkers

        return RayWorkers
    from zerozoo.distributed.worker_processes import ProcessWorkers

    return ProcessWorkers


def trainer_threads(threads: int, cores: int, workers: int) -> int:
    """Threads that torch may use in the trainer beside worker processes of one core each; one at least.

    More threads than cores wait for each other: where two processes share two cores, two threads each are slower.
    """
    return threads if workers == 0 else max(1, min(threads, cores - workers))


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
