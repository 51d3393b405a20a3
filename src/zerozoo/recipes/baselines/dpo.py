"""DPO: learn from pairs of a better and a worse response, with no reward model and no sampling in the loop.

The policy's own log-ratio to a frozen reference stands for the reward; a logistic loss widens the gap of that reward
between the chosen and the rejected response. The optimum is that of RL with the reward of a Bradley-Terry judge and a
KL penalty of weight beta.

Pairs come from a JSONL file, or are drawn: the untrained policy answers every problem several times, and right
responses are set against wrong ones to the same problem. The reference is the policy before its first update; its
log-probs are computed once and kept in the run directory.

What differs from the paper and its code: AdamW in place of RMSprop, warm-up over a share of the steps and not over 150,
the learning rate of the code, gradients cut at norm 1 (10 in the code). Watch `preference/both_fell`: DPO may lower
both log-probs of a pair.

The preset `tulu` is the length-normalised form of Tulu 3 (log-ratios per token, beta 5), with its settings.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language.preference_loop import dpo_loss
from zerozoo.language.tuning import LAPTOP, SMOKE, TINY, PairConfig, describe_tuning, fit_pairs, open_bench
from zerozoo.runs.run import Run

PAPER = "Direct Preference Optimization: Your Language Model is Secretly a Reward Model (2023), arXiv 2305.18290"


@dataclass(frozen=True)
class Config(PairConfig):
    """Fields carry the paper's beta and batch and the learning rate of its code."""

    beta: float = 0.1  # how much the reference holds the policy, in 1/nat
    length_normalised: bool = False  # log-ratios per token; beta is then about 5
    batch_size: int = 64  # pairs of a gradient step
    learning_rate: float = 5e-7  # of AdamW
    schedule: str = "constant"  # after the warm-up; or linear or cosine, down to 0


EXTENDABLE = ("checkpoint_every",)
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**LAPTOP, "samples_per_prompt": 4, "learning_rate": 1e-5},
    "tiny": {**TINY, "samples_per_prompt": 4, "learning_rate": 1e-4},
    "tulu": {"length_normalised": True, "beta": 5.0, "batch_size": 128, "schedule": "linear"},
    "smoke": {**SMOKE, "samples_per_prompt": 4, "problems": 20, "learning_rate": 1e-4},
}
plan = describe_tuning


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to the last step, resuming where the run directory stands; the newest value of every metric."""
    with open_bench(config, run) as bench:
        return fit_pairs(bench, dpo_loss(config.beta, config.length_normalised))
