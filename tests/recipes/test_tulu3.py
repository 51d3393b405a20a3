"""Tulu 3: the paper's numbers, its stages and what passes between them, the scores of RLVR, and an exact resume."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import assert_same_result, killed, killed_in_step, parameters

from zerozoo.cli.registry import load_recipe
from zerozoo.cli.show import describe_fields
from zerozoo.language.critic import Critic
from zerozoo.language.reward_models import load_reward_model
from zerozoo.language.supervised import SupervisedLoop
from zerozoo.language.training import complete
from zerozoo.language.zero_rl import ZeroRL
from zerozoo.recipes.reasoning import tulu3
from zerozoo.recipes.reasoning.tulu3 import CLAIM, EXTENDABLE, PRESETS, Config, plan, stages_of, train
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.load import load_task_set
from zerozoo.tasks.task import make_verifier

SMALL: dict[str, Any] = {
    "data": "arithmetic:one-digit",
    "template": "{question}",
    "heldout_size": 6,
    "max_new_tokens": 3,
    "suites": ("arithmetic:one-digit",),
    "suite_size": 6,
    "decontaminate": False,
    "prompts_per_step": 16,
    "learning_rate": 0.003,
    "critic_learning_rate": 0.01,
    "schedule": "constant",
    "steps": 4,
    "checkpoint_every": 2,
    "epochs": 2,
    "sft_epochs": 5,
    "sft_batch_size": 16,
    "sft_learning_rate": 0.01,
    "dpo_problems": 150,
    "dpo_samples": 8,
    "dpo_batch_size": 8,
    "dpo_learning_rate": 1e-3,
    "reward_steps": 4,
    "reward_batch_size": 4,
    "reward_learning_rate": 0.01,
}
SMOKE: dict[str, Any] = PRESETS["smoke"]


def small(directory: Path, model: str, **changes: Any) -> dict[str, float]:
    config = Config(model=model, **{**SMALL, **changes})
    with Run.start(directory, "tulu3", dataclasses.asdict(config), config.seed, extendable=EXTENDABLE) as run:
        return train(config, run)


# --- the numbers


def test_the_defaults_are_the_papers() -> None:
    """Card, Defaults: 8B."""
    paper = {
        "sft_learning_rate": 5e-6,
        "sft_epochs": 2,
        "sft_batch_size": 128,
        "dpo_beta": 5.0,
        "dpo_learning_rate": 5e-7,
        "dpo_epochs": 1,
        "dpo_batch_size": 128,
        "reward_learning_rate": 3e-6,
        "reward_batch_size": 256,
        "learning_rate": 3e-7,
        "kl_coefficient": 0.05,
        "kl_place": "reward",
        "kl_estimator": "k1",
        "prompts_per_step": 224,
        "samples_per_prompt": 1,
        "epochs": 4,
        "updates_per_step": 1,
        "critic_updates": 1,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "value_clip": 0.2,
        "gamma": 1.0,
        "lam": 0.95,
        "critic_lam": 0.95,
        "whiten": True,
        "bootstrap": False,
        "verified_reward": 10.0,
        "cut_reward": -10.0,
        "reward_weight": 0.0,
        "max_prompt_tokens": 2048,
        "max_new_tokens": 2048,
        "critic": "reward-model",
    }
    assert {name: getattr(Config(), name) for name in paper} == paper


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_planned(name: str) -> None:
    lines = dict(plan(Config(**PRESETS[name])))
    assert f"GAE (lambda {Config(**PRESETS[name]).lam:g})" in lines["objective"]
    before = "" if name == "paper" else "sft, dpo, reward-model, "
    assert lines["stages"] == f"{before}rlvr"
    assert all(len(field.help) > 5 for field in describe_fields(Config))


def test_the_arms_of_the_claim_differ_in_what_they_say_only() -> None:
    assert load_recipe("tulu3").claims == (CLAIM,)
    for smoke in (False, True):
        configs = {arm: complete(Config(**CLAIM.overrides(arm, smoke))) for arm in CLAIM.arms}
        rlvr = configs["rlvr"]
        assert (rlvr.verified_reward, rlvr.reward_weight, rlvr.critic) == (10.0, 0.0, "reward-model")
        assert 0 < rlvr.frozen_steps < rlvr.steps  # the critic learns first, and then the policy does, too
        assert configs["start"] == dataclasses.replace(rlvr, steps=0)
        assert configs["with-learned"] == dataclasses.replace(rlvr, reward_weight=1.0)
        assert configs["value-from-policy"] == dataclasses.replace(rlvr, critic="")


def test_the_verdict_asks_for_the_gain_the_kept_skill_and_the_mixture() -> None:
    def verdict(gain: float, kept: float, mixture: float, known: float = 0.8) -> str:
        verified = {"start": 0.5, "rlvr": 0.5 + gain, "with-learned": 0.5 + gain + mixture, "value-from-policy": 0.6}
        copying = {"start": known, "rlvr": known + kept, "with-learned": known, "value-from-policy": known}
        noise = (0.0, 0.002, -0.002)

        def drawn(mean: float, place: int) -> dict[int, float]:
            return {seed: mean + noise[(seed + place) % 3] for seed in CLAIM.seeds}

        values = {arm: drawn(mean, place) for place, (arm, mean) in enumerate(verified.items())}
        secondary = {
            arm: {seed: {"after/copying": value} for seed, value in drawn(mean, place).items()}
            for place, (arm, mean) in enumerate(copying.items())
        }
        return judge(CLAIM, ArmResults(CLAIM.metric, values, secondary)).verdict

    assert verdict(0.10, 0.0, -0.01) == "HOLDS"
    assert verdict(0.10, 0.0, 0.10) == "FAILS"  # the mixture wins
    assert verdict(0.10, -0.10, 0.0) == "FAILS"  # the other skill collapses
    assert verdict(0.01, 0.0, 0.0) == "FAILS"  # no gain
    assert verdict(0.10, 0.0, -0.01, known=0.1) == "INCONCLUSIVE"  # the other skill was never there


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dpo_epochs": 0}, "learns from the pairs of DPO"),
        ({"critic": "", "reward_weight": 1.0, "dpo_epochs": 0}, "learns from the pairs of DPO"),
        ({"reward_steps": 0}, "reward_steps is 0, but must be at least 1"),
        ({"value_clip": -1.0}, "value_clip is -1.0"),
        ({"lam": 1.5}, "lam is 1.5"),
        ({"kl_place": "loss"}, "k1 as a term of the loss"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    changes: dict[str, Any], sentence: str, digits_model: str, tmp_path: Path
) -> None:
    without = {} if "reward_steps" in changes or "dpo_epochs" in changes else {"critic": "", "dpo_epochs": 0}
    with pytest.raises(UserError, match=sentence):
        small(tmp_path / "run", digits_model, **{"sft_epochs": 0, **without, **changes})


def test_only_the_stages_that_are_needed_run() -> None:
    def names(**changes: Any) -> list[str]:
        return [stage.name for stage in stages_of(Config(**changes))]

    assert names() == ["sft", "dpo", "reward-model"]
    assert names(critic="") == ["sft", "dpo"]
    assert names(critic="", reward_weight=0.5, sft_epochs=0) == ["dpo", "reward-model"]
    assert names(critic="some/model", sft_epochs=0, dpo_epochs=0) == []


# --- whole runs


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, float]]]:
    """Two arms of the claim, by the claim's own smoke config; what makes the others is tested below."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("smoke")
    done = {}
    for arm in ("rlvr", "start"):
        run = Run(folder / arm)
        done[arm] = (run.directory, train(Config(**CLAIM.overrides(arm, smoke=True)), run))
    torch.set_num_threads(threads)
    return done


