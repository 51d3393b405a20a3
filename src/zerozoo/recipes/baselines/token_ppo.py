"""PPO for language models: a critic says at every token how much reward is still to be expected.

Each token is an action. A second network with a scalar head learns the expected reward after every prefix; generalised
advantage estimation turns its surprises into credit for single tokens, where group methods give one number to a whole
response. (The recipe `ppo` is the same method for control.)

    reward      r_it = [t is the last token] r_i - beta ( log pi_old(y_it) - log ref(y_it) )
    advantage   A_it = sum_{s >= t} (gamma lambda)^(s - t) d_is,  d_it = r_it + gamma V_i,t+1 - V_it;  whitened
    losses      policy: 1/M sum max( -A rho, -A clip(rho, 1 - 0.2, 1 + 0.2) ),   M tokens
                critic: 1/M sum max( (V - G)^2, (V_clip - G)^2 ) / 2,   G_it = A_it + V_it before whitening

Defaults are those of Open-Reasoner-Zero, PPO straight from a base model: lambda 1, no KL, many responses to a problem,
one gradient step of the policy and twelve of the critic. VAPO's length-adaptive lambda is `--length-alpha 0.05`.

What differs from the paper: the value of the state in which a response was cut off stands for what would have come
(`--no-bootstrap` gives the paper's zero); the values of the critic are clipped as in PPO's own code; rewards need no
answer tags; problems and prompt are those of the model's row in the zoo table.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language import settings
from zerozoo.language.build import make_objective
from zerozoo.language.training import complete, plan_with_critic, train_with_critic
from zerozoo.runs.run import Run

PAPER = "Open-Reasoner-Zero: Scaling Up Reinforcement Learning on the Base Model (2025), arXiv 2503.24290"


@dataclass(frozen=True)
class Config(settings.CriticConfig):
    """The paper's defaults; those of the critic are in `settings.CriticConfig`."""

    prompts_per_step: int = 128  # problems in a step
    samples_per_prompt: int = 64  # responses to each; 1 is enough
    max_prompt_tokens: int = 2048  # longer problems are dropped
    kl_coefficient: float = 0.0  # 0: no reference model
    kl_place: str = "reward"  # the KL lowers the reward of each token
    kl_estimator: str = "k1"  # log pi_old - log ref
    updates_per_step: int = 1  # gradient steps of the policy in a rollout
    learning_rate: float = 1e-6  # of AdamW, of the policy
    warmup_steps: int = 50  # steps in which both learning rates rise from 0


_SMALL = {"samples_per_prompt": 8, "warmup_steps": 0, "critic_updates": 4}
EXTENDABLE = settings.EXTENDABLE
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**settings.LAPTOP, **_SMALL, "critic_learning_rate": 3e-5},
    "tiny": {**settings.TINY, **_SMALL, "critic_learning_rate": 1e-3},
    "paper": {"model": "Qwen/Qwen2.5-7B", "max_new_tokens": 8000, "bootstrap": False},
    "smoke": {**_SMALL, **settings.SMOKE, "critic_learning_rate": 1e-3},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics."""
    config = complete(config)
    return train_with_critic(config, run, make_objective(config))


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    return plan_with_critic(complete(config))
