"""DAPO: GRPO with four repairs for long responses.

The upper clip is wider than the lower one, so that rare tokens can become common; groups that are all right or all
wrong are replaced by fresh problems; the mean runs over all tokens, so that long responses weigh what they are; and
responses near the limit lose reward bit by bit before they are cut off.

    reward      r'_i = r_i + p(|y_i|) / 2,   p = 0 up to L - B tokens, then falling in a line to -1 at L, the limit
    advantage   A_i = (r'_i - mean of the group) / (std of the group + 1e-6)
    loss        L = 1/(sum_i |y_i|) sum_i sum_t max( -A_i rho_it, -A_i clip(rho_it, 1 - 0.2, 1 + 0.28) )

What differs from the paper: right and wrong earn 1 and 0 in place of 1 and -1, hence half of p, which gives the same
advantages; sampling of fresh problems stops after `refill_rounds` rounds. As in the paper the verdicts alone decide
which groups are replaced. Preset `paper` has its numbers, with the problems and the prompt of the model's row in the
zoo table in place of DAPO-Math-17K.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zerozoo.language import settings
from zerozoo.language.build import make_algorithm
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.training import complete, plan_zero_rl, train_zero_rl
from zerozoo.losses.sequence_policy import overlong_penalty
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = "DAPO: An Open-Source LLM Reinforcement Learning System at Scale (2025), arXiv 2503.14476"


@dataclass(frozen=True)
class Config(settings.GroupConfig):
    """The fields of every recipe on the zero-RL loop; here those of the paper."""

    prompts_per_step: int = 512  # problems in a step
    samples_per_prompt: int = 16  # responses to each, the group
    updates_per_step: int = 16  # gradient steps in a rollout
    clip_high: float = 0.28  # the ratio is clipped above at 1 + clip_high
    kl_coefficient: float = 0.0  # no reference model
    refill_rounds: int = 10  # most extra rounds that replace groups of equal rewards (dynamic sampling)
    learning_rate: float = 1e-6  # of AdamW
    warmup_steps: int = 20  # steps in which it rises from 0
    overlong_buffer: int = 4096  # last tokens before max_new_tokens over which reward is lost; 0: none is


_SMALL = {"samples_per_prompt": 8, "refill_rounds": 2, "warmup_steps": 0}
_TINY = {"kl_coefficient": 0.0, "overlong_buffer": 16}
EXTENDABLE = settings.EXTENDABLE
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**settings.LAPTOP, **_SMALL, "updates_per_step": 4, "overlong_buffer": 4},
    "tiny": {**settings.TINY, **_SMALL, **_TINY, "updates_per_step": 4},
    "paper": {"model": "Qwen/Qwen2.5-32B", "max_new_tokens": 20480},
    "smoke": {**_SMALL, **settings.SMOKE, **_TINY, "updates_per_step": 2},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics."""
    config = complete(config)
    longest, buffer = config.max_new_tokens, config.overlong_buffer
    if not 0 <= buffer <= longest:
        raise UserError(f"overlong_buffer is {buffer}, but must lie between 0 and max_new_tokens, {longest}.")

    def overlong(rollouts: Rollouts) -> Tensor:
        return overlong_penalty(rollouts.samples.lengths, longest, buffer) / 2

    return train_zero_rl(config, run, make_algorithm(config), extra_reward=overlong if buffer else None)


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    return plan_zero_rl(complete(config))
