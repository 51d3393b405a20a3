"""RLSQM: better unit tests by reinforcement learning on what can be read off a test, without running it.

RLSQM (Steenhoek et al. 2023): tests that a language model writes lack assertions, do not call what they test, or branch
and repeat themselves. All of this a static analyser sees, so it can be rewarded: PPO on a weighted sum of qualities,
or on one of them, or on one after the other, with a KL penalty for leaving the model that tests were learned with.

    R(x, y) = -1 where y does not parse, else  sum_k w_k [y has quality k] / sum_k w_k
    reward of a response = R - 0.02 sum_t (log pi_old(y_t) - log ref(y_t)),   compared within groups of 8

The analyser is the reward (`--reward analyser`). The paper learns it first: `models` trains a reward model for each
quality on analysed samples of the start (regression at the last token), `unified` a single one for R.

What differs from the paper, and why: Python and its own parser instead of C#; the analyser as the reward by default,
for a learned copy of it only adds errors; a baseline from the group instead of a critic, without division by the
group's deviation, which in a group of equal tests would leave nothing but a KL penalty at full strength; the numbers of
the reward, which are not the same in the paper's versions, are ours. Hollow assertions (`assert True`) do not count.

Beside the rewarded qualities every run measures what nobody optimises: do the tests pass, do they find mutants?

Not reproduced: the 12B Codex model, the C# projects, GPT-4 as a reference, a frequency penalty in sampling.

The file is longer than 200 lines because it has three kinds of reward, and demonstrations before them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from zerozoo.language import settings
from zerozoo.language.build import make_algorithm
from zerozoo.language.demonstrations import Lessons, demonstration_stage
from zerozoo.language.stages import Outputs, Stage, prepare
from zerozoo.language.staging import check_least, model_of, model_output
from zerozoo.language.task_choice import load_tasks_for
from zerozoo.language.training import complete, plan_zero_rl, train_zero_rl
from zerozoo.language.unit_test_stages import (
    UNIFIED,
    check_tests,
    developers_tests,
    learned_quality,
    quality_reward_stages,
)
from zerozoo.rewards.unit_tests import QUALITIES, SYNTAX, WEIGHTS
from zerozoo.runs.claims import Claim, all_of, difference_claim
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

PAPER = "Reinforcement Learning from Automatic Feedback for High-Quality Unit Test Generation (2023), arXiv 2310.02368"
ANALYSER, GOLD = "analyser", "gold"
REWARDS = (ANALYSER, "models", UNIFIED)


@dataclass(frozen=True)
class Config(settings.GroupConfig):
    """The paper gives the lengths; KL coefficient, group and learning rate are those of our card."""

    model: str = "Qwen/Qwen2.5-Coder-7B"  # a model of code; tiny-tester has read functions with careless tests
    data: str = "unit-tests"  # functions to test; unit-tests:PLACE takes those of a Python file or folder
    reward: str = "analyser"  # or models (one reward model for each quality), unified (one for their weighted sum)
    qualities: tuple[str, ...] = ()  # rewarded: syntax, assertion, focal-call ...; (): all, with weights
    sequential: bool = False  # one quality after the other, so many steps for each; off: their weighted sum
    prompts_per_step: int = 64  # functions in a step
    samples_per_prompt: int = 8  # tests for each, the group
    max_prompt_tokens: int = 1536  # longer functions are dropped
    max_new_tokens: int = 512  # longest test
    advantage: str = "group-centred"  # or leave-one-out, group-normalised, batch-scaled
    kl_coefficient: float = 0.02  # beta, of the penalty for leaving the start
    kl_place: str = "reward"  # or loss
    kl_estimator: str = "k1"  # log pi_old - log ref; k2, k3
    updates_per_step: int = 1  # gradient steps in a rollout
    learning_rate: float = 1e-6  # of AdamW

    sft: str = ""  # first learn developers' tests: all, or gold (those with all needed qualities); "": do not
    sft_steps: int = 100  # gradient steps on them
    sft_batch_size: int = 512  # tests of such a step
    sft_rate: float = 1e-5  # learning rate of these steps
    reward_problems: int = 500  # functions whose tests the reward models learn from
    reward_samples: int = 8  # tests for each
    reward_steps: int = 200  # gradient steps of a reward model
    reward_rate: float = 1e-5  # learning rate of these
    checked_samples: int = 2  # tests for each held-out function that are run at the end; 0: none
    mutants: int = 6  # faulty variants of a function that a passing test meets


EXTENDABLE = ("checkpoint_every", "samples_logged", "profile")
TINY = {
    **{**settings.TINY, "model": "tiny-tester", "data": "unit-tests", "split": "", "heldout_size": 300},
    **{"prompts_per_step": 16, "max_prompt_tokens": 64, "max_new_tokens": 96, "kl_coefficient": 0.02},
    **{"evaluate_every": 20, "sft_steps": 60, "sft_batch_size": 128, "sft_rate": 1e-3, "reward_rate": 5e-4},
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": TINY,
    "real": {**TINY, "model": "smollm2-135m", "max_prompt_tokens": 128, "learning_rate": 1e-6, "sft_rate": 2e-5}
    | {
        "sft": "all",
        "sft_steps": 40,
        "sft_batch_size": 32,
        "prompts_per_step": 8,
        "reward_rate": 1e-5,
        "heldout_size": 60,
    },
    "paper": {},
    "smoke": {**TINY, "model": "tiny-tester-micro", "prompts_per_step": 4, "samples_per_prompt": 4, "heldout_size": 20}
    | {"steps": 2, "sft_steps": 2, "sft_batch_size": 16, "reward_problems": 20, "reward_samples": 2, "reward_steps": 2},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; held-out metrics and what the tests are worth."""
    config = _check(complete(config))
    *before, (_, last) = _parts(config).items()
    stages = [*_sft_stages(config), *_reward_stages(config)]
    stages += [Stage(name, partial(_rl_stage, config, part)) for name, part in before]
    metrics = _reinforce(config, run, last, prepare(run, stages) if stages else {})
    if config.checked_samples:
        metrics |= check_tests(config, run, config.checked_samples, config.mutants)
    return metrics


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    config = _check(complete(config))
    first = (
        f"{config.sft_steps} steps on {config.sft_batch_size} tests each ({config.sft})" if config.sft else "nothing"
    )
    rewarded = ", ".join(config.qualities or WEIGHTS) + (", one after the other" if config.sequential else "")
    return [*plan_zero_rl(config), ("before RL", first), ("rewarded", rewarded)]


