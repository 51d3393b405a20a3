"""Traps of control that loops, evaluation, agents and baseline recipes own."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zerozoo.cli import registry
from zerozoo.control import sources
from zerozoo.control.agent import Agent
from zerozoo.control.agents import IQL, PPO, SAC
from zerozoo.control.evaluation import EVALUATION_SEED, Evaluator
from zerozoo.control.on_policy import OnPolicyLoop
from zerozoo.control.online import OnlineLoop
from zerozoo.control.replay import Replay
from zerozoo.control.sources import MAKERS, RewardTransform, World
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.environments.batched.pendulum import Pendulum
from zerozoo.environments.batched.world import BatchedWorld
from zerozoo.environments.data import mixed_quality
from zerozoo.environments.make import make
from zerozoo.environments.vector import VecEnv, _Environments
from zerozoo.losses import imitation, values
from zerozoo.runs.checkpoints import load_newest
from zerozoo.runs.run import Run

load_recipe = cache(registry.load_recipe)  # it reads the whole catalogue
SPEC = Spec((3,), 1, discrete=False)
SOFT = SimpleNamespace(
    hidden=(8,), learning_rate=0.01, tau=0.1, temperature=1.0, learn_temperature=True, entropy_per_dimension=-1.0
)


def few_episodes(rng: np.random.Generator, quality: float | None) -> list[dict[str, Any]]:
    return mixed_quality(rng, world=Pendulum(4, time_limit=40), quality=quality)


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, quality in (("pendulum-mixed", None), ("pendulum-random", 0.0)):
        maker = sources.Maker(World("pendulum"), partial(few_episodes, quality=quality))
        monkeypatch.setitem(MAKERS, name, maker)


def train(slug: str, directory: Path, **changes: Any) -> dict[str, float]:
    recipe = load_recipe(slug)
    config = recipe.make_config(changes, "smoke")
    with Run(directory, seed=config.seed) as run:
        return recipe.train(config, run)


def final_tensors(directory: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_newest(directory / "checkpoints")
    assert checkpoint is not None
    return checkpoint.tensors


def pendulum_rewards(batch: Batch) -> np.ndarray:
    """What the pendulum itself pays for these steps."""
    cosine, sine, speed = batch.obs.double().numpy().T
    return -(np.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.004 * batch.action[:, 0].double().numpy() ** 2)


def watch_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Every batch that any agent gets from now on."""
    seen: list[Batch] = []
    update = Agent.update

    def watched(agent: Agent, batch: Any) -> Any:
        seen.append(batch)
        return update(agent, batch)

    monkeypatch.setattr(Agent, "update", watched)
    return seen


class TwoEnds(BatchedWorld):
    """Copy 0 terminates and copy 1 is truncated, both in the third step; no reward."""

    name = "two-ends"

    def __init__(self) -> None:
        super().__init__(2, time_limit=3)
        self.observation_space, self.action_space = Pendulum(1).observation_space, Pendulum(1).action_space

    def _draw(self, rng: np.random.Generator, copies: np.ndarray) -> dict[str, np.ndarray]:
        return {"number": copies.copy()}

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        return np.zeros(2), (self.arrays["number"] == 0) & (self.arrays["elapsed"] == 2), {}

    def _observe(self) -> np.ndarray:
        return np.stack([self.arrays["number"], self.arrays["elapsed"], self.arrays["elapsed"]], 1).astype(np.float32)


