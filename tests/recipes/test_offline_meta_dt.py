"""Meta-DT: what each arm is told, an exact resume, the precondition, the claim."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from zerozoo.cli.registry import load_recipe
from zerozoo.control.manifest import read_manifest
from zerozoo.control.prompts import PromptedSequences
from zerozoo.environments.batched.point_tasks import draw_tasks
from zerozoo.recipes.offline import meta_dt as recipe
from zerozoo.recipes.offline.meta_dt import CLAIM, PRESETS, Config, record_tasks, score_reference, train
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMOKE = Config(**PRESETS["smoke"])


def test_the_defaults_are_the_papers() -> None:
    paper = {
        "tasks": 45,
        "trajectories": 100,
        "horizon": 4,
        "context_size": 16,
        "context_hidden": 128,
        "model_batch_size": 128,
        "model_learning_rate": 1e-3,
        "length": 20,
        "prompt_length": 5,
        "prompt_best": 3,
        "steps": 100_000,
        "prompt_after": 20_000,
        "return_scale": 10.0,
        "width": 128,
        "blocks": 3,
        "heads": 1,
        "learning_rate": 1e-4,
        "warmup_updates": 10_000,
        "batch_size": 128,
    }
    assert {name: getattr(Config(), name) for name in paper} == paper


def test_the_reference_is_random_and_straight() -> None:
    """Goal (1, 0): the straight way earns -(0.9 + 0.8 + ... + 0.1)."""
    low, high = score_reference(SMOKE, np.array([[1.0, 0.0]]))
    assert high == pytest.approx(-4.5, abs=1e-4)
    assert low < -15


def test_each_task_has_its_own_recordings() -> None:
    tasks = draw_tasks("goals", 6, np.random.default_rng(0))
    data = record_tasks(SMOKE, tasks, np.random.default_rng(1))
    assert np.bincount(data.extras["task"]).tolist() == [SMOKE.trajectories * 20] * 6
    ends = data.obs[data.last + np.arange(data.episodes) + 1]
    task = data.extras["task"][data.starts]
    nearest = np.linalg.norm(ends[:, None] - tasks, axis=-1).argmin(axis=1)
    assert (nearest == task).mean() > 0.7


@pytest.mark.parametrize("arm", CLAIM.arms)
def test_an_arm_is_told_what_it_should_be_and_no_more(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    sample = PromptedSequences.sample

    def watched(self: PromptedSequences, *arguments: object) -> object:
        batch = sample(self, *arguments)  # type: ignore[arg-type]
        seen.append((bool(batch.extra["context"].abs().sum() > 0), "prompt/obs" in batch.extra))
        return batch

    monkeypatch.setattr(PromptedSequences, "sample", watched)
    run = Run(tmp_path / "run")
    metrics = train(Config(**CLAIM.overrides(arm, smoke=True)), run)
    told = {"dt": (False, False), "zero-shot": (True, False), "prompt-dt": (False, True)}
    assert set(seen) == {told.get(arm, (True, True))}
    assert ("context/probe" in metrics) == told.get(arm, (True, True))[0]
    assert np.isfinite(list(metrics.values())).all()
    assert CLAIM.metric in metrics
    rounds = [row for row in run.samples() if row["step"] == 6 and row["target"] == "task" and row["task"] == 0]
    assert [row["round"] for row in rounds] == [0, 1, 2, 3]
    changes = len({row["return"] for row in rounds}) > 1  # nothing here is random but the prompts
    assert changes == (Config(**CLAIM.overrides(arm)).prompt != "none")
    record = read_manifest(run.path("data"))
    assert record is not None
    assert len(record["config"]["tasks"]) == 6


@pytest.mark.parametrize("changes", [{}, {"family": "turns", "prompt": "largest"}], ids=["goals", "turns"])
def test_a_run_in_two_parts_equals_one(changes: dict[str, str], tmp_path: Path) -> None:
    config = dataclasses.replace(SMOKE, **changes)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    metrics = train(config, whole)
    train(dataclasses.replace(config, steps=3), parts)
    assert train(config, Run(tmp_path / "parts")) == metrics
    one, two = whole.load(), parts.load()
    assert one is not None
    assert two is not None
    assert one.step == two.step == 6
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items() if "agent/" in name)


def test_the_world_model_needs_the_code(tmp_path: Path) -> None:
    """The smoke of the card: with the code the error of held-out tasks is below half of that with zeros."""
    for family in ("goals", "turns"):
        config = dataclasses.replace(
            SMOKE, family=family, tasks=30, trajectories=20, model_steps=400, model_evaluate_every=100, prompt="none"
        )
        metrics = train(dataclasses.replace(config, steps=1), Run(tmp_path / family))
        assert metrics["context/error"] < 0.5 * metrics["context/error_without"]


def test_bad_settings_are_one_sentence(tmp_path: Path) -> None:
    for changes, message in (
        ({"prompt": "best"}, "prompt must be none, uniform, sampled, largest, not 'best'"),
        ({"heldout_tasks": 6}, "more tasks than heldout_tasks"),
        ({"test_tasks": 0}, "more tasks than heldout_tasks"),
        ({"family": "maze"}, "Unknown family of tasks 'maze'"),
        ({"prompt_length": 21}, "A prompt can have 1 to 20 steps here"),
        ({"rounds": 1}, "rounds must be at least 2"),
    ):
        with pytest.raises(UserError, match=message):
            train(dataclasses.replace(SMOKE, **changes), Run(tmp_path / "run"))


# --- the claim


def results(probe: float = 0.8, **changes: float) -> ArmResults:
    centres = {"dt": 0.4, "zero-shot": 0.6, "prompt_dt": 0.5, "few-shot": 0.65, "few-shot-uniform": 0.6} | changes
    centres = {name.replace("_", "-"): value for name, value in centres.items()}
    noise = {0: 0.0, 1: 0.002, 2: -0.002}
    values = {
        arm: {seed: centre + (extra if arm in ("dt", "few-shot") else 0) for seed, extra in noise.items()}
        for arm, centre in centres.items()
    }
    secondary = {arm: {seed: {"context/probe": probe} for seed in noise} for arm in centres}
    return ArmResults(CLAIM.metric, values, secondary)


def test_the_claim_can_hold_fail_and_be_void() -> None:
    assert judge(CLAIM, results()).verdict == "HOLDS"
    assert judge(CLAIM, results(dt=0.57)).verdict == "FAILS"  # the code is not worth 0.08
    assert judge(CLAIM, results(prompt_dt=0.65)).verdict == "FAILS"  # a prompt alone does it
    assert judge(CLAIM, results(**{"few-shot": 0.55})).verdict == "FAILS"  # the prompt harms
    assert judge(CLAIM, results(**{"few-shot-uniform": 0.9})).verdict == "HOLDS"  # not judged
    assert judge(CLAIM, results(probe=0.3)).verdict == "INCONCLUSIVE"


def test_the_arms_differ_in_valid_fields_and_nothing_else() -> None:
    names = {field.name for field in dataclasses.fields(Config)}
    assert load_recipe("meta-dt").claims == (CLAIM,)
    configs = [Config(**CLAIM.overrides(arm, smoke)) for arm in CLAIM.arms for smoke in (False, True)]
    assert len(set(configs)) == len(configs)
    assert {key for arm in CLAIM.arms.values() for key in arm} == {"context", "prompt"}
    assert names >= {*CLAIM.base, *CLAIM.smoke, *recipe.EXTENDABLE}
    for preset in PRESETS.values():
        Config(**preset)