def _parts(config: Config) -> dict[str, dict[str, float]]:
    """Weights of the qualities that are optimised, by the name of the stage: in one part or in one for each."""
    weights = {name: WEIGHTS.get(name, 1.0) for name in config.qualities or WEIGHTS}
    return {f"rl-{name}": {name: weights[name]} for name in weights} if config.sequential else {"rl": weights}


def _rl_stage(config: Config, part: Mapping[str, float], run: Run, outputs: Mapping[str, Outputs]) -> Outputs:
    return model_output(run.directory, _reinforce(config, run, part, outputs))


def _reinforce(config: Config, run: Run, part: Mapping[str, float], outputs: Mapping[str, Outputs]) -> dict[str, float]:
    """RL on some qualities, from the model that the stages before have left."""
    config = replace(config, model=model_of(outputs, *reversed(_parts(config)), "sft", otherwise=config.model))
    algorithm, tasks = make_algorithm(config), load_tasks_for(config)
    if config.reward != ANALYSER:
        learned = learned_quality(config, outputs, part, config.reward == UNIFIED)
        return train_zero_rl(replace(config, reward="none"), run, algorithm, extra_reward=learned, tasks=tasks)
    weighted = tuple(replace(task, metadata={**task.metadata, "weights": part}) for task in tasks.train)
    return train_zero_rl(replace(config, reward="score"), run, algorithm, tasks=replace(tasks, train=weighted))


def _sft_stages(config: Config) -> list[Stage]:
    lessons, gold = Lessons(config.sft_steps, config.sft_batch_size, config.sft_rate), config.sft == GOLD
    count = config.sft_steps * config.sft_batch_size
    stage = demonstration_stage(config, lessons, lambda policy: developers_tests(config.seed, count, gold), "sft")
    return [stage] if config.sft else []


def _reward_stages(config: Config) -> list[Stage]:
    if config.reward == ANALYSER:
        return []

    def started(outputs: Mapping[str, Outputs]) -> Config:
        model = model_of(outputs, "sft", otherwise=config.model)
        return replace(config, model=model, samples_per_prompt=config.reward_samples)

    weights = {name: weight for part in _parts(config).values() for name, weight in part.items()}
    lessons = Lessons(config.reward_steps, learning_rate=config.reward_rate)
    return quality_reward_stages(started, weights, config.reward == UNIFIED, lessons, config.reward_problems)


def _check(config: Config) -> Config:
    """The same config. Raises UserError for names and numbers of no use."""
    if config.reward not in REWARDS:
        raise UserError(f"Unknown reward {config.reward!r}; choose one of: {', '.join(REWARDS)}.")
    if config.sft not in ("", "all", GOLD):
        raise UserError(f"Unknown tests {config.sft!r} in sft; choose all or {GOLD}, or nothing.")
    known = (SYNTAX, *QUALITIES)
    for name in config.qualities:
        if name not in known or config.qualities.count(name) > 1:
            raise UserError(f"The quality {name!r} is unknown or stands twice; choose some of: {', '.join(known)}.")
    if config.reward == UNIFIED and config.sequential:
        raise UserError("A unified reward model knows no single qualities to optimise one after the other.")
    check_least(config, sft_steps=1, checked_samples=0, mutants=0, sft_rate=0, reward_rate=0, sft_batch_size=1)
    check_least(config, reward_problems=1, reward_samples=1, reward_steps=1)
    return config


CLAIM = Claim(
    statement="RL on static metrics writes more sound tests than fine-tuning on sound ones, and not hollower ones.",
    arms={
        "rlsqm": {"advantage": "group-normalised"},  # as before the trial that the page tells of
        "rlsqm-centred": {},
        "sft-gold": {"steps": 0, "sft": GOLD},
        "base": {"steps": 0},
    },
    metric="tests/sound",
    holds=all_of(
        difference_claim("rlsqm", "sft-gold", threshold=0.03),
        difference_claim("rlsqm", "base", threshold=0.20),
        difference_claim("rlsqm", "sft-gold", threshold=-0.03, metric="tests/passes"),
        difference_claim("rlsqm", "sft-gold", threshold=-0.03, metric="tests/mutation"),
    ),
    seeds=(0, 1, 2, 3),
    budget="12 trainings of the tiny test writer and 4 measurements of it on one core, about a minute each",
    base=TINY,
    smoke=PRESETS["smoke"],
)
