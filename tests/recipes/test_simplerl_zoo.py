"""The main recipe: the paper's numbers, its presets and claims, and a whole run of every kind."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.cli.registry import load_recipe
from zerozoo.language.build import make_algorithm
from zerozoo.language.models import load_model
from zerozoo.language.zoo import ZOO
from zerozoo.recipes.reasoning import simplerl_zoo
from zerozoo.recipes.reasoning.simplerl_zoo import CLAIM, EXTENDABLE, PRESETS, Config, complete, plan
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

FIELDS: dict[str, Any] = {
    "data": "arithmetic",
    "level": "one-digit",
    "heldout_size": 6,
    "max_new_tokens": 3,
    "prompts_per_step": 4,
    "samples_per_prompt": 6,
    "updates_per_step": 1,
    "learning_rate": 0.01,
    "kl_coefficient": 0.0,
    "steps": 3,
}


def train(digits_model: str, directory: Path, **changes: Any) -> tuple[dict[str, float], Run]:
    run = Run(directory, seed=0)
    return simplerl_zoo.train(Config(model=digits_model, **{**FIELDS, **changes}), run), run


def parameters(folder: Path | str) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in load_model(folder).model.parameters()])


# --- the numbers


def test_the_defaults_are_the_papers() -> None:
    """Card, Defaults."""
    config = complete(Config())
    paper = {
        "prompts_per_step": 1024,
        "samples_per_prompt": 8,
        "updates_per_step": 4,
        "epochs": 1,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "kl_coefficient": 1e-4,
        "kl_estimator": "k3",
        "kl_place": "loss",
        "entropy_coefficient": 0.0,
        "learning_rate": 5e-7,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "max_gradient_norm": 1.0,
        "temperature": 1.0,
        "max_prompt_tokens": 1024,
        "max_new_tokens": 8192,
        "overlong": "keep",
        "refill_rounds": 0,
        "advantage": "group-normalised",
        "aggregation": "token-mean",
        "reward": "correctness",
        "evaluate_every": 5,
        "steps": 100,
    }
    assert {name: getattr(config, name) for name in paper} == paper


def test_what_is_left_open_comes_from_the_models_row() -> None:
    """Card M5: beta 1e-3 above 14B, 3072 tokens for contexts of 4096."""
    for row in ZOO:
        config = complete(Config(model=row.hub_id))
        large = any(size in row.hub_id for size in ("24B", "32B"))
        short = any(name in row.hub_id for name in ("deepseek-math", "Math-7B"))
        assert config.kl_coefficient == (1e-3 if large else 1e-4)
        assert config.max_new_tokens == (3072 if short else 8192)
    other = complete(Config(model="some/model"))
    assert (other.kl_coefficient, other.max_new_tokens) == (1e-4, 1024)


def test_what_is_given_stays() -> None:
    config = complete(Config(model="Qwen/Qwen2.5-32B", kl_coefficient=0.0, max_new_tokens=7))
    assert (config.kl_coefficient, config.max_new_tokens) == (0.0, 7)
    assert complete(config) == config
    with pytest.raises(UserError, match="epochs is 0, but must be at least 1"):
        complete(Config(epochs=0))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = complete(Config(**PRESETS[name]))
    make_algorithm(config)
    assert dict(plan(Config(**PRESETS[name])))["each step"].startswith(f"{config.prompts_per_step} prompts")


def test_presets_differ_from_the_paper_where_they_say() -> None:
    assert Config(**PRESETS["paper"]) == Config()
    assert Config(**PRESETS["released"]) == Config(entropy_coefficient=0.001)


def test_claims_have_arms_that_differ_in_valid_fields() -> None:
    names = {field.name for field in dataclasses.fields(Config)}
    recipe = load_recipe("simplerl-zoo")
    assert recipe.claims == CLAIM
    for claim in CLAIM:
        configs = []
        for arm in claim.arms.values():
            assert {*arm, *claim.base, *claim.smoke} <= names
            configs.append(complete(Config(**{**claim.base, **arm})))
            complete(Config(**{**claim.base, **claim.smoke, **arm}))
        assert len(set(configs)) == len(configs)
    assert set(EXTENDABLE) <= names


# --- whole runs


def test_a_run_trains_and_leaves_a_model_that_loads(digits_model: str, tmp_path: Path) -> None:
    metrics, run = train(digits_model, tmp_path / "run")
    assert metrics["step"] == 3
    assert 0 <= metrics["heldout/sampled_low"] <= metrics["heldout/sampled_accuracy"] <= metrics["heldout/sampled_high"]
    assert all(math.isfinite(value) for value in metrics.values())
    final = parameters(tmp_path / "run" / "model")
    assert not torch.equal(final, parameters(digits_model))
    checkpoint = run.load()
    assert checkpoint is not None
    saved = load_model(tmp_path / "run" / "model").model
    for name, value in saved.named_parameters():
        assert torch.equal(value, checkpoint.tensors[f"policy/{name}"])
    heldout = {row["task"] for row in run.samples() if row["phase"] != "train"}
    trained = {row["task"] for row in run.samples() if row["phase"] == "train"}
    assert len(heldout) == 6
    assert not heldout & trained


VARIANTS: dict[str, dict[str, Any]] = {
    "packed": {"packed": True},
    "checkpointed": {"gradient_checkpointing": True},
    "small micro-batches": {"tokens_per_microbatch": 20, "rows_at_once": 6},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_machine_settings_change_no_result_beyond_rounding(digits_model: str, tmp_path: Path, name: str) -> None:
    plain, _ = train(digits_model, tmp_path / "plain", learning_rate=1e-3)
    other, _ = train(digits_model, tmp_path / "other", learning_rate=1e-3, **VARIANTS[name])
    assert other["mean/reward"] == plain["mean/reward"]
    difference = parameters(tmp_path / "plain" / "model") - parameters(tmp_path / "other" / "model")
    assert float(difference.abs().max()) < 1e-4


OTHERS: dict[str, dict[str, Any]] = {
    "transformers": {"sampler": "transformers"},
    "kl in the loss": {"kl_coefficient": 0.1, "updates_per_step": 2},
    "kl in the reward": {"kl_coefficient": 0.1, "kl_place": "reward", "kl_estimator": "k1"},
    "independent": {"reward": "independent", "extractor": "lenient"},
    "masked, refilled": {"overlong": "mask", "refill_rounds": 2, "aggregation": "sequence-mean"},
    "constant, centred": {"aggregation": "constant", "advantage": "group-centred", "entropy_coefficient": 0.01},
    "adapters": {"lora_rank": 2, "kl_coefficient": 0.1},
    "bfloat16": {"dtype": "bfloat16", "temperature": 0.8},
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_kind_of_run_trains(digits_model: str, tmp_path: Path, name: str) -> None:
    if name == "adapters":
        pytest.importorskip("peft")
    metrics, run = train(digits_model, tmp_path / "run", **OTHERS[name], steps=2)
    final = parameters(tmp_path / "run" / "model")
    assert bool(torch.isfinite(final).all())
    assert not torch.equal(final, parameters(digits_model))
    assert metrics["step"] == 2
    rows = run.history()[1:]
    assert all(row.get("policy/sampler_mismatch", 0.0) < (0.1 if name == "bfloat16" else 1e-4) for row in rows)
    assert any("policy/kl" in row for row in rows) == (name in ("kl in the loss", "adapters"))
    if name == "independent":
        assert {row["reward/lowest"] for row in rows} == {-1.0}  # wrong and without a box
        assert {row["reward/highest"] for row in rows} <= {0.5, -1.0}


def test_strict_rewards_of_a_model_that_never_boxes_teach_nothing(digits_model: str, tmp_path: Path) -> None:
    """The paper's point: every answer is punished for its form, right ones too."""
    _, run = train(digits_model, tmp_path / "run", reward="strict", steps=2)
    rows = run.history()[1:]
    assert any(row["correct"] > 0 for row in rows)
    assert all((row["reward"], row["groups/informative"], row["update/rows"]) == (-1.0, 0.0, 0.0) for row in rows)
    assert torch.equal(parameters(tmp_path / "run" / "model"), parameters(digits_model))


def test_split_auto_trains_on_problems_with_mixed_outcome(digits_model: str, tmp_path: Path) -> None:
    said: list[str] = []
    run = Run(tmp_path / "run")
    run.say = said.append
    config = Config(model=digits_model, **{**FIELDS, "split": "auto", "samples_per_prompt": 16, "steps": 1})
    simplerl_zoo.train(config, run)
    (line,) = [line for line in said if line.startswith("split auto: ")]
    kept, total = int(line.split()[2]), int(line.split()[4])
    assert 4 <= kept < total == 194
    assert run.path("pass_rates.json").exists()
