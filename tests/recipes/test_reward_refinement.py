"""Reward refinement: presets, a smoke of every arm and kind of reward, exact resume, and its claim."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import killed_in_step, parameters

from zerozoo.cli.registry import load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.language.models import load_model
from zerozoo.language.step_audit import audit
from zerozoo.language.task_choice import load_tasks_for
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.recipes.reasoning.reward_refinement import CLAIM, PRESETS, Config, demonstrations, plan, train
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run


def rows(directory: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("seconds/", "time"))} for row in Run(directory).history()
    ]


def smoke(**changes: Any) -> Config:
    return Config(**{**CLAIM.overrides("clip-delta", smoke=True), **changes})


def test_the_defaults_and_the_presets():
    config = Config()
    assert (config.prompts_per_step, config.samples_per_prompt, config.gamma, config.completions) == (1024, 8, 1.0, 8)
    assert (config.kl_place, config.kl_estimator, config.shaping) == ("reward", "k1", "clip-delta")
    recipe = load_recipe("reward-refinement")
    assert recipe.claims == (CLAIM,)
    assert {"laptop", "tiny", "paper", "smoke"} <= set(PRESETS)
    for preset in PRESETS:
        lines = dict(plan(recipe.make_config({}, preset)))
        assert "clip-delta" in lines["learned reward"]
        assert "GAE" in lines["objective"]
    assert all(len(field.help) > 5 for field in describe_fields(Config))


def test_the_arms_differ_in_the_shaping_alone():
    configs = [Config(**CLAIM.overrides(arm)) for arm in CLAIM.arms]
    assert [config.shaping for config in configs] == ["none", "raw", "clip-delta"]
    assert all(Config(**{**vars(config), "shaping": "none"}) == configs[0] for config in configs)
    assert (configs[0].steps, configs[0].prompts_per_step, configs[0].samples_per_prompt) == (80, 32, 4)
    assert (configs[0].alpha, configs[0].max_new_tokens) == (0.5, 96)


def test_every_demonstration_of_the_claim_has_one_to_three_idle_lines():
    """None without, else PPO on success alone gets rid of them; but of different lengths, so that more can be tried."""
    config, excesses = Config(**CLAIM.overrides("success")), set()
    for row, task in zip(demonstrations(config, load_model(config.model)), load_tasks_for(config).train, strict=True):
        found = audit([(task, row["response"])])
        assert found["steps/number"] == 4 + found["steps/excess"]
        assert found["steps/idle"] == pytest.approx(found["steps/excess"] / found["steps/number"])
        assert found["steps/wrong"] == 0
        excesses.add(found["steps/excess"])
    assert excesses == {1, 2, 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, float], Path]]:
    """The claim's smoke, never interrupted."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    return {
        arm: (train(Config(**CLAIM.overrides(arm, smoke=True)), Run(folder / arm)), folder / arm) for arm in CLAIM.arms
    }


@pytest.mark.parametrize("arm", CLAIM.arms)
def test_a_smoke_run_of_every_arm(arm, whole):
    metrics, directory = whole[arm]
    assert all(math.isfinite(value) for name, value in metrics.items() if "auc" not in name and "median" not in name)
    assert {"heldout/sampled_accuracy", "heldout/sampled_steps_excess", "heldout/greedy_steps_repeated"} <= set(metrics)
    logged = rows(directory)
    assert [row["step"] for row in logged] == [0, 1, 2]
    assert all("critic/loss" in row for row in logged[1:])
    assert all(("process/score" in row) == ("reward/extra" in row) == (arm != "success") for row in logged[1:])
    assert all(0 < row["process/score"] < 1 for row in logged[1:] if arm != "success")
    assert (directory / "model" / "config.json").is_file()
    stages = sorted(path.name for path in (directory / "preparation" / "stages").iterdir())
    assert stages == ["1-demonstrations", "2-reward-model"][: 1 if arm == "success" else 2]


