"""D5RL: the tasks' rewards and data by hand, both phases, every agent of the matrix, whole runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zerozoo.cli.registry import load_recipe
from zerozoo.control.agents import IDQL
from zerozoo.control.episodes import Episodes
from zerozoo.control.evaluation import Evaluator
from zerozoo.control.online import OnlineLoop
from zerozoo.control.spec import Spec
from zerozoo.environments.mazes import Maze
from zerozoo.recipes.offline import d5rl
from zerozoo.recipes.offline.d5rl import AGENTS, CLAIM, PRESETS, Config, open_task, phases
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMOKE = PRESETS["smoke"]
SPEED = {"task": "speed", "reward_shift": 0.0}


def numpy_generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def config(**changes: Any) -> Config:
    return Config(**{**SMOKE, **changes})


# --- the parts


def test_the_defaults_are_the_benchmarks() -> None:
    """Card, Defaults."""
    paper = {
        "offline_steps": 500_000,
        "steps": 500_000,
        "batch_size": 256,
        "evaluation_episodes": 50,
        "hidden": (256, 256),
        "learning_rate": 3e-4,
        "cosine_steps": 1_000_000,
        "expectile": 0.7,
        "beta": 3.0,
        "tau": 0.005,
        "gamma": 0.99,
    }
    assert {name: getattr(Config(), name) for name in paper} == paper
    assert Config(**PRESETS["paper"]) == Config()
    assert AGENTS["cql"][1]["alpha"] == AGENTS["cal-ql"][1]["alpha"] == 5.0
    assert AGENTS["td3-bc"][1]["alpha"] == 2.5


def test_the_speed_task_rewards_data_and_environment_alike() -> None:
    pytest.importorskip("mujoco")
    made = open_task(config(**SPEED, transitions=400, target_speed=1.25)).make(numpy_generator())
    assert [len(episode["reward"]) for episode in made] == [200, 200]
    episode, env = made[1], open_task(config(**SPEED, target_speed=1.25)).world.make()
    speed, effort = episode["obs"][1:, 8], np.square(episode["action"]).sum(axis=1)
    distance = np.maximum(np.abs(speed - 1.25) - 0.1, 0)
    np.testing.assert_allclose(episode["reward"], np.maximum(1 - distance / 1.25, 0) - 0.1 * effort, atol=1e-5)
    obs, _ = env.reset(seed=5)
    action = np.linspace(-1, 1, 6).astype(np.float32)
    obs, reward, *_ = env.step(action)
    expected = max(1 - max(abs(float(obs[8]) - 1.25) - 0.1, 0) / 1.25, 0) - 0.1 * float(np.square(action).sum())
    assert reward == pytest.approx(expected, abs=1e-5)


def test_the_speed_data_depend_on_the_target_in_their_rewards_only() -> None:
    pytest.importorskip("mujoco")
    between, above = (
        Episodes.from_list(open_task(config(**SPEED, target_speed=target)).make(numpy_generator()))
        for target in (0.75, 1.25)
    )
    np.testing.assert_array_equal(between.obs, above.obs)
    np.testing.assert_array_equal(between.action, above.action)
    assert not np.array_equal(between.reward, above.reward)
    assert between.truncated.sum() == between.episodes == 3


def test_the_speed_task_scores_a_perfect_runner_with_100() -> None:
    pytest.importorskip("mujoco")
    assert open_task(config(**SPEED)).world.reference() == (0.0, 200.0)


@pytest.mark.parametrize(("preset", "goal_away", "data_reach"), [("paper", 9, 4), ("laptop", 6, 3)])
def test_partial_data_stop_half_way_and_never_see_the_goal(preset: str, goal_away: int, data_reach: int) -> None:
    """The claim's task is that of the preset laptop."""
    task = Config(**{**PRESETS[preset], "transitions": 3_000})
    data = Episodes.from_list(open_task(task).make(numpy_generator()))
    maze = Maze("large")
    start, goal = maze.indices([task.start, task.goal])
    seen = maze.number_of(data.obs[:, :2].astype(np.float64))
    assert maze.distances[start, goal] == goal_away
    assert maze.distances[start, seen].max() == data_reach
    assert not data.reward.any()
    assert not data.terminated.any()


