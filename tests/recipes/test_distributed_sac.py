"""The recipe: what it refuses, the inline run, its plan, and how it stands beside `sac`."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from zerozoo.cli.registry import load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.recipes.baselines import distributed_sac as recipe
from zerozoo.recipes.baselines import sac
from zerozoo.recipes.baselines.distributed_sac import PRESETS, Config
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMOKE = Config(**PRESETS["smoke"])


def train(config: Config, directory: Path) -> dict[str, float]:
    with Run.start(directory, "distributed-sac", asdict(config), config.seed, extendable=recipe.EXTENDABLE) as run:
        return recipe.train(config, run)


def test_a_smoke_run_learns_and_is_evaluated(tmp_path: Path) -> None:
    results = train(SMOKE, tmp_path / "run")
    assert results["frames"] == 40
    assert results["updates"] == 20  # one for each frame after the first 20
    assert results["evaluation/length"] == 200
    assert all(math.isfinite(results[name]) for name in ("critic_loss", "policy_loss", "temperature"))
    history = Run.open(tmp_path / "run").history()
    assert (history[0]["step"], history[-1]["step"]) == (0, 40)


def test_an_inline_run_is_the_same_every_time_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = replace(SMOKE, actors=2, steps=80)
    whole = train(config, tmp_path / "whole")
    train(replace(config, steps=40), tmp_path / "parts")
    resumed = train(config, tmp_path / "parts")
    for name in ("evaluation/return", "mean_staleness", "frames", "policy_loss", "updates"):
        assert resumed[name] == whole[name]
    timed = ("time", "seconds/train", "seconds/evaluate", "steps_per_second", "updates_per_second")
    rows = [Run.open(tmp_path / name).history() for name in ("whole", "parts")]
    first, second = ([{k: v for k, v in row.items() if k not in timed} for row in history] for history in rows)
    assert first == second


def test_actions_are_uniform_until_something_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first update no network is asked; with warmup 0 it is asked at once."""
    from zerozoo.distributed import policy_worker

    asked: list[int] = []
    respond = policy_worker.respond
    monkeypatch.setattr(policy_worker, "respond", lambda *given: (asked.append(1), respond(*given))[1])
    config = replace(SMOKE, ring_size=1)
    results = train(replace(config, warmup=40), tmp_path / "warm")
    assert (len(asked), results["updates"]) == (0, 0)
    train(replace(config, warmup=20), tmp_path / "half")
    assert len(asked) == 5  # the third of four samples brings version 1: five more steps, of two copies each
    train(replace(config, warmup=0), tmp_path / "cold")
    assert len(asked) == 5 + 20


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"placement": "everywhere"}, "Unknown placement 'everywhere'; choose from: inline, actors, central"),
        ({"queue_size": 0}, "queue_size must be at least 1, not 0"),
        ({"sample_steps": 0}, "sample_steps must be at least 1, not 0"),
        ({"capacity": 0}, "capacity must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"warmup": -1}, "warmup must not be negative, but is -1"),
        ({"updates_per_step": -0.5}, "updates_per_step must not be negative, but is -0.5"),
        ({"preemption_steps": 2, "publish_delay": 3}, "every sample is dropped"),
        ({"placement": "central", "policy_workers": 2}, "2 policy_workers for 1 actors"),
        ({"environment": "CartPole-v1"}, "SAC needs continuous actions: take dqn or ppo"),
        ({"environment": "Nowhere-v0"}, "The environment 'Nowhere-v0' cannot be made"),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence) as raised:
        train(replace(SMOKE, **changes), tmp_path / "run")
    assert str(raised.value).count("\n") == 0


def test_its_settings_are_those_of_sac_but_for_the_streams() -> None:
    ours, plain = Config(), sac.Config()
    assert {item.name: getattr(ours, item.name) for item in fields(plain)} == asdict(plain)
    laptop, smoke = (Config(**PRESETS[name]) for name in ("laptop", "smoke"))
    for ours, plain in ((laptop, sac.PRESETS["laptop"]), (smoke, sac.PRESETS["smoke"])):
        assert {name: getattr(ours, name) for name in plain} == plain
        recipe.check(ours)


def test_every_field_says_what_it_is_and_there_is_no_claim() -> None:
    chosen = load_recipe("distributed-sac")
    assert not chosen.claims
    assert chosen.family == "baselines"
    for field in describe_fields(chosen.config_class):
        assert len(field.help) > 5, field.name


def test_the_plan_counts_processes_and_updates() -> None:
    plan = dict(recipe.plan(replace(SMOKE, placement="central", actors=3, policy_workers=2, updates_per_step=0.25)))
    assert plan["processes"] == "trainer and 5 others"
    assert plan["environments"] == "3 x 2 x 2"
    assert plan["updates"] == "2.5 for each sample after 20 frames, of 32 rows each"
    assert plan["replay"] == "1000000 frames"
