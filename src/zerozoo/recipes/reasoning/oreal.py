"""OREAL: right answers are cloned, wrong ones pushed down, and a reward model of tokens says which tokens mattered.

OREAL (Lyu et al. 2025) learns mathematics from binary outcomes. Cloning the right ones among many samples is the best a
KL-regularised policy can do with 0/1 rewards; to stay consistent with that, wrong ones need a reward of their own size,
which a leave-one-out baseline gives. A second network, trained on outcomes alone, gives every token a weight.

    A_i = R_i - mean of the other R of its question,  R = +1 right, -1 wrong or without an end
    m_t = mean of w over the tokens up to t,   P(right) = sigma(mean of w),   w learns by cross-entropy
    L   = 1/N+ sum over right of A_i max(2 sigma(m_t) - 1, 0) (-log pi_t)
          - 0.5/N- sum over wrong of A_i max(1 - 2 sigma(m_t), 0) rho_t
          + 0.01/N sum k3(pi, ref),   over one right and one wrong response of each question that has both

Stages: fine-tuning on sampled right answers (or on worked ones) where the start asks for it; the pass rate of every
question, which says how often it is repeated; RL. In the first steps of RL only w learns: with a head of zeros all
weights are 0.

What differs from the paper and its code, and why: the token weights are those from before the step's update of w; the
learning rate falls in a line, not along a cosine to a fifth; samples are of the whole distribution (top-p 0.9 there),
for the policy gradient is; there is no judge model behind the rule (a verifier is a plug-in) and no skill tags; the
last checkpoint is kept and not the best on an evaluation set. The tiny preset draws 4 samples to a question and not 16:
the same number of responses gives more pairs so, and the noise of a few pairs wins over what they teach.

Not reproduced: the 7B and 32B models and their questions; `--preset paper --plan` shows what would run. The file is
longer than 200 lines because it holds the two stages before RL.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from zerozoo.language import settings
from zerozoo.language.algorithm import ADVANTAGES, CLONE_OR_PUSH, choose
from zerozoo.language.build import make_algorithm
from zerozoo.language.device import set_up_machine
from zerozoo.language.example_files import Row
from zerozoo.language.final_scores import FinalScore
from zerozoo.language.fine_tuning import right_answers, solved_tasks
from zerozoo.language.first_errors import METRIC, error_probe
from zerozoo.language.outcome_credit import OutcomeCredit, open_token_model
from zerozoo.language.parallel import join_ranks
from zerozoo.language.reward_models import save_reward_model
from zerozoo.language.selection import mixed_groups, one_pair
from zerozoo.language.stages import Outputs, Stage, prepare
from zerozoo.language.staging import check_least, fine_tune, model_of, stage_config
from zerozoo.language.step_values import StepSplitter
from zerozoo.language.task_choice import load_tasks_for, pass_rates
from zerozoo.language.training import Parts, complete, plan_zero_rl, train_zero_rl
from zerozoo.language.tuning import Bench, SamplingConfig, open_bench
from zerozoo.runs.claims import Claim, all_of, difference_claim, require_mean
from zerozoo.runs.run import Run
from zerozoo.tasks.splits import hash_order, repeat_by_difficulty

PAPER = "Exploring the Limit of Outcome Reward for Learning Mathematical Reasoning (2025), arXiv 2502.06781"
BANDS = ((0.2, 6), (0.6, 4), (0.8, 2))  # below this pass rate a question is repeated so often; never above the last
KEPT = {"pair": one_pair(ended=True), "mixed": mixed_groups(ended=True)}


@dataclass(frozen=True)
class Config(settings.GroupConfig):
    """Fields carry the numbers of the paper's code for 7B; those of the stages before RL are ours."""

    model: str = "internlm/OREAL-7B-SFT"  # where the stages start
    data: str = "internlm/OREAL-RL-Prompts"  # problems of all stages
    reward: str = "plus-minus"  # of the verdict
    cut_reward: float = -1.0  # of a response that was cut off, whatever it says
    prompts_per_step: int = 64  # problems in a step
    samples_per_prompt: int = 16  # responses to each, the group
    max_prompt_tokens: int = 2384  # longer problems are dropped
    max_new_tokens: int = 14000  # longest response
    advantage: str = "leave-one-out"  # or group-normalised, group-centred, batch-scaled; over the whole group
    clip_low: float = 1.0  # a wrong response's ratio counts down to 1 - clip_low; 1: no limit
    clip_high: float = math.inf  # a right response's token is cloned until its ratio is 1 + clip_high; inf: always
    kl_coefficient: float = 0.01  # of the k3 penalty for leaving the start of RL
    updates_per_step: int = 1  # gradient steps in a rollout
    steps: int = 90  # rollouts
    learning_rate: float = 5e-7  # of AdamW, of the policy
    warmup_steps: int = 10  # steps in which both learning rates rise from 0
    schedule: str = "linear"  # or constant

    keep: str = "pair"  # of a question with right and wrong responses: pair (one of each, at random) or mixed (all)
    right_weight: float = 1.0  # c+, of the cloned side
    wrong_weight: float = 0.5  # c-, of the side that is pushed down; 0: right ones only
    token_rewards: bool = True  # weights of tokens; off: all are 1
    token_learning_rate: float = 2e-6  # of AdamW, of the reward model of tokens
    frozen_steps: int = 10  # first steps in which the policy stays as it is

    problems: int = 0  # problems of the stages before RL, and of RL where rates are measured; 0: all
    sft_epochs: int = 0  # passes over the examples of the fine-tuning; 0: RL starts from the model as it is
    sft_style: str = ""  # worked answers to word sums, as in `zerozoo show sft`; "": right answers of the model's own
    sft_samples: int = 16  # responses to each problem, of which the right ones are learned
    sft_batch_size: int = 64  # examples of a gradient step
    sft_learning_rate: float = 1e-5  # of AdamW
    rate_samples: int = 16  # responses to each problem for its pass rate; 0: all problems, each once


