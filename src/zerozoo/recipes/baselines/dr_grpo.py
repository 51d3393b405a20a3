"""Dr. GRPO: GRPO without the two divisions that bend its gradient.

GRPO divides each response's loss by its length, which makes long wrong responses cheap, and its advantage by the
deviation of the group, which makes nearly solved and nearly hopeless problems dear. Without both, what is left is the
unbiased policy gradient with the group's mean as its baseline.

    advantage   A_i = r_i - mean of the group
    loss        L = 1/(N c) sum_i sum_t max( -A_i rho_it, -A_i clip(rho_it, 1 - 0.2, 1 + 0.2) ),   c = max_new_tokens

What differs from the paper: nothing in the objective. Preset `paper` is the script for Qwen2.5-Math-7B on MATH levels 3
to 5, with the prompt of the model's row in the zoo table in place of its three templates; its template without any
instruction is `--template {question}`.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language import settings
from zerozoo.language.build import make_algorithm
from zerozoo.language.training import complete, plan_zero_rl, train_zero_rl
from zerozoo.runs.run import Run

PAPER = "Understanding R1-Zero-Like Training: A Critical Perspective (2025), arXiv 2503.20783"


@dataclass(frozen=True)
class Config(settings.GroupConfig):
    """The fields of every recipe on the zero-RL loop; here those of the paper."""

    advantage: str = "group-centred"  # not divided by the group's deviation
    aggregation: str = "constant"  # not divided by the response's length but by the fixed max_new_tokens
    prompts_per_step: int = 128  # problems in a step
    updates_per_step: int = 8  # gradient steps in a rollout
    kl_coefficient: float = 0.0  # no reference model
    learning_rate: float = 1e-6  # of AdamW


EXTENDABLE = settings.EXTENDABLE
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": settings.LAPTOP,
    "tiny": {**settings.TINY, "kl_coefficient": 0.0},
    "paper": {"model": "Qwen/Qwen2.5-Math-7B", "max_new_tokens": 3000},
    "smoke": {**settings.SMOKE, "kl_coefficient": 0.0},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics."""
    config = complete(config)
    return train_zero_rl(config, run, make_algorithm(config))


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    return plan_zero_rl(complete(config))
