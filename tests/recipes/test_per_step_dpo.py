"""Per-step DPO: its numbers, a whole run of every method, resume after a kill in every stage, and its claim."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import Killed, parameters

from zerozoo.cli.registry import load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.language import stages
from zerozoo.language.models import load_model
from zerozoo.language.supervised import SupervisedLoop
from zerozoo.recipes.reasoning.per_step_dpo import CLAIM, METHODS, PRESETS, Config, plan, train
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run


def rows(directory: Path) -> list[dict[str, Any]]:
    run = Run(directory)
    return [{k: v for k, v in row.items() if not k.startswith(("seconds/", "time"))} for row in run.history()]


def test_the_defaults_are_the_papers_and_the_presets_are_valid():
    config = Config()
    assert (config.samples_per_prompt, config.best_of, config.trials, config.beta) == (8, 5, 5, 0.1)
    assert config.method == "per-step"
    recipe = load_recipe("per-step-dpo")
    assert recipe.claims == CLAIM
    assert {"laptop", "tiny", "paper", "smoke"} <= set(PRESETS)
    for preset in PRESETS:
        assert "best of" in dict(plan(recipe.make_config({}, preset)))["learns then"]
    assert all(len(field.help) > 5 for field in describe_fields(Config))


def test_the_claims_arms_start_alike_and_differ():
    configs = [Config(**claim.overrides(arm)) for claim in CLAIM for arm in claim.arms]
    assert len(set(configs)) == len(configs)
    assert {config.problems for config in configs} == {250, 1000}
    assert {config.method for config in configs} == set(METHODS)
    for name in ("sft_learning_rate", "sft_epochs", "sft_problems", "learning_rate", "beta", "epochs", "temperature"):
        assert len({getattr(config, name) for config in configs}) == 1, name
    arms = [arm for claim in CLAIM for arm in claim.arms]
    equal = [config for arm, config in zip(arms, configs, strict=True) if arm != "rft-tokens"]
    assert {config.samples_per_prompt for config in equal} == {4}  # the same number of traces


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, float], Path]]:
    """The claim's smoke: a run of every method, never interrupted."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    return {
        method: (train(Config(**CLAIM[0].overrides(method, smoke=True)), Run(folder / method)), folder / method)
        for method in METHODS
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_smoke_run_of_every_arm(method, whole):
    metrics, directory = whole[method]
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 <= metrics["heldout/greedy_accuracy"] <= 1
    assert metrics["heldout/greedy_steps_number"] > 0
    names = sorted(path.name for path in (directory / "stages").iterdir())
    assert names == ["1-sft", "2-traces", "3-learn"][: 1 if method == "sft" else 3]
    if method == "sft":
        return
    assert metrics["traces/number"] == 24 * 4
    assert not torch.equal(parameters(directory / "stages/3-learn/model"), parameters(directory / "stages/1-sft/model"))
    examples = [json.loads(line) for line in (directory / "stages/2-traces/examples.jsonl").read_text().splitlines()]
    assert len(examples) == metrics["traces/examples"]
    assert set(examples[0]) >= {"rft": {"prompt", "response"}}.get(method, {"prompt", "chosen", "rejected"})
    assert ("completions/number" in metrics) == ("pits/found" in metrics) == (method == "per-step")
    assert ("preference/margin" in metrics) == (method != "rft")


def test_the_traces_are_the_same_for_every_method(whole):
    assert len({(whole[m][0]["traces/right"], whole[m][0]["traces/tokens"]) for m in METHODS[1:]}) == 1
    assert torch.equal(*(parameters(whole[m][1] / "stages/1-sft/model") for m in ("rft", "per-step")))


def test_pairs_share_what_stands_before_the_pit(whole):
    """The prompt of a pair ends with whole steps, and both responses are single ones."""
    policy = load_model(whole["per-step"][1] / "stages/1-sft/model")
    lines = (whole["per-step"][1] / "stages/2-traces/examples.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        prefix = policy.decode(row["prompt"]).partition("answer:")[2]
        assert prefix.count("\n") == row["pit"]
        assert prefix == "" or prefix.endswith("\n")
        for name in ("chosen", "rejected"):
            assert policy.decode(row[name]).rstrip("\n").count("\n") == 0
        assert row["chosen"] != row["rejected"]


def test_a_run_killed_in_every_stage_ends_as_the_unbroken_one(whole, tmp_path, monkeypatch):
    config = Config(**CLAIM[0].overrides("per-step", smoke=True))
    step, write, died = SupervisedLoop.step, stages._write_done, []

    def dying_step(loop: SupervisedLoop, number: int) -> dict[str, float]:
        key = (loop.run.directory.name, number)
        if number == 3 and key not in died:
            died.append(key)
            raise Killed
        return step(loop, number)

    def dying_write(run: Any, outputs: Any) -> None:
        if run.directory.name == "2-traces" and "traces" not in died:
            died.append("traces")
            raise Killed
        write(run, outputs)

    monkeypatch.setattr(SupervisedLoop, "step", dying_step)
    monkeypatch.setattr(stages, "_write_done", dying_write)
    for _ in range(3):
        with pytest.raises(Killed):
            train(config, Run(tmp_path / "run"))
    metrics = train(config, Run(tmp_path / "run"))
    assert died == [("1-sft", 3), "traces", ("3-learn", 3)]
    unbroken, directory = whole["per-step"]
    same = [{k: v for k, v in one.items() if "seconds/" not in k} for one in (metrics, unbroken)]
    assert same[0] == same[1]
    assert rows(tmp_path / "run") == rows(directory)
    assert torch.equal(*(parameters(one / "stages/3-learn/model") for one in (tmp_path / "run", directory)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "ppo"}, "Unknown method 'ppo'"),
        ({"distractors": 2.0}, "distractors is 2.0, but is a share"),
        ({"trials": 0}, "trials is 0, but must be at least 1"),
        ({"best_of": 0}, "best_of is 0, but must be at least 1"),
        ({"sft_learning_rate": math.nan}, "sft_learning_rate is nan"),
        ({"beta": 0.0}, "beta is 0.0, but must be above 0"),
        ({"data": "arithmetic", "split": ""}, "come without worked solutions"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        train(Config(**{**PRESETS["smoke"], **changes}), Run(tmp_path / "run"))
