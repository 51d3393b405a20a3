"""D5RL: a benchmark whose data force interpolation, stitching, or going on in the world, and agents that try.

Rafailov et al. 2024, RLC. Robots in simulation with data from scripts, other policies and people, and tasks that the
data alone solve only in part. Agents learn offline, then go on in the environment from the same data, and are scored
after both phases. What counts are the properties of the tasks, and here these are rebuilt with what packages offer:

* partial: a large maze whose data cover the first half of the way to the goal, -1 a step. No phase should do alone.
* speed: HalfCheetah at a speed between or above those of its data, open-loop gaits near 0.5 and 1 m/s (A1 running).

One run is one cell of the benchmark's matrix, `task` x `agent`; it returns offline/... and finetuned/... numbers, the
latter as means over the evaluations in the last tenth of the online steps. `zerozoo runs compare` shows many runs.

What differs from the paper and its code, and why:

* Fresh steps are learned from at once, in a fixed share of each batch (`offline_share`). The code has one buffer for
  all, which gets an episode when it has ended, and its share of recorded steps falls.
* Returns to go (Cal-QL) stop where a recording stops. The code adds last reward / (1 - gamma) to truncated episodes,
  which is far off where the last reward is not typical; both make the bound of Cal-QL loose there.
* The learning rate of the policies falls along the cosine over `cosine_steps`, that of the critics stays. The claim's
  arms share one horizon, so none stops at another rate because it is shorter.
* The goal of the small runs is 6 cells from the start and not 9, of which the data cover 3: in 15,000 steps nobody got
  to the far one, whatever it had learned from.
* Gait parameters are drawn, and those nearest to the two speeds kept; noise on the actions gives value learning
  something to weigh.

Not reproduced: the robots, their images and their data (downloads of assets), so none of the paper's scores; nor a task
after WidowX sorting, where recordings have to be stitched: `td-sl-stitching` is about that.

The file is longer than 200 lines because it is a matrix of two tasks and seven agents, with two claims.
"""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np

from zerozoo.control.agent import Agent
from zerozoo.control.agents import BC, CQL, IDQL, IQL, TD3BC, DiffusionBC
from zerozoo.control.build import loop_fields
from zerozoo.control.episodes import Episodes
from zerozoo.control.online import OnlineLoop, TransitionsWithReturns
from zerozoo.control.replay import Replay
from zerozoo.control.settings import SMOKE, Watching
from zerozoo.control.sources import Maker, RewardTransform, World
from zerozoo.control.views import transitions
from zerozoo.environments.data import partial_coverage
from zerozoo.environments.speed import LENGTH, TargetSpeed, gait_data
from zerozoo.environments.wrappers import StandardEnv
from zerozoo.runs.claims import Claim, all_of, difference_claim
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = "D5RL: Diverse Datasets for Data-Driven Deep Reinforcement Learning (2024), arXiv 2408.08441"


@dataclass(frozen=True)
class Config(Watching):
    """Fields carry the benchmark's defaults."""

    task: str = "partial"  # or speed
    agent: str = "iql"  # or bc, td3-bc, cql, cal-ql, ddpm-bc, idql
    offline_steps: int = 500_000  # updates on the data; 0: nothing is learned from data at all
    steps: int = 500_000  # then steps in the environment, with one update each
    evaluation_episodes: int = 50  # of each evaluation, always the same
    transitions: int = 60_000  # recorded steps

    # Tasks

    maze: str = "large"  # partial: the layout
    start: tuple[int, int] = (1, 1)  # partial: row and column of the start
    goal: tuple[int, int] = (5, 6)  # partial: and of the goal
    coverage: float = 0.5  # partial: share of the way that the data cover
    target_speed: float = 0.75  # speed: in m/s; 1.25 is above the data
    gaits: int = 200  # speed: tried in search of the two speeds

    # Learning

    hidden: tuple[int, ...] = (256, 256)  # hidden layers of every network
    batch_size: int = 256  # rows of a batch
    learning_rate: float = 3e-4  # of Adam
    cosine_steps: int = 1_000_000  # updates over which that of the policies of iql, ddpm-bc and idql falls to 0
    gamma: float = 0.99  # discount
    tau: float = 0.005  # how far the targets move in an update
    expectile: float = 0.7  # iql: how far V leans to the best of the data's actions
    beta: float = 3.0  # iql: inverse temperature of the policy's weights (A_scaling)
    reward_shift: float = -1.0  # added to each reward: -1 a step in the maze; 0 for the task speed
    offline_share: float = 0.5  # of the recorded steps in each batch of the online phase


