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

What came out (results/reproduce/simplerl-zoo.json): the format claim HOLDS on the tiny base model, with a larger effect
than in the paper. Two things stand behind that. The tiny model's boxed answers come without working, so the penalty
drives the working out; and its greedy accuracy is 0.92 before training, so the gain of `correctness` is mostly
sharpening. The difficulty claim HOLDS, too: training on the hard split made the tiny model worse than it was, while the
easy split sharpened its samples and left its greedy accuracy where it was. The base model gets almost no hard problem
right, so the precondition is met by construction.

Not reproduced here: the ten models of the paper (7B and more need GPUs); `--preset paper --plan` shows what would run.
"""

from dataclasses import dataclass, replace
from typing import Any

from zerozoo.language.build import (
    check_numbers,
    make_algorithm,
    make_loop_settings,
    make_optimizer,
    make_reference,
    make_sampler,
    make_update_settings,
    open_policy,
    open_verifier,
    prompt_maker,
    save_policy,
)
from zerozoo.language.device import choose_machine
from zerozoo.language.parallel import join_ranks
from zerozoo.language.plan import describe_plan
from zerozoo.language.samplers.interface import Decoding
from zerozoo.language.task_choice import fit_tasks, load_tasks_for
from zerozoo.language.update import Updater
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.language.zoo import recommended
from zerozoo.rewards.terms import load_reward
from zerozoo.runs.claims import Claim, all_of, difference_claim, require_mean
from zerozoo.runs.run import Run

PAPER = "SimpleRL-Zoo: Investigating and Taming Zero RL for Open Base Models in the Wild (2025), arXiv 2503.18892"


@dataclass(frozen=True)
class Config:
    """Fields carry the paper's defaults; "" or 0 in a field that says so means: what suits the model or the task."""

    seed: int = 0  # of everything random
    model: str = "Qwen/Qwen2.5-0.5B"  # smollm2-135m, tiny-base, a folder, or a hub id

    # What to train on

    data: str = ""  # arithmetic, countdown, word-sums, reasoning-gym:NAME, gsm8k ..., a file or hub id; "": the row's
    level: str = ""  # arithmetic: one-digit, twenty, two-digit, multiplication, steps; "": the task's default
    split: str = ""  # easy, medium or hard; auto: keep the problems of mixed outcome; "": the model's row, or all
    heldout: str = ""  # a file of held-out problems; "": split them off
    heldout_size: int = 0  # how many to split off, never trained on; 0: the task's own number (200 for files)
    question_column: str = ""  # "": found by its usual names
    answer_column: str = ""  # "": found by its usual names
    template: str = ""  # prompt: simple, complex, plain-qa, r1-tags, chat, or a text with {question}; "": what suits
    stop: tuple[str, ...] = ()  # texts that end a response, besides those of the model's row and the template

    # Reward

    reward: str = "correctness"  # correctness, strict, mix, independent, or package.module:function
    extractor: str = ""  # how the final answer is found: lenient, boxed, first-number, last-number; "": the task's

    # Rollouts

    prompts_per_step: int = 1024  # problems in a step
    samples_per_prompt: int = 8  # responses to each, the group
    max_prompt_tokens: int = 1024  # longer problems are dropped
    max_new_tokens: int = 0  # longest response; 0: the model's row (8192; 3072 for 4K contexts), else 1024
    temperature: float = 1.0  # of sampling, in training and in the sampled evaluation
    overlong: str = "keep"  # keep or mask: whether truncated responses enter the loss
    refill_rounds: int = 0  # extra rounds that replace groups of equal rewards (dynamic sampling)
    sampler: str = "native"  # native or transformers

    # Objective

    advantage: str = "group-normalised"  # or group-centred, leave-one-out
    aggregation: str = "token-mean"  # or sequence-mean, constant (divides by max_new_tokens)
    clip_low: float = 0.2  # the ratio is clipped below at 1 - clip_low
    clip_high: float = 0.2  # and above at 1 + clip_high
    kl_coefficient: float = -1.0  # 0: no reference model; -1: the model's row (1e-3 above 14B), else 1e-4
    kl_estimator: str = "k3"  # or k2; k1 only in the reward
    kl_place: str = "loss"  # or reward
    entropy_coefficient: float = 0.0  # bonus for entropy
    skip_uninformative: bool = True  # leave groups of equal rewards out of the update; changes no gradient

    # Optimisation

    steps: int = 100  # rollouts
    updates_per_step: int = 4  # gradient steps in a rollout, each on its share of the problems
    epochs: int = 1  # passes over a rollout
    learning_rate: float = 5e-7  # of AdamW
    warmup_steps: int = 0  # steps in which it rises from 0
    schedule: str = "constant"  # or linear, down to 0
    weight_decay: float = 0.01  # of AdamW
    max_gradient_norm: float = 1.0  # longer gradients are scaled down to it
    lora_rank: int = 0  # 0: train all weights
    lora_alpha: int = 32  # adapters are scaled by alpha / rank

    # Watching

    evaluate_every: int = 5  # steps between greedy evaluations
    checkpoint_every: int = 10  # steps between checkpoints
    samples_logged: int = 16  # responses a step in samples.jsonl

    # Machine

    device: str = "auto"  # cpu, cuda, cuda:1, mps
    dtype: str = "auto"  # of the products: float32 or bfloat16; weights and optimiser are float32
    tokens_per_microbatch: int = 0  # 0: what suits the device
    rows_at_once: int = 0  # responses written side by side; 0: what suits the device
    share_prompts: bool = True  # run the prompt of a group once in the update, where that is possible
    packed: bool = False  # rows behind one another in place of padding, where prompts are not shared
    gradient_checkpointing: bool = False  # less memory, more time
    profile: bool = False  # measure memory by phase, and show at the end where the time went


