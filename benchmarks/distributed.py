"""Frames a second of two rollout workers beside one, where the environment is slow.

    python benchmarks/distributed.py [--repeats 5] [--milliseconds 5] [--seconds 8]

A rollout worker is an actor process of the recipe srl with the policy in it; a step of its environment takes the given
milliseconds of computing time. Nothing is learned: what is measured is how many frames the trainer gets. One worker and
two are measured in turn, a round for each repeat, so that a slow minute hits both; the first round is thrown away. The
start of the processes is not in the numbers. Medians with their range, and the ratio of each round, go to
results/bench-distributed.json. Run it on a machine that does nothing else: two workers fill two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zerozoo.recipes.systems import srl
from zerozoo.runs.cells import write_json
from zerozoo.runs.run import Run
from zerozoo.runs.versions import commit, machine

ROOT = Path(__file__).resolve().parents[1]
WORKERS = (1, 2)
WANTED = 1.8  # times the frames of one worker


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


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Throughput of rollout workers.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=5.0, help="that a step of the environment costs")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench-distributed.json")
    options = parser.parse_args()
    load = os.getloadavg()
    result = rollouts(options.repeats, options.milliseconds, options.seconds)
    print(result)
    write_json(options.output, {"rollouts": result, "load_average": load, "commit": commit(), "machine": machine()})


if __name__ == "__main__":
    main()
