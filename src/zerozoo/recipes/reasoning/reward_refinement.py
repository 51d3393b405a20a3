"""Reward refinement: a process reward model helps RL only if no policy can collect its rewards by writing more steps.

Gao et al. 2024 add learned rewards to the 0/1 reward of an answer checker. A process reward model (PRM) scores every
step, mostly high; paid out as it is, it teaches to append steps that look right. Clip and Delta bound what a response
can collect, whatever its length, and keep what tells a good step from a bad one.

    J = E[ alpha sum_k r_k + correct - beta KL ],  r_k on the token that ends step k, p_k = PRM after step k
    raw   r_k = p_k            outcome  sigma(ORM) on the last token          none  0
    clip  r_k = min(p_k - eta, 0)
    delta r_k = p_k - p_(k+1), p_(K-1) for the step before the last, 0 for the last: from step k on the sum is p_k
    clip-delta  delta of clip

Stages before PPO: fine-tuning on worked sums (word sums only), labels and reward model. A label is the share of the
policy's own completions of a prefix that end right. Then PPO with a critic, gamma 1, so that the place of a reward
counts; no reward is whitened, only advantages are.

What differs from the paper, and why: alpha, eta, beta and the learning rates are ours, for the paper's are not known
(eta is the reward model's median score of good held-out steps); the policy completes its own prefixes, where the paper
has Qwen2-7B; a step is a line; the forms of the weak remedies `normed` and `length-penalty` are ours. In the tiny
preset every demonstration has one to three idle lines: where half of them have one, PPO on success alone drops it in 50
rollouts, and then there are no excess steps that the others could be compared with; where all have one and the same
length, the policy never tries another.

Not reproduced: Qwen2 and Qwen2.5 models on MATH and GSM8K, pass@16; `--preset paper --plan` shows what would run. The
file is longer than 200 lines because it makes its own policy and reward model, which the paper has ready.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from zerozoo.language import settings
from zerozoo.language.algorithm import choose
from zerozoo.language.build import make_objective
from zerozoo.language.demonstrations import Lessons, demonstration_stage
from zerozoo.language.device import set_up_machine
from zerozoo.language.example_files import Row
from zerozoo.language.models import LanguageModel
from zerozoo.language.process_rewards import (
    OutcomeReward,
    ProcessReward,
    labelled_reward_stage,
    outcome_labels,
    process_labels,
)
from zerozoo.language.reward_models import RewardScorer, load_reward_model
from zerozoo.language.reward_stage import REWARD_MODEL
from zerozoo.language.stages import Outputs, prepare
from zerozoo.language.staging import model_of, stage_config
from zerozoo.language.step_audit import audit_samples
from zerozoo.language.step_values import StepSplitter, StepValues
from zerozoo.language.task_choice import load_tasks_for
from zerozoo.language.training import complete, plan_with_critic, train_with_critic
from zerozoo.language.tuning import SamplingConfig, open_bench
from zerozoo.language.worked_sums import worked_sums
from zerozoo.language.zero_rl import ExtraReward
from zerozoo.rewards.shaping import SHAPINGS
from zerozoo.runs.claims import Claim, all_of, at_least, at_most, difference_claim
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams

PAPER = "On Designing Effective RL Reward at Training Time for LLM Reasoning (2024), arXiv 2410.15115"
OUTCOME = "outcome"


@dataclass(frozen=True)
class Config(settings.CriticConfig):
    """Batch and gamma are the paper's for 1.5B; the constants of the rewards are ours."""

    shaping: str = "clip-delta"  # none, outcome, raw, normed, length-penalty, clip, delta, clip-delta
    alpha: float = 0.1  # weight of the learned reward beside the 0/1 of the verdict
    eta: float = -1.0  # of the clips; -1: the reward model's median score of good steps
    penalty: float = 0.5  # of a step, for length-penalty
    steps_by: str = "lines"  # where a step ends: lines, sentences, numbered
    reward_model: str = ""  # folder of a trained process (or outcome) reward model; "": it is trained first
    label_problems: int = 400  # training problems whose responses it learns from
    label_samples: int = 2  # responses to each
    completions: int = 8  # of each step of these, for its label
    hard_labels: bool = False  # whether any completion was right, in place of how many
    reward_steps: int = 200  # gradient steps of the reward model
    reward_rate: float = 1e-5  # learning rate of these
    demonstration_steps: int = 0  # first, gradient steps on worked word sums; 0: none
    demonstration_rate: float = 1e-3  # learning rate of these
    distractors: float = 0.3  # share of them with idle steps
    idle_lines: int = 1  # most of these in one of them, of 1, 2, ... equally often

    samples_per_prompt: int = 8  # responses to each problem
    max_new_tokens: int = 1024  # longest response
    kl_coefficient: float = 0.001  # beta, what the KL costs
    kl_place: str = "reward"  # the KL lowers the reward of each token
    kl_estimator: str = "k1"  # log pi_old - log ref
    learning_rate: float = 1e-6  # of AdamW, of the policy
    critic_updates: int = 4  # gradient steps of the critic in a pass over a rollout


