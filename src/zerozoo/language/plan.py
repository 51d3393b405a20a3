"""What a run would do and need, computed before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from zerozoo.language.decoder import PREPARE_BYTES, PREPARE_FROM
from zerozoo.language.device import Machine, has_int8_units
from zerozoo.language.factory import SIZES, Training
from zerozoo.language.families import CHARACTERS
from zerozoo.language.models import hub_is_known
from zerozoo.language.products import weights_first
from zerozoo.language.unit_test_factory import SIZES as TEST_WRITERS
from zerozoo.language.zoo import recommended
from zerozoo.runs.processes import process_count
from zerozoo.tasks.unit_tests import vocabulary
from zerozoo.tasks.word_sums import ALPHABET

GIB = 2**30
FLOAT = 4


@dataclass(frozen=True)
class ModelSize:
    """The numbers of a Llama-type model that memory depends on."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool = False
    head_dim: int = 0

    @property
    def width(self) -> int:
        """Values of one head."""
        return self.head_dim or self.hidden // self.heads

    @property
    def key_value_width(self) -> int:
        """Values of the cache per token and layer."""
        return 2 * self.key_value_heads * self.width

    @property
    def parameters(self) -> int:
        """All weights but the norms and biases, which are a thousandth of them."""
        attention = self.hidden * (2 * self.heads * self.width + self.key_value_width)
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + (1 if self.tied else 2) * self.vocabulary * self.hidden


# From the published configs of the ten base models, so that a plan needs no download.
PUBLISHED = {
    "mistralai/Mistral-7B-v0.1": ModelSize(32, 4096, 14336, 32, 8, 32000),
    "meta-llama/Llama-3.1-8B": ModelSize(32, 4096, 14336, 32, 8, 128256),
    "deepseek-ai/deepseek-math-7b-base": ModelSize(30, 4096, 11008, 32, 32, 102400),
    "mistralai/Mistral-Small-24B-Base-2501": ModelSize(40, 5120, 32768, 32, 8, 131072, head_dim=128),
    "Qwen/Qwen2.5-0.5B": ModelSize(24, 896, 4864, 14, 2, 151936, tied=True),
    "Qwen/Qwen2.5-1.5B": ModelSize(28, 1536, 8960, 12, 2, 151936, tied=True),
    "Qwen/Qwen2.5-7B": ModelSize(28, 3584, 18944, 28, 4, 152064),
    "Qwen/Qwen2.5-14B": ModelSize(48, 5120, 13824, 40, 8, 152064),
    "Qwen/Qwen2.5-32B": ModelSize(64, 5120, 27648, 40, 8, 152064),
    "Qwen/Qwen2.5-Math-7B": ModelSize(28, 3584, 18944, 28, 4, 152064),
}

SPECIAL_TOKENS = 4  # of the models made here, besides their characters and pieces


def _made_here(recipe: Training, texts: Collection[str]) -> ModelSize:
    tokens = len(texts) + SPECIAL_TOKENS
    return ModelSize(recipe.layers, recipe.hidden, recipe.intermediate, recipe.heads, recipe.heads, tokens, tied=True)


# Made or unpacked on first use, which takes minutes: a plan must not wait for that.
BUILT_IN_SIZES = {
    "smollm2-135m": ModelSize(30, 576, 1536, 9, 3, 49152, tied=True),
    **{
        name: _made_here(recipe, ALPHABET)
        for name, recipe in (("tiny-base", SIZES["base"]), ("tiny-base-micro", SIZES["micro"]))
    },
    **{name: _made_here(recipe, {*CHARACTERS, *vocabulary()}) for name, recipe in TEST_WRITERS.items()},
}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, by what they are for.

    Weights, gradients and Adam's two moments are float32 (4 + 4 + 8 bytes a trained parameter); the KL reference is a
    second copy of the weights unless adapters are trained; the cache holds keys and values of the rows written side by
    side; with AVX-512 the weights of small models are laid out anew, as a copy, while long responses are written;
    activations are those of one micro-batch, which gradient checkpointing reduces to one layer and the boundaries;
    logits exist for one chunk of response tokens, forward and backward.

    With sharding these are one process's parts. Beside them all weights are whole while responses are written, and
    embedding, head and two layers with their gradients during a pass.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    cache: int
    activations: int
    logits: int
    whole_sampling: int = 0
    whole_learning: int = 0
    laid_out: int = 0

    @property
    def learner(self) -> int:
        kept = self.weights + self.gradients + self.optimizer + self.reference
        return kept + self.whole_learning + self.activations + self.logits

    @property
    def peak(self) -> int:
        """The larger of sampling and learning: the cache is gone when activations come."""
        resting = self.weights + self.optimizer + self.reference
        return max(resting + self.whole_sampling + self.laid_out + self.cache, self.learner)


