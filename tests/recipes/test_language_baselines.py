"""The baselines on the zero-RL loop: the papers' numbers, a whole run of each smoke preset, and an exact resume."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import assert_same_result, killed_in_step, parameters

from zerozoo.cli.registry import Recipe, load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.language.families import tiny_model
from zerozoo.language.models import load_model, save_model
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SLUGS = ["cispo", "dapo", "dr-grpo", "gspo", "reinforce-pp", "rloo", "token-ppo"]
each = pytest.mark.parametrize("slug", SLUGS)

PAPERS: dict[str, dict[str, Any]] = {
    "cispo": {"clip_low": 1.0, "aggregation": "token-mean", "kl_coefficient": 0.0, "advantage": "group-normalised"},
    "dapo": {
        "clip_low": 0.2,
        "clip_high": 0.28,
        "aggregation": "token-mean",
        "kl_coefficient": 0.0,
        "prompts_per_step": 512,
        "samples_per_prompt": 16,
        "updates_per_step": 16,
        "learning_rate": 1e-6,
        "warmup_steps": 20,
        "overlong_buffer": 4096,
    },
    "dr-grpo": {
        "advantage": "group-centred",
        "aggregation": "constant",
        "kl_coefficient": 0.0,
        "prompts_per_step": 128,
        "samples_per_prompt": 8,
        "updates_per_step": 8,
        "learning_rate": 1e-6,
    },
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "sequence-mean", "updates_per_step": 4},
    "reinforce-pp": {"kl_place": "reward", "kl_estimator": "k1", "clip_low": 0.2, "clip_high": 0.2},
    "rloo": {
        "advantage": "leave-one-out",
        "aggregation": "constant",
        "kl_place": "reward",
        "kl_estimator": "k1",
        "samples_per_prompt": 4,
        "updates_per_step": 1,
    },
    "token-ppo": {
        "prompts_per_step": 128,
        "samples_per_prompt": 64,
        "max_prompt_tokens": 2048,
        "lam": 1.0,
        "gamma": 1.0,
        "kl_coefficient": 0.0,
        "learning_rate": 1e-6,
        "critic_learning_rate": 5e-6,
        "updates_per_step": 1,
        "critic_updates": 12,
        "warmup_steps": 50,
        "whiten": True,
        "clip_low": 0.2,
        "clip_high": 0.2,
    },
}
SMALL: dict[str, Any] = {
    "data": "arithmetic",
    "level": "one-digit",
    "heldout_size": 6,
    "max_new_tokens": 3,
    "prompts_per_step": 8,
    "samples_per_prompt": 4,
    "updates_per_step": 2,
    "learning_rate": 0.003,
    "warmup_steps": 0,
    "steps": 4,
    "checkpoint_every": 2,
}


@cache  # it reads the whole catalogue
def recipe(slug: str) -> Recipe:
    return load_recipe(slug)


def train(slug: str, directory: Path, preset: str | None = None, **changes: Any) -> dict[str, float]:
    chosen = recipe(slug)
    config = chosen.make_config(changes, preset)
    with Run.start(directory, slug, dataclasses.asdict(config), config.seed, extendable=chosen.extendable) as run:
        return chosen.train(config, run)


# --- the numbers


@each
def test_the_defaults_are_the_papers(slug: str) -> None:
    config = recipe(slug).make_config({})
    assert {name: getattr(config, name) for name in PAPERS[slug]} == PAPERS[slug]


def test_presets_of_papers() -> None:
    assert recipe("dapo").make_config({}, "paper").max_new_tokens == 20480
    assert recipe("dr-grpo").make_config({}, "paper").max_new_tokens == 3000
    config = recipe("token-ppo").make_config({}, "paper")
    assert (config.max_new_tokens, config.bootstrap) == (8000, False)


@each
def test_every_preset_can_be_planned_and_every_field_says_what_it_is(slug: str) -> None:
    chosen = recipe(slug)
    assert {"laptop", "tiny", "smoke"} <= set(chosen.presets)
    assert "arXiv" in chosen.paper
    assert not chosen.claims
    assert chosen.plan is not None
    for preset in chosen.presets:
        lines = dict(chosen.plan(chosen.make_config({}, preset)))
        assert "advantage" in lines["objective"] or "GAE" in lines["objective"]
        assert ("critic" in lines) == (slug == "token-ppo")
    for field in describe_fields(chosen.config_class):
        assert len(field.help) > 5, field.name


# --- whole runs


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of every smoke preset: two steps of the micro model."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("smoke")
    for slug in SLUGS:
        train(slug, folder / slug, "smoke")
    return {slug: folder / slug for slug in SLUGS}


@each
def test_a_smoke_run_trains_and_leaves_a_model(slug: str, smoke: dict[str, Path]) -> None:
    rows = Run.open(smoke[slug]).history()
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert any(row.get("policy/gradient_norm", 0) > 0 for row in rows)
    assert all(value is not None and math.isfinite(value) for row in rows for value in row.values())
    assert all(("reward/extra" in row) == (slug == "dapo") for row in rows[1:])
    assert all(("critic/loss" in row) == (slug == "token-ppo") for row in rows[1:])
    assert "heldout/sampled_accuracy" in rows[-1]
    names = {name for name, _ in load_model(smoke[slug] / "model").model.named_parameters()}
    assert not any("head" in name for name in names - {"lm_head.weight"})


def test_the_methods_are_not_one_another(smoke: dict[str, Path]) -> None:
    weights = {slug: parameters(folder / "model") for slug, folder in smoke.items()}
    for first in SLUGS:
        for second in SLUGS:
            assert first == second or not torch.equal(weights[first], weights[second]), (first, second)


PPO: dict[str, Any] = {
    **SMALL,
    "kl_coefficient": 0.01,
    "epochs": 2,
    "critic_updates": 2,
    "critic_learning_rate": 0.01,
    "warmup_steps": 3,
    "frozen_steps": 1,
    "lam": 0.9,
    "refill_rounds": 1,
}


@pytest.mark.parametrize("slug", ["token-ppo", "dapo"])
def test_a_killed_run_ends_as_the_unbroken_one(slug: str, digits_model: str, tmp_path: Path) -> None:
    """Policy, critic, moments of both optimisers, streams: forgetting any of them shows."""
    fields = {**(PPO if slug == "token-ppo" else {**SMALL, "overlong_buffer": 2}), "model": digits_model}
    train(slug, tmp_path / "whole", **fields)
    with killed_in_step(ZeroRL, 4):
        train(slug, tmp_path / "broken", **fields)
    train(slug, tmp_path / "broken", **fields)
    assert_same_result(tmp_path / "broken", tmp_path / "whole")
    rows = Run.open(tmp_path / "whole").history()[1:]
    assert any(row.get("policy/gradient_norm", 0) > 0 for row in rows)
    if slug == "token-ppo":
        assert "policy/gradient_norm" not in rows[0]  # frozen
        assert all(row["critic/gradient_norm"] > 0 for row in rows)


# --- particular ones


def test_one_response_to_a_prompt_is_enough_without_groups(digits_model: str, tmp_path: Path) -> None:
    for slug in ("reinforce-pp", "token-ppo"):
        train(slug, tmp_path / slug, model=digits_model, **{**SMALL, "samples_per_prompt": 1, "steps": 2})
        assert Run.open(tmp_path / slug).history()[-1]["step"] == 2


def test_the_critic_may_start_from_another_model(digits_model: str, smoke: dict[str, Path], tmp_path: Path) -> None:
    """Its own backbone: here one of another size than the policy's, with the same tokens."""
    fields = {**SMALL, "steps": 1, "critic_updates": 1, "reward": "independent"}  # which is never 0
    own = train("token-ppo", tmp_path / "own", model=digits_model, **fields)
    foreign = str(smoke["gspo"] / "model")
    with pytest.raises(UserError, match="splits text into other tokens"):
        train("token-ppo", tmp_path / "foreign", model=digits_model, critic=foreign, **fields)
    larger = tmp_path / "larger"
    save_model(tiny_model("llama", vocabulary="0123 ", hidden=32), larger)
    other = train("token-ppo", tmp_path / "other", model=digits_model, critic=str(larger), **fields)
    assert own["step"] == other["step"] == 1
    rows = [Run.open(tmp_path / name).history()[1] for name in ("own", "other")]
    assert rows[0]["reward"] == rows[1]["reward"]
    assert rows[0]["critic/gradient_norm"] != rows[1]["critic/gradient_norm"]


