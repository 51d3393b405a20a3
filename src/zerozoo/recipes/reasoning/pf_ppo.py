"""PF-PPO: PPO with a learned reward, on those responses whose ranks the reward gets right.

A reward model is good at telling very good from very bad responses and unreliable between. So several responses are
drawn to each prompt, ranked by the reward model, and PPO learns from a few ranks only: the best and one random other
(best-random), or the best and the worst (best-worst). Which ranks to keep is decided before: by the R^2 of reward and
true score over the responses that a filter keeps.

    kept        best-random: rank 1 and one of the others; best-worst: ranks 1 and N; best: rank 1; none: all
    reward      r_phi(y | x) at the last token, minus beta (log pi - log pi_SFT) at every token
    then        PPO: GAE (gamma 1, lambda 0.95) and whitening over kept tokens only, clips of 0.2

The kept responses are trained on as if the policy had drawn them, which is a bias; "best" keeps no bad response at all.

What differs from the paper and its code: only the mode that filters, not the one that draws training rows by weight;
rewards are normalised once, by mean and deviation on held-out pairs, and not by running ones; the last weights are
kept, not the best of five passes; temperature 1 without top-p. The tiny preset writes programs in postfix notation with
hidden tests, and the labels of the reward model's pairs are noisy where a program passes about half of its tests, so
that the middle is unreliable. It has fewer and smaller rollouts than the card (16 of 12 prompts), because the time goes
into the larger tiny model: rewards of the smaller one ranked the best of six below their mean, and PPO collapsed.

Not reproduced: the 6.7B model, its 130,000 examples, HumanEval, MBPP and LeetCode, and the baselines RAFT, BOND, DPO,
IPO and KTO in the paper's table. `--data code` has small Python functions with tests in a sandbox.

The file is longer than 200 lines because three trainings are wired here: demonstrations, reward model, PPO.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zerozoo.language import settings
from zerozoo.language.build import make_objective
from zerozoo.language.demonstrations import Lessons, demonstration_stage, task_rows
from zerozoo.language.device import set_up_machine
from zerozoo.language.example_files import Row
from zerozoo.language.models import LanguageModel
from zerozoo.language.reward_models import RewardScorer, load_reward_model
from zerozoo.language.reward_stage import REWARD_MODEL, draw_responses, probe_reliability, reward_model_stage
from zerozoo.language.scored_pairs import pairs_by_score
from zerozoo.language.selection import by_rank
from zerozoo.language.stages import Outputs, Stage, prepare
from zerozoo.language.training import complete, plan_with_critic, train_with_critic
from zerozoo.losses.filters import RANK_FILTERS
from zerozoo.runs.claims import ArmResults, Claim, all_of, difference_claim, on_combined
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.postfix import written_program
from zerozoo.tasks.task import Task

PAPER = "Policy Filtration in RLHF to Fine-Tune LLM for Code Generation (2024), arXiv 2409.06957"


@dataclass(frozen=True)
class Config(settings.CriticConfig):
    """The paper's settings where it gives them, else those of its code."""

    filter: str = "best-random"  # ranks that are trained on: none, best, best-random, best-worst
    reward: str = "none"  # of the verdict, besides that of the reward model: none, or correctness ...
    reward_model: str = ""  # folder of a trained one; "": it is trained first
    prompts_per_step: int = 204  # problems in a step: 1024 responses
    samples_per_prompt: int = 5  # responses to each, which are ranked
    kl_coefficient: float = 0.01  # beta
    kl_place: str = "reward"  # the KL lowers the reward of each token
    kl_estimator: str = "k1"  # log pi_old - log ref
    lam: float = 0.95  # lambda of the advantages
    critic_lam: float = 0.95  # lambda of what the critic learns
    updates_per_step: int = 4  # gradient steps in a rollout
    critic_updates: int = 4  # those of the critic
    learning_rate: float = 5e-7  # of AdamW, of the policy
    critic_learning_rate: float = 9e-6  # of AdamW

    demonstration_steps: int = 0  # first, gradient steps on right answers; 0: the model has been fine-tuned
    demonstration_rate: float = 1e-5  # learning rate of these
    wrong: float = 0.0  # share of wrong answers among them; postfix programs only
    pair_problems: int = 400  # problems whose responses make the pairs of the reward model, one of each at most
    pair_samples: int = 5  # responses to each of them, and to each of the probed ones
    pair_steps: int = 100  # gradient steps of the reward model
    pair_rate: float = 1e-5  # learning rate of these
    label_noise: float = 0.0  # noise of the pairs' labels at scores of 1/2, from 0 to 1 (coin tosses)
    probed: int = 200  # held-out problems on which R^2 is measured, before and after; 0: none


