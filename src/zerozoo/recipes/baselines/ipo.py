"""IPO: preferences learned towards a finite gap, where DPO would widen it for ever.

The difference of the log-ratios of the chosen and the rejected response is led to 1 / (2 tau) by a squared loss. So a
pair that is always ranked alike stops pulling once its gap is there, and the policy stays near the reference.

Pairs and reference are those of DPO (see there).

What differs from the paper: it has no language models and so no settings for them; tau, batch and learning rate are
common ones. Log-probs are sums over the tokens, as in the paper's formula (some libraries take means, which makes tau
another number).
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language.preference_loop import ipo_loss
from zerozoo.language.tuning import LAPTOP, SMOKE, TINY, PairConfig, describe_tuning, fit_pairs, open_bench
from zerozoo.runs.run import Run

PAPER = "A General Theoretical Paradigm to Understand Learning from Human Preferences (2023), arXiv 2310.12036"


@dataclass(frozen=True)
class Config(PairConfig):
    """Common settings; the paper has none for language models."""

    tau: float = 0.1  # how much the reference holds the policy: the gap goes to 1 / (2 tau) nats
    batch_size: int = 64  # pairs of a gradient step
    learning_rate: float = 5e-7  # of AdamW
    schedule: str = "constant"  # after the warm-up; or linear or cosine, down to 0


EXTENDABLE = ("checkpoint_every",)
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "samples_per_prompt": 4, "learning_rate": 1e-5},
    "tiny": {**TINY, "samples_per_prompt": 4, "learning_rate": 1e-4},
    "smoke": {**SMOKE, "samples_per_prompt": 4, "problems": 20, "learning_rate": 1e-4},
}
plan = describe_tuning


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to the last step, resuming where the run directory stands; the newest value of every metric."""
    with open_bench(config, run) as bench:
        return fit_pairs(bench, ipo_loss(config.tau))
