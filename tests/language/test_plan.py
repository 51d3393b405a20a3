"""The plan: parameter counts of published models, and memory by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from zerozoo.language.decoder import PREPARE_FROM
from zerozoo.language.device import Machine, choose_machine, full_products, set_up_machine
from zerozoo.language.factory import SIZES, untrained
from zerozoo.language.families import tiny_model
from zerozoo.language.models import save_model
from zerozoo.language.plan import PUBLISHED, MemoryPlan, ModelSize, describe_plan, memory_plan, model_size
from zerozoo.language.zoo import ZOO
from zerozoo.recipes.reasoning.simplerl_zoo import Config, complete
from zerozoo.runs.errors import UserError

# From the model cards; all weights, embeddings included.
KNOWN = {
    "Qwen/Qwen2.5-0.5B": 0.494e9,
    "Qwen/Qwen2.5-1.5B": 1.54e9,
    "Qwen/Qwen2.5-7B": 7.62e9,
    "Qwen/Qwen2.5-Math-7B": 7.62e9,
    "Qwen/Qwen2.5-14B": 14.8e9,
    "Qwen/Qwen2.5-32B": 32.8e9,
    "meta-llama/Llama-3.1-8B": 8.03e9,
    "mistralai/Mistral-7B-v0.1": 7.24e9,
    "mistralai/Mistral-Small-24B-Base-2501": 23.6e9,
    "deepseek-ai/deepseek-math-7b-base": 6.91e9,
}


@dataclass
class Wishes:
    prompts_per_step: int = 2
    samples_per_prompt: int = 3
    max_prompt_tokens: int = 10
    max_new_tokens: int = 6
    gradient_checkpointing: bool = False
    kl_coefficient: float = 0.0


# attention 8 * (2 * 4 * 2 + 2 * 2 * 2) = 192, network 3 * 8 * 20 = 480, two layers, two matrices of 50 * 8
SMALL = ModelSize(layers=2, hidden=8, intermediate=20, heads=4, key_value_heads=2, vocabulary=50)
MACHINE = Machine("cpu", None, tokens_per_microbatch=64, rows_at_once=4)


@pytest.mark.parametrize("name", KNOWN)
def test_published_sizes_have_the_known_number_of_parameters(name: str) -> None:
    assert PUBLISHED[name].parameters == pytest.approx(KNOWN[name], rel=0.01)


def test_every_row_of_the_zoo_has_a_published_size() -> None:
    assert {row.hub_id for row in ZOO} == set(PUBLISHED) == set(KNOWN)
    for row in ZOO:
        assert model_size(row.hub_id) is PUBLISHED[row.hub_id]


def test_parameters_by_hand() -> None:
    assert SMALL.width == 2
    assert SMALL.key_value_width == 8
    assert SMALL.parameters == 2 * (192 + 480) + 2 * 50 * 8
    tied = ModelSize(2, 8, 20, 4, 2, 50, tied=True, head_dim=3)
    assert tied.parameters == 2 * (8 * (2 * 4 * 3 + 2 * 2 * 3) + 480) + 50 * 8


def test_memory_by_hand() -> None:
    weights = 4 * (2 * 672 + 800)
    per_layer = (6 * 8 + 8 + 4 * 20) * 4
    expected = MemoryPlan(
        weights=weights,
        gradients=weights,
        optimizer=2 * weights,
        reference=0,
        cache=4 * (10 + 6) * 2 * 8 * 4,  # four rows side by side
        activations=64 * 2 * per_layer,
        logits=3 * 64 * 50 * 4,
    )
    plan = memory_plan(SMALL, Wishes(), MACHINE)
    assert plan == expected
    assert plan.learner == 4 * weights + expected.activations + expected.logits
    assert plan.peak == plan.learner


def test_what_changes_the_memory() -> None:
    plain = memory_plan(SMALL, Wishes(), MACHINE)
    with_reference = memory_plan(SMALL, Wishes(kl_coefficient=0.1), MACHINE)
    assert with_reference.reference == plain.weights
    assert with_reference.peak == plain.peak + plain.weights
    # Adapters: a tenth of the parameters is trained, and the start needs no second copy.
    lora = memory_plan(SMALL, Wishes(kl_coefficient=0.1), MACHINE, trained_share=0.1)
    assert (lora.gradients, lora.optimizer, lora.reference) == (4 * 214, 8 * 214, 0)
    assert lora.weights == plain.weights
    # Checkpointing keeps the borders of the layers and the inside of one.
    checkpointed = memory_plan(SMALL, Wishes(gradient_checkpointing=True), MACHINE)
    assert checkpointed.activations == 64 * (2 * 8 * 4 + (6 * 8 + 8 + 4 * 20) * 4)
    # bfloat16 products halve activations and cache; the weights stay in float32.
    half = memory_plan(SMALL, Wishes(), Machine("cuda", "bfloat16", 64, 4))
    assert half.weights == plain.weights
    assert (2 * half.activations, 2 * half.cache) == (plain.activations, plain.cache)
    # No more rows or tokens than there are; a chunk bounds the logits.
    few = memory_plan(SMALL, Wishes(), Machine("cpu", None, 10**6, 10**6))
    assert few.cache == 6 * 16 * 2 * 8 * 4
    assert few.activations == 6 * 16 * 2 * (6 * 8 + 8 + 4 * 20) * 4
    assert memory_plan(SMALL, Wishes(), MACHINE, chunk=5).logits == 3 * 5 * 50 * 4


def test_the_peak_is_the_larger_of_sampling_and_learning() -> None:
    long = Wishes(max_new_tokens=100_000)
    plan = memory_plan(SMALL, long, MACHINE)
    assert plan.peak == plan.weights + plan.optimizer + plan.laid_out + plan.cache
    assert plan.peak > plan.learner


def test_small_models_are_laid_out_anew_for_long_responses_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerozoo.language.plan.weights_first", lambda: False)
    long = Wishes(max_new_tokens=PREPARE_FROM)
    assert memory_plan(SMALL, long, MACHINE).laid_out == 4 * (2 * 672 + 800)
    assert memory_plan(SMALL, Wishes(max_new_tokens=PREPARE_FROM - 1), MACHINE).laid_out == 0
    assert memory_plan(SMALL, long, Machine("cpu", None, 64, 4, matmul="medium")).laid_out == 0
    assert memory_plan(SMALL, long, Machine("cuda", "bfloat16", 64, 4)).laid_out == 0
    large = PUBLISHED["Qwen/Qwen2.5-1.5B"]
    assert memory_plan(large, long, MACHINE).laid_out == 0
    monkeypatch.setattr("zerozoo.language.plan.weights_first", lambda: True)
    assert memory_plan(SMALL, long, MACHINE).laid_out == 0


def test_parts_of_a_sharded_run_by_hand() -> None:
    plain, parts = (memory_plan(SMALL, Wishes(kl_coefficient=0.1), MACHINE, parts=parts) for parts in (1, 4))
    for name in ("weights", "gradients", "optimizer", "reference"):
        assert getattr(plain, name) == 4 * getattr(parts, name)
    assert (parts.cache, parts.activations, parts.logits) == (plain.cache, plain.activations, plain.logits)
    assert parts.whole_sampling == plain.weights
    assert parts.whole_learning == 2 * 4 * (2 * 672 + 800)  # two layers, embedding and head, each with a gradient
    assert parts.learner == plain.learner - 5 * plain.weights + 5 * parts.weights + parts.whole_learning
    rounded = memory_plan(SMALL, Wishes(), Machine("cuda", "bfloat16", 64, 4), parts=4)
    assert rounded.whole_sampling == 2 * 2 * 672 + 4 * 800  # layers are gathered in bfloat16
    assert (plain.whole_sampling, plain.whole_learning) == (0, 0)
    long = memory_plan(SMALL, Wishes(max_new_tokens=100_000), MACHINE, parts=4)
    assert long.peak == long.weights + long.optimizer + long.whole_sampling + long.laid_out + long.cache


def test_size_of_a_folder_is_read_from_its_config(tmp_path: Path) -> None:
    policy = tiny_model("gemma2", hidden=32, heads=4, kv_heads=2)
    save_model(policy, tmp_path / "model")
    size = model_size(str(tmp_path / "model"))
    assert size == ModelSize(2, 32, 64, 4, 2, 100, tied=True, head_dim=8)
    exact = sum(parameter.numel() for parameter in policy.model.parameters() if parameter.dim() > 1)
    assert size.parameters == exact


def test_a_folder_without_optional_fields_takes_their_meaning(tmp_path: Path) -> None:
    values = {"num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 20, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({**values, "vocab_size": 50, "model_type": "llama"}))
    assert model_size(str(tmp_path)) == ModelSize(2, 8, 20, 4, 4, 50)


@pytest.mark.parametrize(("name", "kind"), [("tiny-base", "base"), ("tiny-base-micro", "micro")])
def test_built_in_models_are_planned_without_being_made(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEROZOO_CACHE", str(tmp_path / "cache"))
    size = model_size(name)
    made = untrained(SIZES[kind], seed=0).model
    assert size is not None
    assert size.parameters == sum(parameter.numel() for parameter in made.parameters() if parameter.dim() > 1)
    assert (size.layers, size.hidden) == (made.config.num_hidden_layers, made.config.hidden_size)
    assert size.vocabulary == made.config.vocab_size
    assert not (tmp_path / "cache").exists()


def test_size_of_smollm2() -> None:
    size = model_size("smollm2-135m")
    assert size is not None
    assert size.parameters == pytest.approx(134.5e6, rel=0.001)


def test_an_unknown_model_has_no_size(tmp_path: Path) -> None:
    assert model_size(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{")
    assert model_size(str(tmp_path)) is None


def test_the_plan_of_the_paper_needs_no_download() -> None:
    lines = dict(describe_plan(complete(Config(model="Qwen/Qwen2.5-7B")), MACHINE))
    assert "zoo row Qwen/Qwen2.5-7B: prompt complex, split hard" in lines["model"]
    assert lines["each step"] == "1024 prompts x 8 responses = 8,192 sequences of at most 1,024 + 8,192 tokens"
    assert lines["gradient steps"] == "4 x 1 a step, 256 prompts each"
    assert lines["in all"] == "100 steps, 819,200 responses, at most 6,710,886,400 new tokens"
    assert "KL 0.0001" in lines["objective"]
    assert lines["memory"].startswith("7,615M parameters; at most about ")
    assert "weights 28.4, gradients 28.4, optimiser 56.7, reference 28.4" in lines["memory"]
    lora = dict(describe_plan(complete(Config(model="Qwen/Qwen2.5-7B", lora_rank=16)), MACHINE))["memory"]
    assert "weights 28.4, gradients 0." in lora
    assert "reference 0.0" in lora


def test_a_model_that_is_not_here_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerozoo.language.plan.hub_is_known", lambda: False)
    lines = dict(describe_plan(complete(Config(model="nobody/nothing", data="arithmetic")), MACHINE))
    assert lines["memory"].startswith("not known")
    assert lines["data"] == "arithmetic"


# --- the machine


@pytest.mark.parametrize("units", [True, False])
def test_the_plan_says_where_int8_gains_no_time(units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerozoo.language.plan.has_int8_units", lambda: units)
    config = complete(Config(model="nobody/nothing", data="arithmetic", precision="int8"))
    said = dict(describe_plan(config, MACHINE))["precision"]
    assert said == ("int8" if units else "int8; this CPU has no units for int8, so it gains no time here")


def test_machine_fills_in_what_is_open() -> None:
    assert choose_machine("cpu") == Machine("cpu", None, 1024, 256)
    assert choose_machine("mps", "bfloat16", 100, 7) == Machine("mps", "bfloat16", 100, 7)


def test_a_cpu_rounds_the_factors_of_products_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zerozoo.language.device.has_bfloat16_units", lambda: False)
    assert choose_machine("cpu", "bfloat16").products == "float32"
    monkeypatch.setattr("zerozoo.language.device.has_bfloat16_units", lambda: True)
    machine = choose_machine("cpu", "bfloat16", 100, 7)
    assert machine == Machine("cpu", None, 100, 7, "medium")
    assert (machine.products, choose_machine("cpu").products) == ("bfloat16", "float32")
    said: list[str] = []
    monkeypatch.setattr("torch.set_float32_matmul_precision", said.append)
    set_up_machine(Config(dtype="bfloat16", device="cpu"))
    set_up_machine(Config(dtype="float32", device="cpu"))
    assert said == ["medium", "highest"]


def test_freed_memory_is_kept_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("zerozoo.language.device.keep_freed_memory", lambda: told.append("keep"))
    set_up_machine(Config(dtype="float32", device="mps"))
    assert told == []
    set_up_machine(Config(dtype="float32", device="cpu"))
    assert told == ["keep"]


def test_full_products_are_full_inside_and_as_before_outside() -> None:
    torch.set_float32_matmul_precision("medium")
    with full_products():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("high")
    with full_products():
        assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "Unknown device 'tpu'"),
        ({"device": "cpu", "dtype": "float16"}, "Unknown dtype 'float16'"),
    ],
)
def test_machines_that_are_not_there_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_machine(**options)


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="There is no CUDA device here; use --device cpu"):
        choose_machine("cuda:1")
    assert choose_machine("auto").device == "cpu"
