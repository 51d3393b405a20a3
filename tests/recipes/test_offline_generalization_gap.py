"""The generalization gap: levels kept apart, the result chosen by validation only, arms, claim."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from zerozoo.cli.registry import load_recipe
from zerozoo.control.level_splits import TEST, VALIDATION, LevelEvaluator, chosen_by_validation
from zerozoo.control.manifest import digest, read_manifest
from zerozoo.control.spec import Spec
from zerozoo.environments.levels import GridLevels
from zerozoo.environments.make import make_levels
from zerozoo.environments.procgen import ProcgenLevels
from zerozoo.recipes.offline import generalization_gap as recipe
from zerozoo.recipes.offline.generalization_gap import ALGORITHMS, CLAIM, PRESETS, Config, record_levels, train
from zerozoo.runs.claims import ArmResults, Claim, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMOKE = Config(**PRESETS["smoke"])


class Expert:
    """Plays the shortest way in the levels of some splits and turns on the spot in the others."""

    def __init__(self, evaluator: LevelEvaluator, good: set[str]) -> None:
        self.world: GridLevels = evaluator.environment._source
        self.good = np.isin(evaluator.split_of, list(good))

    def act(self, obs: Tensor, explore: bool) -> Tensor:
        return torch.from_numpy(np.where(self.good, self.world.expert_action(), 0))


# --- levels of three kinds


def test_the_evaluator_plays_every_level_of_each_split_once(tmp_path: Path) -> None:
    evaluator, run = LevelEvaluator("SimpleCrossing-S9N2", 4, 3, 5), Run(tmp_path / "run")
    metrics = evaluator(Expert(evaluator, {"train", "validation"}), run, 7)
    assert {split: metrics[f"success/{split}"] for split in ("train", "validation", "test")} == {
        "train": 1.0,
        "validation": 1.0,
        "test": 0.0,
    }
    assert metrics["gap"] == metrics["return/train"] - metrics["return/test"] == metrics["return/train"] > 0.9
    rows = run.samples()
    levels = {split: [row["level"] for row in rows if row["split"] == split] for split in evaluator.splits}
    assert levels == {"train": [0, 1, 2, 3], "validation": [9000, 9001, 9002], "test": [10_000 + k for k in range(5)]}
    assert {row["step"] for row in rows} == {7}
    # Each row is the level it names: its length is that of the level's shortest way.
    for row in rows[:7]:
        world = GridLevels(1, "SimpleCrossing-S9N2", [row["level"]])
        world.reset(np.random.default_rng(0))
        assert row["length"] == world.distances[0, world.arrays["state"][0]]


def test_training_never_records_a_level_of_validation_or_test(tmp_path: Path) -> None:
    config = dataclasses.replace(SMOKE, levels=6, transitions=2_000, epsilon=0.3)
    run = Run(tmp_path / "run")
    data = record_levels(config, run)
    assert set(np.unique(data.extras["level"])) == set(range(6))
    assert len(data) >= 2_000
    record = read_manifest(run.path("data"))
    assert record is not None
    assert record["sha256"] == digest(data)
    assert record["config"] == {"kind": config.kind, "levels": 6, "transitions": 2_000, "epsilon": 0.3}
    assert digest(record_levels(config, Run(tmp_path / "same"))) == digest(data)
    assert digest(record_levels(config, Run(tmp_path / "other", seed=1))) != digest(data)


def test_epsilon_is_the_share_of_actions_that_are_not_the_experts(tmp_path: Path) -> None:
    """A uniform one of four actions is the expert's in a quarter of the cases."""
    for epsilon in (0.0, 0.4):
        config = dataclasses.replace(SMOKE, transitions=6_000, epsilon=epsilon)
        data = record_levels(config, Run(tmp_path / str(epsilon)))
        world = GridLevels(1, config.kind, range(config.levels))
        level = data.extras["level"]
        agent = data.obs[data.obs_index][..., 5:].reshape(len(data), -1, 4)  # one cell, one direction
        cell, direction = np.unravel_index(agent.reshape(len(data), -1).argmax(axis=1), (81, 4))
        state = direction * 81 + cell
        world.arrays = {"level": level, "state": state}
        differs = float((world.expert_action() != data.action).mean())
        assert differs == pytest.approx(0.75 * epsilon, abs=0.02)