def test_trap_01_only_a_true_end_stops_the_bootstrap(tmp_path: Path) -> None:
    """Mistake: terminated OR truncated means "no value after". Rule: the flags are apart in rollouts and replay."""
    run = Run(tmp_path / "run")
    settings = {"hidden": (), "learning_rate": 0.01, "falls_until": 0, "max_gradient_norm": 1.0, "normalise": False}
    agent = PPO(SPEC, SimpleNamespace(**settings), run.stream("agent"))
    with torch.no_grad():  # V = 7 everywhere
        agent.v.network[0].weight.zero_()
        agent.v.network[0].bias.fill_(7.0)
    fields: dict[str, Any] = {"steps": 6, "run": run}
    on_policy = OnPolicyLoop(
        agent=agent,
        environment=VecEnv(TwoEnds(), run.streams.numpy("environment")),
        rollout=3,
        epochs=1,
        batch_size=6,
        gamma=0.9,
        lam=0.5,
        **fields,
    )
    cut, true_end = 0.9 * 7 - 7, -7.0
    last = {0: true_end, 1: cut}
    expected = [[cut + 0.45 * (cut + 0.45 * last[n]) for n in (0, 1)], [cut + 0.45 * last[n] for n in (0, 1)]]
    expected.append([last[0], last[1]])
    assert on_policy.collect().advantage.view(3, 2).tolist() == pytest.approx(np.array(expected), rel=1e-5)

    replay = Replay(SPEC, 100)
    off_policy = OnlineLoop(
        agent=SAC(SPEC, SOFT, run.stream("agent")),
        environment=VecEnv(TwoEnds(), run.streams.numpy("environment")),
        replay=replay,
        view=transitions(0.9),
        batch_size=4,
        warmup=6,
        **fields,
    )
    off_policy.train()
    batch = replay.sample(200, torch.Generator().manual_seed(0), gamma=0.9)
    ended = (batch.next_obs[:, 1] == 3) & (batch.obs[:, 0] == 0)
    assert ended.any()
    assert torch.equal(batch.discount, torch.where(ended, 0.0, 0.9))


def test_trap_04_no_stored_step_crosses_a_reset(tmp_path: Path) -> None:
    """Mistake: with NEXT_STEP autoreset a replay buffer stores a step across. Rule: the true successor."""
    run = Run(tmp_path / "run")
    makers = [lambda: make("Pendulum-v1", max_episode_steps=4)] * 2
    replay = Replay(SPEC, 100)
    loop = OnlineLoop(
        agent=SAC(SPEC, SOFT, run.stream("agent")),
        run=run,
        steps=60,
        environment=VecEnv(makers, run.streams.numpy("environment")),
        replay=replay,
        view=transitions(0.9),
        batch_size=8,
        warmup=20,
    )
    loop.train()
    kept = replay.state()
    assert int(kept["added"]) == 60
    obs, following, action = (kept[name].double().numpy() for name in ("obs", "next_obs", "action"))
    angle = np.arctan2(obs[:, 1], obs[:, 0])
    speed = np.clip(obs[:, 2] + (15 * np.sin(angle) + 6 * action[:, 0]) * 0.05, -8, 8)
    assert following[:, 2] == pytest.approx(speed, abs=1e-4)
    assert following[:, 0] == pytest.approx(np.cos(angle + 0.05 * speed), abs=1e-4)


def test_trap_08_scores_are_returns_of_the_world_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistake: normalised rewards come out as scores. Rule: learn from anything, report what the world pays."""
    seen = watch_batches(monkeypatch)
    final = train("sac", tmp_path / "run", reward_scale=0.0, reward_shift=1.0, steps=450, evaluate_every=450)
    assert all((batch.reward == 1).all() for batch in seen)
    assert final["evaluation/return"] < -100
    rows = Run(tmp_path / "run").history()
    assert all(row["episode/return"] < -100 for row in rows if "episode/return" in row)
    assert any("episode/return" in row for row in rows)


def test_trap_09_a_shift_and_scale_holds_online_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistake: recorded rewards are shifted, fresh ones are not. Rule: the preset says it once, for both."""
    assert load_recipe("iql").make_config({}, "antmaze").reward_shift == -1.0
    assert load_recipe("cql").make_config({}, "cal-ql").reward_shift == -5.0
    for slug in ("iql", "cql"):
        seen = watch_batches(monkeypatch)
        train(slug, tmp_path / slug, reward_scale=10.0, reward_shift=-5.0)
        assert len(seen) == 40
        for batch in seen:
            assert batch.reward.numpy() == pytest.approx(10 * pendulum_rewards(batch) - 5, rel=1e-3, abs=1e-2)


