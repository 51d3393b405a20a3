"""LaMo: the few episodes, delayed rewards, arms, an exact resume, the claim."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from zerozoo.cli.registry import load_recipe
from zerozoo.control.episodes import Episode, Episodes
from zerozoo.language.text_models import Pretraining
from zerozoo.recipes.offline import lamo as recipe
from zerozoo.recipes.offline.lamo import CLAIM, PRESETS, Config, few, train, with_delayed_rewards
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMOKE = Config(**PRESETS["smoke"])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEROZOO_CACHE", str(tmp_path_factory.getbasetemp() / "models"))


def test_the_defaults_are_the_papers() -> None:
    paper = {
        "length": 20,
        "learning_rate": 1e-4,
        "weight_decay": 1e-5,
        "warmup_updates": 2500,
        "steps": 40 * 2500,
        "evaluate_every": 2500,
        "evaluation_episodes": 20,
        "batch_size": 64,
        "rank": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.1,
        "language_weight": 0.1,
        "return_scale": 1000.0,
        "max_gradient_norm": 0.25,
        "backbone": "gpt2",
        "late": 20_000 // 2_500,
    }
    assert {name: getattr(Config(), name) for name in paper} == paper
    assert recipe.Pretraining == Pretraining


def numbered(count: int) -> Episodes:
    """Episode e has two steps with rewards e and 1."""
    items = [Episode(np.full((3, 1), e), np.zeros((2, 1), np.float32), np.array([float(e), 1.0])) for e in range(count)]
    return Episodes.from_list(items)


def test_few_episodes_are_drawn_without_repetition() -> None:
    data = numbered(300)
    kept = few(data, 1 / 30, np.random.default_rng(0))
    assert kept.episodes == 10
    assert len(set(kept.returns().tolist())) == 10
    assert few(data, 1 / 30, np.random.default_rng(1)).returns().tolist() != kept.returns().tolist()
    assert few(data, 0.001, np.random.default_rng(0)).episodes == 1
    assert few(data, 1.0, np.random.default_rng(0)).returns().tolist() == data.returns().tolist()


def test_delayed_rewards_keep_the_returns() -> None:
    delayed = with_delayed_rewards(numbered(4))
    assert delayed.reward.tolist() == [0, 1, 0, 2, 0, 3, 0, 4]
    assert delayed.returns().tolist() == numbered(4).returns().tolist()


@pytest.mark.parametrize("arm", CLAIM.arms)
def test_an_arm_trains_what_it_should(arm: str, tmp_path: Path) -> None:
    config, run = Config(**CLAIM.overrides(arm, smoke=True)), Run(tmp_path / "run")
    metrics = train(config, run)
    assert np.isfinite(list(metrics.values())).all()
    assert metrics["data/episodes"] == 10
    assert ("text_loss" in metrics) == (arm not in ("no-language-loss", "decision-transformer"))
    rows = [row["evaluation/score"] for row in run.history() if "evaluation/score" in row]
    assert metrics["score"] == rows[-1]  # late is 1
    width, adapters = 16, 16 * 16 + 16 * 48 + 48
    deep = sum(n * width + width + width * width + width for n in (1, 3, 1)) + (width * width + width) + width + 1
    shared = 2 * width + config.longest * width
    if arm == "decision-transformer":
        assert metrics["parameters/trained"] > 256 * width + shared
    else:
        assert metrics["parameters/trained"] == adapters + deep + shared


def test_the_score_is_the_mean_of_the_late_evaluations(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    metrics = train(dataclasses.replace(SMOKE, steps=3, evaluate_every=1, late=2), run)
    rows = [row["evaluation/score"] for row in run.history() if "evaluation/score" in row]
    assert len(rows) == 4
    assert metrics["score"] == pytest.approx(np.mean(rows[-2:]))


def test_only_the_kept_episodes_set_scale_and_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    aim = recipe.LaMo.aim
    monkeypatch.setattr(recipe.LaMo, "aim", lambda self, value: (asked.append(value), aim(self, value))[1])
    run = Run(tmp_path / "run")
    train(dataclasses.replace(SMOKE, delayed=True), run)
    data = recipe.open_data(SMOKE, Run(tmp_path / "other"))
    kept = few(data.episodes, SMOKE.ratio, Run(tmp_path / "third").streams.numpy("subset"))
    assert asked == [pytest.approx(float(np.quantile(kept.returns(), 0.9)))]
    checkpoint = run.load()
    assert checkpoint is not None
    mean = checkpoint.tensors["agent/module/normaliser.mean"]
    np.testing.assert_allclose(mean, kept.obs.mean(axis=0), atol=1e-4)


def test_a_run_in_two_parts_equals_one(tmp_path: Path) -> None:
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    metrics = train(SMOKE, whole)
    train(dataclasses.replace(SMOKE, steps=1), parts)
    again = train(SMOKE, Run(tmp_path / "parts"))
    steady = {name for name in metrics if not name.startswith("seconds") and not name.endswith("per_second")}
    assert {name: again[name] for name in steady} == {name: metrics[name] for name in steady}
    one, two = whole.load(), parts.load()
    assert one is not None
    assert two is not None
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items() if "agent/" in name)


def test_bad_settings_are_one_sentence(tmp_path: Path) -> None:
    for changes, message in (
        ({"adapter": "half"}, "adapter must be one of lora, full, frozen"),
        ({"ratio": 0.0}, r"ratio in \(0, 1\]"),
        ({"late": 0}, "late at least 1"),
        ({"corpus": "poems"}, "corpus must be text, shuffled, none"),
        ({"embedding": "sine"}, "embedding must be mlp or linear"),
        ({"backbone": "/nowhere"}, "there is no model folder"),
    ):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(SMOKE, **changes), Run(tmp_path / "run"))


# --- the claim


def results(**changes: float) -> ArmResults:
    centres = dict.fromkeys(CLAIM.arms, 40.0) | {"lamo": 60.0}
    centres |= {name.replace("_", "-"): value for name, value in changes.items()}
    noise = {0: 0.0, 1: 0.5, 2: -0.5}
    values = {
        arm: {seed: centre + (extra if arm == "lamo" else 0) for seed, extra in noise.items()}
        for arm, centre in centres.items()
    }
    return ArmResults(CLAIM.metric, values, {})


def test_the_claim_can_hold_and_fail() -> None:
    assert judge(CLAIM, results()).verdict == "HOLDS"
    assert judge(CLAIM, results(decision_transformer=62.0)).verdict == "FAILS"
    assert judge(CLAIM, results(random_weights=59.0)).verdict == "FAILS"  # language is not what helps
    assert judge(CLAIM, results(random_weights=55.0)).verdict == "INCONCLUSIVE"
    assert judge(CLAIM, results(no_language_loss=90.0)).verdict == "HOLDS"  # not judged


def test_the_arms_differ_in_valid_fields_and_nothing_else() -> None:
    names = {field.name for field in dataclasses.fields(Config)}
    assert load_recipe("lamo").claims == (CLAIM,)
    configs = [Config(**CLAIM.overrides(arm, smoke)) for arm in CLAIM.arms for smoke in (False, True)]
    assert len(set(configs)) == len(configs)
    changed = {key for arm in CLAIM.arms.values() for key in arm}
    assert changed == {"corpus", "adapter", "embedding", "language_weight"}
    assert names >= {*CLAIM.base, *CLAIM.smoke, *recipe.EXTENDABLE}
    for preset in PRESETS.values():
        Config(**preset)
