"""Conservative Q-learning, and Cal-QL for going on in the environment.

A critic that was never shown the consequences of an action may overrate it, and the policy finds such actions. CQL
pushes values down where the policy acts and up where the data does, so that they stay below the true ones. Cal-QL
(`calibrated`) pushes no policy action below the return that the data had there: values keep their scale, and
fine-tuning (`offline_steps`) does not begin by unlearning.

What differs from the papers and their code: a fixed weight of the penalty and no Lagrange multiplier (as the authors do
for locomotion); in fine-tuning recorded and fresh steps have fixed shares (Cal-QL's default draws from the union); the
return of a fresh step counts once its episode has ended (there whole episodes are collected before they are learned
from). The temperature of the policy is learned; the target has no entropy term.

Order of an update: critics, then policy and temperature on the critics just trained, then the target.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import CQL
from zerozoo.control.build import fine_tune, learn_offline, make_reward
from zerozoo.control.online import TransitionsWithReturns
from zerozoo.control.settings import LAPTOP, SMOKE, FineTuneConfig
from zerozoo.control.sources import open_data
from zerozoo.control.views import transitions
from zerozoo.runs.run import Run

PAPER = "Conservative Q-Learning for Offline Reinforcement Learning (2020), arXiv 2006.04779; Cal-QL (2023), 2303.05479"


@dataclass(frozen=True)
class Config(FineTuneConfig):
    """Fields carry CQL's settings for the MuJoCo locomotion data; `cal-ql` are those of Cal-QL for antmaze."""

    hidden: tuple[int, ...] = (256, 256, 256)  # hidden layers of every network
    policy_learning_rate: float = 1e-4  # of the policy and the temperature
    alpha: float = 5.0  # weight of the penalty
    sampled_actions: int = 10  # of each kind (uniform, policy here, policy at the next state) in the penalty
    backup_actions: int = 1  # draws of the policy of which the target takes the best
    calibrated: bool = False  # Cal-QL: push no policy action below the data's return
    temperature: float = 1.0  # weight of the entropy at the beginning
    learn_temperature: bool = True  # so that the entropy keeps its target
    entropy_per_dimension: float = -1.0  # target of the entropy, for each dimension of an action


EXTENDABLE = ("steps", "checkpoint_every")
_LAPTOP = {
    **LAPTOP,
    "hidden": (64, 64),
    "learning_rate": 1e-3,
    "policy_learning_rate": 3e-4,
    "alpha": 1.0,
    "sampled_actions": 4,
    "reward_scale": 0.1,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": _LAPTOP,
    "cal-ql": {
        "hidden": (256, 256),
        "calibrated": True,
        "backup_actions": 10,
        "reward_scale": 10.0,
        "reward_shift": -5.0,
        "steps": 2_000_000,
        "offline_steps": 1_000_000,
    },
    "finetune": {**_LAPTOP, "calibrated": True, "offline_steps": 10_000},
    "smoke": {**SMOKE, "hidden": (16, 16), "calibrated": True, "backup_actions": 2, "offline_steps": 20},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers of the last evaluation."""
    data = open_data(config, run)
    agent = CQL(data.spec, config, run.stream("agent"))
    view = TransitionsWithReturns(config.gamma) if config.calibrated else transitions(config.gamma)
    learn = fine_tune if config.offline_steps else learn_offline
    return learn(agent, data, view, config, run, make_reward(config))
