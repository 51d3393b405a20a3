"""Decision transformer: reinforcement learning as the continuation of sequences.

A causal transformer reads returns to go, observations and actions of the last steps, and learns to give the recorded
action. When it acts it is told a high return, which falls by what it earns, and so it acts like the episodes that
reached it. No value is learned and nothing is bootstrapped.

What differs from the paper and its code: windows end at the drawn step, as the context does when it acts (the loader of
the code draws the first step); actions of the padding are not in the loss; GELU in place of ReLU in the blocks.

Order of an update: one loss, the mean squared error of all actions of a window (cross-entropy for discrete ones).
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import DecisionTransformer
from zerozoo.control.build import learn_offline
from zerozoo.control.settings import LAPTOP, SMOKE, OfflineConfig
from zerozoo.control.sources import open_data
from zerozoo.control.views import sequences
from zerozoo.runs.run import Run

PAPER = "Decision Transformer: Reinforcement Learning via Sequence Modeling (2021), arXiv 2106.01345"


@dataclass(frozen=True)
class Config(OfflineConfig):
    """Fields carry the settings for OpenAI Gym (its table 9)."""

    steps: int = 100_000  # updates
    normalise: bool = True  # see observations with mean 0 and deviation 1 over the data
    batch_size: int = 64  # windows of a batch
    learning_rate: float = 1e-4  # of Adam with decoupled weight decay
    weight_decay: float = 1e-4  # of all parameters
    warmup_updates: int = 10_000  # over which the learning rate rises from 0
    max_gradient_norm: float = 0.25  # longer gradients are scaled down to it
    length: int = 20  # steps of a window, and of the memory when it acts
    longest: int = 1_000  # numbers of steps that have embeddings of their own
    width: int = 128  # of tokens
    blocks: int = 3  # of the transformer
    heads: int = 1  # of attention
    dropout: float = 0.1  # in the residual branches
    return_scale: float = 1_000.0  # returns are divided by this
    target_return: float | None = None  # asked for when acting; None: the best return in the data


EXTENDABLE = ("steps", "checkpoint_every")
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        **LAPTOP,
        "steps": 5_000,
        "evaluate_every": 2_500,
        "checkpoint_every": 2_500,
        "learning_rate": 1e-3,
        "warmup_updates": 500,
        "length": 10,
        "width": 64,
        "blocks": 2,
        "heads": 2,
        "longest": 200,
        "return_scale": 500.0,
    },
    "smoke": {**SMOKE, "length": 4, "width": 16, "blocks": 1, "longest": 200, "warmup_updates": 5},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps` updates, resuming where the run directory stands; the numbers of the last evaluation."""
    data = open_data(config, run)
    agent = DecisionTransformer(data.spec, config, run.stream("agent"))
    best = float(data.episodes.returns().max())
    agent.aim(best if config.target_return is None else config.target_return)
    return learn_offline(agent, data, sequences(config.length), config, run)
