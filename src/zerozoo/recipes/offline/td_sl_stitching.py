"""Stitching by supervised learning: outcome-conditioned cloning whose goals are taken over from nearby trajectories.

Closing the Gap between TD Learning and Supervised Learning (Ghugare et al. 2024). A policy cloned on (state, action,
goal reached later in the same trajectory) has no reason to work for a state and a goal that no trajectory contains
both, even if trajectories cross on the way: that is combinatorial generalisation, which temporal difference learning
has and cloning lacks. The remedy changes the data only: with probability epsilon the goal is replaced by one that
another trajectory reaches after it passed near the original goal.

Near means: in the same cluster of a k-means over all observations, velocity included, so that the policy is not asked
to turn around on the spot (the authors' MLP loader does the same; their transformer loader clusters positions only).

What differs from the paper and its code, and why:

* Steps are drawn uniformly; the authors draw a trajectory and then a step of it, which favours short trajectories.
* k-means is ours (k-means++ start, Lloyd's rounds, fitted on at most 20,000 observations) so that it draws from a
  stream of the run. Padding rows, which became a cluster of their own at the origin in the released loader, do not
  exist here.
* epsilon is 0.5 as the paper says. The released config has 0, and its README command does not change it.
* The maze is our batched point maze: MuJoCo's physics in free space, walls without friction.
* The claim uses five seeds, because the verdict is Student's interval over seeds.

Not reproduced: the decision transformer (whose windows are spliced as well), the regions of the medium and large
mazes, AntMaze, images, the return-conditioned tests, the runs with ten times the data.

The file is longer than 200 lines because it has data, an agent and an evaluation of its own.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zerozoo.control.agent import Adam, Agent, trains
from zerozoo.control.build import loop_fields
from zerozoo.control.clusters import k_means
from zerozoo.control.episodes import Episodes
from zerozoo.control.evaluation import Evaluator, evaluate
from zerozoo.control.manifest import keep_manifest
from zerozoo.control.offline import OfflineLoop
from zerozoo.control.policies import Deterministic
from zerozoo.control.spec import Spec
from zerozoo.control.stitching import StitchedGoals, cross_wall_share, seen_together
from zerozoo.control.views import Batch
from zerozoo.environments.batched.point_maze import PointMaze
from zerozoo.environments.data import narrow
from zerozoo.environments.mazes import Cell
from zerozoo.environments.vector import VecEnv
from zerozoo.losses.values import mse
from zerozoo.runs.claims import ArmResults, Claim, all_of, difference_claim, require_mean
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = (
    "Closing the Gap between TD Learning and Supervised Learning - A Generalisation Point of View (2024), "
    "arXiv 2401.11237"
)

# The data policies of the U maze: each starts and ends in cells (row, column) of one region only.
REGIONS: tuple[tuple[Cell, ...], ...] = (
    ((1, 1), (1, 2), (1, 3)),
    ((3, 1), (3, 2), (3, 3)),
    ((1, 3), (2, 3)),
    ((3, 3), (2, 3)),
)
PAIRS: dict[str, list[tuple[Cell, Cell]]] = {
    "stitching": [((3, 1), (1, 1)), ((1, 1), (3, 1))],
    "in_distribution": [(start, goal) for region in REGIONS for start in region for goal in region if start != goal],
}


@dataclass(frozen=True)
class Config:
    """Fields carry the paper's defaults."""

    seed: int = 0  # of everything random, the data included
    transitions: int = 1_000_000  # recorded steps, a quarter by each data policy
    action_noise: float = 0.5  # standard deviation of the noise on the controller's actions
    augmentation: float = 0.5  # epsilon: share of goals that are taken over from a nearby trajectory
    clusters: int = 20  # of k-means over all observations
    waypoint: str = "near"  # near: drawn from the goal's own cluster; random: from any cluster, the control
    hidden: tuple[int, ...] = (1024, 1024)  # layers of the policy
    learning_rate: float = 1e-3  # of Adam
    max_gradient_norm: float = 0.25  # longer gradients are scaled down to it
    batch_size: int = 256  # steps in a batch
    steps: int = 1_000_000  # updates
    evaluation_episodes: int = 10  # for each pair of start and goal
    evaluate_every: int = 40_000  # updates between evaluations
    log_every: int = 1_000  # updates between rows of metrics
    checkpoint_every: int = 50_000  # updates between checkpoints


EXTENDABLE = ("steps", "checkpoint_every")

_LAPTOP = {
    "transitions": 80_000,
    "clusters": 40,
    "hidden": (256, 256),
    "steps": 15_000,
    "evaluation_episodes": 20,
    "evaluate_every": 5_000,
}
_SMOKE = {
    "transitions": 8_000,
    "clusters": 10,
    "hidden": (32,),
    "steps": 20,
    "evaluation_episodes": 1,
    "evaluate_every": 20,
    "log_every": 10,
}
PRESETS: dict[str, dict[str, Any]] = {"laptop": _LAPTOP, "paper": {}, "smoke": _SMOKE}