TINY = {
    **settings.TINY,
    "model": "tiny-base-micro",
    "split": "chain",
    "kl_coefficient": 0.01,
    "prompts_per_step": 64,
    "samples_per_prompt": 4,
    "heldout_size": 1000,
    "steps": 120,
    "evaluate_every": 40,
    "learning_rate": 3e-4,
    "token_learning_rate": 1e-3,
    "sft_epochs": 5,
    "sft_style": "steps",
    "sft_batch_size": 32,
    "sft_learning_rate": 5e-3,
    "rate_samples": 0,
}
EXTENDABLE = settings.EXTENDABLE
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {**settings.LAPTOP, "kl_coefficient": 0.01, "samples_per_prompt": 8, "warmup_steps": 0}
    | {"token_learning_rate": 3e-5, "problems": 64, "rate_samples": 4},
    "tiny": TINY,
    "paper": {},
    "smoke": {**TINY, "split": "easy", "heldout_size": 10, "problems": 24}
    | {"rate_samples": 2, "prompts_per_step": 4, "steps": 3, "frozen_steps": 1},
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run all stages, resuming where the run directory stands; the final metrics of RL and the rated pass rate."""
    config = complete(config)
    machine = set_up_machine(config)
    stages = stages_of(config)
    outputs = prepare(run, stages, join_ranks(machine.device)) if stages else {}
    metrics = _reinforce(config, run, outputs)
    return {**metrics, **(outputs["rates"].metrics if "rates" in outputs else {})}


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    names = [*(stage.name for stage in stages_of(config)), "rl"]
    return [("stages", ", ".join(names)), *plan_zero_rl(complete(config))]


def stages_of(config: Config) -> list[Stage]:
    """What comes before RL. Raises UserError for fields that no run could use."""
    choose("keep", config.keep, KEPT)
    check_least(config, right_weight=0, wrong_weight=0, token_learning_rate=0, problems=0, sft_epochs=0, rate_samples=0)
    every = (("sft", config.sft_epochs, _fine_tune), ("rates", config.rate_samples, _rate))
    return [Stage(name, partial(work, config)) for name, used, work in every if used]


def _fine_tune(config: Config, run: Run, outputs: Mapping[str, Outputs]) -> Outputs:
    sft = {"batch_size": config.sft_batch_size, "epochs": config.sft_epochs, "learning_rate": config.sft_learning_rate}
    drawn = {"samples_per_prompt": config.sft_samples, "steps": 0}
    tuning = stage_config(SamplingConfig, config, **sft, **drawn, warmup=0.03, schedule="linear")

    def make(bench: Bench) -> list[Row]:
        if not config.sft_style:
            return right_answers(bench.draw())
        tasks = bench.tasks()
        chosen = hash_order(tasks.train, config.seed)[: config.problems or None]
        return solved_tasks(chosen, bench.policy, tasks.template, config.sft_style, config.seed)

    return fine_tune(tuning, run, make)


def _rate(config: Config, run: Run, outputs: Mapping[str, Outputs]) -> Outputs:
    """Pass rates of the policy that RL starts from."""
    start = model_of(outputs, "sft", otherwise=config.model)
    drawn = {"model": start, "samples_per_prompt": config.rate_samples, "steps": 0}
    sampling = stage_config(SamplingConfig, config, **drawn, schedule="linear")
    with open_bench(sampling, run) as bench:
        tasks = bench.tasks()
        tasks = replace(tasks, train=tuple(hash_order(tasks.train, config.seed)[: config.problems or None]))
        rates = pass_rates(sampling, tasks, bench.policy, bench.sampler, run, bench.ranks)
    return Outputs({"rates": run.path("pass_rates.json")}, {"rates/mean": sum(rates.values()) / len(rates)})


def _reinforce(config: Config, run: Run, outputs: Mapping[str, Outputs]) -> dict[str, float]:
    start = replace(config, model=model_of(outputs, "sft", otherwise=config.model))
    tasks = load_tasks_for(config)
    if "rates" in outputs:
        rates = json.loads(outputs["rates"].files["rates"].read_text(encoding="utf-8"))
        tasks = replace(tasks, train=repeat_by_difficulty(tasks.train, rates, BANDS))
    algorithm = replace(make_algorithm(config), policy_loss=CLONE_OR_PUSH, selection=KEPT[config.keep])
    made: list[OutcomeCredit] = []

    def credit(parts: Parts) -> OutcomeCredit:
        tokens = None
        if config.token_rewards:
            tokens = open_token_model(start, parts, error_probe(StepSplitter(parts.policy, tasks.stop)))
        advantage = ADVANTAGES[config.advantage]
        made.append(OutcomeCredit(advantage, config.right_weight, config.wrong_weight, tokens, parts.ranks))
        return made[0]

    score = FinalScore(cut=config.cut_reward)
    metrics = train_zero_rl(start, run, algorithm, credit, score, config.frozen_steps, tasks=tasks)
    correlations = [row[METRIC] for row in run.history() if METRIC in row]
    if correlations:
        metrics[f"mean/{METRIC}"] = sum(correlations) / len(correlations)
    if made[0].tokens is not None and run.writes:
        save_reward_model(made[0].tokens.model, run.path("token-reward"))
    return metrics


CLAIM = Claim(
    statement="Token weights from a reward model of tokens that learns from outcomes beat equal weights, and both sides"
    " together beat cloning right responses alone.",
    arms={
        "learned": {},
        "uniform": {"token_rewards": False},
        "right-only": {"token_rewards": False, "wrong_weight": 0.0},
    },
    metric="heldout/sampled_accuracy",
    holds=all_of(
        difference_claim("learned", "uniform", 0.0, require_mean("uniform", 0.2, metric="mean/groups/informative")),
        difference_claim("uniform", "right-only", threshold=0.02),
    ),
    seeds=(0, 1, 2),
    budget="9 trainings of a model of 0.1M parameters on one core, with their stages",
    base=TINY,
    smoke=PRESETS["smoke"],
    curve="heldout/greedy_accuracy",
)