EXTENDABLE = ("steps", "checkpoint_every", "samples_logged", "profile")

_ARITHMETIC = {
    "data": "arithmetic",
    "max_prompt_tokens": 64,
    "max_new_tokens": 12,
    "kl_coefficient": 0.0,
    "updates_per_step": 1,
}
_TINY = {
    "model": "tiny-base",
    "data": "word-sums",
    "split": "easy",
    "heldout_size": 500,
    "max_new_tokens": 64,
    "prompts_per_step": 32,
    "updates_per_step": 1,
    "learning_rate": 3e-4,
    "kl_coefficient": 1e-3,
    "steps": 60,
    "evaluate_every": 10,
    "checkpoint_every": 20,
}
PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        **_ARITHMETIC,
        "model": "smollm2-135m",
        "stop": ("\n",),
        "prompts_per_step": 24,
        "learning_rate": 1e-5,
        "steps": 40,
    },
    "tiny": _TINY,
    "paper": {},
    "released": {"entropy_coefficient": 0.001},
    "smoke": {
        **_TINY,
        "model": "tiny-base-micro",
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "heldout_size": 20,
        "steps": 2,
    },
}


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps`, resuming where the run directory stands; the final held-out metrics."""
    config = complete(config)
    machine = choose_machine(config.device, config.dtype, config.tokens_per_microbatch, config.rows_at_once)
    algorithm, reward, tasks = make_algorithm(config), load_reward(config.reward), load_tasks_for(config)
    ranks, policy = join_ranks(machine.device), open_policy(config, machine)
    sampler = make_sampler(config.sampler, policy, machine, ranks)
    tasks = fit_tasks(config, tasks, policy, sampler, run, ranks)
    optimizer = make_optimizer(policy, config.learning_rate, config.weight_decay)
    updater = Updater(policy, optimizer, algorithm, make_update_settings(config, machine), ranks)
    with open_verifier(tasks, ranks) as verifier:
        metrics = ZeroRL(
            policy=policy,
            sampler=sampler,
            tasks=tasks,
            prompt=prompt_maker(policy, tasks.template),
            verifier=verifier,
            reward=reward,
            algorithm=algorithm,
            updater=updater,
            decoding=Decoding(config.max_new_tokens, config.temperature, stop_strings=tasks.stop),
            settings=make_loop_settings(config),
            run=run,
            reference=make_reference(policy, updater) if algorithm.kl.coefficient else None,
            ranks=ranks,
            profile=config.profile,
        ).train()
    save_policy(policy, run)
    return metrics


def plan(config: Config) -> list[tuple[str, str]]:
    """What would run, for `--plan` and before every run."""
    config = complete(config)
    return describe_plan(
        config, choose_machine(config.device, config.dtype, config.tokens_per_microbatch, config.rows_at_once)
    )


def complete(config: Config) -> Config:
    """The config with the fields filled in that are left to the model's row of the zoo table (card M5).

    Raises UserError for numbers that no run could use.
    """
    row = recommended(config.model)
    coefficient = config.kl_coefficient if config.kl_coefficient >= 0 else (row.kl_coefficient if row else 1e-4)
    longest = config.max_new_tokens or (row.max_new_tokens if row else 1024)
    completed = replace(config, kl_coefficient=coefficient, max_new_tokens=longest)
    check_numbers(completed)
    return completed


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
        base=_TINY,
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
        base={**_TINY, "heldout": "mixed"},
        smoke=PRESETS["smoke"],
        name="difficulty",
        curve="heldout/greedy_accuracy",
    ),
)
