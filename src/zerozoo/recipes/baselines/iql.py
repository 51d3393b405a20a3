"""Implicit Q-learning: the best of the data's actions, without ever asking the critic about others.

An expectile regression makes V(s) lean to the highest values among the actions that the data took in s; Q bootstraps
from V, so no action outside of the data is evaluated; the policy clones the data's actions with weights exp(beta A).
With `offline_steps` training goes on in the environment: the same losses, on batches of recorded and fresh steps.

What differs from the paper and its code: the mean and the deviation of the policy are initialised as all networks here
are. Fresh rewards are transformed like recorded ones (the code normalises the recorded ones only, trap 9), and fresh
steps make up a fixed share of a batch (there both are drawn from one buffer).

Order of an update: V, Q, policy. Q and policy use the V that was just trained; the advantage is that of the target
critic, which moves last. The code's order V, policy, Q gives the same; using an older V for the advantage would not.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import IQL
from zerozoo.control.build import fine_tune, learn_offline, make_reward
from zerozoo.control.settings import LAPTOP, SMOKE, FineTuneConfig
from zerozoo.control.sources import open_data
from zerozoo.control.views import transitions
from zerozoo.runs.run import Run

PAPER = "Offline Reinforcement Learning with Implicit Q-Learning (2021), arXiv 2110.06169"


@dataclass(frozen=True)
class Config(FineTuneConfig):
    """Fields carry the paper's settings for the MuJoCo locomotion data; other domains are presets (its appendix B)."""

    reward_scale: float = 0.0  # rewards are multiplied by this; 0: by 1000 / (range of the returns in the data)
    expectile: float = 0.7  # tau of V's loss: 0.5 is the mean of the data's actions, 1 the best of them
    beta: float = 3.0  # inverse temperature of the policy's weights
    max_weight: float = 100.0  # largest weight; the clipped share is logged
    dropout: float = 0.0  # share of each hidden layer of the policy that is dropped in training
    cosine_steps: int = 1_000_000  # updates over which the policy's learning rate falls to 0; 0: it stays


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "hidden": (64, 64), "learning_rate": 1e-3, "reward_scale": 0.1, "cosine_steps": 20_000},
    "antmaze": {
        "reward_scale": 1.0,
        "reward_shift": -1.0,
        "expectile": 0.9,
        "beta": 10.0,
        "evaluation_episodes": 100,
    },
    "kitchen": {"reward_scale": 1.0, "beta": 0.5, "dropout": 0.1},
    "finetune": {
        **LAPTOP,
        "hidden": (64, 64),
        "learning_rate": 1e-3,
        "reward_scale": 0.1,
        "cosine_steps": 0,
        "offline_steps": 10_000,
    },
    "smoke": {**SMOKE, "hidden": (16, 16), "offline_steps": 20},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers of the last evaluation."""
    data = open_data(config, run)
    agent = IQL(data.spec, config, run.stream("agent"))
    learn = fine_tune if config.offline_steps else learn_offline
    return learn(agent, data, transitions(config.gamma), config, run, make_reward(config, data.episodes))
