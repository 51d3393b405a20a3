"""Zero RL: reinforcement learning straight from a base model, with a rule that checks the final answer.

SimpleRL-Zoo (Zeng et al. 2025). For every problem the model writes a group of responses; a rule says which final
answers are right; GRPO moves probability from the worse to the better responses of each group. There is no supervised
stage, no reward model and no reward for form: a right answer counts however it is written.

Objective (equation 1 of the paper, M1 of the card): the clipped surrogate of PPO on group-normalised rewards, one mean
over all response tokens of the mini-batch, and a k3 penalty for leaving the base model.

What differs from the paper and its code, and why:

* The token mean runs over the whole mini-batch, as the paper writes it. The released code averages inside micro-batches
  of two responses first, so its result depends on how many fit on a GPU.
* The entropy bonus of the released script (0.001), which the paper does not mention, is in the preset `released` only.
* Old log-probs are recomputed only when a rollout is used for more than one gradient step; before that they equal the
  new ones exactly.
* Groups whose rewards are all equal are left out of the update when no KL or entropy term gives them a gradient. Their
  advantages are zero, so this changes no gradient; an optimiser step without any other group is not taken.
* The response is judged without its prompt. The released code parses prompt and response together for the simple
  prompt, so an empty response can earn the reward with a number of the question.
* A response that ends with a stop word is masked right there; in the released code the first padding token after it
  counts as a token of the response.

Not reproduced here: the ten models of the paper (7B and more need GPUs); `--preset paper --plan` shows what would run.
"""

from dataclasses import dataclass
from typing import Any

from zerozoo.language import settings
from zerozoo.language.build import make_algorithm
from zerozoo.language.training import complete, plan_zero_rl, train_zero_rl
from zerozoo.runs.claims import Claim, all_of, difference_claim, require_mean
from zerozoo.runs.run import Run

PAPER = "SimpleRL-Zoo: Investigating and Taming Zero RL for Open Base Models in the Wild (2025), arXiv 2503.18892"


@dataclass(frozen=True)
class Config(settings.GroupConfig):
    """The paper's defaults, where they are its own; the other fields are those of every recipe on this loop."""

    prompts_per_step: int = 1024  # problems in a step
    samples_per_prompt: int = 8  # responses to each, the group
    advantage: str = "group-normalised"  # or group-centred, leave-one-out, batch-scaled
    aggregation: str = "token-mean"  # or sequence-mean, constant (divides by max_new_tokens)
    clip_low: float = 0.2  # the ratio is clipped below at 1 - clip_low
    clip_high: float = 0.2  # and above at 1 + clip_high
    kl_coefficient: float = -1.0  # 0: no reference model; -1: the model's row (1e-3 above 14B), else 1e-4
    updates_per_step: int = 4  # gradient steps in a rollout, each on its share of the problems
    learning_rate: float = 5e-7  # of AdamW


EXTENDABLE = settings.EXTENDABLE
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": settings.LAPTOP,
    "tiny": settings.TINY,
    "paper": {},
    "released": {"entropy_coefficient": 0.001},
    "smoke": settings.SMOKE,
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics."""
    config = complete(config)
    return train_zero_rl(config, run, make_algorithm(config))


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    return plan_zero_rl(complete(config))


CLAIM = (
    Claim(
        statement="A strict format penalty lowers the ceiling of zero RL"
        " for a base model that rarely follows the format.",
        arms={"correctness": {}, "strict": {"reward": "strict"}, "base": {"steps": 0}},
        metric="heldout/sampled_accuracy",
        holds=all_of(
            difference_claim(
                "correctness",
                "strict",
                precondition=require_mean("base", 0.01, 0.08, metric="heldout/sampled_box_ratio"),
            ),
            difference_claim("correctness", "base", threshold=0.15),
        ),
        seeds=(0, 1, 2, 3, 4),
        budget="15 trainings of the tiny base model on one core, a few minutes each",
        base=settings.TINY,
        smoke=PRESETS["smoke"],
        name="format",
        curve="heldout/greedy_accuracy",
    ),
    Claim(
        statement="A weak base model learns more from an easy training split than from a hard one.",
        arms={"easy": {"split": "easy"}, "hard": {"split": "hard"}},
        metric="heldout/sampled_accuracy",
        holds=difference_claim(
            "easy", "hard", precondition=require_mean("hard", 0.7, 1.0, metric="mean/groups/all_wrong")
        ),
        seeds=(0, 1, 2, 3, 4),
        budget="10 trainings of the tiny base model on one core, a few minutes each",
        base={**settings.TINY, "heldout": "mixed"},
        smoke=PRESETS["smoke"],
        name="difficulty",
        curve="heldout/greedy_accuracy",
    ),
)
