"""TD3: deterministic policy gradients, with three remedies against values that are too high.

The target takes the smaller of two critics; its action is smoothed by clipped noise, so that a sharp peak of the critic
counts for less; policy and targets move more slowly than the critics.

What differs from the paper and its code: nothing that we know of in the losses; the settings are those of the final
version (256-256, batch 256, 25,000 random steps).

Order of an update: critics; in every second update then the policy, and after it all targets.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import TD3
from zerozoo.control.build import learn_online, make_world
from zerozoo.control.settings import LAPTOP, SMOKE, OffPolicyConfig
from zerozoo.runs.run import Run

PAPER = "Addressing Function Approximation Error in Actor-Critic Methods (2018), arXiv 1802.09477"


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Fields carry the defaults of the authors' code."""

    warmup: int = 25_000  # steps of random actions before the first update
    exploration_noise: float = 0.1  # deviation of the noise on the policy's actions
    target_noise: float = 0.2  # deviation of the noise on the target action
    noise_clip: float = 0.5  # largest noise on the target action


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "hidden": (64, 64), "learning_rate": 1e-3, "warmup": 1_000},
    "smoke": {**SMOKE, "hidden": (16, 16), "warmup": 20, "copies": 2},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers of the last evaluation."""
    world = make_world(config)
    agent = TD3(world.spec(), config, run.stream("agent"))
    return learn_online(agent, world, config, run)
