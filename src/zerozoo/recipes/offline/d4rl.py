"""D4RL: offline reinforcement learning measured on data with the properties of real recordings.

Fu et al. 2020. Methods that shine on the replay of a learning agent may fail on narrow, undirected, sparse or mixed
data; so the benchmark fixes data sets by property, one schema, a normalised score and a protocol: a fixed number of
updates, the last policy and not the best, several seeds. Here the schema, the scores and the evaluator are parts of the
library; this recipe has the data sets and runs a reference agent on one of them.

What differs from the paper, and why:

* The data is made here, by scripted controllers in batched worlds (`data`, see the page for the property of each), or
  read from Minari. The frozen environments and files of the original are not used.
* A maze episode ends where it reaches the goal, in data and evaluation alike; in the original, "timeouts" mark reached
  goals, the episode goes on, and rewards[t] belongs to observations[t].
* Successors at an episode's end are the true ones; the original loader takes the next episode's first observation
  where a recording has no next_observations.
* Rewards in a maze are learned from as reward - 1, by every agent that sees rewards, as IQL does for antmaze: with 0
  and 1, advantages are so small that weights of exp(3 A) are those of cloning.
* The claim has five seeds, because the verdict is Student's interval over seeds, and 100 evaluation episodes, which
  cost nothing in a batched world. Its data is the same for all seeds, as in a benchmark.
* A run whose numbers become infinite counts as success 0 ("diverged": 1), since the protocol takes the last policy.

Not reproduced: BCQ, BEAR, BRAC, AWR, AlgaeDICE; Flow, CARLA, and human demonstrations, which cannot be made here; the
four rooms; the side kit for off-policy evaluation.
"""

from dataclasses import asdict, dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from zerozoo.control.agent import Agent
from zerozoo.control.agents import BC, CQL, IQL, SAC, TD3BC
from zerozoo.control.build import learn_offline, make_reward
from zerozoo.control.files import write_npz
from zerozoo.control.offline import divergence_as_result
from zerozoo.control.settings import LAPTOP, SMOKE, OfflineValueConfig
from zerozoo.control.sources import Maker, World, open_data
from zerozoo.control.views import transitions
from zerozoo.environments.data import medium_expert, mixed_quality, undirected
from zerozoo.runs.claims import ArmResults, Claim, Combine, all_of, at_most, difference_claim, on_combined
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = "D4RL: Datasets for Deep Data-Driven Reinforcement Learning (2020), arXiv 2004.07219"

# The agents with those of their settings that are no fields here; `zerozoo train iql` and its like have them all.
_ENTROPY = {"temperature": 1.0, "learn_temperature": True, "entropy_per_dimension": -1.0}
_CONSERVATISM = {"alpha": 5.0, "sampled_actions": 10, "backup_actions": 1, "calibrated": False}
ALGORITHMS: dict[str, tuple[type[Agent], dict[str, Any]]] = {
    "bc": (BC, {"dropout": 0.0}),
    "sac": (SAC, _ENTROPY),
    "td3-bc": (TD3BC, {"alpha": 2.5, "target_noise": 0.2, "noise_clip": 0.5}),
    "iql": (IQL, {"max_weight": 100.0, "dropout": 0.0}),
    "cql": (CQL, {**_ENTROPY, **_CONSERVATISM, "policy_learning_rate": 1e-4}),
}


_FAR_CORNER = (6, 6)
# Data sets beside those of `sources.MAKERS`.
OWN_MAKERS: dict[str, Maker] = {
    "pendulum-medium": Maker(World("pendulum"), partial(mixed_quality, quality=0.5)),
    "pendulum-medium-expert": Maker(World("pendulum"), medium_expert),
    "medium-undirected": Maker(
        World("point-maze-medium", {"goal_cells": [_FAR_CORNER]}),
        partial(undirected, transitions=200_000, layout="medium", goal_cell=_FAR_CORNER, horizon=600),
    ),
}