def test_raw_pays_and_clip_delta_never_pays_more_than_nothing_in_all(whole):
    """Clip-Delta of a response telescopes to alpha c_1, which is not above 0; raw pays alpha p for every step."""
    for row in rows(whole["raw"][1])[1:]:
        assert row["reward/extra"] == pytest.approx(row["process/reward"])
        assert row["process/reward"] == pytest.approx(0.5 * row["process/score"] * row["process/steps"], rel=1e-4)
    for row in rows(whole["clip-delta"][1])[1:]:
        assert -0.5 <= row["reward/extra"] <= 0


def test_the_arms_share_policy_and_reward_model(whole):
    place = "preparation/stages/1-demonstrations/model"
    first = parameters(whole["success"][1] / place)
    assert all(torch.equal(first, parameters(whole[arm][1] / place)) for arm in ("raw", "clip-delta"))
    heads = [
        (whole[arm][1] / "preparation/stages/2-reward-model/reward-model/head.safetensors").read_bytes()
        for arm in ("raw", "clip-delta")
    ]
    assert heads[0] == heads[1]


def test_labels_are_shares_of_completions(whole):
    lines = (whole["raw"][1] / "preparation/stages/2-reward-model/examples.jsonl").read_text().splitlines()
    examples = [json.loads(line) for line in lines]
    assert len(examples) == 24
    for row in examples:
        assert len(row["places"]) == len(row["labels"])
        assert row["places"] == sorted(set(row["places"]))
        assert row["places"][-1] == len(row["response"]) - 1
        assert {*row["labels"]} <= {0.0, 0.5, 1.0}
        assert row["labels"][-1] in (0.0, 1.0)  # the verdict


@pytest.mark.parametrize("shaping", ["outcome", "normed", "length-penalty", "clip", "delta"])
def test_every_kind_of_reward_runs_on_a_given_reward_model(shaping, whole, tmp_path):
    """Also without demonstrations: the policy starts as it is."""
    stages = whole["raw"][1] / "preparation/stages"
    config = smoke(
        shaping=shaping,
        model=str(stages / "1-demonstrations/model"),
        reward_model=str(stages / "2-reward-model/reward-model"),
        demonstration_steps=0,
        eta=0.5,
        steps=1,
    )
    metrics = train(config, Run(tmp_path / "run"))
    assert math.isfinite(metrics["heldout/sampled_accuracy"])
    row = rows(tmp_path / "run")[1]
    low, high = {"clip": (-9, 0), "length-penalty": (-9, 9), "outcome": (0, 0.5), "normed": (0, 0.5)}.get(
        shaping, (0, 0.5)
    )
    assert low <= row["reward/extra"] <= high
    assert not (tmp_path / "run" / "preparation").exists()


def test_a_killed_run_ends_as_the_unbroken_one(whole, tmp_path):
    config = smoke(checkpoint_every=1)
    with killed_in_step(ZeroRL, 2):
        train(config, Run(tmp_path / "run"))
    metrics = train(config, Run(tmp_path / "run"))
    unbroken, directory = whole["clip-delta"]
    assert rows(tmp_path / "run") == rows(directory)
    assert torch.equal(parameters(tmp_path / "run" / "model"), parameters(directory / "model"))
    same = ("heldout/sampled_accuracy", "heldout/sampled_steps_excess", "reward/labels")
    assert [metrics[name] for name in same] == [unbroken[name] for name in same]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shaping": "sum"}, "Unknown shaping 'sum'"),
        ({"alpha": -1.0}, "alpha is -1.0, but must not be negative"),
        ({"completions": 0}, "completions is 0, but must be at least 1"),
        ({"distractors": 2.0}, "distractors is 2.0, but is a share"),
        ({"idle_lines": 0}, "idle_lines is 0, but must be at least 1"),
        ({"reward_model": "somewhere"}, "Say with --eta"),
        ({"reward_model": "nowhere", "eta": 0.5, "demonstration_steps": 0}, "nowhere is no reward model"),
        ({"data": "arithmetic", "split": ""}, "come without worked solutions"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        train(smoke(**changes), Run(tmp_path / "run"))
