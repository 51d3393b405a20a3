"""From names in a config to the parts of a zero-RL run.

`config` is a recipe's Config; the functions read the fields of the same names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zerozoo.language.algorithm import (
    ADVANTAGES,
    DIVERGENCES,
    Algorithm,
    Clip,
    KLPenalty,
    choose,
)
from zerozoo.language.critic import Critic, CriticSettings, ValueModel
from zerozoo.language.device import Machine
from zerozoo.language.engine import current_engine
from zerozoo.language.loop_settings import SCHEDULES, LoopSettings
from zerozoo.language.lora import add_lora, merge_lora
from zerozoo.language.models import LanguageModel, as_dtype, load_model, save_model
from zerozoo.language.parallel import ALONE, Ranks, ShardedSampler, ShardedVerifier
from zerozoo.language.precision import importance_cap
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Sampler
from zerozoo.language.samplers.named import NAMED
from zerozoo.language.samplers.native import NativeSampler
from zerozoo.language.samplers.partial import PartialSampler, SliceWriter
from zerozoo.language.samplers.reference import TransformersSampler
from zerozoo.language.sharding import shard_modules, shard_policy, whole_copy
from zerozoo.language.update import Updater, UpdateSettings
from zerozoo.rewards.verifier import Verifier
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.prompts import render
from zerozoo.tasks.task import Task, TaskSet, make_verifier

SAMPLERS = ("native", "transformers")
# The least value of every number in a config; what is smaller would fail somewhere inside, or do nothing.
LEAST = {
    **dict.fromkeys(("prompts_per_step", "max_prompt_tokens", "max_new_tokens", "updates_per_step", "epochs"), 1),
    **dict.fromkeys(("evaluate_every", "checkpoint_every", "lora_alpha"), 1),
    **dict.fromkeys(("steps", "refill_rounds", "warmup_steps", "lora_rank", "samples_logged", "heldout_size"), 0),
    **dict.fromkeys(("clip_low", "clip_high", "learning_rate", "weight_decay"), 0),
    **dict.fromkeys(("tokens_per_microbatch", "rows_at_once", "importance_cap", "max_lag", "slice_tokens"), 0),
}
ABOVE_ZERO = ("temperature", "max_gradient_norm")


def check_numbers(config: Any) -> None:
    """Raises UserError for a number that no run could use."""
    for name, least in LEAST.items():
        if not getattr(config, name) >= least:  # NaN is not either
            raise UserError(f"{name} is {getattr(config, name)}, but must be at least {least}.")
    for name in ABOVE_ZERO:
        if not getattr(config, name) > 0:
            raise UserError(f"{name} is {getattr(config, name)}, but must be above 0.")
    if config.updates_per_step > config.prompts_per_step:
        raise UserError(
            f"updates_per_step is {config.updates_per_step}, but a step has only {config.prompts_per_step} prompts to"
            " share among its updates."
        )
    if config.slice_tokens and not config.max_lag:
        raise UserError("slice_tokens is for responses that are written ahead of their step: set max_lag, too.")


def make_algorithm(config: Any) -> Algorithm:
    """The objective that a config with group advantages names.

    Raises UserError for unknown names and choices that exclude each other.
    """
    choose("advantage", config.advantage, ADVANTAGES)
    if config.samples_per_prompt < 2:
        raise UserError(
            f"samples_per_prompt is {config.samples_per_prompt}, but the advantage {config.advantage!r} compares the"
            " responses of a group with one another: take at least 2."
        )
    return replace(
        make_objective(config), advantage=ADVANTAGES[config.advantage], skip_uninformative=config.skip_uninformative
    )


def make_objective(config: Any) -> Algorithm:
    """The objective but for the advantage, for recipes that give credit in another way; errors as `make_algorithm`."""
    choose("KL estimator", config.kl_estimator, DIVERGENCES)
    if config.samples_per_prompt < 1:
        raise UserError(f"samples_per_prompt is {config.samples_per_prompt}, but must be at least 1.")
    return Algorithm(
        clip=Clip(config.clip_low, config.clip_high),
        aggregation=config.aggregation,
        length_constant=float(config.max_new_tokens) if config.aggregation == "constant" else None,
        kl=KLPenalty(config.kl_coefficient, DIVERGENCES[config.kl_estimator], config.kl_place),
        entropy_coefficient=config.entropy_coefficient,
        overlong=config.overlong,
        refill_rounds=config.refill_rounds,
    )


def open_policy(config: Any, machine: Machine, shards: bool = False) -> LanguageModel:
    """Load the model for training: float32 weights on the device, adapters and checkpointing as the config asks.

    Args:
        shards: whether the caller's loop can train a model of which each process has a part, as `config.shard` asks.
            All processes must have met by then.

    Raises:
        UserError: sharding is asked for where it is not made.
    """
    sharded = getattr(config, "shard", False)
    if sharded and not shards:
        raise UserError("--shard is made for reinforcement learning, not for the other stages of this recipe.")
    policy = load_model(config.model, dtype="float32", device="cpu" if sharded else machine.device)
    policy.autocast = as_dtype(machine.autocast) if machine.autocast else None
    if config.lora_rank:
        add_lora(policy, config.lora_rank, config.lora_alpha, config.seed)
    if config.gradient_checkpointing:
        # Reentrant checkpointing drops gradients when the embeddings are frozen, as with LoRA.
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if sharded:
        shard_policy(policy, machine.device)
    return policy


def make_update_settings(config: Any, machine: Machine) -> UpdateSettings:
    """How rollouts become gradient steps."""
    return UpdateSettings(
        updates_per_step=config.updates_per_step,
        epochs=config.epochs,
        tokens_per_microbatch=machine.tokens_per_microbatch,
        packed=config.packed,
        share_prompts=config.share_prompts,
        max_gradient_norm=config.max_gradient_norm,
        temperature=config.temperature,
        importance_cap=importance_cap(config),
    )


def make_loop_settings(config: Any) -> LoopSettings:
    """How long the loop runs and how often it looks."""
    return LoopSettings(
        steps=config.steps,
        prompts_per_step=config.prompts_per_step,
        samples_per_prompt=config.samples_per_prompt,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        samples_logged=config.samples_logged,
        warmup_steps=config.warmup_steps,
        schedule=choose("schedule", config.schedule, SCHEDULES),
        max_lag=config.max_lag,
    )


def make_optimizer(
    policy: LanguageModel, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.AdamW:
    """Fused AdamW over the trainable weights, every tied weight once."""
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, betas=betas, fused=True)


def make_sampler(name: str, policy: LanguageModel, machine: Machine, ranks: Ranks = ALONE) -> Sampler:
    """A sampler by name, from the engine of the run where it has one.

    Raises UserError for one that cannot share its work among processes, or that the engine does not have.
    """
    choose("sampler", name, (*SAMPLERS, *NAMED))
    engine = current_engine()
    if engine is not None:
        return engine.sampler(name, policy, machine, ranks)
    if name == "native":
        native = NativeSampler(policy, machine.rows_at_once)
        return native if ranks.size == 1 else ShardedSampler(native, ranks)
    if ranks.size > 1:
        raise UserError("Only --sampler native works in several processes.")
    return NAMED[name](policy, machine) if name in NAMED else TransformersSampler(policy)


def write_in_slices(config: Any, sampler: Sampler) -> Sampler:
    """What writes the training responses: `sampler`, or with `config.slice_tokens` one that keeps them over updates.

    Raises UserError for a sampler that cannot go on with a response.
    """
    if not config.slice_tokens:
        return sampler
    if not isinstance(sampler, SliceWriter):
        raise UserError(
            "This sampler cannot go on with what other weights have begun: leave out --slice-tokens, or take --sampler"
            " native in one process or with --backend ray."
        )
    return PartialSampler(sampler, config.slice_tokens)


@contextmanager
def open_verifier(tasks: TaskSet, ranks: Ranks) -> Iterator[Verifier]:
    """The verifier of a task set, closed at the end; each process judges its share."""
    with make_verifier(tasks) as verifier:
        yield verifier if ranks.size == 1 else ShardedVerifier(verifier, ranks)


def save_policy(policy: LanguageModel, run: Run) -> None:
    """Write the trained model into the run directory, adapters merged. All processes must call it."""
    trained = policy if policy.outline is None else whole_copy(policy, run.writes)
    if trained is None:
        return
    merge_lora(trained)
    if run.writes:
        save_model(trained, run.path("model"))


def make_critic_settings(config: Any) -> CriticSettings:
    """How the critic of a config learns; 0 in `value_clip` is no clip. Raises UserError for numbers of no use."""
    if not config.value_clip >= 0:
        raise UserError(f"value_clip is {config.value_clip}, but must not be negative.")
    if not config.critic_learning_rate >= 0:
        raise UserError(f"critic_learning_rate is {config.critic_learning_rate}, but must not be negative.")
    return CriticSettings(
        gamma=config.gamma,
        lam=config.lam,
        length_alpha=config.length_alpha,
        critic_lam=config.critic_lam,
        bootstrap=config.bootstrap,
        whiten=config.whiten,
        value_clip=config.value_clip or None,
        updates_per_step=config.critic_updates,
        epochs=config.epochs,
        share_prompts=config.share_prompts,
        max_gradient_norm=config.max_gradient_norm,
    )


def open_critic(
    config: Any,
    settings: CriticSettings,
    policy: LanguageModel,
    machine: Machine,
    ranks: Ranks = ALONE,
    values: ValueModel | None = None,
) -> Critic:
    """A critic from the checkpoint `config.critic`, or the policy's where that is "", with an optimiser of its own.

    All its weights are trained, also where the policy has adapters. Raises UserError for a checkpoint that splits text
    into other tokens than the policy.

    values: the value model to take in place of the checkpoint with a head of zeros; a reward model's, head and all.
    """
    if values is None:
        device = "cpu" if config.shard else machine.device
        values = ValueModel(load_model(config.critic or config.model, dtype="float32", device=device))
    model = values.language_model
    if model.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(
            f"The critic {model.name} splits text into other tokens than {config.model}: take a checkpoint of the"
            " same family."
        )
    model.autocast = as_dtype(machine.autocast) if machine.autocast else None
    if config.gradient_checkpointing:
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.shard:
        shard_modules(values, list(values.backbone.model.layers), machine.device, model.autocast)
    optimizer = torch.optim.AdamW(
        values.parameters(), lr=config.critic_learning_rate, weight_decay=config.weight_decay, fused=True
    )
    return Critic(values, optimizer, replace(settings, tokens_per_microbatch=machine.tokens_per_microbatch), ranks)


def make_reference(policy: LanguageModel, updater: Updater) -> Callable[[Rollouts], Tensor]:
    """Log-probs under the frozen start, by the learner's own arithmetic.

    With LoRA the start is the policy with its adapters off; otherwise it is a copy of the weights. Make it before the
    first update.
    """
    without = getattr(policy.model, "disable_adapter", None)
    if without is not None:

        def without_adapters(rollouts: Rollouts) -> Tensor:
            with without():
                return updater.scores(policy.model, rollouts)

        return without_adapters
    if policy.outline is None:
        frozen = copy.deepcopy(policy.model).eval().requires_grad_(False)
    else:
        start = whole_copy(policy)
        assert start is not None
        frozen = start.model.eval().requires_grad_(False)
        shard_policy(start, str(policy.model.device))
    return lambda rollouts: updater.scores(frozen, rollouts)


def prompt_maker(policy: LanguageModel, template: str) -> Callable[[Task], list[int]]:
    """Token ids of a task's prompt, tokenised once and kept (trap 6)."""
    known: dict[str, list[int]] = {}

    def prompt(task: Task) -> list[int]:
        if task.question not in known:
            known[task.question] = policy.encode(render(template, task.question, policy.tokenizer))
        return known[task.question]

    return prompt


def drop_long_prompts(
    tasks: Sequence[Task], prompt: Callable[[Task], list[int]], longest: int
) -> tuple[tuple[Task, ...], int]:
    """The tasks whose prompt has at most `longest` tokens, and how many were dropped (card M2)."""
    kept = tuple(task for task in tasks if len(prompt(task)) <= longest)
    return kept, len(tasks) - len(kept)
