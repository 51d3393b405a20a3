"""Frames a second of two rollout workers beside one, where the environment is slow; and how well a simulation predicts.

    python benchmarks/distributed.py [--repeats 5] [--milliseconds 5] [--seconds 8] [--only rollouts|simulation]

The first measurement, `rollouts`:

A rollout worker is an actor process of the recipe srl with the policy in it; a step of its environment takes the given
milliseconds of computing time. Nothing is learned: what is measured is how many frames the trainer gets. One worker and
two are measured in turn, a round for each repeat, so that a slow minute hits both; the first round is thrown away. The
start of the processes is not in the numbers. Medians with their range and the ratio of each round are kept.

The second, `simulation`: a training loop over the Ray engine with 1, 2 and 4 rollout workers, each on a simulated node
of its own, that sleep a fixed time for each response that they have written, so that two cores suffice, without and
with a lag; and beside it what `zerozoo.distributed.simulation` predicts. What it is told besides the sleep was measured
with one worker: what a chunk costs without any sleep, and the seconds of the learner's part of a step.

Both go to results/bench-distributed.json; with --only what the other has left there stays. Run it on a machine that
does nothing else: two workers fill two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from zerozoo.distributed.chunks import groups_per_chunk
from zerozoo.distributed.rollout_worker import NativeWriter
from zerozoo.distributed.simulation import Cluster, Times, Work, simulate
from zerozoo.distributed.weights import Blueprint
from zerozoo.language.device import Machine
from zerozoo.language.families import tiny_model
from zerozoo.language.parallel import ALONE
from zerozoo.language.samplers.interface import Decoding, Samples
from zerozoo.recipes.systems import srl
from zerozoo.runs.cells import write_json
from zerozoo.runs.run import Run
from zerozoo.runs.versions import commit, machine

ROOT = Path(__file__).resolve().parents[1]
WORKERS = (1, 2)
WANTED = 1.8  # times the frames of one worker

SIMULATED = (1, 2, 4)  # rollout workers
LAGS = (0, 1)
PROMPTS, SAMPLES = 16, 2  # of a step
UPDATE_SECONDS = 0.5  # that the learner sleeps in each step
MACHINE = Machine("cpu", None, 1024, 64)


def rollout_config(workers: int, milliseconds: float, seconds: float) -> srl.Config:
    """A measurement of about so many seconds, whatever the number of workers."""
    sample_steps = 20
    steps = max(round(workers * 1000 * seconds / milliseconds), sample_steps)
    return srl.Config(
        environment="synthetic",
        step_milliseconds=milliseconds,
        placement="actors",
        actors=workers,
        ring_size=1,
        copies=1,
        sample_steps=sample_steps,
        batch_size=sample_steps,
        epochs=0,
        steps=steps,
        log_every=steps,
        checkpoint_every=steps,
    )


def measure(config: srl.Config) -> float:
    """Frames a second that the trainer got."""
    with tempfile.TemporaryDirectory() as folder, Run.start(Path(folder) / "run", "srl", asdict(config), 0) as run:
        return srl.train(config, run)["frames_per_second"]


def summary(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def rollouts(repeats: int, milliseconds: float, seconds: float) -> dict[str, Any]:
    """Rates by the number of workers, and the ratio of two to one, round by round."""
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(repeats + 1):
        for workers in WORKERS:
            rates[workers].append(measure(rollout_config(workers, milliseconds, seconds)))
            print(f"{workers} rollout workers: {rates[workers][-1]:.1f} frames/s", flush=True)
    kept = {workers: values[1:] for workers, values in rates.items()}
    ratios = [two / one for one, two in zip(kept[1], kept[2], strict=True)]
    return {
        "milliseconds_per_step": milliseconds,
        "repeats": repeats,
        "frames_per_second": {str(workers): summary(values) for workers, values in kept.items()},
        "ratio": summary(ratios),
        "wanted_ratio": WANTED,
    }


class SleepyWriter(NativeWriter):
    """Sleeps `seconds` for each response that it has written."""

    def __init__(self, seconds: float, blueprint: Blueprint, worker: int) -> None:
        super().__init__(blueprint, worker)
        self.seconds = seconds

    def write(self, *arguments: Any, **options: Any) -> Samples:
        """See `Writer`."""
        samples = super().write(*arguments, **options)
        time.sleep(self.seconds * len(samples.lengths))
        return samples


def train_slowly(workers: int, lag: int, steps: int, seconds: float) -> tuple[float, float]:
    """Seconds of a step and of the learner's part of it, means, in a loop that draws ahead as `Collector` does.

    Workers are there, and have fetched the model, before the time begins.
    """
    import torch
    from ray import cloudpickle

    from zerozoo.distributed.ray_engine import RayEngine

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    policy = tiny_model("llama", vocabulary="0123 ", hidden=16, heads=2, kv_heads=1)
    generator = torch.Generator().manual_seed(1)
    prompts = [[3 + index % 4, 4] for index in range(PROMPTS)]
    engine = RayEngine(workers, writers={"native": partial(SleepyWriter, seconds)})
    try:
        sampler: Any = engine.sampler("native", policy, MACHINE, ALONE)
        pool = engine.pool("native")
        while len(pool.written) < workers:
            sampler.sample(prompts, SAMPLES, Decoding(4), generator)
        under_way: deque[Any] = deque()
        learning, began = 0.0, time.perf_counter()
        for step in range(steps):
            while len(under_way) <= min(lag, steps - 1 - step):
                under_way.append(sampler.submit(prompts, SAMPLES, Decoding(4), generator))
            under_way.popleft().result()
            there = time.perf_counter()
            with torch.no_grad():
                for parameter in policy.model.parameters():
                    parameter += 1e-4
            time.sleep(UPDATE_SECONDS)
            sampler.publish(step + 1)
            learning += time.perf_counter() - there
        return (time.perf_counter() - began) / steps, learning / steps
    finally:
        engine.close()


def predicted(workers: int, lag: int, steps: int, seconds: float, chunk: float, update: float) -> float:
    """Seconds of a step. A response counts as one token, for which a worker takes `seconds`."""
    work = Work(
        steps=steps,
        prompts_per_step=PROMPTS,
        samples_per_prompt=SAMPLES,
        max_lag=lag,
        rows_at_once=MACHINE.rows_at_once,
    )
    times = Times(tokens_per_second=1 / seconds, chunk_seconds=chunk, update_seconds=update)
    return simulate(work, times, Cluster(workers)).seconds_per_step


@contextlib.contextmanager
def nodes(count: int) -> Iterator[None]:
    """A Ray cluster of a head node for this process and so many simulated nodes with room for one worker each."""
    import ray
    from ray.cluster_utils import Cluster as RayCluster

    with tempfile.TemporaryDirectory(prefix="zr-", dir="/tmp") as folder:  # short: names of sockets may not be long
        size = {"object_store_memory": 200_000_000}
        head = {**size, "num_cpus": 0, "include_dashboard": False, "temp_dir": folder}
        cluster = RayCluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(count):
                cluster.add_node(**size, num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield
        finally:
            ray.shutdown()
            cluster.shutdown()


def simulation(seconds: float, steps: int, workers: Sequence[int] = SIMULATED) -> dict[str, Any]:
    """Measured and predicted seconds of a step by workers and lag; `error` is predicted / measured - 1."""
    with nodes(max(workers)):
        whole, update = train_slowly(1, 0, steps, 0.0)
        chunks = -(-PROMPTS // groups_per_chunk(PROMPTS, SAMPLES, 1, MACHINE.rows_at_once))
        chunk = (whole - update) / chunks
        rows = []
        for number in workers:
            for lag in LAGS:
                measured = train_slowly(number, lag, steps, seconds)[0]
                forecast = predicted(number, lag, steps, seconds, chunk, update)
                rows.append({"workers": number, "max_lag": lag, "measured": measured, "predicted": forecast})
                rows[-1]["error"] = forecast / measured - 1
                print(rows[-1], flush=True)
    return {
        "seconds_per_response": seconds,
        "steps": steps,
        "prompts_per_step": PROMPTS,
        "samples_per_prompt": SAMPLES,
        "chunk_seconds": chunk,
        "update_seconds": update,
        "seconds_per_step": rows,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Throughput of rollout workers.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=5.0, help="that a step of the environment costs")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement of rollouts")
    parser.add_argument("--steps", type=int, default=20, help="of each measurement of the simulation")
    parser.add_argument("--response-seconds", type=float, default=0.1, help="that a simulated response costs")
    parser.add_argument("--only", choices=("rollouts", "simulation"))
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench-distributed.json")
    options = parser.parse_args()
    result = json.loads(options.output.read_text(encoding="utf-8")) if options.only and options.output.exists() else {}
    measurements = {
        "rollouts": lambda: rollouts(options.repeats, options.milliseconds, options.seconds),
        "simulation": lambda: simulation(options.response_seconds, options.steps),
    }
    for name, measure_it in measurements.items():
        if options.only in (None, name):
            load = os.getloadavg()
            result[name] = {**measure_it(), "load_average": load, "commit": commit()}
            print(result[name])
    write_json(options.output, {**result, "machine": machine()})


if __name__ == "__main__":
    main()
