"""Recordings of levels by PPO: what is recorded, what it was measured to be, and exact resume at every stage."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("minigrid")

from zerozoo.control import level_recordings
from zerozoo.control.level_recordings import expert_numbers, record_levels
from zerozoo.control.level_splits import LevelEvaluator
from zerozoo.control.manifest import digest, read_manifest
from zerozoo.control.on_policy import OnPolicyLoop
from zerozoo.environments import make as environments
from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.runs.checkpoints import load_newest
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

KIND = "MultiRoom-N2-S4"  # its episodes are short


class Killed(BaseException):
    """Ends a run from inside as a kill does."""


@pytest.fixture(autouse=True)
def short_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout of 8 steps of each copy."""
    monkeypatch.setattr(level_recordings, "ROLLOUT", 8)


def settings(**changes: Any) -> SimpleNamespace:
    fields: dict[str, Any] = {"kind": KIND, "levels": 5, "transitions": 300, "epsilon": 0.0, "expert_steps": 96}
    fields |= {"expert_copies": 4, "log_every": 32, "checkpoint_every": 32}
    return SimpleNamespace(**{**fields, **changes})


def evaluator() -> LevelEvaluator:
    return LevelEvaluator(KIND, 5, 2, 3)


def steps_as_returns(agent: Any, run: Run, step: int) -> dict[str, float]:
    """An evaluator that tells when it was asked."""
    return {"gap": -step, "return/test": step, "success/test": 1.0, "seconds/evaluate": 0.0}


def test_ppo_is_trained_on_levels_of_training_and_then_recorded(tmp_path: Path, monkeypatch: Any) -> None:
    made: list[BatchedWorld] = []

    def watched(*arguments: Any, **options: Any) -> BatchedWorld:
        made.append(environments.make_levels(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(level_recordings, "make_levels", watched)
    run, said = Run(tmp_path / "run"), []
    run.say = said.append
    data = record_levels(settings(), run, steps_as_returns)
    assert said[1:] == [f"PPO: step {step} of 96." for step in (32, 64, 96)]  # no episode has ended by then
    assert [(world.copies, world.seeds.tolist()) for world in made] == [(4, [0, 1, 2, 3, 4]), (100, [0, 1, 2, 3, 4])]
    assert (len(data), data.spec.action_size, data.obs.dtype) == (300, 4, np.uint8)
    assert set(np.unique(data.extras["level"])) == set(range(5))
    inside = Run(tmp_path / "run" / "expert").history()
    assert [row["step"] for row in inside] == [0, 32, 64, 96]
    assert [row["step"] for row in inside if "gap" in row] == [0, 96]
    assert expert_numbers(run) == {"expert/gap": -96, "expert/return/test": 96, "expert/success/test": 1.0}
    assert expert_numbers(Run(tmp_path / "other")) == {}
    record = read_manifest(run.path("data"))
    assert record is not None
    assert record["sha256"] == digest(data)
    wanted = {"kind": KIND, "levels": 5, "transitions": 300, "epsilon": 0.0, "expert_steps": 96, "expert_copies": 4}
    assert record["config"] == wanted


def test_a_long_training_says_twenty_times_where_it_is() -> None:
    said: list[str] = []
    progress = level_recordings._Progress(1_000_000, said.append)
    for step in range(0, 1_000_001, 2_000):
        progress.log(step, {"episode/return": 2.5} if step < 60_000 else {})
    assert said[:2] == ["PPO: step 50,000 of 1,000,000, return 2.5.", "PPO: step 100,000 of 1,000,000."]
    assert len(said) == 20


def test_drawn_actions_are_recorded_and_a_share_of_random_ones(tmp_path: Path, monkeypatch: Any) -> None:
    """A policy that says forward with certainty, so that three quarters of the random actions are others."""

    def sure(agent: Any, obs: Any, explore: bool, generator: Any = None) -> Any:
        assert explore
        assert generator not in (None, agent.random)  # recording draws from a stream of its own
        return torch.full((len(obs),), 2)

    monkeypatch.setattr(level_recordings.PPO, "act", sure)
    clean = record_levels(settings(), Run(tmp_path / "clean"))
    assert (clean.action == 2).all()
    mixed = record_levels(settings(epsilon=0.4, transitions=4000), Run(tmp_path / "mixed"))
    assert float((mixed.action != 2).mean()) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("after", [32, 64, 96])
def test_a_killed_recording_goes_on_to_the_same_data(after: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Killed in PPO's training or, after its last step, in the recording."""
    whole = record_levels(settings(), Run(tmp_path / "whole"), evaluator())
    with monkeypatch.context() as patched:
        advance, record = OnPolicyLoop.advance, level_recordings.epsilon_expert

        def dying(loop: OnPolicyLoop, step: int) -> int:
            if step >= after:
                loop.collect()
                raise Killed
            return advance(loop, step)

        def cut(*arguments: Any, **options: Any) -> None:
            record(*arguments, **options)
            raise Killed

        patched.setattr(OnPolicyLoop, "advance", dying)
        patched.setattr(level_recordings, "epsilon_expert", cut)
        with pytest.raises(Killed):
            record_levels(settings(), Run(tmp_path / "run"), evaluator())
    resumed = Run(tmp_path / "run")
    data = record_levels(settings(), resumed, evaluator())
    assert digest(data) == digest(whole)
    assert expert_numbers(resumed) == expert_numbers(Run(tmp_path / "whole"))


def test_what_was_recorded_is_read_and_not_made_again(tmp_path: Path, monkeypatch: Any) -> None:
    made = record_levels(settings(), Run(tmp_path / "run"))
    monkeypatch.setattr(level_recordings, "_trained_actor", None)
    read = record_levels(settings(), Run(tmp_path / "run"))
    assert digest(read) == digest(made)
    assert read.spec == made.spec
    assert read.extras.keys() == made.extras.keys()
    # Another seed is another PPO and other steps.
    monkeypatch.undo()
    monkeypatch.setattr(level_recordings, "ROLLOUT", 8)
    assert digest(record_levels(settings(), Run(tmp_path / "other", seed=1))) != digest(made)
    one, two = (load_newest(tmp_path / name / "expert" / "checkpoints") for name in ("run", "other"))
    assert one is not None
    assert two is not None
    assert not torch.equal(one.tensors["agent/random"], two.tensors["agent/random"])
    assert not torch.equal(one.tensors["loop/environment/source.level"], two.tensors["loop/environment/source.level"])


def test_levels_without_an_expert_need_ppo(tmp_path: Path, monkeypatch: Any) -> None:
    def no_expert(world: BatchedWorld) -> None:
        raise ValueError("no expert")

    monkeypatch.setattr(level_recordings, "expert", no_expert)
    with pytest.raises(UserError, match=f"{KIND} has no scripted expert: give expert_steps above 0"):
        record_levels(settings(expert_steps=0), Run(tmp_path / "a"))
    with pytest.raises(UserError, match="expert_steps must be 0 or more, not -1"):
        record_levels(settings(expert_steps=-1), Run(tmp_path / "b"))
    with pytest.raises(UserError, match="checkpoint_every must be at least 1"):
        record_levels(settings(checkpoint_every=0), Run(tmp_path / "c"))
