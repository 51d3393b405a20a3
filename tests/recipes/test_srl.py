"""The recipe: what it refuses, the inline run, its plan, and when its claims hold."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from zerozoo.recipes.systems import srl as recipe
from zerozoo.recipes.systems.srl import CLAIM, PRESETS, Config
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMOKE = Config(**PRESETS["smoke"])
OVERLAP, LEARNING = CLAIM


def train(config: Config, directory: Path) -> dict[str, float]:
    with Run.start(directory, "srl", asdict(config), config.seed, extendable=recipe.EXTENDABLE) as run:
        return recipe.train(config, run)


def test_an_inline_run_is_the_same_every_time_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = replace(SMOKE, actors=2, ring_size=2, batch_samples=2, steps=80)
    whole = train(config, tmp_path / "whole")
    train(replace(config, steps=40), tmp_path / "parts")
    resumed = train(config, tmp_path / "parts")
    for name in ("evaluation/return", "mean_staleness", "frames", "policy_loss"):
        assert resumed[name] == whole[name]
    assert whole["frames"] == 80
    timed = ("time", "seconds/train", "seconds/evaluate", "steps_per_second", "updates_per_second")
    rows = [Run.open(tmp_path / name).history() for name in ("whole", "parts")]
    first, second = ([{k: v for k, v in row.items() if k not in timed} for row in history] for history in rows)
    assert first == second


def test_throughput_is_measured_without_learning_or_evaluation(tmp_path: Path) -> None:
    config = replace(SMOKE, environment="synthetic", step_milliseconds=0.1, observation_size=5, epochs=0)
    results = train(config, tmp_path / "run")
    assert results["frames_per_second"] > 0
    assert results["rows_per_inference"] == 2 * 2  # two slots of two copies are asked together
    assert "evaluation/return" not in results


def test_stale_samples_are_dropped_and_counted(tmp_path: Path) -> None:
    results = train(replace(SMOKE, copies=1, ring_size=2, preemption_steps=0, batch_size=5), tmp_path / "run")
    assert results["stale_samples"] == 3
    assert results["worst_staleness"] == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"placement": "everywhere"}, "Unknown placement 'everywhere'; choose from: inline, actors, central"),
        ({"streams": "pigeons"}, "Unknown streams 'pigeons'"),
        ({"reuses": 0}, "reuses must be at least 1, not 0"),
        ({"actors": 0}, "actors must be at least 1, not 0"),
        ({"publish_delay": -1}, "publish_delay must not be negative"),
        ({"preemption_steps": -2}, "preemption_steps must be -1 or more"),
        ({"preemption_steps": 2, "publish_delay": 3}, "every sample is dropped"),
        ({"batch_samples": 17}, "never holds the 17 batch_samples"),
        ({"placement": "central", "policy_workers": 2}, "2 policy_workers for 1 actors"),
        ({"batch_size": 7}, "batch_size 7 does not divide the 20 steps of an update"),
        ({"step_milliseconds": 2.0}, "belong to the environment synthetic"),
        ({"environment": "Nowhere-v0"}, "The environment 'Nowhere-v0' cannot be made"),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        train(replace(SMOKE, **changes), tmp_path / "run")


def test_streams_over_ray_without_ray_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    with pytest.raises(UserError, match=r"need the package ray: pip install 'zerozoo\[ray\]'"):
        train(replace(SMOKE, placement="actors", streams="ray"), tmp_path / "run")


def test_the_plan_counts_processes_and_frames() -> None:
    plan = dict(recipe.plan(replace(SMOKE, placement="central", actors=3, policy_workers=2)))
    assert plan["processes"] == "trainer and 5 others"
    assert plan["environments"] == "3 x 2 x 2"
    assert plan["update"] == "20 frames, 2 times"


def test_every_preset_and_cell_is_a_config_that_can_run() -> None:
    for preset in ({}, *PRESETS.values()):
        recipe.check(Config(**preset))
    for claim in CLAIM:
        for arm in claim.arms:
            for smoke in (False, True):
                config = Config(**claim.overrides(arm, smoke))
                recipe.check(config)
                recipe.make_world(config)


# --- claims


def overlap(ring_1: list[float], ring_4: list[float], milliseconds: float = 2.0) -> Any:
    values = {"ring-1": dict(enumerate(ring_1)), "ring-4": dict(enumerate(ring_4))}
    other = {arm: {seed: {"inference_milliseconds": milliseconds} for seed in values[arm]} for arm in values}
    return judge(OVERLAP, ArmResults("frames_per_second", values, other))


def test_the_overlap_claim_by_the_ratio() -> None:
    base = [200.0, 210.0, 190.0, 200.0, 205.0]
    assert overlap(base, [1.8 * rate for rate in base]).verdict == "HOLDS"
    assert overlap(base, [1.05 * rate for rate in base]).verdict == "FAILS"
    assert overlap(base, [1.3 * rate for rate in base]).verdict == "INCONCLUSIVE"
    assert overlap(base, [1.0 * rate for rate in base[::-1]]).effect.value == pytest.approx(1.0, abs=0.01)


def test_the_overlap_claim_needs_inference_that_is_worth_hiding() -> None:
    judged = overlap([200.0] * 5, [400.0] * 5, milliseconds=0.1)
    assert judged.verdict == "INCONCLUSIVE"
    assert "inference_milliseconds" in judged.reason


def learning(returns: dict[str, float], seconds: dict[str, float]) -> Any:
    noise = (-1.0, 0.5, 1.0, -0.5)
    values = {arm: {seed: value + noise[seed] for seed in range(4)} for arm, value in returns.items()}
    other = {arm: {seed: {"seconds_to_target": seconds.get(arm, float("nan"))} for seed in range(4)} for arm in returns}
    return judge(LEARNING, ArmResults("final_return", values, other))


def test_the_learning_claim() -> None:
    good = {"sync": 480.0, "async": 470.0, "delayed": 300.0}
    assert learning(good, {"sync": 20.0, "async": 14.0}).verdict == "HOLDS"
    assert learning(good, {"sync": 20.0, "async": 18.0}).verdict == "FAILS"
    assert learning({**good, "async": 420.0}, {"sync": 20.0, "async": 14.0}).verdict == "FAILS"
    assert learning({**good, "delayed": 450.0}, {"sync": 20.0, "async": 14.0}).verdict == "FAILS"
    assert learning(good, {"sync": 20.0}).verdict == "INCONCLUSIVE"  # the asynchronous one never got there
    assert learning({**good, "sync": 100.0, "async": 100.0}, {"sync": 20.0, "async": 14.0}).verdict == "INCONCLUSIVE"
