"""Episodes as points of the metrics, and the two targets of PPO's value, against plain sums."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from zerozoo.control.agents import PPO
from zerozoo.control.episode_log import EPISODE, EpisodeLogLoop, RecordedVecEnv
from zerozoo.control.on_policy import Minibatch
from zerozoo.control.sources import RewardTransform
from zerozoo.control.spec import Spec
from zerozoo.environments.make import make
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

GAMMA, COPIES, ROLLOUT = 0.9, 3, 40
SETTINGS = {
    "hidden": (8,),
    "learning_rate": 0.003,
    "falls_until": 0,
    "max_gradient_norm": 0.5,
    "clip": 0.2,
    "entropy_coefficient": 0.0,
    "normalise_advantage": True,
    "normalise": False,
}


def short() -> gymnasium.Env[Any, Any]:
    """CartPole that is cut after 15 steps, so that episodes end in both ways."""
    return make("CartPole-v1", max_episode_steps=15)


def loop(directory: Path, target: str = "td-lambda", **fields: Any) -> EpisodeLogLoop:
    run = Run(directory, seed=4)
    agent = PPO(Spec((4,), 2, discrete=True), SimpleNamespace(**SETTINGS), run.stream("agent"))
    environment = RecordedVecEnv([short] * COPIES, run.streams.numpy("environment"))
    settings = {"steps": 240, "rollout": ROLLOUT, "epochs": 2, "batch_size": 60, "gamma": GAMMA, "lam": 0.7}
    settings |= {"log_every": 60, "checkpoint_every": 120, **fields}
    return EpisodeLogLoop(agent=agent, run=run, environment=environment, value_target=target, **settings)


def collected(directory: Path, target: str, **fields: Any) -> tuple[EpisodeLogLoop, Minibatch]:
    training = loop(directory, target, **fields)
    return training, training.collect()


def test_only_the_target_of_the_value_differs(tmp_path: Path) -> None:
    _, td = collected(tmp_path / "a", "td-lambda")
    _, monte_carlo = collected(tmp_path / "b", "monte-carlo")
    for name in ("obs", "action", "log_prob", "advantage"):
        assert torch.equal(getattr(td, name), getattr(monte_carlo, name)), name
    assert not torch.allclose(td.target, monte_carlo.target)


def test_the_monte_carlo_target_is_the_sum_of_the_rewards_that_came(tmp_path: Path) -> None:
    """Added up by hand in float64; a true end is worth nothing, a cut episode or rollout its true successor."""
    training, rows = collected(tmp_path, "monte-carlo", reward=RewardTransform(scale=0.5, shift=0.25))
    steps = training.environment.steps
    assert len(steps) == ROLLOUT
    assert any(step.truncated.any() for step in steps)
    assert any(step.terminated.any() for step in steps)
    expected = np.zeros((ROLLOUT, COPIES))
    for copy in range(COPIES):
        value = 0.0
        for number in reversed(range(ROLLOUT)):
            step = steps[number]
            if step.ended[copy] or number == ROLLOUT - 1:
                after = torch.from_numpy(step.next_obs[copy : copy + 1])
                value = 0.0 if step.terminated[copy] else float(training.agent.values(after))
            value = 0.5 * float(step.reward[copy]) + 0.25 + GAMMA * value
            expected[number, copy] = value
    np.testing.assert_allclose(rows.target.numpy(), expected.reshape(-1), rtol=1e-5)


def test_the_td_target_is_advantage_and_value(tmp_path: Path) -> None:
    training, rows = collected(tmp_path, "td-lambda")
    values = training.agent.values(rows.obs)
    assert torch.equal(rows.target, (rows.advantage.view(-1, COPIES) + values.view(-1, COPIES)).flatten())


def test_every_episode_is_a_point_at_the_step_where_it_ended(tmp_path: Path) -> None:
    training = loop(tmp_path)
    ended: list[tuple[int, float]] = []
    play, count = training.environment.step, 0

    def watched(action: np.ndarray) -> Any:
        nonlocal count
        count += COPIES
        step = play(action)
        ended.extend((count, float(value)) for value in step.returns[step.ended])
        return step

    training.environment.step = watched  # type: ignore[method-assign]
    training.train()
    history = training.run.history()
    assert [(row["step"], row[EPISODE]) for row in history if EPISODE in row] == ended
    assert len(ended) > 10
    assert all(1 <= value <= 15 for _, value in ended)  # CartPole pays 1 a step
    steps = [row["step"] for row in history]
    assert steps == sorted(steps)
    means = [row for row in history if "episode/return" in row]
    first = [value for step, value in ended if step <= means[0]["step"]]
    assert means[0]["episode/return"] == pytest.approx(np.mean(first))


def test_a_resumed_run_logs_each_episode_once(tmp_path: Path) -> None:
    def points(directory: Path) -> list[tuple[int, float]]:
        return [(row["step"], row[EPISODE]) for row in Run(directory).history() if EPISODE in row]

    loop(tmp_path / "whole").train()
    loop(tmp_path / "parts", steps=120).train()
    Run(tmp_path / "parts", seed=4).log(170, {EPISODE: 99.0})  # what a killed process left after its checkpoint
    loop(tmp_path / "parts").train()
    assert points(tmp_path / "parts") == points(tmp_path / "whole")


def test_an_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="value_target must be one of td-lambda, monte-carlo, not 'mc'"):
        loop(tmp_path, "mc")