def test_trap_10_one_object_scales_both_streams_by_all_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistake: the range leaves out the last episode; online code has its own. Rule: one object, all episodes."""
    episodes = sources.Episodes.from_list(
        [
            {"obs": np.zeros((3, 1)), "action": np.zeros((2, 1)), "reward": np.array([1.0, 1.0]), "terminated": True},
            {"obs": np.zeros((2, 1)), "action": np.zeros((1, 1)), "reward": np.array([3.0])},
            {"obs": np.zeros((3, 1)), "action": np.zeros((2, 1)), "reward": np.array([4.0, 3.0])},  # never ended
        ]
    )
    assert RewardTransform.by_return_range(episodes).scale == 1000 / 5
    seen = watch_batches(monkeypatch)
    train("iql", tmp_path / "run", reward_scale=0.0)
    config = load_recipe("iql").make_config({}, "smoke")
    returns = sources.open_data(config, Run(tmp_path / "other")).episodes.returns()
    scale = 1000 / (returns.max() - returns.min())
    for batch in seen:  # 20 recorded ones, 20 that are half fresh
        assert batch.reward.numpy() == pytest.approx(scale * pendulum_rewards(batch), rel=1e-3, abs=1e-2)


def iql(**changes: Any) -> IQL:
    settings = {"hidden": (8,), "learning_rate": 0.05, "tau": 0.1, "dropout": 0.0, "cosine_steps": 0}
    settings |= {"expectile": 0.7, "beta": 2.0, "max_weight": 100.0}
    return IQL(SPEC, SimpleNamespace(**{**settings, **changes}), torch.Generator().manual_seed(1))


def random_batch() -> Batch:
    draws = torch.Generator().manual_seed(2)
    obs, next_obs = torch.randn((2, 16, 3), generator=draws)
    action = torch.rand((16, 1), generator=draws) * 2 - 1
    return Batch(obs, action, torch.randn(16, generator=draws), torch.full((16,), 0.9), next_obs)


def test_trap_18_the_order_of_iql_is_stated_and_kept() -> None:
    """Mistake: nobody says which V enters the advantage. Rule: V, Q, policy; fresh V, target critic of before."""
    assert "Order of an update: V, Q, policy" in (load_recipe("iql").module.__doc__ or "")
    agent, batch = iql(), random_batch()
    assert [name for name, _, _ in agent._losses] == ["value_loss", "critic_loss", "policy_loss"]
    q_before = agent.q_target(batch.obs, batch.action).amin(0)
    policy_before = agent.policy.log_prob(batch.obs, batch.action).detach()
    q_prediction = agent.q(batch.obs, batch.action).detach()
    old_value = agent.v(batch.obs).detach()
    metrics = agent.update(batch)
    fresh = agent.v(batch.obs).detach()
    weight = (2.0 * (q_before - fresh)).exp().clamp(max=100)
    assert float(metrics["policy_loss"]) == pytest.approx(float(-(weight * policy_before).mean()), rel=1e-5)
    stale = (2.0 * (q_before - old_value)).exp().clamp(max=100)
    assert float(metrics["policy_loss"]) != pytest.approx(float(-(stale * policy_before).mean()), rel=1e-3)
    target = batch.reward + 0.9 * agent.v(batch.next_obs).detach()
    assert float(metrics["critic_loss"]) == pytest.approx(
        float((q_prediction - target).square().mean(1).sum()), rel=1e-5
    )


def test_trap_19_nothing_that_papers_tune_has_a_default() -> None:
    """Mistake: expectile 0.5, temperature 1, smooth L1 by default. Rule: losses and agents have no such default."""
    for function, name in (
        (values.expectile, "tau"),
        (values.gumbel, "beta"),
        (values.huber, "threshold"),
        (imitation.advantage_weights, "beta"),
        (imitation.advantage_weights, "cap"),
        (imitation.td3_bc_weight, "alpha"),
    ):
        assert inspect.signature(function).parameters[name].default is inspect.Parameter.empty
    for name in ("expectile", "beta", "max_weight", "tau", "learning_rate"):
        settings = {key: value for key, value in vars(iql().config).items() if key != name}
        with pytest.raises(AttributeError, match=name):
            IQL(SPEC, SimpleNamespace(**settings), torch.Generator()).update(random_batch())


# A changed value for every field of a smoke preset; what is not named here is flipped (bool) or halved.
CHANGED: dict[str, Any] = {
    "data": "pendulum-random",
    "data_seed": 1,
    "environment": "Pendulum-v1",
    "seed": 1,
    "hidden": (8, 8),
    "steps": 60,
    "offline_steps": 5,
    "capacity": 5,
    "warmup": 12,
    "copies": 3,
    "dropout": 0.5,
    "cosine_steps": 10,
    "max_weight": 1e-3,
    "value_clip": 1e-3,
    "q_threshold": 1e-3,
    "backup_actions": 3,
    "sampled_actions": 5,
    "reward_scale": 3.0,
    "reward_shift": 1.0,
    "falls_until": 3,
    "clip": 1e-3,
    "max_gradient_norm": 1e-4,
    "entropy_coefficient": 1.0,
    "longest": 3,
    "heads": 2,
    "blocks": 2,
    "length": 3,
    "epochs": 3,
    "rollout": 20,
    "warmup_updates": 50,
    "weight_decay": 0.5,
    "target_return": 1.0,
    "epsilon_end": 0.9,
    "epsilon_steps": 1000,
    "target_every": 2,
    "critics": 4,
    "critics_in_target": 1,
    "critic_bc": 5.0,
    "exploration_noise": 0.9,
    "noise_clip": 0.01,
}
# Shorter than a smoke run, and bolder where a setting would not show otherwise.
SHORT: dict[str, Any] = {"steps": 16, "batch_size": 8, "offline_steps": 8, "warmup": 6, "checkpoint_every": 1000}
BASE: dict[str, dict[str, Any]] = {
    "dqn": {"steps": 40, "warmup": 20, "updates_per_step": 2.0, "learning_rate": 0.1, "target_every": 8},
    "ppo": {"steps": 40, "batch_size": 10, "learning_rate": 0.03},
    "cql": {"learning_rate": 0.01},
    "rlpd": {"updates_per_step": 2},
}
SPECIAL = {("dqn", "environment"): "Acrobot-v1", ("rlpd", "updates_per_step"): 3, ("iql", "reward_scale"): 3.0}
# What is watched does not change what is learned: tests/control. Where offline methods are tried: the next test.
WATCHED = {"evaluate_every", "evaluation_episodes", "log_every", "checkpoint_every", "observation_keys"}
OFFLINE = {"bc", "td3-bc", "rebrac", "xql", "decision-transformer", "rlpd"}
# What `control.build` does for all recipes alike is tried in one of each kind.
SHARED = {"seed", "steps", "data", "data_seed", "environment", "copies", "capacity", "warmup", "reward_shift"}
WHOLLY = {"bc", "iql", "sac", "ppo"}


def fields_of(slug: str) -> list[str]:
    names = [field.name for field in dataclasses.fields(load_recipe(slug).config_class)]
    left_out = WATCHED | ({"environment"} if slug in OFFLINE else set()) | (SHARED if slug not in WHOLLY else set())
    return [name for name in names if name not in left_out]


def changed(slug: str, name: str, value: Any) -> Any:
    if (slug, name) in SPECIAL:
        return SPECIAL[slug, name]
    if isinstance(value, bool):
        return not value
    if name in CHANGED and CHANGED[name] != value:
        return CHANGED[name]
    return type(value)(value / 2)


@pytest.mark.parametrize(
    "slug", ["bc", "td3-bc", "rebrac", "iql", "xql", "cql", "sac", "td3", "rlpd", "ppo", "dqn", "decision-transformer"]
)
def test_trap_21_every_field_changes_what_is_learned(
    slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistake: `dropout` is accepted and never reaches the network. Rule: every field of every config has an effect."""
    monkeypatch.setattr("zerozoo.control.build.Evaluator", lambda world, episodes: None)
    monkeypatch.setattr(sources, "manifest", lambda *_: {})
    known = {field.name for field in dataclasses.fields(load_recipe(slug).config_class)}
    base = {name: value for name, value in {**SHORT, **BASE.get(slug, {})}.items() if name in known}
    defaults = load_recipe(slug).make_config(base, "smoke")

    def learned(number: int, **changes: Any) -> dict[str, torch.Tensor]:
        train(slug, tmp_path / str(number), **{**base, **changes})
        tensors = final_tensors(tmp_path / str(number))
        return {name: value for name, value in tensors.items() if name.startswith("agent/module")}

    unchanged, again = learned(0), learned(1)
    assert all(torch.equal(unchanged[name], again[name]) for name in unchanged)
    for number, name in enumerate(fields_of(slug), start=2):
        tensors = learned(number, **{name: changed(slug, name, getattr(defaults, name))})
        same = tensors.keys() == unchanged.keys() and all(
            tensors[key].shape == unchanged[key].shape and torch.equal(tensors[key], unchanged[key]) for key in tensors
        )
        assert not same, f"{slug}: {name} has no effect"