_SMALL = {
    "goal": (3, 5),
    "hidden": (128, 128),
    "offline_steps": 10_000,
    "steps": 15_000,
    "cosine_steps": 25_000,
    "evaluate_every": 1_000,
    "evaluation_episodes": 20,
    "offline_share": 0.8,  # 60,000 recorded of 75,000 steps, as in one buffer at the end
}
_SPEED = {**_SMALL, "task": "speed", "reward_shift": 0.0, "steps": 0, "evaluate_every": 5_000}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": _SMALL,
    "speed": _SPEED,
    "paper": {},
    "smoke": {
        **SMOKE,
        "hidden": (16, 16),
        "maze": "umaze",
        "goal": (3, 1),
        "transitions": 600,
        "gaits": 6,
        "offline_steps": 20,
        "steps": 20,
        "evaluate_every": 10,
        "evaluation_episodes": 2,
    },
}


_CLONING = {"dropout": 0.0, "max_weight": 100.0}
_DIFFUSION = {"diffusion_steps": 5, "average": 0.001, "candidates": 16}
_CQL = {
    "alpha": 5.0,
    "sampled_actions": 10,
    "backup_actions": 1,
    "temperature": 1.0,
    "learn_temperature": True,
    "entropy_per_dimension": -1.0,
    "policy_learning_rate": 3e-4,
}
# Each with the settings of its own paper that the benchmark does not name as its own.
AGENTS: dict[str, tuple[type[Agent], dict[str, Any]]] = {
    "bc": (BC, _CLONING),
    "td3-bc": (TD3BC, {"alpha": 2.5, "target_noise": 0.2, "noise_clip": 0.5}),
    "cql": (CQL, {**_CQL, "calibrated": False}),
    "cal-ql": (CQL, {**_CQL, "calibrated": True}),
    "iql": (IQL, _CLONING),
    "ddpm-bc": (DiffusionBC, _DIFFUSION),
    "idql": (IDQL, {**_CLONING, **_DIFFUSION}),
}


@dataclass(frozen=True)
class SpeedWorld(World):
    """`TargetSpeed` as a world: a reward of 1 in each of the 200 steps scores 100; to stand still earns a little."""

    def make(self) -> gymnasium.Env[Any, Any]:
        return StandardEnv(TargetSpeed(**self.options))

    def reference(self) -> tuple[float, float]:
        return 0.0, float(LENGTH)


def open_task(config: Config) -> Maker:
    """Where agents are scored and go on, and what they learn from first. UserError for an unknown task."""
    if config.task == "speed":
        made: dict[str, Any] = {"transitions": config.transitions, "target": config.target_speed, "gaits": config.gaits}
        return Maker(SpeedWorld("HalfCheetah-v5", {"target": config.target_speed}), partial(gait_data, **made))
    if config.task != "partial":
        raise UserError(f"task must be one of partial, speed, not {config.task!r}.")
    world = World(f"point-maze-{config.maze}", {"start_cells": [config.start], "goal_cells": [config.goal]})
    way: dict[str, Any] = {"layout": config.maze, "start_cell": config.start, "goal_cell": config.goal}
    return Maker(world, partial(partial_coverage, transitions=config.transitions, share=config.coverage, **way))


