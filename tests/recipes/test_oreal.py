"""OREAL: the paper's numbers, its stages, what each arm of the claim trains on, whole runs and an exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import assert_same_result, killed_in_step, parameters

from zerozoo.cli.registry import load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.language.reward_models import load_reward_model
from zerozoo.language.supervised import SupervisedLoop
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.recipes.reasoning import oreal
from zerozoo.recipes.reasoning.oreal import BANDS, CLAIM, EXTENDABLE, PRESETS, Config, plan, train
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMALL: dict[str, Any] = {
    "data": "arithmetic",
    "level": "one-digit",
    "heldout_size": 6,
    "max_new_tokens": 3,
    "prompts_per_step": 8,
    "samples_per_prompt": 8,
    "learning_rate": 0.003,
    "token_learning_rate": 0.01,
    "warmup_steps": 0,
    "schedule": "constant",
    "frozen_steps": 1,
    "steps": 4,
    "checkpoint_every": 2,
    "sft_epochs": 3,
    "sft_style": "plain",
    "sft_batch_size": 8,
    "sft_learning_rate": 0.01,
    "rate_samples": 2,
}


def small(directory: Path, model: str, **changes: Any) -> dict[str, float]:
    config = Config(model=model, **{**SMALL, **changes})
    with Run.start(directory, "oreal", dataclasses.asdict(config), config.seed, extendable=EXTENDABLE) as run:
        return train(config, run)


# --- the numbers


def test_the_defaults_are_the_papers() -> None:
    """Card, Defaults."""
    paper = {
        "prompts_per_step": 64,
        "samples_per_prompt": 16,
        "max_new_tokens": 14000,
        "learning_rate": 5e-7,
        "token_learning_rate": 2e-6,
        "warmup_steps": 10,
        "steps": 90,
        "frozen_steps": 10,
        "kl_coefficient": 0.01,
        "kl_estimator": "k3",
        "kl_place": "loss",
        "right_weight": 1.0,
        "wrong_weight": 0.5,
        "advantage": "leave-one-out",
        "weight_decay": 0.01,
        "max_gradient_norm": 1.0,
        "aggregation": "token-mean",
        "updates_per_step": 1,
        "rate_samples": 16,
        "keep": "pair",
        "reward": "plus-minus",
        "cut_reward": -1.0,
    }
    assert {name: getattr(Config(), name) for name in paper} == paper
    assert BANDS == ((0.2, 6), (0.6, 4), (0.8, 2))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_planned(name: str) -> None:
    lines = dict(plan(Config(**PRESETS[name])))
    assert lines["stages"].endswith("rl")
    assert "leave-one-out advantage" in lines["objective"]
    assert Config(**PRESETS["paper"]) == Config()
    assert all(len(field.help) > 5 for field in describe_fields(Config))


def test_the_arms_of_the_claim_differ_in_what_they_say_only() -> None:
    assert load_recipe("oreal").claims == (CLAIM,)
    for smoke in (False, True):
        configs = {arm: Config(**CLAIM.overrides(arm, smoke)) for arm in CLAIM.arms}
        learned = configs["learned"]
        assert configs["uniform"] == dataclasses.replace(learned, token_rewards=False)
        assert configs["right-only"] == dataclasses.replace(learned, token_rewards=False, wrong_weight=0.0)
    assert learned.keep == "pair"


def test_the_verdict_asks_for_both_differences() -> None:
    def verdict(learned: float, uniform: float, right: float, mixed: float = 0.5) -> str:
        arms = {"learned": learned, "uniform": uniform, "right-only": right}
        noise = (0.0, 0.002, -0.002)
        values = {
            arm: {seed: mean + noise[(seed + place) % 3] for seed in CLAIM.seeds}
            for place, (arm, mean) in enumerate(arms.items())
        }
        secondary = {"uniform": {seed: {"mean/groups/informative": mixed} for seed in CLAIM.seeds}}
        return judge(CLAIM, ArmResults(CLAIM.metric, values, secondary)).verdict

    assert verdict(0.70, 0.66, 0.60) == "HOLDS"
    assert verdict(0.62, 0.66, 0.60) == "FAILS"  # the weights do harm
    assert verdict(0.70, 0.66, 0.66) == "FAILS"  # wrong responses teach nothing
    assert verdict(0.661, 0.66, 0.60) == "INCONCLUSIVE"
    assert verdict(0.70, 0.66, 0.60, mixed=0.1) == "INCONCLUSIVE"  # hardly a pair to learn from


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"keep": "all"}, "Unknown keep 'all'; choose one of: pair, mixed"),
        ({"wrong_weight": -1.0}, "wrong_weight is -1.0, but must be at least 0"),
        ({"token_learning_rate": math.nan}, "token_learning_rate is nan"),
        ({"sft_style": "steps"}, "use style plain"),
        ({"samples_per_prompt": 1}, "take at least 2"),
        ({"frozen_steps": -1}, "frozen_steps is -1"),
        ({"clip_low": -0.5}, "clip_low is -0.5"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    changes: dict[str, Any], sentence: str, digits_model: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        small(
            tmp_path / "run", digits_model, **{"sft_epochs": int("sft_style" in changes), "rate_samples": 0, **changes}
        )


# --- whole runs


def test_a_killed_run_ends_as_the_unbroken_one(digits_model: str, tmp_path: Path) -> None:
    """Killed in the fine-tuning, then in RL: examples, rates, policy, reward model of tokens, both moments, streams."""
    whole = small(tmp_path / "whole", digits_model)
    rows = Run.open(tmp_path / "whole").history()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert "policy/gradient_norm" not in rows[1]  # frozen
    assert any(row.get("policy/gradient_norm", 0) > 0 for row in rows[2:])
    assert any(row.get("token_reward/gradient_norm", 0) > 0 for row in rows[1:])
    assert 0 <= whole["rates/mean"] <= 1

    for place, (kind, number) in enumerate(((SupervisedLoop, 3), (ZeroRL, 4))):
        with killed_in_step(kind, number):
            small(tmp_path / "broken", digits_model)
        assert (tmp_path / "broken" / "checkpoints").exists() == bool(place)
    again = small(tmp_path / "broken", digits_model)
    assert_same_result(tmp_path / "broken", tmp_path / "whole")
    timeless = {name for name in whole if not name.startswith(("seconds", "mean/seconds"))}
    assert {name: again[name] for name in timeless} == {name: whole[name] for name in timeless}


def test_the_smoke_of_the_claim_trains(tmp_path: Path) -> None:
    """Through the claim's own config; the reward model of tokens is there in one arm only, and can be loaded."""
    arms = ("learned", "right-only")
    for arm in arms:
        run = Run(tmp_path / arm)
        metrics = train(Config(**CLAIM.overrides(arm, smoke=True)), run)
        assert CLAIM.metric in metrics
        assert all(math.isfinite(value) for value in metrics.values())
        rows = run.history()
        assert [row["step"] for row in rows] == [0, 1, 2, 3]
        learned = arm == "learned"
        assert any("token_reward/loss" in row for row in rows) == learned == run.path("token-reward").exists()
        assert (run.path("model", "config.json")).is_file()
        assert CLAIM.curve in rows[-1]
    assert load_reward_model(tmp_path / "learned" / "token-reward").values.head.weight.shape[0] == 1
    starts = [parameters(tmp_path / arm / "preparation" / "stages" / "1-sft" / "model") for arm in arms]
    assert torch.equal(*starts)  # identical starting weights