def model_size(name: str) -> ModelSize | None:
    """Size of a model, no weights read; None when its config cannot be had or is of another kind of model."""
    row = recommended(name)
    if row is not None:
        return PUBLISHED[row.hub_id]
    if name in BUILT_IN_SIZES:
        return BUILT_IN_SIZES[name]
    try:
        # Without this a hub that cannot be reached is tried for half a minute.
        local = Path(name).is_dir() or not hub_is_known()
        values, _ = PretrainedConfig.get_config_dict(name, local_files_only=local)
        return ModelSize(
            layers=values["num_hidden_layers"],
            hidden=values["hidden_size"],
            intermediate=values["intermediate_size"],
            heads=values["num_attention_heads"],
            key_value_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
            vocabulary=values["vocab_size"],
            tied=bool(values.get("tie_word_embeddings", False)),
            head_dim=values.get("head_dim") or 0,
        )
    except (OSError, ValueError, KeyError):
        return None


def memory_plan(
    size: ModelSize, config: Any, machine: Machine, trained_share: float = 1.0, chunk: int = 512, parts: int = 1
) -> MemoryPlan:
    """Memory of a run, by arithmetic.

    Args:
        trained_share: share of the parameters that is trained (below 1 for LoRA).
        chunk: response tokens per slice of the vocabulary head.
        parts: processes that divide weights, gradients and optimiser among them.
    """
    trained = int(size.parameters * trained_share)
    element = 2 if machine.autocast else FLOAT
    rows = min(machine.rows_at_once, config.prompts_per_step * config.samples_per_prompt)
    tokens = min(machine.tokens_per_microbatch, rows * (config.max_prompt_tokens + config.max_new_tokens))
    # Per token and layer: inputs of the two blocks, queries, keys, values, attention output, and four values of the
    # gated network's width (gate, up, their product, activation).
    per_layer = (6 * size.hidden + size.key_value_width + 4 * size.intermediate) * element
    kept = size.layers * size.hidden * element + per_layer if config.gradient_checkpointing else size.layers * per_layer
    reference = size.parameters * FLOAT if config.kl_coefficient and trained_share == 1.0 else 0
    around = (1 if size.tied else 2) * size.vocabulary * size.hidden
    layer = (size.parameters - around) // size.layers
    whole = size.parameters * FLOAT
    plain_cpu = machine.device == "cpu" and machine.matmul == "highest" and not weights_first()
    prepared = plain_cpu and whole <= PREPARE_BYTES and config.max_new_tokens >= PREPARE_FROM
    return MemoryPlan(
        weights=whole // parts,
        gradients=trained * FLOAT // parts,
        optimizer=2 * trained * FLOAT // parts,
        reference=reference // parts,
        cache=rows * (config.max_prompt_tokens + config.max_new_tokens) * size.layers * size.key_value_width * element,
        activations=tokens * kept,
        logits=3 * min(chunk, tokens) * size.vocabulary * FLOAT,
        whole_sampling=size.layers * layer * element + around * FLOAT if parts > 1 else 0,
        whole_learning=2 * (2 * layer * element + around * FLOAT) if parts > 1 else 0,
        laid_out=whole if prepared else 0,
    )


