"""ReST-MCTS*: presets, a smoke of every arm of both claims, resume in every stage, what a round learns from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.cli.registry import load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.language import stages
from zerozoo.language.models import load_model
from zerozoo.language.supervised import SupervisedLoop
from zerozoo.recipes.reasoning.rest_mcts import CLAIM, PRESETS, Config, plan, search_settings, train
from zerozoo.rewards.countdown_steps import work_off
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.countdown import countdown

SEARCHING, TRAINING = CLAIM


def parameters(folder: Path) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in load_model(folder).model.parameters()])


def rows(directory: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("seconds/", "time"))} for row in Run(directory).history()
    ]


def test_the_defaults_are_the_released_ones_and_the_presets_are_valid():
    settings = search_settings(Config())
    assert (settings.branch, settings.exploration, settings.unvisited, settings.alpha) == (3, 0.4, 0.8, 0.5)
    assert (settings.gate, settings.roll_branch, settings.roll_steps, settings.iterations) == (0.9, 1, 2, 100)
    assert (Config().temperature, Config().step_tokens) == (0.7, 256)
    recipe = load_recipe("rest-mcts")
    assert recipe.claims == CLAIM
    assert {"laptop", "tiny", "paper", "smoke"} <= set(PRESETS)
    for preset in PRESETS:
        assert "mcts" in dict(plan(recipe.make_config({}, preset)))["search"]
    assert all(len(field.help) > 5 for field in describe_fields(Config))


def test_the_arms_spend_the_same_budget():
    for claim in CLAIM:
        configs = [Config(**claim.overrides(arm)) for arm in claim.arms]
        assert len(set(configs)) == len(configs)
        for name in ("budget", "branch", "worked", "value_steps", "problems", "epochs", "learning_rate", "temperature"):
            assert len({getattr(config, name) for config in configs}) == 1, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, float], Path]]:
    """The smokes of both claims, never interrupted."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    found = {}
    for claim in CLAIM:
        for arm in claim.arms:
            name = f"{claim.name}-{arm}"
            found[name] = (train(Config(**claim.overrides(arm, smoke=True)), Run(folder / name)), folder / name)
    return found


@pytest.mark.parametrize("name", [f"{claim.name}-{arm}" for claim in CLAIM for arm in claim.arms])
def test_a_smoke_run_of_every_arm(name, whole):
    metrics, directory = whole[name]
    assert 0 <= metrics["heldout/sampled_accuracy"] <= 1
    assert all(math.isfinite(value) for key, value in metrics.items() if "reward/" not in key)
    made = sorted(path.name for path in (directory / "stages").iterdir())
    if name.startswith("main"):
        assert 0 <= metrics["search/solved"] <= metrics["search/found"] <= 1
        assert 3 <= metrics["search/steps"] <= 10
        assert made[:2] == ["1-policy-0", "2-value-0"]
        assert made[-1].endswith("heldout")
    elif name.endswith("start"):
        assert made == ["1-policy-0"]
    else:
        assert made == ["1-policy-0", "2-value-0", "3-search-1", "4-policy-1"]
        assert metrics["traces/steps"] <= 10


def test_the_searches_start_from_the_same_models(whole):
    names = [f"main-{arm}" for arm in SEARCHING.arms]
    for place in ("1-policy-0/model", "2-value-0/reward-model"):
        files = [(whole[name][1] / "stages" / place / "model.safetensors").read_bytes() for name in names]
        assert files[0] == files[1] == files[2]


def test_what_is_learned_is_right_and_the_targets_are_those_of_the_paper(whole):
    """A worked solution stands in every tree, so its prefixes have k / K where nothing is shorter."""
    directory = whole["main-mcts"][1] / "stages" / "2-value-0"
    policy = load_model(whole["main-mcts"][1] / "stages/1-policy-0/model")
    tasks = {task.id: task for task in countdown("steps", heldout_size=10).train}
    labels: dict[tuple[str, str], float] = {}
    for line in (directory / "examples.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["places"] == [len(row["response"]) - 1]
        assert 0 <= row["labels"][0] <= 1
        labels[row["task"], policy.decode(row["response"])] = row["labels"][0]
    assert len({task for task, _ in labels}) == 8
    for (identity, text), value in labels.items():
        task = tasks[identity]
        solved = work_off(text.strip().splitlines(), task.metadata["numbers"]) == [task.metadata["target"]]
        if solved and not text.endswith("\n"):
            assert value == pytest.approx(1.0)
    for identity in {task for task, _ in labels}:
        lines = tasks[identity].metadata["solution"]
        for count in (1, 2, 3):
            prefix = " " + "\n".join(lines[:count]) + "\n"
            assert labels[identity, prefix] == pytest.approx(count / 4)


def test_a_round_learns_worked_solutions_and_right_traces_of_other_problems(whole):
    for arm in ("mcts", "sampling"):
        folder = whole[f"self-training-{arm}"][1] / "stages"
        first, second = (
            [json.loads(line) for line in (folder / name / "examples.jsonl").read_text().splitlines()]
            for name in ("1-policy-0", "4-policy-1")
        )
        traces = [json.loads(line) for line in (folder / "3-search-1/traces.jsonl").read_text().splitlines()]
        assert len(first) == 24
        assert second == first + traces


class Killed(BaseException):
    """Ends a run from inside as a kill does."""


def test_a_run_killed_in_every_stage_ends_as_the_unbroken_one(whole, tmp_path, monkeypatch):
    config = Config(**SEARCHING.overrides("mcts", smoke=True))
    step, write, died = SupervisedLoop.step, stages._write_done, set()

    def dying_step(loop: SupervisedLoop, number: int) -> dict[str, float]:
        key = loop.run.directory.name
        if number == 3 and key not in died:
            died.add(key)
            raise Killed
        return step(loop, number)

    def dying_write(run: Any, outputs: Any) -> None:
        key = f"end of {run.directory.name}"
        if key not in died:
            died.add(key)
            raise Killed
        write(run, outputs)

    monkeypatch.setattr(SupervisedLoop, "step", dying_step)
    monkeypatch.setattr(stages, "_write_done", dying_write)
    metrics = None
    while metrics is None:
        try:
            metrics = train(config, Run(tmp_path / "run"))
        except Killed:
            assert len(died) < 40
    unbroken, directory = whole["main-mcts"]
    same = [{k: v for k, v in one.items() if "seconds/" not in k} for one in (metrics, unbroken)]
    assert str(same[0]) == str(same[1])  # NaN equals itself here
    assert rows(tmp_path / "run") == rows(directory)
    assert {"1-policy-0", "2-value-0", "end of 2-value-0"} <= died


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"search": "beam"}, "Unknown search 'beam'"),
        ({"traces": "none"}, "Unknown traces 'none'"),
        ({"rounds": -1}, "rounds is -1, but must not be negative"),
        ({"worked": 0}, "worked is 0, but must be at least 1"),
        ({"worked": 3000}, "worked is 3000 of 2000 training problems: none is left"),
        ({"budget": 2}, "budget is 2, but one solution may take 4 steps"),
        ({"alpha": 2.0}, "alpha is 2.0, but must lie between 0 and 1"),
        ({"data": "word-sums", "split": "easy"}, "come without worked solutions"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        train(Config(**{**PRESETS["smoke"], **changes}), Run(tmp_path / "run"))
