"""TD3+BC: one cloning term added to TD3 makes it an offline method.

The policy climbs the critic and is held near the data's actions by their squared distance. A single number weighs the
two, made independent of the scale of the rewards: the critic's part is divided by the mean absolute value of the batch.
Everything else is TD3, on standardised observations.

What differs from the paper and its code: the deviation of an observation gets 1e-6 added in place of 1e-3, and the
critics' losses are summed (as in the code).

Order of an update: critics; in every second update then the policy, and after it all targets.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import TD3BC
from zerozoo.control.build import learn_offline, make_reward
from zerozoo.control.settings import LAPTOP, SMOKE, OfflineValueConfig
from zerozoo.control.sources import open_data
from zerozoo.control.views import transitions
from zerozoo.runs.run import Run

PAPER = "A Minimalist Approach to Offline Reinforcement Learning (2021), arXiv 2106.06860"


@dataclass(frozen=True)
class Config(OfflineValueConfig):
    """Fields carry the paper's defaults (table 3)."""

    normalise: bool = True  # see observations with mean 0 and deviation 1 over the data
    alpha: float = 2.5  # weight of the critic against cloning
    target_noise: float = 0.2  # deviation of the noise on the target action
    noise_clip: float = 0.5  # largest noise on the target action


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "hidden": (64, 64), "learning_rate": 1e-3},
    "smoke": {**SMOKE, "hidden": (16, 16)},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps` updates, resuming where the run directory stands; the numbers of the last evaluation."""
    data = open_data(config, run)
    agent = TD3BC(data.spec, config, run.stream("agent"))
    return learn_offline(agent, data, transitions(config.gamma), config, run, make_reward(config))