@dataclass(frozen=True)
class Config(OfflineValueConfig):
    """Fields carry the protocol of the paper, on locomotion data."""

    algorithm: str = "iql"  # bc, sac, td3-bc, iql or cql; sac has no defence against unseen actions
    data: str = "mujoco/hopper/medium-v0"  # a data maker, an .npz file, or the folder or id of a Minari data set
    environment: str = "Hopper-v5"  # to evaluate in, a world or a gymnasium id; "": that of the data maker
    steps: int = 500_000  # updates
    reward_scale: float = 0.0  # rewards are multiplied by this; 0: by 1000 / (range of the returns in the data)
    expectile: float = 0.7  # of IQL: 0.9 in mazes
    beta: float = 3.0  # of IQL, inverse temperature of the policy's weights: 10 in antmaze, 0.5 in adroit and kitchen
    save_data: bool = False  # write the data beside the metrics, as data.npz in D4RL's schema


EXTENDABLE = ("checkpoint_every",)

_MAZE = {
    "environment": "",
    "hidden": (128, 128),
    "learning_rate": 1e-3,
    "reward_scale": 1.0,
    "reward_shift": -1.0,
    "expectile": 0.9,
    "steps": 10_000,
    "evaluate_every": 2_500,
    "evaluation_episodes": 100,
    "checkpoint_every": 5_000,
}
_SMOKE = {**SMOKE, "steps": 20, "hidden": (16, 16)}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, **_MAZE, "data": "umaze-undirected"},
    "paper": {},
    "antmaze": {
        "data": "D4RL/antmaze/umaze-v1",
        "environment": "AntMaze_UMaze-v4",
        "observation_keys": ("achieved_goal", "observation", "desired_goal"),
        "reward_scale": 1.0,
        "reward_shift": -1.0,
        "expectile": 0.9,
        "beta": 10.0,
        "evaluation_episodes": 100,
    },
    "smoke": {**_MAZE, **_SMOKE, "data": "umaze-narrow"},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers of the last policy."""
    if config.algorithm not in ALGORITHMS:
        raise UserError(f"Unknown algorithm {config.algorithm!r}; choose from: {', '.join(ALGORITHMS)}.")
    data = open_data(config, run, OWN_MAKERS)
    if config.save_data and run.writes:
        write_npz(run.path("data.npz"), data.episodes)
    kind, settings = ALGORITHMS[config.algorithm]
    fields = SimpleNamespace(**asdict(config), cosine_steps=config.steps, **settings)
    agent = kind(data.spec, fields, run.stream("agent"))
    view, reward = transitions(config.gamma), make_reward(config, data.episodes)
    learn = partial(learn_offline, agent, data, view, config, run, reward)
    return divergence_as_result(learn, run, {"evaluation/success": 0.0})


def gain_over_cloning(data: str) -> Combine:
    """(seeds,) what IQL gains over BC on a data set."""

    def gain(results: ArmResults) -> np.ndarray:
        return results.array(f"{data}-iql") - results.array(f"{data}-bc")

    return gain


CLAIM = Claim(
    statement="Which method is better depends on a property of the data: in one maze, IQL gains over cloning on"
    " undirected data and not on narrow data, and SAC without a constraint fails on both.",
    arms={
        f"{data}-{algorithm}": {"data": f"umaze-{data}", "algorithm": algorithm}
        for data in ("narrow", "undirected")
        for algorithm in ("bc", "sac", "iql")
    },
    metric="evaluation/success",
    holds=all_of(
        on_combined(
            difference_claim("undirected", "narrow", threshold=0.25),
            undirected=gain_over_cloning("undirected"),
            narrow=gain_over_cloning("narrow"),
        ),
        difference_claim("undirected-iql", "undirected-bc", threshold=0.3),
        difference_claim("narrow-iql", "narrow-bc", threshold=-0.15),
        difference_claim("narrow-bc", "narrow-iql", threshold=-0.15),
        at_most("narrow-sac", 0.2),
        at_most("undirected-sac", 0.2),
    ),
    seeds=(0, 1, 2, 3, 4),
    budget="30 trainings of small networks on one core, 10 to 60 seconds each, 17 minutes in all",
    base=_MAZE,
    smoke=_SMOKE,
    curve="evaluation/success",
)