def test_the_last_tenth_and_the_end_of_the_offline_phase_are_reported() -> None:
    rows = [{"step": 0, "evaluation/score": 1.0, "evaluation/return": 0.0}, {"step": 50}]
    rows += [{"step": step, "evaluation/score": step, "evaluation/return": 0.1} for step in (100, 150, 190, 195, 200)]
    both = phases(rows, config(offline_steps=100, steps=100))
    assert both["offline/score"] == 100
    assert both["finetuned/score"] == both["final/score"] == 197.5  # steps above 190
    offline = phases(rows[:3], config(offline_steps=100, steps=0))
    assert offline == {"offline/score": 100, "offline/return": 0.1, "final/score": 100, "final/return": 0.1}
    online = phases(rows, config(offline_steps=0, steps=200))
    assert (online["offline/score"], online["final/score"]) == (1.0, (190 + 195 + 200) / 3)


def test_idql_plays_the_candidate_of_the_highest_value() -> None:
    settings = {**vars(config()), **AGENTS["idql"][1], "candidates": 3}
    agent = IDQL(Spec((2,), 1, discrete=False), SimpleNamespace(**settings), torch.Generator().manual_seed(0))
    drawn = torch.tensor([[[0.1], [0.4]], [[0.2], [0.5]], [[0.3], [0.6]]])  # (3, 2, 1)
    agent.average.module.sample = lambda obs, n, source: drawn[:n]
    values = torch.tensor([[0.0, 9.0, 5.0, 0.0, 1.0, 9.0], [0.0, 1.0, 3.0, 2.0, 9.0, 0.0]])  # minima 0 1 3 | 0 1 0
    agent.q_target.forward = lambda obs, action: values
    # rows are candidate by candidate: (0.1, 0.4), (0.2, 0.5), (0.3, 0.6)
    assert agent.act(torch.zeros(2, 2), explore=True).flatten().tolist() == pytest.approx([0.2, 0.4])


@pytest.mark.parametrize("name", ["ddpm-bc", "idql"])
def test_diffusion_agents_are_evaluated_by_draws_of_their_own(name: str) -> None:
    agent_class, settings = AGENTS[name]
    made = agent_class(
        Spec((2,), 3, discrete=False), SimpleNamespace(**vars(config()), **settings), torch.Generator().manual_seed(7)
    )
    before, obs = made.random.get_state(), torch.zeros(20, 2)
    plays = [
        [tuple(player.act(obs).flatten().tolist()) for _ in range(3)] for player in (made.player(1), made.player(1))
    ]
    assert plays[0] == plays[1]
    assert len(set(plays[0])) == 3
    assert torch.equal(before, made.random.get_state())
    made.act(obs, explore=True)
    assert not torch.equal(before, made.random.get_state())


# --- whole runs


def train(directory: Path, **changes: Any) -> tuple[dict[str, float], Run]:
    run = Run(directory, seed=0)
    return d5rl.train(config(**changes), run), run


def outcome(directory: Path, **changes: Any) -> dict[str, Any]:
    """What a run left: weights and evaluations."""
    metrics, run = train(directory, **changes)
    checkpoint = run.load()
    assert checkpoint is not None
    tensors = {name: value.tolist() for name, value in checkpoint.tensors.items() if name.startswith("agent/module")}
    return {**tensors, **metrics}


