"""Every baseline: the paper's numbers, a whole run of its smoke preset, and an exact resume of it."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipe_runs import assert_same_result, killed, result

from zerozoo.cli.registry import Recipe, catalogue, load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.control.files import write_npz
from zerozoo.control.loop import Loop
from zerozoo.control.sources import open_data
from zerozoo.recipes.baselines import bc
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SLUGS = [entry.slug for entry in catalogue() if entry.family == "baselines"]
CONTROL = [
    "bc",
    "cql",
    "decision-transformer",
    "dqn",
    "iql",
    "ppo",
    "rebrac",
    "rlpd",
    "sac",
    "td3",
    "td3-bc",
    "xql",
]
each = pytest.mark.parametrize("slug", CONTROL)


@cache  # it reads the whole catalogue
def recipe(slug: str) -> Recipe:
    return load_recipe(slug)


def train(slug: str, directory: Path, preset: str = "smoke", **changes: Any) -> dict[str, float]:
    chosen = recipe(slug)
    config = chosen.make_config(changes, preset)
    values = dataclasses.asdict(config)
    with Run.start(directory, slug, values, config.seed, extendable=chosen.extendable) as run:
        return chosen.train(config, run)


def test_all_of_them_are_in_the_catalogue() -> None:
    assert set(CONTROL) <= set(SLUGS)


# --- the numbers

PAPERS: dict[str, dict[str, Any]] = {
    "bc": {"steps": 500_000, "best_share": 1.0},
    "td3-bc": {"alpha": 2.5, "normalise": True, "batch_size": 256, "learning_rate": 3e-4, "target_noise": 0.2},
    "rebrac": {
        "hidden": (256, 256, 256),
        "batch_size": 1024,
        "learning_rate": 1e-3,
        "actor_bc": 0.01,
        "layer_norm": True,
    },
    "iql": {"expectile": 0.7, "beta": 3.0, "max_weight": 100.0, "tau": 0.005, "gamma": 0.99, "reward_scale": 0.0},
    "xql": {"value_beta": 2.0, "value_clip": 7.0, "q_threshold": 20.0, "beta": 3.0, "layer_norm": True},
    "cql": {"alpha": 5.0, "sampled_actions": 10, "policy_learning_rate": 1e-4, "hidden": (256, 256, 256)},
    "sac": {
        "learning_rate": 3e-4,
        "batch_size": 256,
        "tau": 0.005,
        "entropy_per_dimension": -1.0,
        "capacity": 1_000_000,
    },
    "td3": {"warmup": 25_000, "exploration_noise": 0.1, "target_noise": 0.2, "noise_clip": 0.5, "batch_size": 256},
    "rlpd": {"critics": 10, "critics_in_target": 2, "updates_per_step": 20, "layer_norm": True, "offline_share": 0.5},
    "ppo": {
        "rollout": 2048,
        "epochs": 10,
        "batch_size": 64,
        "clip": 0.2,
        "lam": 0.95,
        "gamma": 0.99,
        "hidden": (64, 64),
    },
    "dqn": {"batch_size": 32, "target_every": 10_000, "epsilon_end": 0.1, "updates_per_step": 0.25, "warmup": 50_000},
    "decision-transformer": {"length": 20, "width": 128, "blocks": 3, "heads": 1, "batch_size": 64, "dropout": 0.1},
}
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("iql", "antmaze"): {"expectile": 0.9, "beta": 10.0, "reward_shift": -1.0, "reward_scale": 1.0},
    ("iql", "kitchen"): {"expectile": 0.7, "beta": 0.5, "dropout": 0.1},
    ("xql", "antmaze"): {"value_beta": 0.6, "beta": 10.0, "reward_shift": -1.0},
    ("cql", "cal-ql"): {"calibrated": True, "backup_actions": 10, "reward_scale": 10.0, "reward_shift": -5.0},
    ("rlpd", "antmaze"): {"critics_in_target": 1, "hidden": (256, 256, 256), "reward_shift": -1.0},
    ("rebrac", "antmaze"): {"gamma": 0.999, "actor_bc": 0.003, "learning_rate": 5e-5},
}


@each
def test_the_defaults_are_the_papers(slug: str) -> None:
    config = recipe(slug).make_config({})
    assert {name: getattr(config, name) for name in PAPERS[slug]} == PAPERS[slug]


@pytest.mark.parametrize(("slug", "preset"), PRESETS)
def test_other_domains_are_presets_with_their_rewards_spelled_out(slug: str, preset: str) -> None:
    config, wanted = recipe(slug).make_config({}, preset), PRESETS[slug, preset]
    assert {name: getattr(config, name) for name in wanted} == wanted


@each
def test_every_field_says_what_it_is_and_every_preset_exists(slug: str) -> None:
    chosen = recipe(slug)
    assert {"laptop", "smoke"} <= set(chosen.presets)
    assert "arXiv" in chosen.paper or "(19" in chosen.paper
    for preset in chosen.presets:
        chosen.make_config({}, preset)
    for field in describe_fields(chosen.config_class):
        assert len(field.help) > 5, field.name
    assert not chosen.claims


# --- whole runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, float]]]:
    """A smoke run of every recipe, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return {slug: (folder / slug, train(slug, folder / slug)) for slug in CONTROL}