def describe_plan(config: Any, machine: Machine) -> list[tuple[str, str]]:
    """Lines (what, how much) for the command line."""
    row = recommended(config.model)
    sequences = config.prompts_per_step * config.samples_per_prompt
    size = model_size(config.model)
    lines = [
        ("model", config.model + (f", zoo row {row.hub_id}: prompt {row.template}, split {row.split}" if row else "")),
        ("data", " ".join(part for part in (config.data or "the row's split", config.level, config.split) if part)),
        (
            "each step",
            f"{config.prompts_per_step} prompts x {config.samples_per_prompt} responses = {sequences:,} sequences of at"
            f" most {config.max_prompt_tokens:,} + {config.max_new_tokens:,} tokens",
        ),
        (
            "gradient steps",
            f"{config.updates_per_step} x {config.epochs} a step,"
            f" {config.prompts_per_step // config.updates_per_step} prompts each",
        ),
        (
            "in all",
            f"{config.steps} steps, {config.steps * sequences:,} responses,"
            f" at most {config.steps * sequences * config.max_new_tokens:,} new tokens",
        ),
        (
            "objective",
            f"{config.advantage} advantage, {config.aggregation}, clip {config.clip_low}/{config.clip_high},"
            f" KL {config.kl_coefficient:g}, entropy {config.entropy_coefficient:g}, reward {config.reward}",
        ),
        (
            "machine",
            f"{machine.device}, products in {machine.products}, {torch.get_num_threads()} threads,"
            f" micro-batches of {machine.tokens_per_microbatch:,} tokens, {machine.rows_at_once} rows side by side",
        ),
    ]
    if config.precision != "full":
        slow = "" if has_int8_units() else "; this CPU has no units for int8, so it gains no time here"
        lines.append(("precision", config.precision + slow))
    if config.max_lag:
        lines.append(("ahead", _ahead_line(config)))
    if size is None:
        lines.append(("memory", "not known: the model's config is not on this machine and the hub cannot be reached"))
    else:
        lines.append(("memory", _memory_line(size, config, machine)))
    return lines


def _ahead_line(config: Any) -> str:
    weights = (
        f"a token weighs at most {config.importance_cap:g} (probability before the update / when it was written)"
        if config.importance_cap
        else "all tokens weigh 1: set --importance-cap (2) to weight them by how likely the policy would write them now"
    )
    slices = f", {config.slice_tokens} tokens a version" if config.slice_tokens else ""
    return f"responses are written up to {config.max_lag} steps before they are trained on{slices}; {weights}"


def planned_memory(size: ModelSize, config: Any, machine: Machine, processes: int) -> MemoryPlan:
    """Memory of one of the processes that train with a config, by arithmetic."""
    share = 1.0
    if config.lora_rank:
        # Two thin matrices beside each of the seven linear layers of a block.
        widths = 4 * 2 * size.hidden + 3 * (size.hidden + size.intermediate)
        share = min(1.0, size.layers * config.lora_rank * widths / size.parameters)
    return memory_plan(size, config, machine, share, parts=processes if config.shard else 1)


def _memory_line(size: ModelSize, config: Any, machine: Machine) -> str:
    parts = process_count() if config.shard else 1
    plan = planned_memory(size, config, machine, parts)
    return (
        f"{size.parameters / 1e6:,.0f}M parameters; at most about {plan.peak / GIB:.1f} GiB: weights"
        f" {plan.weights / GIB:.1f}, gradients {plan.gradients / GIB:.1f}, optimiser {plan.optimizer / GIB:.1f},"
        f" reference {plan.reference / GIB:.1f}, cache {plan.cache / GIB:.1f}, activations"
        f" {plan.activations / GIB:.1f}, logits {plan.logits / GIB:.1f}"
        + (f", weights laid out for writing {plan.laid_out / GIB:.1f}" if plan.laid_out else "")
        + (
            f"; in each of {parts} processes, with weights gathered to write ({plan.whole_sampling / GIB:.1f}) and to"
            f" learn ({plan.whole_learning / GIB:.1f})"
            if parts > 1
            else ""
        )
    )