def test_trap_21_offline_methods_are_tried_where_the_config_says(tmp_path: Path) -> None:
    """Mistake: `environment` is accepted and the data's is used. Rule: the evaluation is in the one that is named."""
    here = train("bc", tmp_path / "here")
    there = train("bc", tmp_path / "there", environment="Pendulum-v1")
    assert "seconds/evaluate" in here
    assert here["evaluation/return"] == pytest.approx(there["evaluation/return"], rel=1e-3)  # the same law
    with pytest.raises(sources.UserError, match="the data does not fit the environment"):
        train("bc", tmp_path / "nowhere", environment="hazards")


def test_trap_24_targets_are_resumed_and_not_copied_anew() -> None:
    """Mistake: `q_target = deepcopy(q)` after loading. Rule: targets and moments are in the state."""
    agent, batch = iql(), random_batch()
    for _ in range(5):
        agent.update(batch)
    state = copy.deepcopy(agent.state())
    other = iql()
    other.load_state(state)
    mine, copied = (one.q_target.module.network[0].weight for one in (other, agent))
    assert torch.equal(mine, copied)
    assert not torch.allclose(mine, other.q.network[0].weight, atol=1e-3)
    for _ in range(3):
        assert {k: float(v) for k, v in agent.update(batch).items()} == {
            k: float(v) for k, v in other.update(batch).items()
        }
    assert all(torch.equal(value, other.state()[name]) for name, value in agent.state().items())


