"""GSPO: GRPO with the ratio of the whole response.

The reward belongs to the response, so the importance ratio and its clip should, too: the ratio is the geometric mean of
the token ratios, and a response whose ratio leaves its narrow range loses its gradient as a whole. Single tokens whose
ratio is noise, as with mixtures of experts, do no harm.

    ratio       s_i = ( pi(y_i) / pi_old(y_i) )^(1/|y_i|) = exp( mean over t of log pi - log pi_old )
    loss        L = 1/N sum_i max( -A_i s_i, -A_i clip(s_i, 1 - 3e-4, 1 + 4e-4) ),   A_i as in GRPO

What differs from the paper: rollouts of `prompts_per_step` problems in place of its unstated batch, cut into its four
mini-batches. In the first of them the ratio is exactly 1. There is no preset `paper`: it trains a mixture of experts
and states no other numbers.
"""

from dataclasses import dataclass, replace
from typing import Any

from zerozoo.language import settings
from zerozoo.language.algorithm import SEQUENCE_RATIO
from zerozoo.language.build import make_algorithm
from zerozoo.language.training import complete, plan_zero_rl, train_zero_rl
from zerozoo.runs.run import Run

PAPER = "Group Sequence Policy Optimization (2025), arXiv 2507.18071"


@dataclass(frozen=True)
class Config(settings.GroupConfig):
    """The fields of every recipe on the zero-RL loop; here those of the paper."""

    aggregation: str = "sequence-mean"  # every response weighs the same
    clip_low: float = 3e-4  # the ratio of a response is clipped below at 1 - clip_low
    clip_high: float = 4e-4  # and above at 1 + clip_high
    kl_coefficient: float = 0.0  # no reference model
    updates_per_step: int = 4  # gradient steps in a rollout; with 1 the ratio is 1


EXTENDABLE = settings.EXTENDABLE
_FOUR = {"kl_coefficient": 0.0, "updates_per_step": 4}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**settings.LAPTOP, **_FOUR},
    "tiny": {**settings.TINY, **_FOUR},
    "smoke": {**settings.SMOKE, **_FOUR},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics."""
    config = complete(config)
    return train_zero_rl(config, run, replace(make_algorithm(config), policy_loss=SEQUENCE_RATIO))


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    return plan_zero_rl(complete(config))
