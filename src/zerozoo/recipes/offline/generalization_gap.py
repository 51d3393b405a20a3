"""The generalization gap: offline learners that know a few levels, tried on levels that they have never seen.

Mediratta et al. 2023, ICLR 2024. Offline methods are compared where they learn from; here they learn from recordings of
a limited set of levels and are scored on others. Cloning then loses least, more levels help, and more data of the same
levels does not.

What differs from the paper and its code, and why:

* Levels are mazes of minigrid, whose dynamics lie in a table: thousands of steps in one call. The preset `procgen` has
  the paper's games (envpool's build of Procgen) and sizes, for those who have the time.
* Recordings of the mazes are of a shortest-way expert, with a share of random actions (`epsilon`); each seed of a run
  has its own. With `expert_steps` they are the paper's: PPO learns the levels of training first, and its drawn actions
  are recorded. Each step says its level, and episodes are taken as they come; the reference code takes them in the
  order of falling return, which makes a small data set a selected one.
* A residual network is replaced by a small CNN, PPO has one for its policy and one for its values, and images are
  divided by 255 in one place for data and evaluation.
* Validation and test have seeds of their own far from those of training, and each level is played once in every
  evaluation; the paper draws levels.
* There is no early stop: all updates are made, and what counts is the evaluation with the highest return on the
  validation levels, the only ones that choose anything.
* IQL's two critics share an encoder, and its target moves by tau in every update; the code copies it every 100.
* Cut recordings are bootstrapped from their true last observation; in the code it is zero.

Not reproduced: WebShop, decision and cloning transformers, the log of PPO as suboptimal data, scores over several games
relative to online PPO, the choice of settings for each method.
"""

from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from zerozoo.control.agent import Agent
from zerozoo.control.agents import BC, IQL
from zerozoo.control.agents.discrete import DiscreteBCQ, DiscreteCQL
from zerozoo.control.level_recordings import expert_numbers, record_levels
from zerozoo.control.level_splits import LevelEvaluator, chosen_by_validation
from zerozoo.control.offline import OfflineLoop
from zerozoo.control.views import transitions
from zerozoo.runs.claims import Claim, all_of, difference_claim, require_mean
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = "The Generalization Gap in Offline Reinforcement Learning (2023), arXiv 2312.05742"

# The agents with those of their settings that are no fields here.
ALGORITHMS: dict[str, tuple[type[Agent], dict[str, Any]]] = {
    "bc": (BC, {"dropout": 0.0}),
    "iql": (IQL, {"dropout": 0.0, "cosine_steps": 0, "max_weight": 100.0}),
    "cql": (DiscreteCQL, {}),
    "bcq": (DiscreteBCQ, {}),
}


@dataclass(frozen=True)
class Config:
    """Fields carry the paper's settings for Procgen (expert data)."""

    seed: int = 0  # of everything random, the data included
    algorithm: str = "bc"  # bc, iql, cql or bcq
    kind: str = "SimpleCrossing-S9N2"  # of the levels: a maze, MiniGrid-FourRooms-v0, procgen:coinrun:hard, ...
    levels: int = 200  # of training
    validation_levels: int = 50  # choose which evaluation counts
    test_levels: int = 100  # are the result; as many of those of training are played too
    transitions: int = 1_000_000  # recorded steps, over all levels of training
    epsilon: float = 0.0  # share of random actions in the recordings
    expert_steps: int = 0  # of PPO, which is recorded then; 0: a shortest way is (not in Procgen)
    expert_copies: int = 64  # of the levels, that PPO plays side by side
    batch_size: int = 256  # steps in a batch (512 for iql and bcq)
    hidden: tuple[int, ...] = ()  # layers between the features of an image and the outputs
    learning_rate: float = 5e-4  # of Adam
    gamma: float = 0.99  # discount
    beta: float = 3.0  # of iql: inverse temperature of the policy's weights
    expectile: float = 0.8  # of iql
    tau: float = 0.005  # of iql: how far the target moves in an update
    alpha: float = 4.0  # of cql: weight of the penalty
    threshold: float = 0.5  # of bcq: how likely an action must be, relative to the likeliest
    target_every: int = 1_000  # of cql and bcq: updates between copies of the target
    steps: int = 400_000  # updates; the code counts epochs, 100 of them for bc
    evaluate_every: int = 4_000  # updates between evaluations; the code evaluates once an epoch
    log_every: int = 1_000  # updates between rows of metrics, and steps of PPO
    checkpoint_every: int = 50_000  # updates between checkpoints, and steps of PPO


EXTENDABLE = ("checkpoint_every",)