def train(config: Config, run: Run) -> dict[str, float]:
    """Both phases, resuming where the run directory stands; see `phases` for what it returns."""
    if config.agent not in AGENTS:
        raise UserError(f"agent must be one of {', '.join(AGENTS)}, not {config.agent!r}.")
    task, (agent_class, settings) = open_task(config), AGENTS[config.agent]
    world, reward = task.world, RewardTransform(shift=config.reward_shift)
    spec = world.spec()
    view = TransitionsWithReturns(config.gamma) if config.agent == "cal-ql" else transitions(config.gamma)
    recorded: dict[str, Any] = {}
    if config.offline_steps:
        episodes = Episodes.from_list(task.make(run.streams.numpy("data"))).replace(extras={})
        recorded = {"data": view(reward.episodes(episodes)), "offline_steps": config.offline_steps}
    OnlineLoop(
        agent=agent_class(spec, SimpleNamespace(**vars(config), **settings), run.stream("agent")),
        environment=world.vector(1, run.streams.numpy("environment")),
        replay=Replay(spec, max(config.steps, 1)),
        view=view,
        batch_size=config.batch_size,
        reward=reward,
        offline_share=config.offline_share,
        **recorded,
        **{**loop_fields(config, run, world), "steps": config.offline_steps + config.steps},
    ).train()
    return phases(run.history(), config)


def phases(history: list[dict[str, Any]], config: Config) -> dict[str, float]:
    """offline/...: the last evaluation before a step was taken in the environment. finetuned/...: means over those in
    the last tenth of the online steps. final/...: the latter, or the former without online steps."""
    rows = [row for row in history if "evaluation/score" in row]
    first = config.offline_steps + 0.9 * config.steps
    parts = {
        "offline": [row for row in rows if row["step"] <= config.offline_steps][-1:],
        "finetuned": [row for row in rows if row["step"] > first],
    }
    parts["final"] = parts["finetuned"] or parts["offline"]
    return {
        f"{part}/{name}": float(np.mean([row[f"evaluation/{name}"] for row in chosen]))
        for part, chosen in parts.items()
        for name in ("score", "return", "success")
        if chosen and f"evaluation/{name}" in chosen[0]
    }


CLAIM = (
    Claim(
        statement="Where the data cover the first half of the way, learning from them and then going on in the"
        " environment succeeds more often, by 20 points, than either alone.",
        arms={
            "both-phases": {},
            "offline-only": {"steps": 0},
            "online-only": {"offline_steps": 0},
        },
        metric="final/success",
        holds=all_of(
            difference_claim("both-phases", "offline-only", threshold=0.2),
            difference_claim("both-phases", "online-only", threshold=0.2),
        ),
        seeds=(0, 1, 2),
        budget="9 trainings of 10,000 to 25,000 updates on one core, about 16 minutes in all",
        base=_SMALL,
        smoke=PRESETS["smoke"],
        curve="evaluation/success",
    ),
    Claim(
        statement="IQL beats cloning by 10 points at a speed between those of the data, and both lose 20 points or more"
        " at a speed above them.",
        arms={
            "iql-between": {},
            "bc-between": {"agent": "bc"},
            "iql-above": {"target_speed": 1.25},
            "bc-above": {"agent": "bc", "target_speed": 1.25},
        },
        metric="final/score",
        holds=all_of(
            difference_claim("iql-between", "bc-between", threshold=10.0),
            difference_claim("iql-between", "iql-above", threshold=20.0),
            difference_claim("bc-between", "bc-above", threshold=20.0),
        ),
        seeds=(0, 1, 2),
        budget="12 trainings of 10,000 updates on one core, about 8 minutes in all",
        base=_SPEED,
        smoke={**PRESETS["smoke"], "task": "speed", "reward_shift": 0.0, "steps": 0},
        name="speed",
    ),
)
