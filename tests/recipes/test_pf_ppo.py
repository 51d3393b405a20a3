"""PF-PPO: the paper's numbers, which rows are trained on, whole runs with their reward model, and an exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.cli.registry import load_recipe
from zerozoo.language.logprobs import Sequences
from zerozoo.language.reward_models import RewardScorer, load_reward_model
from zerozoo.language.supervised import SupervisedLoop
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.losses.filters import RANK_FILTERS
from zerozoo.recipes.reasoning.pf_ppo import CLAIM, EXTENDABLE, PRESETS, Config, plan, train
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMOKE = Config(**PRESETS["smoke"])


def start(directory: Path, **changes: Any) -> tuple[dict[str, float], Run]:
    config = dataclasses.replace(SMOKE, **changes)
    with Run.start(directory, "pf-ppo", dataclasses.asdict(config), config.seed, extendable=EXTENDABLE) as run:
        return train(config, run), run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], Run]:
    """The smoke preset, three steps, never interrupted."""
    torch.set_num_threads(1)
    return start(tmp_path_factory.mktemp("whole") / "run", steps=3, checkpoint_every=1)


# --- the numbers


def test_the_defaults_are_the_papers() -> None:
    """Card, Defaults."""
    paper = {
        "learning_rate": 5e-7,
        "critic_learning_rate": 9e-6,
        "kl_coefficient": 0.01,
        "kl_place": "reward",
        "kl_estimator": "k1",
        "temperature": 1.0,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "value_clip": 0.2,
        "lam": 0.95,
        "gamma": 1.0,
        "samples_per_prompt": 5,
        "updates_per_step": 4,
        "epochs": 1,
        "whiten": True,
        "pair_rate": 1e-5,
        "demonstration_rate": 1e-5,
        "label_noise": 0.0,
    }
    assert {name: getattr(Config(), name) for name in paper} == paper
    assert 1000 < Config().prompts_per_step * Config().samples_per_prompt <= 1024


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_planned(name: str) -> None:
    lines = dict(plan(Config(**PRESETS[name])))
    assert "GAE (lambda 0.95)" in lines["objective"]
    assert lines["filter"] == "best-random"
    assert "reward model" in lines["before"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"filter": "middle"}, "Unknown filter 'middle'; choose one of: none, best"),
        ({"samples_per_prompt": 1}, "needs at least 2 responses"),
        ({"label_noise": 2.0}, "label_noise is 2.0, but must lie between 0 and 1"),
        ({"pair_samples": 1}, "pair_samples is 1, but must be at least 2"),
        ({"probed": 5}, "needs at least 10 problems, or 0"),
        ({"pair_rate": math.nan}, "pair_rate is nan"),
        ({"reward_model": "nowhere", "demonstration_steps": 0}, "nowhere is no reward model"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        train(dataclasses.replace(SMOKE, **changes), Run(tmp_path / "run"))


# --- whole runs


def test_a_run_trains_a_reward_model_and_then_the_policy(whole: tuple[dict[str, float], Run]) -> None:
    metrics, run = whole
    rows = run.history()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert any(row.get("policy/gradient_norm", 0) > 0 for row in rows)
    assert all(row["critic/gradient_norm"] > 0 for row in rows[1:])
    # Best-random keeps two of six responses to each of the four prompts.
    assert all(row["tokens/rows"] == 24 for row in rows[1:])
    assert all(row["update/rows"] == 8 for row in rows[1:] if "update/rows" in row)
    names = {f"reliability/{when}/{name}" for when in ("before", "after") for name in (*RANK_FILTERS, "own")}
    assert names | {"score/before", "score/after", "reward_model/accuracy"} <= metrics.keys()
    assert metrics["reliability/before/own"] == metrics["reliability/before/best-random"]
    assert [path.name for path in sorted(run.path("preparation", "stages").iterdir())] == [
        "1-demonstrations",
        "2-reward-model",
    ]


def test_the_reward_is_that_of_the_reward_model(whole: tuple[dict[str, float], Run]) -> None:
    """Scored anew from the ids that samples.jsonl spells; verdicts earn nothing."""
    _, run = whole
    scorer = RewardScorer(load_reward_model(run.path("preparation", "stages", "2-reward-model", "reward-model")))
    policy = scorer.model.language_model
    tasks = [row for row in run.samples() if row["phase"] == "train" and row["finish"] == "stop"][:5]
    for row in tasks:
        prompt = policy.encode(f"question: {row['question']}\nanswer:")
        ids = policy.tokenizer.convert_tokens_to_ids(row["tokens"])
        (score,) = scorer.responses(Sequences([prompt], [ids])).tolist()
        assert row["reward"] == pytest.approx(score, abs=1e-4)
    assert tasks


class Killed(BaseException):
    """Ends a run from inside as a kill does."""


def result(run: Run) -> tuple[Any, ...]:
    rows = [
        {name: value for name, value in row.items() if not name.startswith(("time", "seconds/"))}
        for row in run.history()
    ]
    newest = sorted(run.path("checkpoints").glob("step-*"))[-1]
    state = json.loads((newest / "state.json").read_text())
    return rows, run.samples(), state, (newest / "tensors.safetensors").read_bytes()


def test_a_run_killed_twice_ends_as_the_unbroken_one(
    whole: tuple[dict[str, float], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in the middle of the reward model, once in the middle of PPO."""
    changes = {"steps": 3, "checkpoint_every": 1}
    supervised, rollout = SupervisedLoop.step, ZeroRL.step

    def dying_supervised(loop: SupervisedLoop, number: int) -> dict[str, float]:
        if number == 2 and loop.run.directory.name == "2-reward-model":
            raise Killed
        return supervised(loop, number)

    def dying_rollout(loop: ZeroRL, number: int) -> Any:
        if number == 3:
            raise Killed
        return rollout(loop, number)

    for owner, dying in ((SupervisedLoop, dying_supervised), (ZeroRL, dying_rollout)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, "step", dying)
            with pytest.raises(Killed):
                start(tmp_path / "run", **changes)
    metrics, run = start(tmp_path / "run", **changes)
    for broken, unbroken in zip(result(run), result(whole[1]), strict=True):
        assert broken == unbroken
    steady = {name for name, value in metrics.items() if "seconds" not in name and not math.isnan(value)}
    assert {name: metrics[name] for name in steady} == {name: whole[0][name] for name in steady}


