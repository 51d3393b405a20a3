"""Rollouts, advantages and PPO's loop against plain per-episode sums; exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from zerozoo.control.agents import PPO, ppo
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.on_policy import Minibatch, OnPolicyLoop
from zerozoo.control.sources import RewardTransform
from zerozoo.control.spec import Spec
from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.environments.make import make
from zerozoo.environments.vector import Step, VecEnv
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

GAMMA, LAM = 0.9, 0.7


class Line(BatchedWorld):
    """A point moves by its action from 0; leaving [-1, 1] terminates, step 6 truncates; the reward is the position."""

    name = "line"

    def __init__(self, copies: int) -> None:
        super().__init__(copies, time_limit=6)
        self.observation_space = spaces.Box(-3, 3, (2,))
        self.action_space = spaces.Box(-1, 1, (1,))

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        return {"place": rng.uniform(-0.5, 0.5, size=len(copies))}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        self.arrays["place"] = self.arrays["place"] + action[:, 0]
        return self.arrays["place"].copy(), np.abs(self.arrays["place"]) > 1, {}

    def _observe(self) -> np.ndarray:
        return np.stack([self.arrays["place"], self.arrays["elapsed"] / 6], axis=1).astype(np.float32)


SETTINGS: dict[str, Any] = {
    "hidden": (8,),
    "learning_rate": 0.003,
    "falls_until": 0,
    "max_gradient_norm": 0.5,
    "clip": 0.2,
    "entropy_coefficient": 0.01,
    "normalise_advantage": True,
    "normalise": False,
}
FIELDS: dict[str, Any] = {"steps": 120, "evaluate_every": 1000, "log_every": 40, "checkpoint_every": 30}


def loop(directory: Path, source: Any = None, spec: Spec | None = None, **changes: Any) -> OnPolicyLoop:
    run = Run(directory, seed=3)
    settings = {**SETTINGS, **{name: changes.pop(name) for name in list(changes) if name in SETTINGS}}
    agent = PPO(spec or Spec((2,), 1, discrete=False), SimpleNamespace(**settings), run.stream("agent"))
    environment = VecEnv(source or Line(3), run.streams.numpy("environment"))
    fields = {"rollout": 10, "epochs": 2, "batch_size": 15, "gamma": GAMMA, "lam": LAM, **FIELDS, **changes}
    return OnPolicyLoop(agent=agent, run=run, environment=environment, **fields)


def watch(training: OnPolicyLoop) -> list[tuple[np.ndarray, np.ndarray, Step]]:
    """The observation before, the action and the outcome of every step from now on."""
    steps: list[tuple[np.ndarray, np.ndarray, Step]] = []
    step = training.environment.step

    def watched(action: np.ndarray) -> Step:
        assert training.obs is not None
        steps.append((training.obs.copy(), action.copy(), step(action)))
        return steps[-1][2]

    training.environment.step = watched  # type: ignore[method-assign]
    return steps


def test_advantages_against_sums_over_each_episode(tmp_path: Path) -> None:
    """Both kinds of ends and the cut at the end of the rollout, in float64 and without recursion."""
    reward = RewardTransform(scale=2.0, shift=0.5)
    training = loop(tmp_path / "run", reward=reward)
    steps = watch(training)
    rows = training.collect()
    agent: Any = training.agent

    def value(obs: np.ndarray) -> np.ndarray:
        return agent.values(torch.from_numpy(obs)).double().numpy()

    rewards = np.stack([2 * one.reward + 0.5 for _, _, one in steps])  # (T, N)
    values, following = (
        np.stack([value(obs) for obs in part]) for part in zip(*((o, s.next_obs) for o, _, s in steps), strict=True)
    )
    terminated, ended = (np.stack([getattr(one, name) for _, _, one in steps]) for name in ("terminated", "ended"))
    assert terminated.any()
    assert (ended & ~terminated).any()
    assert not ended[-1].all()
    errors = rewards + GAMMA * np.where(terminated, 0, following) - values
    advantage = np.zeros_like(errors)
    for copy in range(3):
        for first in range(10):
            for later in range(first, 10):
                advantage[first, copy] += (GAMMA * LAM) ** (later - first) * errors[later, copy]
                if ended[later, copy]:
                    break
    assert rows.advantage.numpy() == pytest.approx(advantage.reshape(-1), abs=1e-5)
    assert rows.target.numpy() == pytest.approx((advantage + values).reshape(-1), abs=1e-5)
    assert np.array_equal(rows.obs.numpy(), np.concatenate([obs for obs, _, _ in steps]))


def test_episodes_go_on_across_rollouts(tmp_path: Path) -> None:
    training = loop(tmp_path / "run")
    steps = watch(training)
    training.train()
    assert len(steps) == 40
    for (_, _, before), (obs, _, after) in zip(steps, steps[1:], strict=False):
        assert np.array_equal(before.obs, obs)
        assert (after.lengths == np.where(before.ended, 1, before.lengths + 1)).all()


def test_the_environment_gets_clipped_actions_and_learning_those_that_were_drawn(tmp_path: Path) -> None:
    training = loop(tmp_path / "run")
    steps = watch(training)
    rows = training.collect()
    drawn = rows.action.view(10, 3, 1).numpy()
    assert np.abs(drawn).max() > 1
    assert np.array_equal(np.stack([action for _, action, _ in steps]), drawn.clip(-1, 1))


def test_trap_23_the_ratio_is_one_before_anything_was_learned(tmp_path: Path) -> None:
    """With normalised observations too: their scale does not move between acting and learning."""
    training = loop(tmp_path / "run", normalise=True)
    agent: Any = training.agent
    update, changes = agent.update, []

    def watched(batch: Minibatch) -> Any:
        log_prob = agent.policy.log_prob(agent.normaliser(batch.obs), batch.action)
        changes.append(float((log_prob - batch.log_prob).detach().abs().max()))
        return update(batch)

    agent.update = watched
    training.train()
    firsts = changes[::4]  # of each rollout's four minibatches
    assert len(firsts) == 4
    assert max(firsts) < 1e-6
    assert min(change for number, change in enumerate(changes) if number % 4) > 1e-5
    assert float(agent.normaliser.count) == 120


def test_every_row_is_learned_from_once_an_epoch(tmp_path: Path) -> None:
    training = loop(tmp_path / "run", steps=30, epochs=3)
    agent: Any = training.agent
    collected, seen = training.collect, []
    kept: list[Minibatch] = []
    training.collect = lambda: kept.append(collected()) or kept[-1]  # type: ignore[method-assign,func-returns-value]
    update = agent.update
    agent.update = lambda batch: seen.append(batch) or update(batch)
    training.train()
    assert [len(batch.log_prob) for batch in seen] == [15] * 6
    for epoch in range(3):
        learned = torch.cat([batch.advantage for batch in seen[2 * epoch : 2 * epoch + 2]])
        assert torch.equal(learned.sort()[0], kept[0].advantage.sort()[0])
    assert not torch.equal(seen[0].advantage, seen[2].advantage)


def test_the_scale_of_observations_is_that_of_all_copies_together(tmp_path: Path) -> None:
    training = loop(tmp_path / "run", normalise=True)
    steps = watch(training)
    training.train()
    seen = np.concatenate([obs for obs, _, _ in steps]).astype(np.float64)
    normaliser: Any = training.agent.normaliser
    assert isinstance(normaliser, Normaliser)
    assert normaliser.mean.numpy() == pytest.approx(seen.mean(0), rel=1e-4, abs=1e-6)
    assert normaliser.std.numpy() == pytest.approx(seen.std(0), rel=1e-4)


def test_minibatches_must_divide_a_rollout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size 16 does not divide the 30 steps of a rollout \(10 steps of 3 "):
        loop(tmp_path / "run", batch_size=16)


def test_ppo_values_images_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(**{**SETTINGS, "hidden": ()})
    agent = PPO(Spec((9, 8, 3), 4, discrete=True), settings, torch.Generator().manual_seed(0))
    obs = torch.randint(256, (10, 9, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole, seen = agent.values(obs), []
    agent.v.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    monkeypatch.setattr(ppo, "IMAGES", 4)
    assert torch.allclose(agent.values(obs), whole, atol=1e-6)
    assert seen == [4, 4, 2]
    assert len(set(whole.tolist())) == 10
    assert agent.draw(obs)[0].shape == (10,)


def test_ppo_learns_to_move_right(tmp_path: Path) -> None:
    training = loop(tmp_path / "run", Line(10), steps=4000, learning_rate=0.02, batch_size=100, log_every=500)
    training.train()
    returns = [row["episode/return"] for row in training.run.history()]
    assert returns[-1] > returns[0] + 0.5


class Lamp(BatchedWorld):
    """An image whose left or right half is lit; 1 for the action of that side. Four steps, then it is cut."""

    name = "lamp"

    def __init__(self, copies: int) -> None:
        super().__init__(copies, time_limit=4)
        self.observation_space = spaces.Box(0, 255, (6, 6, 1), dtype=np.uint8)
        self.action_space = spaces.Discrete(2)

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        return {"side": rng.integers(2, size=len(copies))}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        return (action == self.arrays["side"]).astype(np.float64), np.zeros(self.copies, dtype=bool), {}

    def _observe(self) -> np.ndarray:
        lit = np.repeat(np.arange(2), 3) == self.arrays["side"][:, None]  # (N, columns)
        return np.where(lit[:, None, :, None], 255, np.zeros((1, 6, 1, 1))).astype(np.uint8)


def test_ppo_learns_from_images(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"hidden": (), "learning_rate": 0.002, "rollout": 16, "batch_size": 64, "log_every": 128}
    training = loop(tmp_path / "run", Lamp(8), Spec((6, 6, 1), 2, discrete=True), steps=1280, **changes)
    training.train()
    returns = [row["episode/return"] for row in training.run.history()]
    assert returns[0] < 2.7  # 2 by chance
    assert returns[-1] > 3.5


# --- resume


class Killed(BaseException):
    """Ends a run from inside as a kill does."""


def result(directory: Path) -> tuple[Any, ...]:
    clock = ("time", "seconds/", "steps_per_second", "updates_per_second")
    history = Run(directory).history()
    rows = [{name: value for name, value in row.items() if not name.startswith(clock)} for row in history]
    newest = sorted((directory / "checkpoints").glob("step-*"))[-1]
    state = json.loads((newest / "state.json").read_text())
    return rows, state, (newest / "tensors.safetensors").read_bytes()


def carts() -> list[Any]:
    return [lambda: make("CartPole-v1")] * 3


@pytest.mark.parametrize("kind", ["batched", "gymnasium"])
@pytest.mark.parametrize("step", [0, 90])
def test_a_killed_run_ends_as_the_unbroken_one(tmp_path: Path, kind: str, step: int) -> None:
    def training(name: str) -> OnPolicyLoop:
        if kind == "batched":
            return loop(tmp_path / name, normalise=True)
        return loop(tmp_path / name, carts(), Spec((4,), 2, discrete=True), normalise=True)

    training("whole").train()
    broken = training("run")
    advance = broken.advance

    def dying(done: int) -> int:
        if done >= step:
            broken.collect()
            raise Killed
        return advance(done)

    broken.advance = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        broken.train()
    training("run").train()
    assert result(tmp_path / "run") == result(tmp_path / "whole")