def test_rl_trains_on_repeated_problems_and_on_one_pair_of_a_question(
    digits_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    step = ZeroRL.step

    def watching(loop: ZeroRL, number: int) -> Any:
        rollouts, metrics = step(loop, number)
        seen.append((loop.tasks.train, rollouts))
        return rollouts, metrics

    monkeypatch.setattr(ZeroRL, "step", watching)
    small(tmp_path / "run", digits_model, steps=3, frozen_steps=0, token_rewards=False, samples_per_prompt=32)
    stored = tmp_path / "run" / "preparation" / "stages" / "2-rates" / "pass_rates.json"
    rates = json.loads(stored.read_text())
    assert len(rates) > 100
    trained = [task.id for task in seen[0][0]]
    for name, rate in rates.items():
        assert trained.count(name) == (6 if rate < 0.2 else 4 if rate < 0.6 else 2 if rate < 0.8 else 0)
    pairs = 0
    for _, rollouts in seen:
        for group in range(8):
            rows = (rollouts.groups == group) & rollouts.trained
            if not rows.any():
                continue
            pairs += 1
            assert sorted(rollouts.rewards[rows].tolist()) == [-1.0, 1.0]
            signs = rollouts.advantages[rows].sum(1).sign() * rollouts.rewards[rows]
            assert signs.tolist() == [1.0, 1.0]
    assert pairs > 0


def test_a_start_from_the_models_own_right_answers(digits_model: str, tmp_path: Path) -> None:
    """Of a model that has been taught before, so that it has some."""
    small(tmp_path / "first", digits_model, steps=1, rate_samples=0)
    taught = str(tmp_path / "first" / "preparation" / "stages" / "1-sft" / "model")
    small(tmp_path / "run", taught, sft_style="", sft_samples=8, sft_epochs=1, steps=1, rate_samples=0)
    kept = tmp_path / "run" / "preparation" / "stages" / "1-sft" / "examples.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert rows
    assert all(isinstance(row["response"], list) for row in rows)
    assert oreal.stages_of(Config(sft_epochs=0, rate_samples=0)) == []
