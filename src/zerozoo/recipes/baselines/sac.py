"""Soft actor-critic: off-policy learning of a stochastic policy that is paid for its entropy.

Twin critics bound the value from below, the policy maximises value plus entropy, and the weight of the entropy is
learned so that the entropy keeps its target. Experience is kept and learned from many times.

What differs from the paper: the version of 1812.05905 with a learned temperature and without a separate state value;
tanh leads the log-deviation into [-5, 2] in place of a clip at [-20, 2].

Order of an update: critics, then policy and temperature on one draw of actions, then the target.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import SAC
from zerozoo.control.build import learn_online, make_world
from zerozoo.control.settings import LAPTOP, SMOKE, OffPolicyConfig
from zerozoo.runs.run import Run

PAPER = "Soft Actor-Critic Algorithms and Applications (2018), arXiv 1812.05905"


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Fields carry the paper's defaults (its appendix D)."""

    temperature: float = 1.0  # weight of the entropy at the beginning
    learn_temperature: bool = True  # so that the entropy keeps its target
    entropy_per_dimension: float = -1.0  # target of the entropy, for each dimension of an action


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "hidden": (64, 64), "learning_rate": 1e-3, "warmup": 1_000},
    "smoke": {**SMOKE, "hidden": (16, 16), "warmup": 20, "copies": 2},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers of the last evaluation."""
    world = make_world(config)
    agent = SAC(world.spec(), config, run.stream("agent"))
    return learn_online(agent, world, config, run)
