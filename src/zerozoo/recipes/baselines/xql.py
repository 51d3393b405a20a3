"""Extreme Q-learning: the soft maximum over the data's actions by Gumbel regression.

If the errors of a maximum follow a Gumbel distribution, maximum likelihood gives a loss for V whose minimiser is
beta log E exp(Q / beta): the value of the best policy that stays near the data in the KL divergence. Q and policy are
trained as in IQL.

What differs from the paper and its code: of the variants in the code this is the one that its offline scripts run
(double critics, the loss shifted by its largest exponent, Huber loss of the critic at 20), without its options for
noise on actions and gradient penalties.

Order of an update: V, Q, policy, as in `iql`.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import XQL
from zerozoo.control.build import learn_offline, make_reward
from zerozoo.control.settings import LAPTOP, SMOKE, OfflineValueConfig
from zerozoo.control.sources import open_data
from zerozoo.control.views import transitions
from zerozoo.runs.run import Run

PAPER = "Extreme Q-Learning: MaxEnt RL without Entropy (2023), arXiv 2301.02328"


@dataclass(frozen=True)
class Config(OfflineValueConfig):
    """Fields carry the settings for the MuJoCo locomotion data (the authors' script mujoco_consistent.sh)."""

    reward_scale: float = 0.0  # rewards are multiplied by this; 0: by 1000 / (range of the returns in the data)
    value_beta: float = 2.0  # temperature of the soft maximum: small is near the best action, large near the mean
    value_clip: float = 7.0  # exponents of V's loss are cut here
    q_threshold: float = 20.0  # of the critic's Huber loss
    layer_norm: bool = True  # in critic and V
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
        "value_beta": 0.6,
        "beta": 10.0,
        "evaluation_episodes": 100,
    },
    "smoke": {**SMOKE, "hidden": (16, 16)},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps` updates, resuming where the run directory stands; the numbers of the last evaluation."""
    data = open_data(config, run)
    agent = XQL(data.spec, config, run.stream("agent"))
    return learn_offline(agent, data, transitions(config.gamma), config, run, make_reward(config, data.episodes))
