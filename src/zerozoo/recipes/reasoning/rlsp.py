r"""RLSP: a reward for effort beside the reward for the right answer, so that a model learns to search.

Three parts, the first optional: fine-tuning on demonstrations of a search; an exploration reward that pays thinking
whether it ends well or not; PPO with a verifier of outcomes. Even the crudest exploration reward, a punishment of short
reasoning, is said to bring out backtracking and alternatives; the outcome outweighs it, so that it is not farmed.

    R       = w (r_outcome - C / L) + (1 - w) r_effort
    L       = a quarter of the characters before the first \boxed{, or of all; so C / L vanishes for long reasoning
    outcome = 1 right, 0 wrong, -0.5 without a box ("boxed")
    effort  = distinct expressions tried / `most_attempts`, at most 1: a rule in the place of the paper's judge
    then    = PPO: GAE (lambda 0.95, gamma 1), KL of 0.05 in the reward; the policy waits for the critic at first

What differs from the paper's code: -C / L is at least `lowest` (there C = 1000 gives -10 at 100 tokens and hides what
is right); `exploration_end` lets C fall in a straight line to a share of itself; an answer without any reasoning gets
`lowest`, where the code divides by zero and gives 0; the last box counts as the answer and not the first; advantages
are whitened and rewards are not scaled by running moments; the effort is judged by a rule.

Not reproduced: Llama-3.1-8B on MATH, Qwen2.5-32B on AIME, the tree-search demonstrations, the judge gpt-4o-mini. There
is no self-play in the method beyond learning from own samples.
"""

import random
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch

from zerozoo.language import settings
from zerozoo.language.build import make_objective
from zerozoo.language.demonstrations import Lessons, demonstration_stage, task_rows
from zerozoo.language.example_files import Row
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.stages import prepare
from zerozoo.language.training import complete, plan_with_critic, train_with_critic
from zerozoo.rewards.shaping import anneal, distinct_attempts, inverse_length, mix
from zerozoo.runs.claims import Claim, all_of, at_least, difference_claim
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.small_countdown import written_search
from zerozoo.tasks.task import Task

PAPER = "On the Emergence of Thinking in LLMs I: Searching for the Right Intuition (2025), arXiv 2502.06773"


@dataclass(frozen=True)
class Config(settings.CriticConfig):
    """The settings of the paper's code for 8B."""

    exploration: float = 1000.0  # C, of the order of the lengths that are written; 0: no exploration reward
    exploration_end: float = 1.0  # share of C that is left at the last step; 1: C stays
    lowest: float = -1.0  # -C / L is at least this
    weight: float = 1.0  # w, of outcome and length; 1: effort is not judged (32B: 0.8)
    most_attempts: int = 5  # distinct expressions that make the effort 1
    reward: str = "boxed"  # of the verdict
    prompts_per_step: int = 512  # problems in a step
    samples_per_prompt: int = 1  # response to each
    max_prompt_tokens: int = 2048  # longer problems are dropped
    temperature: float = 0.7  # of sampling
    kl_coefficient: float = 0.05  # of each token, in the reward
    kl_place: str = "reward"  # the KL lowers the reward of each token
    kl_estimator: str = "k1"  # log pi_old - log ref
    lam: float = 0.95  # lambda of the advantages
    critic_lam: float = 0.95  # lambda of what the critic learns
    updates_per_step: int = 4  # gradient steps in a rollout
    critic_updates: int = 4  # those of the critic
    learning_rate: float = 2e-7  # of AdamW, of the policy
    critic_learning_rate: float = 2e-6  # of AdamW
    frozen_steps: int = 4  # first steps in which only the critic learns
    steps: int = 200  # rollouts
    evaluate_every: int = 20  # steps between greedy evaluations

    search_steps: int = 0  # first, gradient steps on searches; 0: none
    search_rate: float = 1e-5  # learning rate of these
    searching: float = 0.3  # share of these that try again; small-countdown only, others are given as they are


