"""RLOO: REINFORCE with the mean of the other responses as the baseline of each.

Several responses are sampled for a prompt, and each is compared with the mean reward of the others: an unbiased
baseline that needs no critic. A response is one action, so its log-prob is the sum over its tokens, however many.

    advantage   A_i = r'_i - 1/(G - 1) sum of the other r'_j of the group,   r'_i = r_i - beta log( pi(y_i) / ref(y_i) )
    loss        L = -1/N sum_i A_i log pi(y_i)            divided by max_new_tokens, so that rates are those of others

What differs from the paper: the loss is the clipped surrogate. With one gradient step a rollout, as here, the ratio is
exactly 1 and the gradient is REINFORCE's; with more steps the clip keeps the policy near the one that sampled. Rewards
come from a verifier, not from a model of preferences. beta is that of the model's row in the zoo table.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language import settings
from zerozoo.language.build import make_algorithm
from zerozoo.language.training import complete, plan_zero_rl, train_zero_rl
from zerozoo.runs.run import Run

PAPER = (
    "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs (2024), "
    "arXiv 2402.14740"
)


@dataclass(frozen=True)
class Config(settings.GroupConfig):
    """The fields of every recipe on the zero-RL loop; here those that make it RLOO."""

    advantage: str = "leave-one-out"  # of each response against the others of its group
    aggregation: str = "constant"  # sums over responses, divided by the fixed max_new_tokens
    samples_per_prompt: int = 4  # responses to each problem; the paper has 2 and 4
    kl_place: str = "reward"  # the KL lowers the reward of the response
    kl_estimator: str = "k1"  # its sum is the log-ratio of the whole response
    updates_per_step: int = 1  # gradient steps in a rollout


EXTENDABLE = settings.EXTENDABLE
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**settings.LAPTOP, "samples_per_prompt": 8},
    "tiny": {**settings.TINY, "samples_per_prompt": 8},
    "smoke": settings.SMOKE,
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics."""
    config = complete(config)
    return train_zero_rl(config, run, make_algorithm(config))


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    return plan_zero_rl(complete(config))
