"""DQN: Q-learning with a network, a replay buffer and a target network that stands still for a while.

The network is trained towards r + gamma max Q'(s', .); in double DQN the network itself chooses that action and the
target gives its value, so that errors are less often taken for value. Exploration acts at random with a probability
that falls.

What differs from the papers: Adam in place of RMSProp, rewards are not clipped, observations are whatever the
environment gives (images go through a small CNN; frames are not stacked). The exploration begins to fall after the
warm-up.

Order of an update: one loss; every `target_every` updates the target is moved.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import DQN
from zerozoo.control.build import learn_online, make_world
from zerozoo.control.settings import LAPTOP, SMOKE, OffPolicyConfig
from zerozoo.runs.run import Run

PAPER = "Human-level control through deep reinforcement learning (2015), Nature 518; double DQN, arXiv 1509.06461"


@dataclass(frozen=True)
class Config(OffPolicyConfig):
    """Fields carry the settings of the Nature paper."""

    environment: str = "CartPole-v1"  # a world or a gymnasium id with discrete actions
    hidden: tuple[int, ...] = (512,)  # hidden layers
    learning_rate: float = 2.5e-4  # of Adam
    batch_size: int = 32  # rows of a batch
    warmup: int = 50_000  # steps of random actions before the first update
    updates_per_step: float = 0.25  # updates for each step in the environment
    tau: float = 1.0  # how far the target moves; 1 is a copy
    target_every: int = 10_000  # updates between moves of the target
    double: bool = True  # the network chooses the action of the target, the target network gives its value
    epsilon_start: float = 1.0  # probability of a random action at first
    epsilon_end: float = 0.1  # and at last
    epsilon_steps: int = 1_000_000  # actions over which it falls


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        **LAPTOP,
        "steps": 50_000,
        "evaluate_every": 10_000,
        "checkpoint_every": 25_000,
        "log_every": 1_000,
        "hidden": (128, 128),
        "learning_rate": 5e-4,
        "batch_size": 128,
        "copies": 4,
        "warmup": 1_000,
        "updates_per_step": 0.5,
        "tau": 0.01,
        "target_every": 1,
        "epsilon_end": 0.05,
        "epsilon_steps": 10_000,
        "capacity": 50_000,
    },
    "smoke": {**SMOKE, "hidden": (16, 16), "warmup": 20, "copies": 2, "target_every": 3, "epsilon_steps": 10},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers of the last evaluation."""
    world = make_world(config)
    agent = DQN(world.spec(), config, run.stream("agent"))
    return learn_online(agent, world, config, run)
