"""ReBRAC: TD3+BC with its cloning terms taken apart, and the details that later work found to matter.

The distance to the data's action is penalised in the policy's loss and, with a weight of its own, in the critic's
target. Deeper networks, LayerNorm in the critic, larger batches and larger rates do the rest. The two weights are tuned
for each data set.

What differs from the paper and its code: where a recording stopped there is no next action of the data, and the target
has no penalty; the code takes the first action of the next episode there (trap 13).

Order of an update: critics; in every second update then the policy, and after it all targets.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import ReBRAC
from zerozoo.control.build import learn_offline, make_reward
from zerozoo.control.settings import LAPTOP, SMOKE, OfflineValueConfig
from zerozoo.control.sources import open_data
from zerozoo.control.views import transitions
from zerozoo.runs.run import Run

PAPER = "Revisiting the Minimalist Approach to Offline Reinforcement Learning (2023), arXiv 2305.09836"


@dataclass(frozen=True)
class Config(OfflineValueConfig):
    """Fields carry the paper's settings for hopper-medium; its appendix has the two weights of the other data sets."""

    batch_size: int = 1024  # rows of a batch
    hidden: tuple[int, ...] = (256, 256, 256)  # hidden layers of every network
    learning_rate: float = 1e-3  # of the critics
    policy_learning_rate: float = 1e-3  # of the policy
    layer_norm: bool = True  # in the critics
    actor_bc: float = 0.01  # weight of the squared distance to the data's action in the policy's loss
    critic_bc: float = 0.001  # weight of the squared distance to the data's next action in the target
    target_noise: float = 0.2  # deviation of the noise on the target action
    noise_clip: float = 0.5  # largest noise on the target action


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "hidden": (64, 64), "batch_size": 256, "actor_bc": 0.1, "critic_bc": 0.0},
    "antmaze": {
        "batch_size": 256,
        "gamma": 0.999,
        "learning_rate": 5e-5,
        "policy_learning_rate": 3e-4,
        "actor_bc": 0.003,
        "critic_bc": 0.0,
        "reward_scale": 100.0,
        "evaluation_episodes": 100,
    },
    "smoke": {**SMOKE, "hidden": (16, 16)},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps` updates, resuming where the run directory stands; the numbers of the last evaluation."""
    data = open_data(config, run)
    agent = ReBRAC(data.spec, config, run.stream("agent"))
    view = transitions(config.gamma, next_action=True)
    return learn_offline(agent, data, view, config, run, make_reward(config))