@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_learns_in_both_phases(tmp_path: Path, agent: str) -> None:
    metrics, run = train(tmp_path / "run", agent=agent, steps=10, offline_steps=10, evaluate_every=100)
    assert {"offline/success", "finetuned/success", "final/score"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert [row["step"] for row in run.history()] == [0, 10, 20]
    assert ("q/calibrated_share" in run.history()[-1]) == (agent == "cal-ql")


@pytest.mark.parametrize("number", [0, 1])
def test_every_arm_trains(tmp_path: Path, number: int) -> None:
    if number == 1:
        pytest.importorskip("mujoco")
    claim = CLAIM[number]
    for arm in claim.arms:
        run = Run(tmp_path / arm, seed=0)
        metrics = d5rl.train(Config(**claim.overrides(arm, smoke=True)), run)
        assert math.isfinite(metrics[claim.metric])


def test_without_an_offline_phase_nothing_is_learned_from_data(tmp_path: Path) -> None:
    few = outcome(tmp_path / "few", offline_steps=0)
    assert outcome(tmp_path / "many", offline_steps=0, transitions=1_200) == few
    _, run = train(tmp_path / "offline", steps=0)
    assert not any("episode/length" in row for row in run.history())


def test_rewards_are_shifted_in_both_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    plain = OnlineLoop._update

    def spy(loop: OnlineLoop, batches: Any) -> None:
        rows = batches.sample(64, torch.Generator().manual_seed(len(seen)))
        seen.extend(rows.reward.tolist())
        plain(loop, batches)

    monkeypatch.setattr(OnlineLoop, "_update", spy)
    metrics, _ = train(tmp_path / "run")
    assert set(seen) == {-1.0}
    assert metrics["final/return"] >= 0  # as the environment gives it


def test_a_killed_run_resumes_to_the_same_numbers_in_either_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"agent": "cal-ql", "checkpoint_every": 8, "evaluate_every": 100}
    whole = outcome(tmp_path / "whole", **changes)
    for kill_at in (12, 35):
        plain, folder = OnlineLoop.advance, tmp_path / str(kill_at)

        def killed(loop: OnlineLoop, step: int, kill_at: int = kill_at, plain: Any = plain) -> int:
            if step == kill_at:
                raise RuntimeError("killed")
            return plain(loop, step)

        monkeypatch.setattr(OnlineLoop, "advance", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(folder, **changes)
        monkeypatch.undo()
        assert outcome(folder, **changes) == whole


CHANGES: dict[str, Any] = {
    "task": "speed",
    "agent": "td3-bc",
    "offline_steps": 4,
    "steps": 6,
    "transitions": 1_200,
    "maze": "open",
    "start": (1, 2),
    "goal": (3, 2),
    "coverage": 0.7,
    "hidden": (16, 8),
    "batch_size": 16,
    "learning_rate": 1e-2,
    "cosine_steps": 8,
    "gamma": 0.5,
    "tau": 0.5,
    "expectile": 0.95,
    "beta": 0.1,
    "reward_shift": 0.0,
    "offline_share": 0.2,
}


def test_every_field_has_an_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    few = {"offline_steps": 6, "steps": 4}
    nothing = {"evaluation/score": 0.0, "evaluation/return": 0.0}
    monkeypatch.setattr(Evaluator, "__call__", lambda *arguments: nothing)  # the weights tell, and that is faster
    base = outcome(tmp_path / "base", **few)
    for name, value in CHANGES.items():
        assert outcome(tmp_path / name, **{**few, name: value}) != base, name
    assert outcome(tmp_path / "again", **few) == base
    speed = {**few, **SPEED, "steps": 0}
    for name, value in (("target_speed", 1.25), ("gaits", 12)):
        assert outcome(tmp_path / name, **{**speed, name: value}) != outcome(tmp_path / f"{name}-plain", **speed), name
    inherited = {"seed", "evaluate_every", "evaluation_episodes", "log_every", "checkpoint_every", "observation_keys"}
    assert {field.name for field in dataclasses.fields(Config)} == {*CHANGES, "target_speed", "gaits", *inherited}


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    for name in ("task", "agent"):
        with pytest.raises(UserError, match=f"{name} must be one of .*, not 'other'"):
            train(tmp_path / name, **{name: "other"})


def test_the_claims_have_valid_arms_that_differ() -> None:
    assert load_recipe("d5rl").claims == CLAIM
    for claim in CLAIM:
        configs = [Config(**claim.overrides(arm, smoke)) for arm in claim.arms for smoke in (False, True)]
        assert len(set(configs)) == 2 * len(claim.arms)
