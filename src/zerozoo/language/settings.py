"""Fields that the recipes on the zero-RL loop share, with the comments that `zerozoo show` prints.

A recipe's Config derives from one of these and gives its paper's numbers where they differ. The numbers here are those
of SimpleRL-Zoo.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ZeroRLConfig:
    """`""` or 0 in a field that says so means: what suits the model or the task."""

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

    reward: str = "correctness"  # correctness, plus-minus, strict, mix, independent, or package.module:function
    extractor: str = ""  # how the final answer is found: lenient, boxed, first-number, last-number; "": the task's

    # Rollouts

    prompts_per_step: int = 1024  # problems in a step
    samples_per_prompt: int = 8  # responses to each, the group
    max_prompt_tokens: int = 1024  # longer problems are dropped
    max_new_tokens: int = 0  # longest response; 0: the model's row (8192; 3072 for 4K contexts), else 1024
    temperature: float = 1.0  # of sampling, in training and in the sampled evaluation
    overlong: str = "keep"  # keep or mask: whether truncated responses enter the loss
    refill_rounds: int = 0  # extra rounds that replace groups of equal rewards (dynamic sampling)
    sampler: str = "native"  # native, transformers, or vllm (docs/vllm.md)
    max_lag: int = 0  # steps of tasks that are drawn and answered ahead of the step that trains on them
    slice_tokens: int = 0  # with max_lag: tokens of a response written ahead by one version of the weights; 0: all

    # Objective

    aggregation: str = "token-mean"  # or sequence-mean, constant (divides by max_new_tokens)
    clip_low: float = 0.2  # the ratio is clipped below at 1 - clip_low
    clip_high: float = 0.2  # and above at 1 + clip_high
    kl_coefficient: float = -1.0  # 0: no reference model; -1: the model's row (1e-3 above 14B), else 1e-4
    kl_estimator: str = "k3"  # or k2; k1 only in the reward
    kl_place: str = "loss"  # or reward
    entropy_coefficient: float = 0.0  # bonus for entropy

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
    dtype: str = "auto"  # of the factors of products: float32 or bfloat16; weights and optimiser are float32
    tokens_per_microbatch: int = 0  # 0: what suits the device
    rows_at_once: int = 0  # responses written side by side; 0: what suits the device
    share_prompts: bool = True  # run the prompt of a group once in the update, where that is possible
    packed: bool = False  # rows behind one another in place of padding, where prompts are not shared
    precision: str = "full"  # or, on a CPU, int8-rollout (responses in int8), int8-backward (gradients), int8 (both)
    importance_cap: float = 2.0  # most that a token of int8, vllm or max_lag weighs in the loss; 0: all weigh 1
    gradient_checkpointing: bool = False  # less memory, more time
    shard: bool = False  # several processes keep weights, gradients and optimiser in parts, one each (FSDP2)
    profile: bool = False  # measure memory by phase, and show at the end where the time went


@dataclass(frozen=True)
class GroupConfig(ZeroRLConfig):
    """Credit by comparing the responses of a group with one another."""

    advantage: str = "group-normalised"  # or group-centred, leave-one-out, batch-scaled
    skip_uninformative: bool = True  # leave groups of equal rewards out of the update; changes no gradient


@dataclass(frozen=True)
class CriticConfig(ZeroRLConfig):
    """Credit by token from a critic that learns along (PPO). The numbers are those of Open-Reasoner-Zero."""

    gamma: float = 1.0  # discount of a token
    lam: float = 1.0  # lambda of the advantages
    length_alpha: float = 0.0  # above 0: lambda is 1 - 1 / (length_alpha * length) instead (VAPO: 0.05)
    critic_lam: float = 1.0  # lambda of what the critic learns
    bootstrap: bool = True  # the value at the end of a truncated response counts; not that at a true end
    whiten: bool = True  # advantages of a step to mean 0 and deviation 1
    critic: str = ""  # the critic's checkpoint, for instance a reward model; "": the policy's
    critic_learning_rate: float = 5e-6  # of AdamW
    critic_updates: int = 12  # its gradient steps in a pass over a rollout, at most one for each problem
    value_clip: float = 0.2  # a value moves at most so far in a step; 0: no limit
    frozen_steps: int = 0  # first steps in which only the critic learns

    @property
    def advantage(self) -> str:
        """What the plan calls it."""
        lam = f"1 - 1/({self.length_alpha:g} length)" if self.length_alpha else f"{self.lam:g}"
        return f"GAE (lambda {lam})"


# Fields that a resumed run may change.
EXTENDABLE = ("steps", "checkpoint_every", "samples_logged", "shard", "profile")

# What most presets of the same name begin with. SmolLM2-135M on arithmetic, minutes on two cores:
LAPTOP = {
    "data": "arithmetic",
    "max_prompt_tokens": 64,
    "max_new_tokens": 12,
    "kl_coefficient": 0.0,
    "updates_per_step": 1,
    "model": "smollm2-135m",
    "stop": ("\n",),
    "prompts_per_step": 24,
    "learning_rate": 1e-5,
    "steps": 40,
}
# The tiny base model on word sums:
TINY = {
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
# Every line of code once, in seconds:
SMOKE = {
    **TINY,
    "model": "tiny-base-micro",
    "prompts_per_step": 4,
    "samples_per_prompt": 4,
    "heldout_size": 20,
    "steps": 2,
}