@each
def test_a_smoke_run_learns_and_is_evaluated(slug: str, whole: dict[str, tuple[Path, dict[str, float]]]) -> None:
    directory, final = whole[slug]
    run = Run.open(directory)
    history = run.history()
    trained = [row for row in history if "updates_per_second" in row]
    losses = [name for name in trained[-1] if name.endswith("_loss")]
    assert losses
    assert all(math.isfinite(row[name]) for row in trained for name in losses if name in row)
    assert history[0]["step"] == 0
    assert history[-1]["step"] == 40
    episodes = [row for row in run.samples() if row["phase"] == "evaluation"]
    assert {row["episode"] for row in episodes} == {0, 1, 2}
    last = [row["return"] for row in episodes if row["step"] == 40]
    assert final["evaluation/return"] == pytest.approx(np.mean(last))
    assert final["evaluation/low"] <= final["evaluation/return"] <= final["evaluation/high"]
    assert ("evaluation/score" in final) == (slug != "dqn")  # nobody has a reference of CartPole


@each
def test_a_killed_run_ends_as_the_unbroken_one(
    slug: str, whole: dict[str, tuple[Path, dict[str, float]]], tmp_path: Path
) -> None:
    """Networks, targets, moments, normaliser, replay, environments, streams: forgetting any of them shows (trap 24)."""

    def after_a_step(loop: Loop, step: int) -> bool:
        if step < (20 if slug == "ppo" else 32):
            return False
        loop.advance(step)
        return True

    with killed(Loop, "_advance", after_a_step):
        train(slug, tmp_path / "run")
    assert train(slug, tmp_path / "run")["evaluation/return"] == whole[slug][1]["evaluation/return"]
    assert_same_result(tmp_path / "run", whole[slug][0])


@each
def test_another_seed_is_another_run(
    slug: str, whole: dict[str, tuple[Path, dict[str, float]]], tmp_path: Path
) -> None:
    train(slug, tmp_path / "run", seed=1)
    assert result(tmp_path / "run")["tensors"] != result(whole[slug][0])["tensors"]


# --- particular ones


def test_the_best_episodes_are_cloned(tmp_path: Path) -> None:
    config: Any = recipe("bc").make_config({})
    episodes = open_data(config, Run(tmp_path / "run")).episodes
    chosen = bc.best(episodes, 0.1)
    assert chosen.episodes == 30
    returns = np.sort(episodes.returns())
    assert np.sort(chosen.returns()) == pytest.approx(returns[-30:])
    assert bc.best(episodes, 1.0).episodes == 300
    for share in (0.0, 1.5):
        with pytest.raises(UserError, match="best_share must lie above 0"):
            bc.best(episodes, share)


def test_data_from_a_file_without_an_environment_is_learned_from(tmp_path: Path) -> None:
    config: Any = recipe("bc").make_config({})
    episodes = open_data(config, Run(tmp_path / "run")).episodes
    path = write_npz(tmp_path / "data.npz", episodes.select(range(5)))
    final = train("iql", tmp_path / "iql", data=str(path), offline_steps=0)
    assert math.isfinite(final["critic_loss"])
    assert not any("evaluation/return" in row for row in Run.open(tmp_path / "iql").history())
    final = train("td3-bc", tmp_path / "td3-bc", data=str(path), environment="Pendulum-v1")
    assert final["evaluation/length"] == 200
    for slug in ("iql", "rlpd"):
        with pytest.raises(UserError, match="give --environment"):
            train(slug, tmp_path / f"{slug}-online", data=str(path))


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    train("sac", tmp_path / "run")
    assert train("sac", tmp_path / "run", steps=60)["evaluation/length"] == 200
    assert Run.open(tmp_path / "run").history()[-1]["step"] == 60


@pytest.mark.parametrize(
    ("slug", "changes", "sentence"),
    [
        ("sac", {"environment": "CartPole-v1"}, "SAC needs continuous actions: take dqn or ppo"),
        ("dqn", {"environment": "pendulum"}, "DQN needs discrete actions"),
        ("ppo", {"environment": "CartPool-v1"}, "cannot be made: .* Did you mean.* `CartPole`"),
        ("cql", {"data": "pendulum-mixd"}, r"did you mean pendulum-mixed\?"),
        ("iql", {"environment": "CartPole-v1"}, "the data does not fit the environment"),
        ("rlpd", {"critics_in_target": 9}, "critics_in_target must lie between 1 and critics, 3"),
    ],
)
def test_what_does_not_fit_is_one_sentence(slug: str, changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        train(slug, tmp_path / "run", **changes)