def test_splits_cannot_overlap() -> None:
    for numbers in ((VALIDATION + 1, 5, 5), (5, TEST - VALIDATION + 1, 5), (0, 5, 5), (5, 0, 5), (5, 5, 0)):
        with pytest.raises(UserError, match="There can be 1 to 9000 levels of training, 1 to 1000 of validation"):
            LevelEvaluator("SimpleCrossing-S9N2", *numbers)


def test_validation_chooses_and_nothing_else() -> None:
    history = [
        {"step": 0, "return/validation": 0.1, "return/test": 0.9},
        {"step": 5, "policy_loss": 1.0},
        {"step": 10, "return/validation": 0.5, "return/test": 0.2},
        {"step": 20, "return/validation": 0.5, "return/test": 0.8},
        {"step": 30, "return/validation": 0.4, "return/test": 1.0},
    ]
    assert chosen_by_validation(history)["step"] == 20


# --- runs


def test_the_defaults_are_the_papers() -> None:
    paper = {"learning_rate": 5e-4, "gamma": 0.99, "beta": 3.0, "expectile": 0.8, "alpha": 4.0, "threshold": 0.5}
    paper |= {"levels": 200, "validation_levels": 50, "target_every": 1000, "batch_size": 256, "transitions": 1_000_000}
    assert {name: getattr(Config(), name) for name in paper} == paper


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_in_two_parts_equals_one(algorithm: str, tmp_path: Path) -> None:
    config = dataclasses.replace(SMOKE, algorithm=algorithm)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    metrics = train(config, whole)
    train(dataclasses.replace(config, steps=2), parts)
    assert train(config, Run(tmp_path / "parts")) == metrics
    one, two = whole.load(), parts.load()
    assert one is not None
    assert two is not None
    assert one.step == two.step == config.steps
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items() if "agent/" in name)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["data/levels"] == 10
    assert 0 <= metrics[CLAIM[0].metric] <= 1


def test_the_procgen_preset_has_the_papers_sizes() -> None:
    config = Config(**PRESETS["procgen"])
    assert (config.kind, config.levels, config.validation_levels) == ("procgen:coinrun", 200, 50)
    assert (config.expert_steps, config.transitions, config.epsilon) == (25_000_000, 1_000_000, 0.0)
    assert config.steps * config.batch_size // config.transitions == 102  # epochs of bc


