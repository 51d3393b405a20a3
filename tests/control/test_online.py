"""The off-policy loop: what it stores, when it updates, its phases, and exact resume with replay and environments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from zerozoo.control.agent import Adam, Agent, trains
from zerozoo.control.episodes import Episodes
from zerozoo.control.heads import value
from zerozoo.control.online import OnlineLoop, ReturnsToGo, TransitionsWithReturns
from zerozoo.control.policies import Gaussian
from zerozoo.control.replay import Replay
from zerozoo.control.sources import RewardTransform
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.environments.batched.pendulum import Pendulum
from zerozoo.environments.data import mixed_quality
from zerozoo.environments.make import make
from zerozoo.environments.vector import Step, VecEnv
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SPEC = Spec((3,), 1, discrete=False)
FIELDS: dict[str, Any] = {"steps": 48, "evaluate_every": 1000, "log_every": 10, "checkpoint_every": 14}


class Learner(Agent):
    """A policy that moves a little and remembers the batches that it was given."""

    def build(self, spec: Spec, config: Any) -> None:
        self.policy = Gaussian(spec, squash=True, hidden=(4,))
        self.v = value(spec, (4,))
        self.batches: list[Batch] = []

    def optimiser(self, net: str) -> Adam:
        return Adam(0.003)

    @trains("policy", "v")
    def loss(self, batch: Batch) -> Tensor:
        self.batches.append(batch)
        action, _ = self.policy.sample(batch.obs, self.random)
        return action.square().mean() + self.v.loss(batch.obs, batch.reward).mean()


def pendulum(copies: int, limit: int) -> Pendulum:
    return Pendulum(copies, time_limit=limit)


def gymnasium_pendulums(copies: int, limit: int) -> list[Any]:
    return [lambda: make("Pendulum-v1", max_episode_steps=limit)] * copies


def loop(directory: Path, copies: int = 2, limit: int = 9, source: Any = pendulum, **changes: Any) -> OnlineLoop:
    run = Run(directory, seed=3)
    fields: dict[str, Any] = {
        "replay": Replay(SPEC, changes.pop("capacity", 1000)),
        "view": transitions(0.9),
        "batch_size": 8,
        "warmup": 12,
        **FIELDS,
        **changes,
    }
    environment = VecEnv(source(copies, limit), run.streams.numpy("environment"))
    return OnlineLoop(agent=Learner(SPEC, None, run.stream("agent")), run=run, environment=environment, **fields)


def recorded() -> Episodes:
    episodes = Episodes.from_list(mixed_quality(np.random.Generator(np.random.PCG64(0)), 3))
    return episodes.replace(extras={})


def test_every_step_is_stored_with_its_true_successor(tmp_path: Path) -> None:
    training = loop(tmp_path / "run", copies=3, steps=60, reward=RewardTransform(scale=0.1, shift=1.0))
    steps: list[tuple[np.ndarray, np.ndarray, Step]] = []
    step = training.environment.step

    def watched(action: np.ndarray) -> Step:
        obs = training.obs
        assert obs is not None
        steps.append((obs.copy(), action.copy(), step(action)))
        return steps[-1][2]

    training.environment.step = watched  # type: ignore[method-assign]
    training.train()
    kept = training.replay.state()
    assert kept["added"] == 60
    expected = {
        "obs": np.concatenate([obs for obs, _, _ in steps]),
        "action": np.concatenate([action for _, action, _ in steps]),
        "next_obs": np.concatenate([one.next_obs for _, _, one in steps]),
        "reward": np.concatenate([0.1 * one.reward + 1.0 for _, _, one in steps]).astype(np.float32),
        "terminated": np.concatenate([one.terminated for _, _, one in steps]),
    }
    for name, values in expected.items():
        assert np.array_equal(kept[name].numpy(), values), name
    # Truncated after 9 steps, never terminated: every step bootstraps.
    assert not kept["terminated"].any()


@pytest.mark.parametrize(("copies", "ratio", "total"), [(1, 1.0, 36), (2, 0.5, 18), (3, 0.4, 14), (4, 2.0, 72)])
def test_updates_are_taken_when_they_are_due(tmp_path: Path, copies: int, ratio: float, total: int) -> None:
    training = loop(tmp_path / "run", copies=copies, updates_per_step=ratio)
    made = []
    advance = training.advance

    def watched(step: int) -> int:
        step = advance(step)
        made.append((step, training.agent.updates))
        return step

    training.advance = watched  # type: ignore[method-assign]
    training.train()
    assert all(updates == int(max(step - 12, 0) * ratio) for step, updates in made)
    assert made[-1] == (48, total)


def test_the_first_actions_are_uniform_and_the_agents_come_after(tmp_path: Path) -> None:
    training = loop(tmp_path / "run", copies=20, steps=800, warmup=400, updates_per_step=0.0)
    training.train()
    action = training.replay.state()["action"][:, 0]
    early, late = action[:400], action[400:]
    assert early.abs().max() > 0.97
    assert float(early.var()) == pytest.approx(1 / 3, rel=0.15)
    assert float(late.var()) < 0.2


def test_returns_are_logged_as_the_world_gives_them(tmp_path: Path) -> None:
    training = loop(tmp_path / "run", copies=1, steps=30, log_every=30, reward=RewardTransform(scale=100.0))
    training.train()
    row = training.run.history()[-1]
    rewards = training.replay.state()["reward"].double() / 100
    finished = [float(rewards[start : start + 9].sum()) for start in (0, 9, 18)]
    assert row["episode/return"] == pytest.approx(np.mean(finished), rel=1e-5)
    assert row["episode/length"] == 9.0


def test_phases_share_agent_and_optimiser(tmp_path: Path) -> None:
    data = transitions(0.9)(recorded())
    training = loop(tmp_path / "run", copies=1, warmup=0, data=data, offline_share=0.25, offline_steps=20)
    training.train()
    agent: Any = training.agent
    assert len(agent.batches) == agent.updates == 48
    assert int(training.replay.state()["added"]) == 28
    state = agent.state()
    assert state["steps/policy"] == 48
    stored = {tuple(row) for row in training.replay.state()["obs"].tolist()}
    for number, batch in enumerate(agent.batches):
        fresh = [tuple(row) in stored for row in batch.obs.tolist()]
        assert fresh == ([False] * 8 if number < 20 else [False] * 2 + [True] * 6)


def test_recorded_and_fresh_rewards_are_transformed_alike(tmp_path: Path) -> None:
    reward = RewardTransform(scale=10.0, shift=-5.0)
    data = transitions(0.9)(reward.episodes(recorded()))
    training = loop(tmp_path / "run", copies=1, warmup=0, data=data, reward=reward)
    training.train()
    agent: Any = training.agent
    for batch in agent.batches:
        cosine, sine, speed = batch.obs.double().T
        angle = torch.atan2(sine, cosine)
        cost = angle**2 + 0.1 * speed**2 + 0.001 * (2 * batch.action[:, 0].double()) ** 2
        assert torch.allclose(batch.reward.double(), -10 * cost - 5, rtol=1e-3, atol=1e-2)


def test_an_offline_phase_needs_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an offline phase needs data"):
        loop(tmp_path / "run", offline_steps=5)


# --- resume


def rows(directory: Path) -> list[dict[str, Any]]:
    clock = ("time", "seconds/", "steps_per_second", "updates_per_second")
    history = Run(directory).history()
    return [{name: value for name, value in row.items() if not name.startswith(clock)} for row in history]


def checkpoint(directory: Path) -> tuple[bytes, Any]:
    """Bytes of the tensors, and the state, whose streams may have been made in another order."""
    newest = sorted((directory / "checkpoints").glob("step-*"))[-1]
    return (newest / "tensors.safetensors").read_bytes(), json.loads((newest / "state.json").read_text())


class Killed(BaseException):
    """Ends a run from inside as a kill does."""


def killed(training: OnlineLoop, step: int) -> None:
    advance = training.advance

    def dying(done: int) -> int:
        if done >= step:
            raise Killed
        return advance(done)

    training.advance = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        training.train()


CASES: dict[str, Any] = {
    "batched world": {},
    "gymnasium, in the middle of episodes": {"source": gymnasium_pendulums},
    "a replay buffer that has gone round": {"capacity": 10},
    "returns to go": {"view": TransitionsWithReturns(0.9), "capacity": 30},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("step", [10, 35])
def test_a_killed_run_ends_as_the_unbroken_one(tmp_path: Path, name: str, step: int) -> None:
    """Killed in the warm-up (nothing saved yet) and after the second checkpoint."""
    loop(tmp_path / "whole", **CASES[name]).train()
    killed(loop(tmp_path / "run", **CASES[name]), step)
    loop(tmp_path / "run", **CASES[name]).train()
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert checkpoint(tmp_path / "run") == checkpoint(tmp_path / "whole")


@pytest.mark.parametrize("step", [16, 40])
def test_both_phases_resume_exactly(tmp_path: Path, step: int) -> None:
    """The first checkpoint (14) is from before the environment was ever reset."""

    def training(name: str) -> OnlineLoop:
        data = transitions(0.9)(recorded())
        return loop(tmp_path / name, copies=1, warmup=0, data=data, offline_steps=20)

    training("whole").train()
    killed(training("run"), step)
    training("run").train()
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert checkpoint(tmp_path / "run") == checkpoint(tmp_path / "whole")


class Breaking(gymnasium.Wrapper):  # type: ignore[type-arg]
    """Raises in its 31st step."""

    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps > 30:
            raise RuntimeError("the robot fell over")
        return self.env.step(action)


def test_an_environment_that_fails_is_one_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    def breaking(copies: int, limit: int) -> list[Any]:
        return [lambda: Breaking(gymnasium.make("Pendulum-v1", max_episode_steps=limit))] * copies

    training = loop(tmp_path / "run", copies=1, source=breaking)
    sentence = "Pendulum-v1 failed .* the robot fell over. Training stopped after step 30; the checkpoint of step 28 is"
    with pytest.raises(UserError, match=sentence):
        training.train()
    assert [row["step"] for row in rows(tmp_path / "run")] == [10, 20, 30]
    # Mended, it goes on from the checkpoint and ends like a run that never failed.
    loop(tmp_path / "run", copies=1, source=gymnasium_pendulums).train()
    loop(tmp_path / "whole", copies=1, source=gymnasium_pendulums).train()
    assert checkpoint(tmp_path / "run") == checkpoint(tmp_path / "whole")


# --- returns to go


@pytest.mark.parametrize("capacity", [1000, 11])
def test_returns_of_finished_episodes_against_plain_sums(capacity: int) -> None:
    """Three copies whose episodes have different lengths; the small buffer forgets the beginnings of episodes."""
    rng = np.random.Generator(np.random.PCG64(1))
    replay = Replay(SPEC, capacity)
    returns = ReturnsToGo(replay, 0.9)
    copies, log = 3, []
    lengths, ends = np.zeros(copies, np.int64), rng.integers(1, 7, size=copies)
    for _ in range(25):
        lengths += 1
        ended = lengths == ends
        reward = rng.normal(size=copies)
        nothing = np.zeros((copies, 3), np.float32)
        replay.add(nothing, np.zeros((copies, 1)), reward, nothing, ended)
        step = Step(nothing, reward, ended, ~ended & False, nothing, reward, lengths.copy(), {})
        returns.add(reward, step)
        log += [(copy, float(reward[copy]), bool(ended[copy])) for copy in range(copies)]
        ends[ended] = rng.integers(1, 7, size=int(ended.sum()))
        lengths[ended] = 0
    for number in range(max(0, len(log) - capacity), len(log)):
        copy, total, weight = log[number][0], 0.0, 1.0
        for later in range(number, len(log), copies):
            total, weight = total + weight * log[later][1], weight * 0.9
            if log[later][2]:
                break
        else:
            total = -np.inf
        assert log[number][0] == copy
        assert float(returns.returns[number % capacity]) == pytest.approx(total, rel=1e-4, abs=1e-5)
    batch = returns.sample(64, torch.Generator().manual_seed(0))
    assert torch.equal(batch.extra["return_to_go"], returns.returns[batch.index])


def test_recorded_returns_to_go_are_discounted(tmp_path: Path) -> None:
    episodes = recorded()
    batch = TransitionsWithReturns(0.9)(episodes).sample(50, torch.Generator().manual_seed(0))
    expected = episodes.returns_to_go(0.9)[batch.index.numpy()]
    assert np.array_equal(batch.extra["return_to_go"].numpy(), expected)
    assert batch.discount.tolist() == pytest.approx([0.9] * 50)
