"""Reward models that say a number: how well it is explained, a stage that learns it, and several of them as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from written_rollouts import rollouts

from zerozoo.language.demonstrations import Lessons
from zerozoo.language.families import tiny_model
from zerozoo.language.models import save_model
from zerozoo.language.pointwise_rewards import explained, pointwise_reward_stage, weighted_reward
from zerozoo.language.reward_models import RewardModel, RewardScorer, random_head, save_reward_model
from zerozoo.language.reward_stage import REWARD_MODEL
from zerozoo.language.settings import GroupConfig
from zerozoo.language.stages import run_stages
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.run import Run


def test_the_share_of_the_variance_that_scores_explain() -> None:
    labels = torch.tensor([1.0, -1.0, 0.0, 0.0])
    assert explained(labels, labels) == 1.0
    assert explained(torch.zeros(4), labels) == 0.0
    assert explained(torch.tensor([0.5, -0.5, 0.5, 0.5]), labels) == pytest.approx(1 - 4 * 0.25 / 2)
    assert explained(torch.ones(4), torch.ones(4)) == 0.0


def test_several_models_are_one_weighted_mean(tmp_path: Path) -> None:
    drawn = rollouts((0, "ab", Verdict.RIGHT, True), (0, "a", Verdict.WRONG, True), (1, "cab", Verdict.RIGHT, False))
    folders, alone = {}, {}
    for seed, name in enumerate(("first", "second")):
        language_model = tiny_model(
            "llama", seed, hidden=16, heads=2, kv_heads=1, vocabulary="".join(map(chr, range(128)))
        )
        model = RewardModel(language_model, random_head(language_model, seed))
        folders[name] = tmp_path / name
        save_reward_model(model, folders[name])
        alone[name] = RewardScorer(model).rollouts(drawn)
    both = weighted_reward(folders, {"first": 1.0, "second": 3.0, "third": 9.0}, "cpu", 64)(drawn)
    torch.testing.assert_close(both, (alone["first"] + 3 * alone["second"]) / 4)
    one = weighted_reward({"second": folders["second"]}, {"first": 1.0, "second": 3.0}, "cpu", 64)(drawn)
    torch.testing.assert_close(one, alone["second"])


def test_a_stage_learns_what_can_be_read_off_a_response(tmp_path: Path) -> None:
    """The label is whether the response has a 3 at its end, of prompts that are not in the training part."""
    folder = tmp_path / "model"
    save_model(tiny_model("llama", hidden=16, heads=2, kv_heads=1, vocabulary="0123 "), folder)
    rows = [
        {"prompt": f"{first}{second}", "response": f"{first}{last}", "label": float(last == "3")}
        for first in "0123"
        for second in "0123"
        for last in "0123"
    ]
    config = GroupConfig(model=str(folder), device="cpu", weight_decay=0.0)
    stage = pointwise_reward_stage("threes", Lessons(60, 16, 0.01), lambda outputs: config, lambda outputs: rows)
    outputs = run_stages(Run(tmp_path / "run"), [stage])["threes"]
    assert outputs.metrics["reward/r2"] > 0.9
    assert outputs.files[REWARD_MODEL].is_dir()
    assert run_stages(Run(tmp_path / "run"), [stage])["threes"] == outputs  # done, and not repeated