def test_procgen_from_ppo_to_the_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO learns, is recorded and learned from; a second call finds all of it. Skipped without envpool or Qt."""
    pytest.importorskip("envpool")
    try:
        make_levels(1, "procgen:coinrun", [0])
    except UserError as error:
        pytest.skip(str(error))
    begin = ProcgenLevels.__init__

    def with_short_episodes(world: ProcgenLevels, *arguments: Any, **options: Any) -> None:
        begin(world, *arguments, **options)
        world.time_limit = 40

    monkeypatch.setattr(ProcgenLevels, "__init__", with_short_episodes)
    config = Config(**{**PRESETS["procgen-smoke"], "levels": 2, "test_levels": 1})
    metrics = train(config, Run(tmp_path / "run"))
    assert train(config, Run(tmp_path / "run")) == metrics
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["data/levels"] == 2
    assert metrics["data/steps"] >= 500
    for split in ("train", "validation", "test"):
        assert 0 <= metrics[f"success/{split}"] == metrics[f"return/{split}"] / 10 <= 1  # the coin is worth 10
        assert 0 <= metrics[f"expert/success/{split}"] <= 1
    record = json.loads((tmp_path / "run" / "data.manifest.json").read_text())
    assert (record["obs_shape"], record["action_size"], record["extras"]) == ([64, 64, 3], 15, ["level", "success"])
    rows = [row for row in Run(tmp_path / "run").samples() if row["step"] == config.steps]
    assert [row["level"] for row in rows] == [0, 9000, 10_000]


def test_cloning_learns_the_levels_it_has_seen(tmp_path: Path) -> None:
    """A loss of log 4 at the beginning, that of uniform actions; with 10 % random ones it cannot fall below 0.35."""
    config = dataclasses.replace(SMOKE, levels=3, transitions=2_000, steps=120, batch_size=64, evaluate_every=120)
    run = Run(tmp_path / "run")
    train(dataclasses.replace(config, learning_rate=2e-3, epsilon=0.1, log_every=20), run)
    losses = [row["policy_loss"] for row in run.history() if "policy_loss" in row]
    assert 0.3 < losses[-1] < 0.8 * losses[0] < 0.8 * 1.5


def test_bad_settings_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown algorithm 'ddpg'; choose from: bc, iql, cql, bcq"):
        train(dataclasses.replace(SMOKE, algorithm="ddpg"), Run(tmp_path / "a"))
    with pytest.raises(UserError, match="There can be 1 to 9000 levels of training"):
        train(dataclasses.replace(SMOKE, levels=10_001), Run(tmp_path / "b"))


@pytest.mark.parametrize(("shape", "actions"), [((9, 9, 9), 4), ((64, 64, 3), 15)])  # mazes and Procgen
def test_agents_get_every_field_that_they_read(shape: tuple[int, ...], actions: int) -> None:
    for kind, settings in ALGORITHMS.values():
        agent = kind(
            Spec(shape, actions, True),
            recipe.SimpleNamespace(**dataclasses.asdict(SMOKE), **settings),
            Generator().manual_seed(0),
        )
        obs = torch.zeros((2, *shape), dtype=torch.uint8)
        assert agent.act(obs, explore=False).shape == (2,)


# --- the claims


def results(claim: Claim, centres: dict[str, float], learned: float = 1.0) -> ArmResults:
    noise = {0: 0.0, 1: 0.01, 2: -0.01}
    first = next(iter(centres))
    values = {
        arm: {seed: centre + (extra if arm == first else 0) for seed, extra in noise.items()}
        for arm, centre in centres.items()
    }
    secondary = {arm: {seed: {"success/train": learned} for seed in noise} for arm in centres}
    return ArmResults(claim.metric, values, secondary)


def test_the_claim_of_diversity_can_hold_fail_and_be_void() -> None:
    def verdict(few: float, many: float, iql_few: float, iql_many: float, more: float, learned: float = 1.0) -> str:
        arms = {"bc-10": few, "bc-300": many, "iql-10": iql_few, "iql-300": iql_many, "bc-10-more": more}
        return judge(CLAIM[0], results(CLAIM[0], arms, learned)).verdict

    assert verdict(0.2, 0.8, 0.1, 0.7, 0.25) == "HOLDS"
    assert verdict(0.2, 0.3, 0.1, 0.7, 0.25) == "FAILS"  # cloning gains too little
    assert verdict(0.2, 0.8, 0.1, 0.2, 0.25) == "FAILS"  # IQL gains too little
    assert verdict(0.2, 0.8, 0.1, 0.7, 0.6) == "FAILS"  # size does it too
    assert verdict(0.2, 0.8, 0.1, 0.7, 0.25, learned=0.4) == "INCONCLUSIVE"


def test_the_claim_of_the_method_can_hold_fail_and_be_void() -> None:
    def verdict(learned: float = 1.0, **changes: float) -> str:
        arms = {"bc": 0.5, "cql": 0.4, "iql": 0.5, "bcq": 0.45} | changes
        return judge(CLAIM[1], results(CLAIM[1], arms, learned)).verdict

    assert verdict() == "HOLDS"
    for better in ("cql", "iql", "bcq"):
        assert verdict(**{better: 0.7}) == "FAILS"
    assert verdict(iql=0.55) == "INCONCLUSIVE"  # right at the threshold
    assert verdict(learned=0.1) == "INCONCLUSIVE"


def test_the_arms_differ_in_valid_fields_and_nothing_else() -> None:
    names = {field.name for field in dataclasses.fields(Config)}
    assert load_recipe("generalization-gap").claims == CLAIM
    for claim in CLAIM:
        configs = [Config(**claim.overrides(arm, smoke)) for arm in claim.arms for smoke in (False, True)]
        assert len(set(configs)) == len(configs)
        assert names >= {*claim.base, *claim.smoke}
    assert {key for arm in CLAIM[0].arms.values() for key in arm} == {"levels", "algorithm", "transitions"}
    assert {key for arm in CLAIM[1].arms.values() for key in arm} == {"algorithm"}
    assert names >= set(recipe.EXTENDABLE)
    for preset in PRESETS.values():
        Config(**preset)
