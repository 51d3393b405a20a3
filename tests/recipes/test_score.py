"""SCoRe: the paper's numbers, what each stage pays for, transcripts with the bias, whole runs and an exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import assert_same_result, killed_in_step, parameters

from zerozoo.cli.registry import load_recipe
from zerozoo.language.models import load_model
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.recipes.reasoning import score
from zerozoo.recipes.reasoning.score import CLAIM, EXTENDABLE, PRESETS, Config, objective, phases, plan, train
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.revisions import revision
from zerozoo.tasks.task import make_verifier
from zerozoo.tasks.word_sums import word_sums

SMALL: dict[str, Any] = {
    "data": "arithmetic",
    "level": "one-digit",
    "heldout_size": 6,
    "max_new_tokens": 3,
    "instruction": " 3",
    "prompts_per_step": 4,
    "samples_per_prompt": 4,
    "learning_rate": 0.003,
    "first_steps": 2,
    "steps": 4,
    "checkpoint_every": 2,
}


def small(directory: Path, model: str, **changes: Any) -> dict[str, float]:
    config = Config(model=model, **{**SMALL, **changes})
    with Run.start(directory, "score", dataclasses.asdict(config), config.seed, extendable=EXTENDABLE) as run:
        return train(config, run)


# --- the numbers


def test_the_defaults_are_the_papers() -> None:
    """Card, Defaults: MATH."""
    paper = {
        "learning_rate": 5e-6,
        "steps": 3000,
        "prompts_per_step": 512,
        "temperature": 1.0,
        "alpha": 10.0,
        "kl_coefficient": 0.01,
        "first_turn_kl": 0.1,
        "first_steps": 1500,
        "samples_per_prompt": 4,
        "aggregation": "constant",
        "kl_place": "loss",
    }
    assert {name: getattr(Config(), name) for name in paper} == paper


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_planned(name: str) -> None:
    lines = dict(plan(Config(**PRESETS[name])))
    assert "leave-one-out of each turn" in lines["objective"]
    assert "of the second turn alone" in lines["stages"]


def test_the_stages_pay_and_hold_what_the_paper_says() -> None:
    """Stage I: r2, the first turn held by b1 + b2. Stage II: both, the bonus, and b1 for both."""
    config = Config()
    first, second = phases(config)
    total = objective(config).kl.coefficient
    assert (first.reward_weights, first.alpha) == ((0.0, 1.0), 0.0)
    assert (second.reward_weights, second.alpha) == ((1.0, 1.0), 10.0)
    assert [total * weight for weight in first.kl_weights] == pytest.approx([0.11, 0.01])
    assert [total * weight for weight in second.kl_weights] == pytest.approx([0.01, 0.01])
    free = Config(kl_coefficient=0.0, first_turn_kl=0.0)
    assert objective(free).kl.coefficient == 0.0
    assert phases(free)[1].kl_weights == (0.0, 0.0)


def test_transcripts_mostly_repeat_the_first_answer() -> None:
    tasks, rng = word_sums("easy", train_size=1000, heldout_size=1), random.Random(0)
    pairs = [revision(task, rng, wrong=0.5, copied=0.9) for task in tasks.train]
    with make_verifier(tasks) as verifier:
        right = [
            [one.verdict is Verdict.RIGHT for one in verifier.verify(tasks.train, [pair[turn] for pair in pairs])]
            for turn in (0, 1)
        ]
    copied = [first == second for first, second in pairs]
    assert sum(copied) / 1000 == pytest.approx(0.9, abs=0.03)
    assert sum(right[0]) / 1000 == pytest.approx(0.5, abs=0.05)
    assert all(after for after, same in zip(right[1], copied, strict=True) if not same)
    assert all(len(text) < 28 for pair in pairs for text in pair)
    with pytest.raises(UserError, match="word sums only"):
        revision(dataclasses.replace(tasks.train[0], source="math"), rng)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"alpha": -1.0}, "alpha is -1.0, but must not be negative"),
        ({"first_turn_kl": math.nan}, "first_turn_kl is nan"),
        ({"copied": 1.5}, "copied is 1.5, but is a share"),
        ({"samples_per_prompt": 1}, "a baseline needs at least 2"),
        ({"instruction": ""}, "is empty"),
        ({"refill_rounds": 1}, "set refill_rounds to 0"),
        ({"transcript_steps": 1}, "word sums only, not for arithmetic"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    changes: dict[str, Any], sentence: str, digits_model: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        small(tmp_path / "run", digits_model, **changes)


# --- whole runs


def test_the_smoke_preset_trains_from_transcripts_to_a_model(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    metrics = train(Config(**PRESETS["smoke"]), run)
    rows = run.history()
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(math.isfinite(value) for value in metrics.values())
    for mode in ("greedy", "sampled"):
        names = ("accuracy_1", "accuracy_2", "1_to_2_gain", "1_to_2_wrong_to_right", "1_to_2_right_to_wrong")
        assert {f"heldout/{mode}_{name}" for name in names} <= metrics.keys()
    assert all("policy/kl" in row and "turns/1_to_2_gain" in row for row in rows[1:])
    began = run.path("preparation", "stages", "1-transcripts", "model")
    assert not torch.equal(parameters(began), parameters(run.path("model")))
    lines = run.path("preparation", "stages", "1-transcripts", "examples.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines[:2])
    policy = load_model(began)
    assert policy.decode(second["prompt"]) == policy.decode(first["prompt"] + first["response"]) + "\ncheck:"
    assert "check" in [row for row in run.samples() if row["phase"] == "heldout-greedy"][0]["response"]


def test_in_stage_one_the_first_turn_is_not_paid(digits_model: str, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[Any] = []
    step = ZeroRL.step

    def watched(loop: ZeroRL, number: int) -> Any:
        found = step(loop, number)
        seen.append(found[0])
        return found

    monkeypatch.setattr(ZeroRL, "step", watched)
    small(
        tmp_path / "run", digits_model, first_steps=2, steps=8, whiten=True, prompts_per_step=8, samples_per_prompt=16
    )
    assert [drawn.step for drawn in seen] == list(range(1, 9))
    first = [bool(drawn.advantages[drawn.turns == 1].any()) for drawn in seen]
    assert first[:2] == [False, False]
    assert any(first[2:])
    assert any(bool(drawn.advantages[drawn.turns == 2].any()) for drawn in seen[:2])


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_a_killed_run_ends_as_the_unbroken_one(place: str, digits_model: str, tmp_path: Path) -> None:
    """Killed in stage I, after its checkpoint: the stage of a step is a function of its number."""
    changes = {"kl_place": place, "first_steps": 3, "kl_estimator": "k3" if place == "loss" else "k1"}
    small(tmp_path / "whole", digits_model, **changes)
    with killed_in_step(ZeroRL, 3):
        small(tmp_path / "broken", digits_model, **changes)
    small(tmp_path / "broken", digits_model, **changes)
    assert_same_result(tmp_path / "broken", tmp_path / "whole")
    assert any(row.get("policy/gradient_norm", 0) > 0 for row in Run.open(tmp_path / "whole").history())


# --- the claim


def results(**gains: float) -> ArmResults:
    noise = {0: 0.0, 1: 0.005, 2: -0.005}
    arms = {"score": 0.08, "plain": 0.01, "base": 0.0} | gains
    values = {
        arm: {seed: gain + extra * (arm == "score") for seed, extra in noise.items()} for arm, gain in arms.items()
    }
    first = {"score": 0.5, "plain": 0.5, "base": 0.45}
    secondary = {
        arm: {
            seed: {"heldout/greedy_accuracy_1": first[arm], "heldout/greedy_accuracy_2": first[arm] + gain}
            for seed, gain in seeds.items()
        }
        for arm, seeds in values.items()
    }
    return ArmResults(CLAIM.metric, values, secondary)


def test_the_claim_can_hold_and_fail() -> None:
    assert judge(CLAIM, results()).verdict == "HOLDS"
    assert judge(CLAIM, results(plain=0.08)).verdict == "FAILS"
    gamed = results()
    gamed.secondary["base"] = {seed: {"heldout/greedy_accuracy_1": 0.6} for seed in (0, 1, 2)}
    assert judge(CLAIM, gamed).verdict == "FAILS"


def test_the_arms_are_valid_and_differ() -> None:
    assert load_recipe("score").claims == (CLAIM,)
    configs = [Config(**CLAIM.overrides(arm, smoke)) for arm in CLAIM.arms for smoke in (False, True)]
    assert len(set(configs)) == len(configs)
    assert all(config.transcript_steps for config in configs)  # one base model for all arms
    assert phases(Config(**CLAIM.overrides("plain")))[1].alpha == 0.0
    assert score.PAPER.endswith("arXiv 2409.12917")


@pytest.mark.parametrize("arm", CLAIM.arms)
def test_the_smoke_of_the_claim_runs(arm: str, tmp_path: Path) -> None:
    metrics = train(Config(**CLAIM.overrides(arm, smoke=True)), Run(tmp_path / "run"))
    assert CLAIM.metric in metrics