@pytest.mark.parametrize("world", [World("pendulum"), World("CartPole-v1")], ids=lambda world: world.name)
def test_trap_25_evaluation_draws_from_no_stream_of_the_run(tmp_path: Path, world: World) -> None:
    """Mistake: evaluation draws from the training stream. Rule: it draws from none of the run."""
    run = Run(tmp_path / "run")
    settings = {"hidden": (8,), "learning_rate": 0.01, "falls_until": 0, "max_gradient_norm": 1.0, "normalise": True}
    agent = PPO(world.spec(), SimpleNamespace(**settings), run.stream("agent"))
    environment = world.vector(2, run.streams.numpy("environment"))
    environment.reset()
    evaluator = Evaluator(world, 3)
    before, state, weights = run.streams.state(), environment.state(), agent.state()
    ours, theirs = torch.get_rng_state(), np.random.get_state()[1]
    first, second = (evaluator(agent, run, 0)["evaluation/return"] for _ in range(2))
    assert first == second
    assert run.streams.state() == before
    assert all(np.array_equal(value, environment.state()[name]) for name, value in state.items())
    assert all(torch.equal(value, agent.state()[name]) for name, value in weights.items())
    assert torch.equal(torch.get_rng_state(), ours)
    assert np.array_equal(np.random.get_state()[1], theirs)


def test_trap_25_how_often_is_evaluated_changes_no_training(tmp_path: Path) -> None:
    """Mistake: who evaluates more often trains otherwise. Rule: the same weights bit for bit."""
    for slug in ("sac", "dqn"):
        tensors = []
        for every in (5, 40):
            train(slug, tmp_path / f"{slug}-{every}", evaluate_every=every, evaluation_episodes=1, steps=10, warmup=2)
            tensors.append(final_tensors(tmp_path / f"{slug}-{every}"))
        for name, value in tensors[0].items():
            assert torch.equal(value, tensors[1][name]), (slug, name)


def test_trap_26_evaluation_seeds_are_fixed_documented_and_never_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistake: evaluation re-seeds the training environment. Rule: seeds of training lie below, of evaluation above."""
    begin, seeds = _Environments._begin, []

    def watched(self: _Environments, place: int, seed: int) -> None:
        seeds.append(seed)
        begin(self, place, seed)

    monkeypatch.setattr(_Environments, "_begin", watched)
    train("dqn", tmp_path / "run", steps=200, evaluate_every=100, evaluation_episodes=4)
    shown = {row["seed"] for row in Run(tmp_path / "run").samples()}
    assert shown == set(range(EVALUATION_SEED, EVALUATION_SEED + 4))
    trained = [seed for seed in seeds if seed < EVALUATION_SEED]
    assert len(set(trained)) == len(trained) > 5
    assert shown <= set(seeds)
    low = np.random.Generator(np.random.PCG64(0)).integers(2**31, size=1000)  # how the environments draw theirs
    assert low.max() < EVALUATION_SEED
    documented = inspect.getdoc(inspect.getmodule(Evaluator)) or ""
    assert "Episode k starts from seed EVALUATION_SEED + k" in documented
