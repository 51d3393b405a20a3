"""Updates a second of four agents beside d3rlpy, stable-baselines3 and plain PyTorch, and steps a second of our worlds.

    python benchmarks/control.py [--d3rlpy PYTHON] [--sb3 PYTHON] [--repeats 7] [--seconds 2]

Every system runs in a process of its own, with its own interpreter where one is given, and is asked for updates in
turn: an arm's repeats are spread over the whole run, so that a slow minute hits all of them. Same data, batch, network
and threads (OMP_NUM_THREADS). The first round is thrown away. Rates are medians, with the range in brackets, written to
results/bench-control.json together with the speed of a matrix product measured between the arms. Run it on a machine
that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zerozoo.environments.make import make_batched
from zerozoo.runs.cells import write_json
from zerozoo.runs.versions import commit, machine

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "benchmarks" / "control_worker.py"
ALGORITHMS = ("iql", "td3-bc", "sac", "cql")
WIDTHS = (256, 64)
PRODUCT = 2048  # side of the matrix product
WORLD_COPIES, WORLD_STEPS = 4096, 100


class Worker:
    """One system, algorithm and width in its own process."""

    def __init__(self, python: str, system: str, algorithm: str, width: int) -> None:
        command = [python, str(WORKER), system, algorithm, str(width)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.questions, self.answers = self.process.stdin, self.process.stdout
        if self.answers.readline().strip() != "ready":
            raise SystemExit(f"{' '.join(command)} did not start")
        self.rates: list[float] = []
        self.updates = 5

    def measure(self, seconds: float) -> None:
        """One repeat of about so many seconds."""
        self.questions.write(f"{self.updates}\n")
        taken = float(self.answers.readline())
        self.rates.append(self.updates / taken)
        self.updates = max(1, round(seconds * self.rates[-1]))

    def close(self) -> None:
        """Ends the process."""
        self.questions.close()
        self.process.wait()


def summary(rates: list[float]) -> dict[str, float]:
    """Median and range without the first, which is a warm-up."""
    kept = rates[1:]
    return {"median": statistics.median(kept), "low": min(kept), "high": max(kept)}


def product_rate() -> float:
    """GFLOP/s of one float32 matrix product."""
    matrix = torch.ones(PRODUCT, PRODUCT)
    began = time.perf_counter()
    matrix @ matrix
    return 2 * PRODUCT**3 / (time.perf_counter() - began) / 1e9


def compare(algorithm: str, width: int, pythons: dict[str, str], repeats: int, seconds: float) -> dict[str, Any]:
    """All systems that have the algorithm, in turn."""
    names = [name for name in pythons if name != "stable-baselines3" or algorithm == "sac"]
    workers = {name: Worker(pythons[name], name, algorithm, width) for name in names}
    products = []
    for _ in range(repeats + 1):
        products.append(product_rate())
        for worker in workers.values():
            worker.measure(seconds)
    for worker in workers.values():
        worker.close()
    rows = {name: summary(worker.rates) for name, worker in workers.items()}
    ours = rows["zerozoo"]["median"]
    ratios = {name: ours / row["median"] for name, row in rows.items() if name != "zerozoo"}
    return {"updates_per_second": rows, "ratio": ratios, "product_gflops": summary(products)}


def step_rates(repeats: int) -> dict[str, dict[str, float]]:
    """Steps a second of the batched worlds, random actions drawn beforehand, resets included."""
    rates: dict[str, list[float]] = {"pendulum": [], "point-maze-umaze": []}
    for _ in range(repeats + 1):
        for name, kept in rates.items():
            world = make_batched(name, WORLD_COPIES)
            generator = np.random.Generator(np.random.PCG64(0))
            world.reset(generator)
            actions = generator.uniform(-1, 1, (WORLD_COPIES, *world.action_space.shape)).astype(np.float32)
            began = time.perf_counter()
            for _ in range(WORLD_STEPS):
                outcome = world.step(actions)
                if (ended := outcome.terminated | outcome.truncated).any():
                    world.reset(generator, ended)
            kept.append(WORLD_COPIES * WORLD_STEPS / (time.perf_counter() - began))
    return {name: summary(kept) for name, kept in rates.items()}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Speed of the control half.")
    parser.add_argument("--d3rlpy", help="python that has d3rlpy")
    parser.add_argument("--sb3", help="python that has stable-baselines3")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each repeat")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench-control.json")
    options = parser.parse_args()
    pythons = {"zerozoo": sys.executable, "plain": sys.executable}
    pythons |= {
        name: given for name, given in (("d3rlpy", options.d3rlpy), ("stable-baselines3", options.sb3)) if given
    }
    threads = torch.get_num_threads()
    result: dict[str, Any] = {"batch": 256, "threads": threads, "load_average": os.getloadavg(), "updates": {}}
    for width in WIDTHS:
        for algorithm in ALGORITHMS:
            row = compare(algorithm, width, pythons, options.repeats, options.seconds)
            result["updates"][f"{algorithm} {width}-{width}"] = row
            print(algorithm, width, json.dumps(row["updates_per_second"]), json.dumps(row["ratio"]), flush=True)
    result["steps_per_second"] = step_rates(options.repeats)
    print(json.dumps(result["steps_per_second"]))
    before = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    kept = {name: value for name, value in before.items() if name == "quality"}  # of control_quality.py
    write_json(options.output, {**result, **kept, "commit": commit(), "machine": machine()})


if __name__ == "__main__":
    main()
