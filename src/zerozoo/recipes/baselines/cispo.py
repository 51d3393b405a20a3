"""CISPO: clip the importance weight and not the gradient.

PPO's clip silences the tokens that change most, and in reasoning these are the rare ones at which a thought turns
("however", "wait"). CISPO multiplies the log-likelihood by a weight of bounded size, so every token goes on learning.

    loss        L = -1/(sum_i |y_i|) sum_i sum_t sg[ min(rho_it, 1 + eps) ] A_i log pi(y_it),   A_i as in GRPO

What differs from the paper: it adds DAPO's dynamic sampling and length penalty, here `--refill-rounds` and nothing. It
does not state eps; 4 is our choice. There is no preset `paper` for that reason.
"""

from dataclasses import dataclass, replace
from typing import Any

from zerozoo.language import settings
from zerozoo.language.algorithm import CLIPPED_WEIGHT
from zerozoo.language.build import make_algorithm
from zerozoo.language.training import complete, plan_zero_rl, train_zero_rl
from zerozoo.runs.run import Run

PAPER = "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention (2025), arXiv 2506.13585"


@dataclass(frozen=True)
class Config(settings.GroupConfig):
    """The fields of every recipe on the zero-RL loop; here those of the paper."""

    clip_low: float = 1.0  # the weight is clipped below at 1 - clip_low; 1: not at all
    clip_high: float = 4.0  # and above at 1 + clip_high
    kl_coefficient: float = 0.0  # no reference model
    updates_per_step: int = 4  # gradient steps in a rollout; with 1 the weight is 1


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
    return train_zero_rl(config, run, replace(make_algorithm(config), policy_loss=CLIPPED_WEIGHT))


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    return plan_zero_rl(complete(config))
