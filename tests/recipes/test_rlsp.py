"""RLSP: the numbers of its code, the exploration reward by hand, attempts counted, whole runs and an exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import assert_same_result, killed_in_step

from zerozoo.cli.registry import load_recipe
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Samples
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.recipes.reasoning.rlsp import CLAIM, EXTENDABLE, PRESETS, Config, attempts, exploration, plan, train
from zerozoo.rewards.terms import load_reward
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task

SMALL: dict[str, Any] = {
    "data": "arithmetic",
    "level": "one-digit",
    "heldout_size": 6,
    "max_new_tokens": 4,
    "exploration": 0.3,
    "reward": "correctness",
    "prompts_per_step": 8,
    "updates_per_step": 2,
    "learning_rate": 0.003,
    "critic_learning_rate": 0.01,
    "frozen_steps": 1,
    "steps": 4,
    "checkpoint_every": 2,
}


def small(directory: Path, model: str, **changes: Any) -> dict[str, float]:
    config = Config(model=model, **{**SMALL, **changes})
    with Run.start(directory, "rlsp", dataclasses.asdict(config), config.seed, extendable=EXTENDABLE) as run:
        return train(config, run)


# --- the numbers


def test_the_defaults_are_those_of_the_code() -> None:
    """Card, Defaults: 8B."""
    paper = {
        "learning_rate": 2e-7,
        "critic_learning_rate": 2e-6,
        "prompts_per_step": 512,
        "samples_per_prompt": 1,
        "updates_per_step": 4,
        "epochs": 1,
        "kl_coefficient": 0.05,
        "kl_place": "reward",
        "lam": 0.95,
        "gamma": 1.0,
        "temperature": 0.7,
        "max_prompt_tokens": 2048,
        "frozen_steps": 4,
        "steps": 200,
        "exploration": 1000.0,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "value_clip": 0.2,
    }
    assert {name: getattr(Config(), name) for name in paper} == paper


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_planned(name: str) -> None:
    lines = dict(plan(Config(**PRESETS[name])))
    assert "GAE (lambda 0.95)" in lines["objective"]
    assert lines["exploration"].endswith("weight of the outcome 1")


def test_the_reward_of_the_verdict() -> None:
    """1 right, 0 wrong, -0.5 without a box, whatever is in it."""
    reward = load_reward(Config().reward)
    found = [
        reward(Verification(kind, "", 0.0, boxed, 0.0))
        for kind in (Verdict.RIGHT, Verdict.WRONG)
        for boxed in (True, False)
    ]
    assert found == [1.0, -0.5, 0.0, -0.5]


def drawn(rewards: list[float], texts: list[str], step: int = 1) -> Rollouts:
    number = len(texts)
    samples = Samples(
        tokens=torch.zeros((number, 1), dtype=torch.int64),
        lengths=torch.ones(number, dtype=torch.int64),
        logprobs=torch.zeros((number, 1)),
        stopped=torch.ones(number, dtype=torch.bool),
        groups=torch.zeros(number, dtype=torch.int64),
        texts=texts,
    )
    verdict = Verification(Verdict.WRONG, "", 0.0, False, 0.0)
    return Rollouts([Task("t", "q", "", "test")], [[1]], samples, [verdict] * number, torch.tensor(rewards), step=step)


TEXTS = ["1+2=3, no. 2*3=6", "1+2=3", ""]  # 16 and 5 characters: 4 and 1.25 tokens; 2, 1 and 0 attempts


def test_the_length_is_added_to_the_outcome() -> None:
    """R = r - C / L, at least -1, and -1 without any reasoning."""
    rollouts = drawn([1.0, 0.0, 0.0], TEXTS)
    extra = exploration(Config(exploration=1.0), rollouts)
    assert extra.tolist() == pytest.approx([-0.25, -0.8, -1.0])
    assert exploration(Config(exploration=10.0), rollouts).tolist() == [-1.0] * 3
    assert exploration(Config(exploration=10.0, lowest=-3.0), rollouts).tolist() == pytest.approx([-2.5, -3.0, -3.0])
    assert exploration(Config(exploration=0.0), rollouts).tolist() == [0.0] * 3


def test_the_effort_is_weighed_against_outcome_and_length() -> None:
    """w (r - C / L) + (1 - w) effort, minus the r that the loop has given."""
    rollouts = drawn([1.0, 0.0, -0.5], TEXTS)
    extra = exploration(Config(exploration=1.0, weight=0.8, most_attempts=4), rollouts)
    total = (rollouts.rewards + extra).tolist()
    assert total == pytest.approx([0.8 * 0.75 + 0.2 * 0.5, 0.8 * -0.8 + 0.2 * 0.25, 0.8 * -1.5])


def test_the_exploration_fades() -> None:
    config = Config(exploration=1.0, exploration_end=0.0, steps=4)
    found = [exploration(config, drawn([0.0], TEXTS[:1], step)).item() for step in (0, 1, 2, 4)]
    assert found == pytest.approx([-0.25, -0.1875, -0.125, 0.0])
    half = dataclasses.replace(config, exploration_end=0.5)
    assert exploration(half, drawn([0.0], TEXTS[:1], 4)).item() == pytest.approx(-0.125)


def test_attempts_are_counted_at_the_ends_of_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    rows = [(0, "1+2=3"), (0, "no"), (5, "1+2=3\n2+1=3\n1+2=3"), (5, TEXTS[0])]
    run.sample({"step": step, "phase": "heldout-sampled", "response": text} for step, text in rows)
    run.sample([{"step": 5, "phase": "heldout-greedy", "response": "1+1=2"}, {"step": 3, "phase": "train"}])
    assert attempts(run) == {"attempts/before": pytest.approx(0.5), "attempts/after": pytest.approx(2.0)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"exploration": -1.0}, "exploration is -1.0, but must not be negative"),
        ({"weight": 1.5}, "weight is 1.5, but must lie between 0 and 1"),
        ({"exploration_end": math.nan}, "exploration_end is nan"),
        ({"lowest": 0.5}, "lowest is 0.5, but must not be positive"),
        ({"most_attempts": 0}, "most_attempts is 0, but must be at least 1"),
        ({"lam": 2.0}, "lam is 2.0"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    changes: dict[str, Any], sentence: str, digits_model: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=sentence):
        small(tmp_path / "run", digits_model, **changes)


# --- whole runs


def test_the_smoke_preset_trains_from_searches_to_a_model(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    metrics = train(Config(**PRESETS["smoke"]), run)
    rows = run.history()
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert "policy/gradient_norm" not in rows[1]  # the policy waits for the critic
    assert all(row["critic/gradient_norm"] > 0 for row in rows[1:])
    assert rows[2]["policy/gradient_norm"] > 0
    assert all(row["reward/extra"] < 0 for row in rows[1:])
    assert {"attempts/before", "attempts/after", "heldout/sampled_accuracy", "heldout/sampled_length"} <= metrics.keys()
    assert run.path("model", "config.json").is_file()
    lines = run.path("preparation", "stages", "1-searches", "examples.jsonl").read_text().splitlines()
    tries = [json.loads(line)["response"].count("\n") for line in lines]
    assert 0.15 < sum(number > 0 for number in tries) / len(tries) < 0.35


def test_a_killed_run_ends_as_the_unbroken_one(digits_model: str, tmp_path: Path) -> None:
    """With an exploration reward that fades, which must go on from the step of the checkpoint."""
    changes = {"exploration_end": 0.0, "weight": 0.8}
    small(tmp_path / "whole", digits_model, **changes)
    with killed_in_step(ZeroRL, 4):
        small(tmp_path / "broken", digits_model, **changes)
    small(tmp_path / "broken", digits_model, **changes)
    assert_same_result(tmp_path / "broken", tmp_path / "whole")


# --- the claim


def results(**changes: float) -> ArmResults:
    centres = {"exploration": 0.6, "correctness": 0.5} | changes
    values = {arm: {seed: centre + 0.002 * seed for seed in (0, 1, 2)} for arm, centre in centres.items()}
    values["exploration"][2] += 0.01
    tried = {"exploration": 2.0, "correctness": 1.4}
    secondary = {
        arm: {seed: {"attempts/after": tried[arm] + 0.01 * seed} for seed in seeds} for arm, seeds in values.items()
    }
    return ArmResults(CLAIM.metric, values, secondary)


def test_the_claim_can_hold_and_fail() -> None:
    assert judge(CLAIM, results()).verdict == "HOLDS"
    assert judge(CLAIM, results(exploration=0.5)).verdict == "FAILS"
    lazy = results()
    for seed in (0, 1, 2):
        lazy.secondary["exploration"][seed]["attempts/after"] = 1.5 + 0.01 * seed  # type: ignore[index]
    assert judge(CLAIM, lazy).verdict == "FAILS"


def test_the_arms_are_valid_and_differ() -> None:
    assert load_recipe("rlsp").claims == (CLAIM,)
    configs = [Config(**CLAIM.overrides(arm, smoke)) for arm in CLAIM.arms for smoke in (False, True)]
    assert len(set(configs)) == len(configs)


def test_the_smoke_of_the_claim_runs(tmp_path: Path) -> None:
    metrics = train(Config(**CLAIM.overrides("correctness", smoke=True)), Run(tmp_path / "run"))
    assert {CLAIM.metric, "attempts/after"} <= metrics.keys()