def test_a_reward_model_of_ones_own_is_taken_as_it_is(whole: tuple[dict[str, float], Run], tmp_path: Path) -> None:
    folder = whole[1].path("preparation", "stages", "2-reward-model", "reward-model")
    metrics, run = start(tmp_path / "run", steps=1, reward_model=str(folder), probed=0, filter="none")
    assert not any(name.startswith(("reliability", "reward_model")) for name in metrics)
    assert len(list(run.path("preparation", "stages").iterdir())) == 1
    assert run.history()[1]["update/rows"] == 24  # nothing is filtered


# --- the claim


def results(**changes: float) -> ArmResults:
    centres = {"none": 0.7, "best": 0.6, "best-random": 0.78, "best-worst": 0.76, "fewer": 0.65}
    centres |= {name.replace("_", "-"): value for name, value in changes.items()}
    noise = {0: 0.0, 1: 0.004, 2: -0.004}
    values = {
        arm: {seed: centre + (extra if arm != "none" else 0.0) for seed, extra in noise.items()}
        for arm, centre in centres.items()
    }
    return ArmResults(CLAIM.metric, values)


def test_the_claim_takes_the_better_filter_and_can_fail() -> None:
    assert judge(CLAIM, results()).verdict == "HOLDS"
    assert judge(CLAIM, results(best_random=0.5)).verdict == "HOLDS"
    assert judge(CLAIM, results(best_random=0.70, best_worst=0.69)).verdict == "FAILS"
    assert judge(CLAIM, results(best=0.75)).verdict == "FAILS"


def test_the_arms_are_valid_and_share_their_reward_model() -> None:
    assert load_recipe("pf-ppo").claims == (CLAIM,)
    configs = [Config(**CLAIM.overrides(arm, smoke)) for arm in CLAIM.arms for smoke in (False, True)]
    assert len(set(configs)) == len(configs)
    shared = ("demonstration_steps", "wrong", "pair_problems", "pair_samples", "pair_steps", "pair_rate", "label_noise")
    real = [Config(**CLAIM.overrides(arm)) for arm in CLAIM.arms]
    assert len({tuple(getattr(config, name) for name in shared) for config in real}) == 1


def test_the_smoke_of_the_claim_runs(tmp_path: Path) -> None:
    metrics = train(Config(**CLAIM.overrides("fewer", smoke=True)), Run(tmp_path / "run"))
    assert CLAIM.metric in metrics