def stage(folder: Path, name: str) -> Path:
    return folder / "preparation" / "stages" / name


def test_the_smoke_of_the_claim_trains(smoke: dict[str, tuple[Path, dict[str, float]]]) -> None:
    suites = (*SMOKE["suites"], *SMOKE["other_suites"], "suites", "other_suites")
    for arm, (folder, metrics) in smoke.items():
        assert CLAIM.metric in metrics
        assert {f"{when}/{name}" for when in ("before", "after") for name in suites} <= metrics.keys()
        assert all(math.isfinite(value) for value in metrics.values())
        rows = Run(folder).history()
        assert [row["step"] for row in rows] == ([0] if arm == "start" else [0, 1, 2])
        moved = not torch.equal(parameters(folder / "model"), parameters(stage(folder, "2-dpo") / "model"))
        assert moved == (arm != "start")
        assert (metrics["after/kl"] == 0) == (arm == "start")
    assert all(smoke["start"][1][f"before/{name}"] == smoke["start"][1][f"after/{name}"] for name in suites)
    assert stage(smoke["rlvr"][0], "3-reward-model").exists()


def test_every_arm_starts_from_the_same_weights(smoke: dict[str, tuple[Path, dict[str, float]]]) -> None:
    starts = [parameters(stage(folder, "2-dpo") / "model") for folder, _ in smoke.values()]
    assert all(torch.equal(starts[0], one) for one in starts)
    first = parameters(stage(smoke["rlvr"][0], "1-sft") / "model")
    assert not torch.equal(first, starts[0])


