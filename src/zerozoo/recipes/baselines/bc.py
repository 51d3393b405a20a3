"""Behavioural cloning: supervised learning of the data's actions, with no reward at all.

The policy is the one that makes the recorded actions most likely. That is as good as the data where the data is narrow
and expert, and averages over good and bad actions where it is mixed. With `best_share` only the best episodes are
cloned (%BC): a first thing to try before any offline reinforcement learning.

What differs from the papers: nothing is fixed by one; the network and the number of updates are those that D4RL and
TD3+BC gave their BC baselines. The policy is a Gaussian with one learned deviation a dimension, so that its mean is the
regression of those papers; discrete actions get a categorical policy.

Order of an update: one loss, -log pi(a | s).
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import BC
from zerozoo.control.build import learn_offline
from zerozoo.control.episodes import Episodes
from zerozoo.control.settings import LAPTOP, SMOKE, OfflineConfig
from zerozoo.control.sources import Data, open_data
from zerozoo.control.views import transitions
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = "ALVINN: An Autonomous Land Vehicle in a Neural Network (1988); as a baseline D4RL (2020), arXiv 2004.07219"


@dataclass(frozen=True)
class Config(OfflineConfig):
    """Fields carry the settings of the baselines in D4RL and TD3+BC."""

    steps: int = 500_000  # updates
    hidden: tuple[int, ...] = (256, 256)  # hidden layers of the policy
    dropout: float = 0.0  # share of each hidden layer that is dropped in training
    best_share: float = 1.0  # the share of the episodes that are cloned, those with the highest returns


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "hidden": (64, 64), "learning_rate": 1e-3},
    "percent": {"best_share": 0.1},
    "smoke": {**SMOKE, "hidden": (16, 16)},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps` updates, resuming where the run directory stands; the numbers of the last evaluation."""
    data = open_data(config, run)
    chosen = Data(best(data.episodes, config.best_share), data.spec, data.world)
    agent = BC(data.spec, config, run.stream("agent"))
    return learn_offline(agent, chosen, transitions(), config, run)


def best(episodes: Episodes, share: float) -> Episodes:
    """The `share` of the episodes with the highest returns, at least one; earlier ones first among equals."""
    if not 0 < share <= 1:
        raise UserError(f"best_share must lie above 0 and not above 1, but is {share}.")
    number = max(1, round(share * episodes.episodes))
    return episodes.select(sorted((-episodes.returns()).argsort(kind="stable")[:number]))
