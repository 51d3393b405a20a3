"""What IQL and TD3+BC learn beside what d3rlpy's learn: the same data, networks, batches, updates and seeds.

    python benchmarks/control_quality.py --d3rlpy PYTHON [--seeds 0 1 2 3 4] [--steps 10000]

The data are our pendulum episodes of mixed quality, rewards as they are scaled for both. Both see standardised
observations, learn with the same rates and have no schedule; everything else is what each library does by itself. Both
policies play the same episodes in our evaluator, d3rlpy's as the TorchScript that it exports. For each algorithm the
difference of the interquartile means over seeds, ours minus theirs, with its bootstrap interval, goes to
results/bench-control.json under "quality"; "not below" says whether the interval reaches 0.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zerozoo.control.evaluation import BATCHED_COPIES, evaluate
from zerozoo.control.sources import Data, RewardTransform, open_data
from zerozoo.runs.aggregates import difference_interval, iqm
from zerozoo.runs.cells import write_json
from zerozoo.runs.run import Run
from zerozoo.runs.versions import commit, machine

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "benchmarks" / "control_quality_worker.py"
ALGORITHMS = {"iql": "iql", "td3-bc": "td3_bc"}  # and the module of our recipe
WIDTH, BATCH, LEARNING_RATE, EPISODES, REWARD_SCALE = 64, 256, 1e-3, 100, 0.1


class Exported:
    """A policy that d3rlpy has written."""

    def __init__(self, path: Path) -> None:
        self.policy = torch.jit.load(str(path))

    def act(self, obs: torch.Tensor, explore: bool = False) -> torch.Tensor:
        """(N, *) -> (N, m)."""
        with torch.no_grad():
            return self.policy(obs)


def fields(algorithm: str, steps: int, seed: int) -> dict[str, Any]:
    """Our config."""
    ours = {"cosine_steps": 0} if algorithm == "iql" else {}
    return {
        **ours,
        "hidden": (WIDTH, WIDTH),
        "batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "normalise": True,
        "reward_scale": REWARD_SCALE,
        "steps": steps,
        "evaluate_every": steps,
        "evaluation_episodes": EPISODES,
        "log_every": steps,
        "checkpoint_every": steps,
        "seed": seed,
    }


def ours(algorithm: str, steps: int, seed: int, folder: Path) -> float:
    """Mean return of our agent."""
    module = importlib.import_module(f"zerozoo.recipes.baselines.{ALGORITHMS[algorithm]}")
    config = module.Config(**fields(algorithm, steps, seed))
    with Run.start(folder, algorithm, asdict(config), seed) as run:
        return float(module.train(config, run)["evaluation/return"])


def theirs(python: str, algorithm: str, steps: int, seed: int, folder: Path, data: Data, source: Path) -> float:
    """Mean return of d3rlpy's agent."""
    settings = {"algorithm": algorithm, "width": WIDTH, "batch": BATCH, "learning_rate": LEARNING_RATE}
    target = folder / "policy.pt"
    text = json.dumps({**settings, "steps": steps, "seed": seed})
    subprocess.run([python, str(WORKER), str(source), str(target), text], check=True, cwd=folder)
    assert data.world is not None
    environment = data.world.vector(min(EPISODES, BATCHED_COPIES), np.random.Generator(np.random.PCG64(0)))
    return float(evaluate(Exported(target), environment, EPISODES).returns.mean())


def write_data(data: Data, path: Path) -> None:
    """The steps in the layout of d3rlpy, rewards as our agents learn from them."""
    episodes = RewardTransform(REWARD_SCALE).episodes(data.episodes)
    steps = {
        "obs": episodes.obs[episodes.obs_index],
        "action": episodes.action,
        "reward": episodes.reward,
        "terminal": episodes.terminated,
        "timeout": episodes.truncated,
    }
    np.savez(path, **{name: values.astype(np.float32) for name, values in steps.items()})


def difference(mine: list[float], others: list[float]) -> dict[str, float]:
    """Of the interquartile means over seeds, with its 95 % interval."""
    return asdict(difference_interval(np.array(mine)[:, None], np.array(others)[:, None], iqm))


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description="Learning of IQL and TD3+BC beside d3rlpy.")
    # Its absolute path, for it is started in another folder; not resolved, for an environment's python is a link.
    parser.add_argument("--d3rlpy", required=True, type=os.path.abspath, help="python that has d3rlpy")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=10_000, help="updates")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench-control.json")
    options = parser.parse_args()
    quality: dict[str, Any] = {"data": "pendulum-mixed", "steps": options.steps, "seeds": options.seeds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = importlib.import_module("zerozoo.recipes.baselines.iql").Config(**fields("iql", options.steps, 0))
        data = open_data(config, Run(folder / "data", 0))
        write_data(data, folder / "data.npz")
        for algorithm in ALGORITHMS:
            returns: dict[str, list[float]] = {"zerozoo": [], "d3rlpy": []}
            for seed in options.seeds:
                place = folder / f"{algorithm}-{seed}"
                returns["zerozoo"].append(ours(algorithm, options.steps, seed, place))
                source = folder / "data.npz"
                returns["d3rlpy"].append(theirs(options.d3rlpy, algorithm, options.steps, seed, folder, data, source))
                print(algorithm, seed, {name: values[-1] for name, values in returns.items()}, flush=True)
            found = difference(returns["zerozoo"], returns["d3rlpy"])
            quality[algorithm] = {"returns": returns, "difference": found, "not_below": found["high"] >= 0}
            print(algorithm, quality[algorithm]["difference"], flush=True)
    result = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    write_json(options.output, {**result, "quality": {**quality, "commit": commit(), "machine": machine()}})


if __name__ == "__main__":
    main()