EXTENDABLE = settings.EXTENDABLE
TINY = {
    **settings.TINY,
    "data": "postfix",
    "split": "",
    "heldout_size": 200,
    "max_new_tokens": 32,
    "prompts_per_step": 12,
    "samples_per_prompt": 6,
    "kl_coefficient": 0.1,
    "updates_per_step": 1,
    "critic_learning_rate": 1e-3,
    "critic_updates": 1,
    "learning_rate": 1e-4,
    "steps": 16,
    "evaluate_every": 8,
    "demonstration_steps": 24,
    "demonstration_rate": 2e-3,
    "wrong": 0.3,
    "pair_problems": 1500,
    "pair_samples": 4,
    "pair_steps": 60,
    "pair_rate": 2e-3,
    "label_noise": 1.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**settings.LAPTOP, "data": "code", "stop": (), "max_prompt_tokens": 128, "max_new_tokens": 64}
    | {"kl_coefficient": 0.01, "prompts_per_step": 8, "steps": 20, "demonstration_steps": 60, "pair_problems": 60}
    | {"critic_learning_rate": 3e-5, "pair_steps": 30, "probed": 40},
    "tiny": TINY,
    "paper": {"model": "deepseek-ai/deepseek-coder-6.7b-base", "data": "code", "max_new_tokens": 2048},
    "smoke": {
        **TINY,
        "model": "tiny-base-micro",
        "prompts_per_step": 4,
        "heldout_size": 20,
        "steps": 2,
        "demonstration_steps": 20,
        "demonstration_rate": 3e-3,
        "pair_problems": 40,
        "pair_samples": 6,
        "pair_steps": 2,
        "probed": 10,
    },
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics, and R^2 by filter."""
    config = _check(complete(config))
    stages: list[Stage] = []
    if config.demonstration_steps:
        lessons = Lessons(config.demonstration_steps, learning_rate=config.demonstration_rate)
        most = lessons.examples
        stages.append(demonstration_stage(config, lessons, lambda policy: demonstrations(config, policy, most)))
    if not config.reward_model:
        lessons = Lessons(config.pair_steps, 32, config.pair_rate)
        stages.append(reward_model_stage(lessons, lambda done: started(config, done), make_pairs))
    outputs = prepare(run, stages) if stages else {}
    config = started(config, outputs)
    folder = config.reward_model or outputs["reward-model"].files[REWARD_MODEL]
    machine = set_up_machine(config)
    scorer = RewardScorer(load_reward_model(folder, device=machine.device), machine.tokens_per_microbatch)
    before = reliability(config, run, scorer, "before")
    algorithm = replace(make_objective(config), selection=by_rank(config.filter))
    metrics = train_with_critic(config, run, algorithm, scorer.rollouts)
    after = reliability(replace(config, model=str(run.path("model"))), run, scorer, "after")
    if "reward-model" in outputs:
        metrics["reward_model/accuracy"] = outputs["reward-model"].metrics["reward/heldout_accuracy"]
    return {**metrics, **before, **after}


def started(config: Config, outputs: Mapping[str, Outputs]) -> Config:
    """The config with the model that the demonstrations have left, where there were any."""
    done = outputs.get("demonstrations")
    return config if done is None else replace(config, model=str(done.files["model"]))


def demonstrations(config: Config, policy: LanguageModel, most: int) -> list[Row]:
    """An answer to every training problem, four to a program."""

    def write(task: Task, rng: random.Random) -> str:
        return written_program(task, rng, config.wrong)

    return task_rows(config, policy, "demonstrations", {"postfix": write}, 4, most)


def make_pairs(config: Config, run: Run) -> list[Row]:
    """Rows for the reward model, from responses of the policy as it is before PPO."""
    config = replace(config, samples_per_prompt=config.pair_samples)
    drawn = draw_responses(config, run, lambda tasks: tasks.train[: config.pair_problems], "pairs")
    return pairs_by_score(drawn, config.label_noise, config.seed)


def reliability(config: Config, run: Run, scorer: RewardScorer, when: str) -> dict[str, float]:
    """R^2 by filter, and for the config's own filter once more."""
    if not config.probed:
        return {}
    probed = replace(config, samples_per_prompt=config.pair_samples)
    found = probe_reliability(probed, run, scorer, when, config.probed)
    return {**found, f"reliability/{when}/own": found[f"reliability/{when}/{config.filter}"]}


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    config = _check(complete(config))
    model = config.reward_model or f"{config.pair_steps} steps on pairs of {config.pair_problems} problems"
    first = f"{config.demonstration_steps} steps on demonstrations, then " if config.demonstration_steps else ""
    return [*plan_with_critic(config), ("before", f"{first}reward model: {model}"), ("filter", config.filter)]


def _check(config: Config) -> Config:
    by_rank(config.filter)
    if config.filter in ("best-random", "best-worst") and config.samples_per_prompt < 2:
        raise UserError(f"The filter {config.filter} needs at least 2 responses to a prompt.")
    for name in ("demonstration_steps", "demonstration_rate", "pair_rate", "probed"):
        if not getattr(config, name) >= 0:
            raise UserError(f"{name} is {getattr(config, name)}, but must not be negative.")
    for name, least in (("pair_problems", 1), ("pair_steps", 1), ("pair_samples", 2)):
        if not getattr(config, name) >= least:
            raise UserError(f"{name} is {getattr(config, name)}, but must be at least {least}.")
    for name in ("wrong", "label_noise"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{name} is {getattr(config, name)}, but must lie between 0 and 1.")
    if 0 < config.probed < 10:
        raise UserError(f"probed is {config.probed}, but R^2 over 10 groups needs at least 10 problems, or 0 for none.")
    return config


def _better_filter(results: ArmResults) -> NDArray[np.float64]:
    """The better of the two filters under each seed."""
    return np.maximum(results.array("best-random"), results.array("best-worst"))


CLAIM = Claim(
    statement="With a reward model that is unreliable in the middle, PPO on filtered ranks (best-random or best-worst)"
    " beats PPO on all responses at the same number of reward-model calls, and PPO on the best ones alone is worse.",
    arms={name: {"filter": name} for name in RANK_FILTERS} | {"fewer": {"filter": "none", "samples_per_prompt": 2}},
    metric="heldout/greedy_accuracy",
    holds=all_of(
        on_combined(difference_claim("filtered", "none", threshold=0.02), filtered=_better_filter),
        difference_claim("none", "best"),
    ),
    seeds=(0, 1, 2),
    budget="15 trainings of a model of 0.8M parameters on one core, with their reward models, over a minute each",
    base=TINY,
    smoke=PRESETS["smoke"],
    curve="heldout/greedy_accuracy",
)