EXTENDABLE = settings.EXTENDABLE
TINY: dict[str, Any] = {
    **settings.TINY,
    "model": "tiny-base-micro",
    "split": "chain",
    "heldout_size": 300,
    "max_new_tokens": 96,
    "samples_per_prompt": 4,
    "kl_coefficient": 0.001,
    "alpha": 0.5,
    "critic_learning_rate": 1e-3,
    "steps": 80,
    "evaluate_every": 20,
    "checkpoint_every": 40,
    "label_problems": 200,
    "reward_steps": 150,
    "reward_rate": 1e-3,
    "demonstration_steps": 1200,
    "demonstration_rate": 5e-3,
    "distractors": 1.0,
    "idle_lines": 3,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**settings.LAPTOP, "data": "word-sums", "split": "chain", "stop": (), "max_prompt_tokens": 96}
    | {"max_new_tokens": 96, "prompts_per_step": 8, "steps": 20, "kl_coefficient": 0.001, "critic_learning_rate": 3e-5}
    | {"label_problems": 40, "completions": 4, "reward_steps": 40, "demonstration_steps": 20}
    | {"demonstration_rate": 2e-5},
    "tiny": TINY,
    "paper": {"model": "Qwen/Qwen2.5-Math-1.5B-Instruct", "data": "math", "template": "chat"},
    "smoke": {**TINY, "split": "easy", "prompts_per_step": 4, "heldout_size": 20, "steps": 2, "label_problems": 12}
    | {"completions": 2, "reward_steps": 3, "demonstration_steps": 3},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; held-out metrics and an audit of steps."""
    config = _check(complete(config))
    stages = []
    if config.demonstration_steps:
        lessons = Lessons(config.demonstration_steps, 32, config.demonstration_rate)
        stages.append(demonstration_stage(config, lessons, lambda policy: demonstrations(config, policy)))
    if config.shaping != "none" and not config.reward_model:
        lessons = Lessons(config.reward_steps, 32, config.reward_rate)
        stages.append(labelled_reward_stage(lessons, lambda done: started(config, done), label))
    outputs = prepare(run, stages) if stages else {}
    config = started(config, outputs)
    metrics = train_with_critic(config, run, make_objective(config), learned_reward(config, outputs))
    learned = outputs["reward-model"].metrics if "reward-model" in outputs else {}
    audits = {name: value for mode in ("greedy", "sampled") for name, value in audit(config, run, mode).items()}
    return {**metrics, **audits, **{name: value for name, value in learned.items() if name.startswith("reward/")}}


def started(config: Config, outputs: Mapping[str, Outputs]) -> Config:
    """The config with the model that the demonstrations have left, where there were any."""
    return replace(config, model=model_of(outputs, "demonstrations", otherwise=config.model))


def demonstrations(config: Config, policy: LanguageModel) -> list[Row]:
    """Worked solutions of the training problems, some with an idle step."""
    tasks = load_tasks_for(config)
    return worked_sums(tasks.train, policy, tasks.template, config.distractors, config.seed, config.idle_lines)


def label(config: Config, run: Run) -> list[Row]:
    """What the reward model learns from: responses of the policy as it is before PPO, with labels by completion."""
    sampling = stage_config(
        SamplingConfig, config, problems=config.label_problems, samples_per_prompt=config.label_samples
    )
    with open_bench(sampling, run) as bench:
        drawn, splitter = bench.draw(), StepSplitter(bench.policy, bench.tasks().stop, config.steps_by)
        traces = [splitter.trace(drawn, row) for row in range(len(drawn))]
        if config.shaping == OUTCOME:
            return outcome_labels(traces)
        assert bench.verifier is not None
        generator = Streams(run.seed).torch("completions")
        values = StepValues(
            bench.policy, bench.sampler, bench.verifier, splitter, bench.decoding(), config.completions, generator
        )
        return process_labels(traces, values, config.hard_labels)


def learned_reward(config: Config, outputs: Mapping[str, Outputs]) -> ExtraReward | None:
    """What is paid beside the verdict."""
    if config.shaping == "none":
        return None
    done = outputs.get("reward-model")
    folder = config.reward_model or str(done.files[REWARD_MODEL] if done else "")
    machine = set_up_machine(config)
    model = load_reward_model(folder, device=machine.device)
    scorer = RewardScorer(model, machine.tokens_per_microbatch, normalised=False)
    if config.shaping == OUTCOME:
        return OutcomeReward(scorer, config.alpha)
    eta = config.eta
    if eta < 0 and done is not None:
        eta = float(torch.tensor(done.metrics.get("reward/median_good", 0.0)).sigmoid())  # 1/2 where no step is good
    splitter = StepSplitter(model.language_model, load_tasks_for(config).stop, config.steps_by)
    return ProcessReward(scorer, splitter, config.shaping, config.alpha, eta, config.penalty)


def audit(config: Config, run: Run, mode: str) -> dict[str, float]:
    """What the oracle says of the held-out responses at the end; nothing for problems without one."""
    return audit_samples(run, load_tasks_for(config).heldout, mode, config.steps_by)


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    config = _check(complete(config))
    words = f"{config.shaping}, weight {config.alpha:g}"
    if config.shaping != "none":
        words += f"; {config.reward_model or f'trained on {config.label_problems} x {config.label_samples} responses'}"
    return [*plan_with_critic(config), ("learned reward", words)]


def _check(config: Config) -> Config:
    choose("shaping", config.shaping, (*SHAPINGS, OUTCOME))
    for name in ("alpha", "penalty", "reward_rate", "demonstration_steps", "demonstration_rate"):
        if not getattr(config, name) >= 0:
            raise UserError(f"{name} is {getattr(config, name)}, but must not be negative.")
    for name in ("label_problems", "label_samples", "completions", "reward_steps", "idle_lines"):
        if not getattr(config, name) >= 1:
            raise UserError(f"{name} is {getattr(config, name)}, but must be at least 1.")
    if not 0 <= config.distractors <= 1:
        raise UserError(f"distractors is {config.distractors}, but is a share, between 0 and 1.")
    if config.reward_model and config.shaping in ("clip", "clip-delta") and config.eta < 0:
        raise UserError("Say with --eta below which score of this reward model a step is bad.")
    return config


_EXCESS = "heldout/sampled_steps_excess"
CLAIM = Claim(
    statement="Adding a raw process reward lets the policy farm steps and lose accuracy; Clip-Delta removes it.",
    arms={"success": {"shaping": "none"}, "raw": {"shaping": "raw"}, "clip-delta": {"shaping": "clip-delta"}},
    metric="heldout/sampled_accuracy",
    holds=all_of(
        difference_claim("success", "raw", threshold=0.05),
        at_least("raw", 2.0, of="success", metric=_EXCESS),
        at_most("clip-delta", 1.2, of="success", metric=_EXCESS),
        difference_claim("clip-delta", "success", threshold=-0.02),
    ),
    seeds=(0, 1, 2),
    budget="9 trainings of a model of 0.1M parameters on one core, with their reward models",
    base=TINY,
    smoke=PRESETS["smoke"],
    curve="heldout/greedy_accuracy",
)