class OutcomeCloning(Agent):
    """loss = mean over the batch and the dimensions of (pi(s, g) - a)^2. Its observations end with the goal."""

    def build(self, spec: Spec, config: Any) -> None:
        self.policy = Deterministic(spec, config.hidden)

    def optimiser(self, net: str) -> Adam:
        return Adam(self.config.learning_rate, clip_norm=self.config.max_gradient_norm)

    @trains("policy")
    def policy_loss(self, batch: Batch) -> Tensor:
        self.log("augmented_share", batch.extra["augmented"])  # epsilon as it was realised
        return mse(self.policy(torch.cat((batch.obs, batch.goal), -1)), batch.action).mean()


def record_regions(config: Config, run: Run) -> Episodes:
    """Successful trajectories of the four data policies, a quarter of the transitions each; writes the manifest."""
    rng, wanted = run.streams.numpy("data"), -(-config.transitions // len(REGIONS))
    made = []
    for cells in REGIONS:
        noise = config.action_noise
        made += narrow(rng, wanted, start_cells=cells, goal_cells=cells, noise=noise, successful_only=True)
    episodes = Episodes.from_list(made)
    settings = {"transitions": config.transitions, "action_noise": config.action_noise, "regions": REGIONS}
    keep_manifest(run, episodes, "td-sl-stitching", settings)
    return episodes


class PairEvaluator(Evaluator):
    """Success of an agent on every pair of start and goal cell, as a mean for each group of `PAIRS`."""

    def __init__(self, episodes: int) -> None:
        if episodes < 1:
            raise UserError(f"evaluation_episodes must be at least 1, not {episodes}.")
        self.episodes = episodes

    def __call__(self, agent: Any, run: Run, step: int) -> dict[str, float]:
        metrics = {}
        for group, pairs in PAIRS.items():
            shares = []
            for start, goal in pairs:
                world = PointMaze(self.episodes, start_cells=[start], goal_cells=[goal], observe_goal=True)
                environment = VecEnv(world, np.random.Generator(np.random.PCG64(0)), ["success"])
                played = evaluate(agent, environment, self.episodes, success="success")
                named = {"group": group, "start": list(start), "goal": list(goal)}
                run.sample({**row, **named} for row in played.rows(step))
                shares.append(played.metrics()["evaluation/success"])
            metrics[f"success/{group}"] = float(np.mean(shares))
        return metrics


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; success on both groups of pairs."""
    if config.waypoint not in ("near", "random") or not 0 <= config.augmentation <= 1:
        raise UserError("waypoint must be near or random, and augmentation must lie between 0 and 1.")
    world, data = PointMaze(1, observe_goal=True), record_regions(config, run)
    clusters = k_means(data.obs, config.clusters, run.streams.numpy("clusters"))
    sampler = StitchedGoals(data, clusters, config.augmentation, config.waypoint == "near")
    facts = {
        "data/pairs_together": float(seen_together(data, world.maze, PAIRS["stitching"])),
        "data/cross_wall": cross_wall_share(sampler, data, world.maze, run.stream("cross-wall")),
    }
    spec = Spec.of_spaces(world.observation_space, world.action_space)
    agent = OutcomeCloning(spec, config, run.stream("agent"))
    fields = loop_fields(config, run, None) | {"evaluator": PairEvaluator(config.evaluation_episodes)}
    loop = OfflineLoop(agent=agent, data=sampler, batch_size=config.batch_size, **fields)
    return {**loop.train(), **facts}


def _never_together(results: ArmResults) -> str | None:
    """Precondition: the experiment is about stitching only if no trajectory of the data holds a test pair."""
    unmet = [require_mean(arm, 0, 0, "data/pairs_together")(results) for arm in results.values]
    return next((text for text in unmet if text), None)


CLAIM = Claim(
    statement="Outcome-conditioned cloning does not reach goals that no trajectory joins with the start; with goals"
    " taken over from nearby trajectories it does, and with goals taken over from anywhere it does so less.",
    arms={
        "plain": {"augmentation": 0.0},
        "augmented": {"augmentation": 0.5},
        "random-waypoint": {"augmentation": 0.5, "waypoint": "random"},
    },
    metric="success/stitching",
    holds=all_of(
        difference_claim("augmented", "plain", threshold=0.25, precondition=_never_together),
        difference_claim("augmented", "plain", threshold=-0.1, metric="success/in_distribution"),
        difference_claim("augmented", "random-waypoint"),
    ),
    seeds=(0, 1, 2, 3, 4),
    budget="15 trainings of a small network on one core, about 40 seconds each, 10 minutes in all",
    base=_LAPTOP,
    smoke=_SMOKE,
    curve="success/stitching",
)
