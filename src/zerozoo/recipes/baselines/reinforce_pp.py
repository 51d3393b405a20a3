"""REINFORCE++: REINFORCE with PPO's clip, a KL at every token, and one normalisation over the whole batch.

There is neither a critic nor a group. Each token's return is the reward of the response less the KL that is still to
come, and all returns of the step together get mean 0 and deviation 1: a baseline that no small group can distort.

    return      R_it = r_i - beta sum_{s >= t} ( log pi_old(y_is) - log ref(y_is) )
    advantage   A_it = (R_it - mean) / std,     both over all tokens of the step
    loss        L = 1/(sum_i |y_i|) sum_i sum_t max( -A_it rho_it, -A_it clip(rho_it, 1 - 0.2, 1 + 0.2) )

What differs from the paper: more than one response to a prompt, so that a step costs what it does with the group
methods (`--samples-per-prompt 1` is the paper's); beta is that of the model's row in the zoo table. Its variant with a
baseline is `simplerl-zoo --advantage batch-scaled --kl-estimator k2`.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language import settings
from zerozoo.language.build import make_objective
from zerozoo.language.credit import ReturnCredit
from zerozoo.language.training import complete, plan_zero_rl, train_zero_rl
from zerozoo.runs.run import Run

PAPER = (
    "REINFORCE++: An Efficient RLHF Algorithm with Robustness to Both Prompt and Reward Models (2025), arXiv 2501.03262"
)


@dataclass(frozen=True)
class Config(settings.ZeroRLConfig):
    """The fields of every recipe on the zero-RL loop; here those that make it REINFORCE++."""

    kl_place: str = "reward"  # the KL lowers the reward of each token
    kl_estimator: str = "k1"  # log pi_old - log ref

    @property
    def advantage(self) -> str:
        """What the plan calls it."""
        return "whitened token-return"


EXTENDABLE = settings.EXTENDABLE
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": settings.LAPTOP,
    "tiny": settings.TINY,
    "smoke": settings.SMOKE,
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics."""
    config = complete(config)
    return train_zero_rl(config, run, make_objective(config), credit=lambda parts: ReturnCredit())


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    return plan_zero_rl(complete(config))