EXTENDABLE = settings.EXTENDABLE
TINY = {
    **settings.TINY,
    "model": "tiny-base-micro",
    "data": "small-countdown",
    "split": "",
    "heldout_size": 200,
    "max_new_tokens": 48,
    "exploration": 0.7,
    "reward": "correctness",
    "prompts_per_step": 64,
    "kl_coefficient": 0.01,
    "critic_learning_rate": 1e-3,
    "steps": 60,
    "evaluate_every": 30,
    "search_steps": 400,
    "search_rate": 3e-3,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**settings.LAPTOP, "data": "small-countdown", "stop": (), "max_new_tokens": 64, "exploration": 5.0}
    | {"kl_coefficient": 0.01, "critic_learning_rate": 3e-5, "search_steps": 60, "reward": "correctness"},
    "tiny": TINY,
    "paper": {"model": "meta-llama/Llama-3.1-8B-Instruct", "data": "math", "max_new_tokens": 4096, "template": "chat"},
    "smoke": {**TINY, "prompts_per_step": 4, "heldout_size": 20, "steps": 2, "frozen_steps": 1, "search_steps": 3},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics, attempts counted."""
    config = _check(complete(config))
    if config.search_steps:
        lessons = Lessons(config.search_steps, learning_rate=config.search_rate)
        most = lessons.examples
        stage = demonstration_stage(config, lessons, lambda policy: searches(config, policy, most), "searches")
        config = replace(config, model=str(prepare(run, [stage])[stage.name].files["model"]))
    metrics = train_with_critic(config, run, make_objective(config), lambda rollouts: exploration(config, rollouts))
    return {**metrics, **attempts(run)}


def exploration(config: Config, rollouts: Rollouts) -> torch.Tensor:
    """(N,) what R has beyond the reward of the verdict."""
    share = anneal(rollouts.step, config.steps, 1.0, config.exploration_end)
    extra = []
    for text, outcome in zip(rollouts.samples.texts, rollouts.rewards.tolist(), strict=True):
        length = inverse_length(text, config.exploration * share, config.lowest) if config.exploration else 0.0
        effort = distinct_attempts(text, config.most_attempts)
        extra.append(mix(outcome + length, effort, config.weight) - outcome)
    return torch.tensor(extra, dtype=torch.float32)


def searches(config: Config, policy: LanguageModel, most: int) -> list[Row]:
    """Four searches for every training problem."""

    def search(task: Task, rng: random.Random) -> str:
        return written_search(task, rng, config.searching)

    return task_rows(config, policy, "searches", {"small-countdown": search}, 4, most)


def attempts(run: Run) -> dict[str, float]:
    """Mean number of distinct expressions in the held-out responses that were sampled, before and after training."""
    counted: dict[int, list[float]] = {}
    for row in run.samples():
        if row["phase"] == "heldout-sampled":
            counted.setdefault(row["step"], []).append(1000 * distinct_attempts(row["response"], 1000))
    return {"attempts/before": fmean(counted[min(counted)]), "attempts/after": fmean(counted[max(counted)])}


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    config = _check(complete(config))
    words = f"-{config.exploration:g} / L, at least {config.lowest:g}, falling to {config.exploration_end:.0%} of it"
    first = [("before", f"{config.search_steps} steps on searches")] if config.search_steps else []
    return [*plan_with_critic(config), *first, ("exploration", f"{words}; weight of the outcome {config.weight:g}")]


def _check(config: Config) -> Config:
    for name in ("exploration", "search_steps", "search_rate"):
        if not getattr(config, name) >= 0:
            raise UserError(f"{name} is {getattr(config, name)}, but must not be negative.")
    for name in ("exploration_end", "weight", "searching"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{name} is {getattr(config, name)}, but must lie between 0 and 1.")
    if not config.lowest <= 0:
        raise UserError(f"lowest is {config.lowest}, but must not be positive.")
    if config.most_attempts < 1:
        raise UserError(f"most_attempts is {config.most_attempts}, but must be at least 1.")
    return config


CLAIM = Claim(
    statement="The exploration term raises search behaviour and final accuracy over correctness-only RL.",
    arms={"exploration": {}, "correctness": {"exploration": 0.0}},
    metric="heldout/sampled_accuracy",
    holds=all_of(
        difference_claim("exploration", "correctness", threshold=0.02),
        at_least("exploration", 1.3, of="correctness", metric="attempts/after"),
    ),
    seeds=(0, 1, 2),
    budget="6 trainings of a model of 0.1M parameters on one core, about a minute and a half each",
    base=TINY,
    smoke=PRESETS["smoke"],
    curve="heldout/greedy_accuracy",
)