_LAPTOP = {
    "levels": 50,
    "test_levels": 200,
    "transitions": 30_000,
    "epsilon": 0.1,
    "batch_size": 96,
    "steps": 2_000,
    "evaluate_every": 500,
    "log_every": 500,
    "checkpoint_every": 2_000,
    "target_every": 250,
}
_SMOKE = {
    "test_levels": 10,
    "validation_levels": 5,
    "transitions": 500,
    "batch_size": 16,
    "steps": 4,
    "evaluate_every": 4,
    "log_every": 2,
    "checkpoint_every": 2,
}
_TINY_PROCGEN = {
    "kind": "procgen:coinrun",
    "levels": 3,
    "validation_levels": 1,
    "test_levels": 2,
    "expert_steps": 512,
    "expert_copies": 2,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": _LAPTOP,
    "paper": {},
    "minigrid": {**_LAPTOP, "kind": "MiniGrid-FourRooms-v0", "levels": 200, "transitions": 100_000, "steps": 10_000},
    # The paper's: easy levels, PPO's 25M steps, 100 epochs of bc over a million steps. Other games by their kind.
    "procgen": {"kind": "procgen:coinrun", "expert_steps": 25_000_000},
    "smoke": {**_LAPTOP, **_SMOKE, "levels": 10},
    "procgen-smoke": {**_LAPTOP, **_SMOKE, **_TINY_PROCGEN},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers that the validation levels chose."""
    if config.algorithm not in ALGORITHMS:
        raise UserError(f"Unknown algorithm {config.algorithm!r}; choose from: {', '.join(ALGORITHMS)}.")
    evaluator = LevelEvaluator(config.kind, config.levels, config.validation_levels, config.test_levels)
    data = record_levels(config, run, evaluator, maker="generalization-gap")
    kind, settings = ALGORITHMS[config.algorithm]
    seen = len(np.unique(data.extras["level"]))
    fields = SimpleNamespace(**asdict(config), **settings)
    OfflineLoop(
        agent=kind(data.spec, fields, run.stream("agent")),
        run=run,
        steps=config.steps,
        evaluator=evaluator,
        evaluate_every=config.evaluate_every,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        data=transitions(config.gamma)(data.replace(extras={})),
        batch_size=config.batch_size,
    ).train()
    row = chosen_by_validation(run.history())
    numbers = {name: value for name, value in row.items() if name.startswith(("success/", "return/", "gap"))}
    numbers |= {"chosen_step": float(row["step"]), "data/levels": float(seen), "data/steps": float(len(data))}
    return numbers | expert_numbers(run)


_LEARNED = require_mean("bc-10", low=0.8, metric="success/train")
_CLONED = require_mean("bc", low=0.3, metric="success/train")
CLAIM = (
    Claim(
        statement="With the same number of recorded steps, 300 levels instead of 10 raise the success on unseen levels"
        " by 0.25, for cloning and for IQL; three times the steps of the same 10 levels do not raise it by 0.1.",
        arms={
            "bc-10": {"levels": 10},
            "bc-300": {"levels": 300},
            "iql-10": {"levels": 10, "algorithm": "iql"},
            "iql-300": {"levels": 300, "algorithm": "iql"},
            "bc-10-more": {"levels": 10, "transitions": 90_000},  # control: size without diversity
        },
        metric="success/test",
        holds=all_of(
            difference_claim("bc-300", "bc-10", threshold=0.25, precondition=_LEARNED),
            difference_claim("iql-300", "iql-10", threshold=0.25),
            difference_claim("bc-10", "bc-10-more", threshold=-0.1),
        ),
        seeds=(0, 1, 2),
        budget="15 trainings of 2,000 updates of a small CNN on one core",
        base=_LAPTOP,
        smoke=_SMOKE,
        name="diversity",
        curve="success/test",
    ),
    Claim(
        statement="On unseen levels, cloning of data with 30 % random actions is not beaten by more than 0.05 by CQL,"
        " IQL or BCQ.",
        arms={algorithm: {"algorithm": algorithm} for algorithm in ("bc", "cql", "iql", "bcq")},
        metric="success/test",
        holds=all_of(
            difference_claim("bc", "cql", threshold=-0.05, precondition=_CLONED),
            difference_claim("bc", "iql", threshold=-0.05),
            difference_claim("bc", "bcq", threshold=-0.05),
        ),
        seeds=(0, 1, 2),
        budget="12 trainings of 2,000 updates of a small CNN on one core",
        base={**_LAPTOP, "epsilon": 0.3},
        smoke=_SMOKE,
        name="method",
        curve="success/test",
    ),
)