def test_pairs_are_of_verified_against_refuted_responses_of_the_fine_tuned_model(
    smoke: dict[str, tuple[Path, dict[str, float]]],
) -> None:
    lines = (stage(smoke["rlvr"][0], "2-dpo") / "examples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows
    tasks = load_task_set(SMOKE["start_data"], heldout_size=SMOKE["heldout_size"])
    asked = {task.id: task for task in tasks.train}
    problems = [asked[row["task"]] for row in rows]
    with make_verifier(tasks) as verifier:
        for side, verdict in (("chosen", Verdict.RIGHT), ("rejected", Verdict.WRONG)):
            judged = verifier.verify(problems, [row[f"{side}_text"] for row in rows])
            assert {one.verdict for one in judged} == {verdict}


def test_scores_are_ten_zero_and_minus_ten(digits_model: str, tmp_path: Path) -> None:
    """And the critic begins as the reward model, head included, or as the policy with a head of zeros."""
    seen: dict[str, list[Any]] = {"score": [], "values": []}

    class Watched(BaseException):
        """Ends the run when all has been seen."""

    def watch(loop: ZeroRL, number: int) -> Any:
        rollouts, _ = loop.collector.collect(1)
        verified = rollouts.rewards.clone()
        loop._add_reward(rollouts)
        seen["score"].append((verified, rollouts.samples.stopped, rollouts.rewards))
        assert isinstance(loop.creditor, Critic)
        seen["values"].append(loop.creditor.model)
        raise Watched

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ZeroRL, "step", watch)
        for name, critic in (("learned", "reward-model"), ("policy", "")):
            with pytest.raises(Watched):
                small(tmp_path / name, digits_model, critic=critic, prompts_per_step=64)
    for verified, stopped, rewards in seen["score"]:
        expected = torch.where(stopped, 10 * verified, torch.tensor(-10.0))
        assert torch.equal(rewards, expected)
        assert bool((rewards != verified).any())
    model = load_reward_model(stage(tmp_path / "learned", "3-reward-model") / "reward-model")
    learned, policy = seen["values"]
    assert torch.equal(learned.head.weight, model.values.head.weight)
    assert bool(learned.head.weight.any())
    assert not policy.head.weight.any()


def test_a_killed_run_ends_as_the_unbroken_one(digits_model: str, tmp_path: Path) -> None:
    """Killed in the reward model's training, then in PPO."""
    whole = small(tmp_path / "whole", digits_model, reward_weight=0.5)

    def in_the_reward_model(loop: SupervisedLoop, number: int) -> bool:
        return number == 3 and loop.run.directory.name.endswith("reward-model")

    for kill in (killed(SupervisedLoop, "step", in_the_reward_model), killed_in_step(ZeroRL, 4)):
        with kill:
            small(tmp_path / "broken", digits_model, reward_weight=0.5)
    again = small(tmp_path / "broken", digits_model, reward_weight=0.5)
    assert_same_result(tmp_path / "broken", tmp_path / "whole")
    timeless = {name for name in whole if not name.startswith(("seconds", "mean/seconds"))}
    assert {name: again[name] for name in timeless} == {name: whole[name] for name in timeless}
    rows = Run.open(tmp_path / "whole").history()[1:]
    assert all(row["critic/gradient_norm"] > 0 and row["policy/gradient_norm"] > 0 for row in rows)
    assert any("reward/extra" in row for row in rows)


def test_training_problems_that_overlap_with_a_suite_are_left_out(tmp_path: Path) -> None:
    """Here a suite repeats five of them with one word changed."""

    def write(name: str, questions: list[str]) -> str:
        rows = [{"question": question, "answer": str(len(question))} for question in questions]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    questions = [" ".join(f"{letter}{row}" for letter in "abcdefghij") for row in range(40)]
    data = write("problems.jsonl", questions)
    suite = write("suite.jsonl", [question.replace("a", "z", 1) for question in questions[:5]])
    said: list[str] = []
    run = Run(tmp_path / "run")
    run.say = said.append
    config = Config(model="any", data=data, suites=(suite,), heldout_size=1)
    kept = {task.question for task in tulu3._problems(config, data, run).train}
    assert not kept & set(questions[:5])
    assert len(kept) >= 34
    assert len(said) == 1
    assert said[0].startswith("Decontamination: ")
    everything = tulu3._problems(dataclasses.replace(config, decontaminate=False), data, run)
    assert len(everything.train) == 39
