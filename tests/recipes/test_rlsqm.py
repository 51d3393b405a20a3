"""RLSQM: the card's numbers, its stages, what each kind of reward pays for, whole runs, and an exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import assert_same_result, killed, parameters

from zerozoo.cli.registry import load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.language.logprobs import Sequences
from zerozoo.language.unit_test_stages import developers_tests, labelled_tests
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.recipes.reasoning.rlsqm import CLAIM, EXTENDABLE, PRESETS, Config, plan, train
from zerozoo.rewards.unit_tests import WEIGHTS, analyse, is_sound
from zerozoo.rewards.verifier import Verdict, Verification
from zerozoo.runs.claims import FAILS, HOLDS, ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task
from zerozoo.tasks.unit_tests import START

linux = pytest.mark.skipif(sys.platform != "linux", reason="tests are run in a sandbox, on Linux only")
SMALL: dict[str, Any] = {
    **PRESETS["smoke"],
    **{"device": "cpu", "checked_samples": 0, "checkpoint_every": 1, "heldout_size": 5, "reward_problems": 10},
}


def small(directory: Path, **changes: Any) -> dict[str, float]:
    config = Config(**{**SMALL, **changes})
    with Run.start(directory, "rlsqm", dataclasses.asdict(config), config.seed, extendable=EXTENDABLE) as run:
        return train(config, run)


# --- the numbers


def test_the_defaults_are_those_of_the_card() -> None:
    card = {
        "max_new_tokens": 512,
        "max_prompt_tokens": 1536,
        "kl_coefficient": 0.02,
        "kl_place": "reward",
        "kl_estimator": "k1",
        "samples_per_prompt": 8,
        "learning_rate": 1e-6,
        "reward": "analyser",
    }
    assert {name: getattr(Config(), name) for name in card} == card
    assert {"assertion": 1.0, "focal-call": 1.0, "descriptive-name": 0.5, "comment": 0.5}.items() <= WEIGHTS.items()
    assert all(len(field.help) > 5 for field in describe_fields(Config))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_planned(name: str) -> None:
    lines = dict(plan(Config(**PRESETS[name])))
    assert "group-centred advantage" in lines["objective"]
    assert lines["rewarded"].startswith("assertion, focal-call")
    assert (lines["before RL"] == "nothing") == (name != "real")


def test_the_claim_compares_equal_budgets_and_can_fail() -> None:
    names = {field.name for field in dataclasses.fields(Config)}
    configs = {arm: Config(**CLAIM.overrides(arm)) for arm in CLAIM.arms}
    assert names >= {*CLAIM.base, *CLAIM.smoke, *EXTENDABLE}
    assert load_recipe("rlsqm").claims == (CLAIM,)
    assert (configs["base"].steps, configs["base"].sft) == (0, "")
    trained, gold = configs["rlsqm"], configs["sft-gold"]
    assert trained.steps * trained.updates_per_step == gold.sft_steps
    assert trained.prompts_per_step * trained.samples_per_prompt == gold.sft_batch_size
    assert {arm: config.model for arm, config in configs.items()} == dict.fromkeys(CLAIM.arms, "tiny-tester")


@pytest.mark.parametrize(
    ("sound", "passes", "mutation", "verdict"),
    [(0.98, 0.5, 0.5, HOLDS), (0.91, 0.5, 0.5, FAILS), (0.98, 0.4, 0.5, FAILS), (0.98, 0.5, 0.4, FAILS)],
)
def test_what_the_claim_asks(sound: float, passes: float, mutation: float, verdict: str) -> None:
    """Three points above SFT-gold and twenty above the base, and no hollower than SFT-gold."""
    noise = (0.001, -0.001, 0.002, 0.0)
    means = {"rlsqm": (sound, passes, mutation), "sft-gold": (0.92, 0.5, 0.5), "base": (0.27, 0.3, 0.3)}
    values = {arm: {seed: mean[0] + noise[seed] for seed in range(4)} for arm, mean in means.items()}
    others = {
        arm: {seed: {"tests/passes": mean[1] - noise[seed], "tests/mutation": mean[2]} for seed in range(4)}
        for arm, mean in means.items()
    }
    shifted = {seed: value + noise[-1 - seed] for seed, value in values["rlsqm"].items()}
    assert judge(CLAIM, ArmResults(CLAIM.metric, {**values, "rlsqm": shifted}, others)).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reward": "correctness"}, "Unknown reward 'correctness'"),
        ({"qualities": ("beauty",)}, "'beauty' is unknown or stands twice"),
        ({"qualities": ("comment", "comment")}, "'comment' is unknown or stands twice"),
        ({"reward": "unified", "sequential": True}, "knows no single qualities"),
        ({"sft": "good"}, "Unknown tests 'good' in sft"),
        ({"sft_batch_size": 0}, "sft_batch_size is 0, but must be at least 1"),
        ({"reward_steps": 0}, "reward_steps is 0, but must be at least 1"),
        ({"mutants": -1}, "mutants is -1, but must be at least 0"),
        ({"sft_rate": math.nan}, "sft_rate is nan"),
        ({"samples_per_prompt": 1}, "take at least 2"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        small(tmp_path / "run", **changes)


# --- parts


def test_gold_tests_are_the_sound_ones_and_always_the_same() -> None:
    every, gold = developers_tests(0, 200, gold=False), developers_tests(0, 40, gold=True)

    def sound(row: Any) -> bool:
        focal = row["prompt"].removeprefix("def ").partition("(")[0]
        return is_sound(analyse(START + row["response"], focal))

    assert (len(every), len(gold)) == (200, 40)
    assert 0.15 < sum(map(sound, every)) / 200 < 0.4
    assert all(map(sound, gold))
    assert gold[:10] == developers_tests(0, 10, gold=True) != developers_tests(1, 10, gold=True)
    assert not any("\n\n" in row["response"] for row in every)


def test_labels_of_reward_models() -> None:
    """-1 wherever the test does not parse; else 1 and 0; the sum is 1 x 0 and 1/2 x 1 of 3/2."""

    class Drawn:
        groups = torch.tensor([0, 0])
        tasks = (Task("t", "", "", "", metadata={"focal": "f"}),)
        verifications = tuple(
            Verification(Verdict.WRONG, source, 0.0, False, 0.0)
            for source in ("def test_it():\n    f(1)  # why", "def test_it(")
        )

        def __len__(self) -> int:
            return 2

        def sequences(self, rows: Any) -> Sequences:
            return Sequences([[1], [1]], [[2, 3], [4]])

    drawn: Any = Drawn()
    rows = labelled_tests(drawn, {"assertion": 1.0, "comment": 0.5})
    assert rows[0] == {
        "prompt": [1],
        "response": [2, 3],
        "labels": {"assertion": 0.0, "comment": 1.0, "unified": pytest.approx(1 / 3)},
    }
    assert rows[1]["labels"] == {"assertion": -1.0, "comment": -1.0, "unified": -1.0}


# --- whole runs


@linux
@pytest.mark.parametrize("arm", CLAIM.arms)
def test_a_smoke_cell_of_the_claim_gives_what_it_judges(arm: str, tmp_path: Path) -> None:
    config, run = Config(**CLAIM.overrides(arm, smoke=True)), Run(tmp_path / "run")
    metrics = train(config, run)
    for name in ("tests/sound", "tests/passes", "tests/mutation", "tests/syntax", "tests/cut-off"):
        assert 0 <= metrics[name] <= 1
    assert metrics["tests/sound"] <= metrics["tests/assertion"] <= metrics["tests/syntax"]
    rows = run.history()
    assert [row["step"] for row in rows if "tests/sound" in row] == [config.steps]
    assert all(value is not None and math.isfinite(value) for row in rows for value in row.values())
    assert run.path("preparation").exists() == (arm == "sft-gold")
    assert train(config, run)["tests/sound"] == metrics["tests/sound"]
    assert len(run.history()) == len(rows)  # a finished run adds nothing
    start = parameters("tiny-tester-micro")
    assert torch.equal(parameters(run.path("model")), start) == (arm == "base")


def test_rewards_are_the_analysers(tmp_path: Path) -> None:
    """What is logged with each response is its weighted mean, minus nothing: the KL is taken when credit is given."""
    small(tmp_path / "run", steps=1, samples_logged=16, qualities=("assertion", "comment"))
    rows = [row for row in Run.open(tmp_path / "run").samples() if row["phase"] == "train"]
    assert len(rows) == 16
    for row in rows:
        focal = row["question"].removeprefix("def ").partition("(")[0]
        found = analyse(row["extracted"], focal)
        expected = (found["assertion"] + 0.5 * found["comment"]) / 1.5 if found["syntax"] else -1.0
        assert row["reward"] == pytest.approx(expected)
        assert (row["verdict"] == "right") == is_sound(found)
    assert len({row["reward"] for row in rows}) > 1


def test_one_quality_after_the_other(tmp_path: Path) -> None:
    small(tmp_path / "run", steps=1, qualities=("syntax", "comment"), sequential=True)
    first = tmp_path / "run" / "preparation" / "stages" / "1-rl-syntax"
    start = parameters("tiny-tester-micro")
    between, end = parameters(first / "model"), parameters(tmp_path / "run" / "model")
    assert not torch.equal(start, between)
    assert not torch.equal(between, end)
    rows = [row for row in Run.open(tmp_path / "run").samples() if row["phase"] == "train"]
    assert {row["reward"] for row in rows} <= {-1.0, 0.0, 1.0}


def test_reward_models_of_each_quality_or_of_all(tmp_path: Path) -> None:
    small(tmp_path / "models", steps=1, reward="models", qualities=("assertion", "comment"))
    stages = tmp_path / "models" / "preparation" / "stages"
    assert sorted(path.name for path in stages.iterdir()) == ["1-reward-data", "2-reward-assertion", "3-reward-comment"]
    kept = [json.loads(line) for line in (stages / "1-reward-data" / "examples.jsonl").read_text().splitlines()]
    assert len(kept) == 20
    for row in kept:
        one, other = row["labels"]["assertion"], row["labels"]["comment"]
        assert row["labels"]["unified"] == pytest.approx((one + other / 2) / 1.5)
    last = Run.open(tmp_path / "models").history()[-1]
    assert last["reward"] == 0.0  # of the verdicts
    assert last["reward/extra"] != 0.0
    small(tmp_path / "unified", steps=1, reward="unified")
    names = sorted(path.name for path in (tmp_path / "unified" / "preparation" / "stages").iterdir())
    assert names == ["1-reward-data", "2-reward-unified"]


def test_a_killed_run_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    """Killed in the second of two RL parts, after fine-tuning and reward models."""
    fields = {"sft": "all", "reward": "models", "qualities": ("syntax", "assertion"), "sequential": True}
    small(tmp_path / "whole", **fields)
    calls: list[int] = []

    def fourth(loop: ZeroRL, number: int) -> bool:
        calls.append(number)
        return len(calls) == 4

    with killed(ZeroRL, "step", fourth):
        small(tmp_path / "broken", **fields)
    small(tmp_path / "broken", **fields)
    assert calls == [1, 2, 1, 2]
    assert_same_result(tmp_path / "broken", tmp_path / "whole")