def test_long_responses_lose_reward_with_dapo(digits_model: str, tmp_path: Path) -> None:
    """Of three tokens at most the last two are the buffer: 0 for one, -1/4 for two, -1/2 for three."""
    fields = {**SMALL, "steps": 1, "samples_logged": 32, "refill_rounds": 0, "overlong_buffer": 2}
    train("dapo", tmp_path / "run", model=digits_model, **fields)
    rows = [row for row in Run.open(tmp_path / "run").samples() if row["phase"] == "train"]
    assert len(rows) == 32
    assert {row["length"] for row in rows} >= {2, 3}
    for row in rows:
        right = float(row["verdict"] == "right")
        assert row["reward"] == pytest.approx(right - {1: 0.0, 2: 0.25, 3: 0.5}[row["length"]])


@pytest.mark.parametrize(
    ("slug", "changes", "sentence"),
    [
        ("rloo", {"samples_per_prompt": 1}, "samples_per_prompt is 1, .* take at least 2"),
        ("reinforce-pp", {"samples_per_prompt": 0}, "samples_per_prompt is 0, but must be at least 1"),
        ("dapo", {"overlong_buffer": 4}, "overlong_buffer is 4, but must lie between 0 and max_new_tokens, 3"),
        ("gspo", {"clip_low": -1.0}, "clip_low is -1.0"),
        ("token-ppo", {"lam": 2.0}, "lam is 2.0, but must lie between 0 and 1"),
        ("token-ppo", {"value_clip": -1.0}, "value_clip is -1.0, but must not be negative"),
        ("token-ppo", {"critic_learning_rate": math.nan}, "critic_learning_rate is nan"),
        ("token-ppo", {"critic_updates": 0}, "updates_per_step is 0"),
        ("token-ppo", {"frozen_steps": -1}, "frozen_steps is -1"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    slug: str, changes: dict[str, Any], sentence: str, digits_model: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(slug, tmp_path / "run", **{**SMALL, "model": digits_model, **changes})
