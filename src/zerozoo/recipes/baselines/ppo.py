"""PPO: on-policy learning with a clipped ratio in place of a trust region.

Several copies play for a while, generalised advantage estimation says how much better each action was than expected,
and a few epochs of minibatches raise the probability of the better ones until it has changed by more than the clip.

What differs from the paper and from common implementations: truncated episodes and cut rollouts are bootstrapped from
their true successors (many bootstrap nothing or the first state of the next episode, traps 1 to 4); policy and value
are two networks with an optimiser and a largest gradient norm each; observations are standardised with one scale for
all copies, which is saved with the policy (trap 7). There is no clip of the value loss and no normalisation of rewards.

Order of an update: policy, then state value, for each minibatch.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import PPO
from zerozoo.control.build import loop_fields, make_reward, make_world
from zerozoo.control.on_policy import OnPolicyLoop
from zerozoo.control.settings import LAPTOP, SMOKE, OnlineConfig
from zerozoo.runs.run import Run

PAPER = "Proximal Policy Optimization Algorithms (2017), arXiv 1707.06347"


@dataclass(frozen=True)
class Config(OnlineConfig):
    """Fields carry the paper's settings for MuJoCo (its table 3)."""

    hidden: tuple[int, ...] = (64, 64)  # hidden layers of both networks, with tanh
    batch_size: int = 64  # rows of a minibatch
    rollout: int = 2048  # steps of each copy before an update
    epochs: int = 10  # how often a rollout is gone through
    lam: float = 0.95  # lambda of the advantages
    clip: float = 0.2  # the ratio is clipped to 1 - clip and 1 + clip
    entropy_coefficient: float = 0.0  # bonus for entropy
    max_gradient_norm: float = 0.5  # of each network; longer gradients are scaled down to it
    normalise_advantage: bool = True  # to mean 0 and deviation 1 in every minibatch
    normalise: bool = True  # see observations in their running scale
    falls_until: int = 0  # updates over which the learning rate falls linearly to 0; 0: it stays


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {  # rl-baselines3-zoo's settings for CartPole-v1
        **LAPTOP,
        "environment": "CartPole-v1",
        "steps": 100_096,
        "evaluate_every": 20_000,
        "checkpoint_every": 50_000,
        "log_every": 2_000,
        "copies": 8,
        "rollout": 32,
        "batch_size": 256,
        "epochs": 20,
        "gamma": 0.98,
        "lam": 0.8,
        "learning_rate": 1e-3,
        "falls_until": 391 * 20,
        "normalise": False,
    },
    "smoke": {**SMOKE, "hidden": (16, 16), "copies": 2, "rollout": 10, "batch_size": 10, "epochs": 2},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the numbers of the last evaluation."""
    world = make_world(config)
    return OnPolicyLoop(
        agent=PPO(world.spec(), config, run.stream("agent")),
        environment=world.vector(config.copies, run.streams.numpy("environment")),
        rollout=config.rollout,
        epochs=config.epochs,
        batch_size=config.batch_size,
        gamma=config.gamma,
        lam=config.lam,
        reward=make_reward(config),
        **loop_fields(config, run, world),
    ).train()
