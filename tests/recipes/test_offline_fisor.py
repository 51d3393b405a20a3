"""FISOR: targets and weights by hand, what is avoidable, the evaluation, equal critics in all arms, whole runs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zerozoo.cli.registry import load_recipe
from zerozoo.control.agents import FISOR
from zerozoo.control.evaluation import EVALUATION_SEED
from zerozoo.control.offline import OfflineLoop
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, transitions
from zerozoo.environments.batched.hazards import HAZARDS, Hazards, SafeStarts, constraint
from zerozoo.environments.batched.world import OneCopy
from zerozoo.recipes.offline import fisor
from zerozoo.recipes.offline.fisor import CLAIM, PRESETS, Config, SafetyEvaluator, make_data
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

SMOKE = PRESETS["smoke"]
SPEC = Spec((11,), 2, discrete=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numpy_generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def agent(**changes: Any) -> FISOR:
    return FISOR(SPEC, Config(**{**SMOKE, **changes}), generator())


def batch(size: int = 64, seed: int = 0) -> Batch:
    draws = generator(seed)
    obs, next_obs = torch.randn(2, size, 11, generator=draws)
    action = torch.rand(size, 2, generator=draws) * 2 - 1
    reward, h = torch.randn(2, size, generator=draws)
    return Batch(obs, action, reward, torch.full((size,), 0.99), next_obs, extra={"h": h})


def says(module: Any, *values: Tensor) -> None:
    """The network answers with these values from now on, whatever it is asked."""
    answer = values[0] if len(values) == 1 else torch.stack(values)
    module.forward = lambda *inputs: answer


# --- the mathematics


def test_the_defaults_are_the_papers_for_point_robot() -> None:
    """Card, Defaults."""
    paper = {
        "steps": 100_000,
        "batch_size": 1024,
        "critic_rows": 256,
        "diffusion_steps": 5,
        "candidates": 8,
        "expectile": 0.9,
        "safe_expectile": 0.9,
        "reward_temperature": 5.0,
        "safety_temperature": 2.0,
        "reward_cap": 100.0,
        "safety_cap": 150.0,
        "learning_rate": 3e-4,
        "tau": 0.005,
        "average": 0.001,
        "hidden": (256, 256),
        "width": 256,
        "blocks": 3,
        "dropout": 0.1,
        "cost_scale": 25.0,
    }
    assert {name: getattr(Config(), name) for name in paper} == paper
    assert Config(**PRESETS["paper"]) == Config()


def test_weights_pair_reward_with_the_minimum_and_constraint_with_the_maximum() -> None:
    learner = agent()
    says(learner.q_target, torch.tensor([5.0, 1.0]), torch.tensor([3.0, 2.0]))  # minima 3 and 1
    says(learner.v, torch.tensor([2.8, 2.0]))
    says(learner.q_h_target, torch.tensor([-1.0, 0.5]), torch.tensor([-0.5, 0.2]))  # maxima -0.5 and 0.5
    says(learner.v_h, torch.tensor([-0.6, 0.4]))
    obs, action = torch.zeros(2, 11), torch.zeros(2, 2)
    torch.testing.assert_close(
        learner.weight(obs, action), torch.tensor([math.exp(5 * 0.2), math.exp(2 * (0.4 - 0.5))])
    )
    for changes, expected in (
        ({"weights": "reward"}, [math.exp(5 * 0.2), math.exp(5 * -1.0)]),
        ({"weights": "clone"}, [1.0, 1.0]),
        ({"reward_cap": 2.0}, [2.0, math.exp(-0.2)]),
        ({"safety_cap": 0.5}, [math.exp(1.0), 0.5]),
        ({"reward_temperature": 0.0, "safety_temperature": 10.0}, [1.0, math.exp(-1.0)]),
    ):
        learner.config = Config(**{**SMOKE, **changes})
        torch.testing.assert_close(learner.weight(obs, action), torch.tensor(expected))


def test_the_feasible_value_leans_to_the_minimum() -> None:
    learner, rows = agent(critic_rows=2), batch(2)
    says(learner.q_h_target, torch.tensor([1.0, -3.0]), torch.tensor([0.0, -2.0]))  # maxima 1 and -2
    says(learner.v_h, torch.zeros(2))
    # Q above V counts 0.1, Q below V counts 0.9.
    assert float(learner.feasible_value_loss(rows)) == pytest.approx((0.1 * 1 + 0.9 * 4) / 2)
    says(learner.q_target, torch.tensor([1.0, -3.0]), torch.tensor([2.0, -1.0]))  # minima 1 and -3
    says(learner.v, torch.zeros(2))
    assert float(learner.value_loss(rows)) == pytest.approx((0.9 * 1 + 0.1 * 9) / 2)


def test_critic_losses_are_sums_over_the_pair() -> None:
    learner, rows = agent(critic_rows=2), batch(2)
    rows.reward, rows.discount, rows.extra["h"] = (
        torch.tensor([1.0, 2.0]),
        torch.tensor([0.5, 0.0]),
        torch.tensor([-1.0, 3.0]),
    )
    for name in ("q", "q_h"):
        says(getattr(learner, name), torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]))
    for name in ("v", "v_h"):
        says(getattr(learner, name), torch.tensor([4.0, 4.0]))
    # targets 1 + 0.5 * 4 = 3 and 2; squares 9 + 4 of the first and 4 + 1 of the second, over 2 rows
    assert float(learner.critic_loss(rows)) == pytest.approx((9 + 4) / 2 + (4 + 1) / 2)
    # targets 0.5 * -1 + 0.5 * 4 = 1.5 and 3
    assert float(learner.feasible_critic_loss(rows)) == pytest.approx((1.5**2 + 9) / 2 + (0.5**2 + 4) / 2)


def test_each_policy_step_sees_its_half_and_the_critics_the_first_rows() -> None:
    whole, other = batch(), batch()
    other.obs[40:] += 1
    losses = [agent(batch_size=64, critic_rows=32, dropout=0.0).update(rows) for rows in (whole, other)]
    same = {name for name in losses[0] if name.endswith("loss") and torch.equal(losses[0][name], losses[1][name])}
    assert same == {"first_policy_loss", "value_loss", "critic_loss", "feasible_value_loss", "feasible_critic_loss"}


def test_the_candidate_is_chosen_as_the_arm_says() -> None:
    learner = agent()
    candidates = torch.tensor([[[0.1, 0.1]], [[0.2, 0.2]], [[0.3, 0.3]]])  # (3, 1, 2)
    says(learner.q_h_target, torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.5, 1.0, 2.0]))  # maxima 0.5, 1, 2
    says(learner.q_target, torch.tensor([0.0, 3.0, 1.0]), torch.tensor([0.5, 0.2, 2.0]))  # minima 0, 0.2, 1
    for choice, expected in (("least-violation", 0.1), ("highest-value", 0.3), ("first", 0.1)):
        learner.config = Config(**{**SMOKE, "choose": choice})
        assert learner.best(torch.zeros(1, 11), candidates).tolist() == [[pytest.approx(expected)] * 2]


def test_acting_without_exploration_draws_from_no_stream() -> None:
    learner, obs = agent(), batch(5).obs
    before = learner.random.manual_seed(7).get_state()
    still = learner.act(obs, explore=False)
    assert torch.equal(still, learner.act(obs, explore=False))
    assert torch.equal(before, learner.random.get_state())
    assert not torch.equal(still, learner.act(obs, explore=True))
    assert not torch.equal(before, learner.random.get_state())
    assert still.shape == (5, 2)
    assert float(still.abs().max()) <= 1


def test_all_arms_have_the_same_critics() -> None:
    learners = [agent(**CLAIM.arms[arm]) for arm in CLAIM.arms]
    for step in range(4):
        for learner in learners:
            learner.update(batch(seed=step))
    states = [learner.state_dict() for learner in learners]
    differing = {
        name.split(".")[0]
        for name in states[0]
        for state in states[1:]
        if not torch.equal(states[0][name], state[name])
    }
    assert differing == {"policy", "average"}


# --- data and evaluation


def test_the_data_know_the_constraint_of_the_state_that_is_acted_on() -> None:
    data = make_data(Config(transitions=2_000), numpy_generator())
    position = data.obs[data.obs_index, :2].astype(np.float64)
    distance = np.linalg.norm(position[:, None] - HAZARDS, axis=-1).min(axis=1)
    np.testing.assert_allclose(data.extras["h"], 0.8 - distance, atol=1e-5)
    returns = data.returns()
    assert returns.max() - returns.min() == pytest.approx(300, rel=1e-5)
    binary = make_data(Config(transitions=2_000, constraint="binary", cost_scale=7.0), numpy_generator())
    np.testing.assert_array_equal(binary.extras["h"], np.where(data.extras["h"] > 0, 7.0, -1.0))


class Straight:
    """Drives on with full speed, and finds everything feasible."""

    def act(self, obs: Tensor, explore: bool, generator: torch.Generator) -> Tensor:
        assert explore
        return torch.tensor([[1.0, 0.0]]).expand(len(obs), 2)

    def v_h(self, obs: Tensor) -> Tensor:
        return -torch.ones(len(obs))


def test_the_evaluation_counts_violating_steps_of_fixed_episodes() -> None:
    played = SafetyEvaluator(40).play(Straight())  # type: ignore[arg-type]
    expected: dict[str, list[float]] = {name: [] for name in played}
    for number in range(40):
        env = OneCopy(SafeStarts(1))
        obs, _ = env.reset(seed=EVALUATION_SEED + number)
        totals, ended, length = {"return": 0.0, "violations": 0.0}, False, 0
        while not ended:
            obs, reward, terminated, truncated, info = env.step(np.array([1.0, 0.0]))
            totals["return"] += reward
            totals["violations"] += float(constraint(obs) > 0)
            ended, length = terminated or truncated, length + 1
        for name, number_found in {**totals, "length": length, "success": info["success"]}.items():
            expected[name].append(float(number_found))
    for name, values in played.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5)
    assert played["violations"].sum() > 0


def test_agreement_of_a_critic_that_finds_everything_feasible() -> None:
    evaluator = SafetyEvaluator(1)
    region = evaluator.region(Straight())  # type: ignore[arg-type]
    share = float(evaluator.avoidable.double().mean())
    assert region == {"region/agreement": pytest.approx(share), "region/balanced_agreement": 0.5}
    assert 0.7 < share < 0.95  # why plain agreement says little


def results(**changes: tuple[float, float, float]) -> ArmResults:
    """Violations, return and agreement (plain and balanced) of the three arms, with noise in fisor's."""
    found = {"fisor": (0.5, 3.4, 0.9), "reward_only": (3.0, 3.5, 0.9), "cloning": (2.0, 3.0, 0.9)} | changes
    names = ("evaluation/return", "region/agreement", "region/balanced_agreement")
    values: dict[str, dict[int, float]] = {}
    secondary: dict[str, dict[int, dict[str, float]]] = {}
    for arm, (violations, gained, agreement) in found.items():
        noise = [0.0, 0.01, -0.01] if arm == "fisor" else [0.0] * 3
        name = arm.replace("_", "-")
        values[name] = {seed: violations + extra for seed, extra in enumerate(noise)}
        numbers = (gained, agreement, agreement)
        secondary[name] = {
            seed: {key: number + extra for key, number in zip(names, numbers, strict=True)}
            for seed, extra in enumerate(noise)
        }
    return ArmResults(CLAIM.metric, values, secondary)


def test_the_claim_holds_fails_and_can_be_void() -> None:
    held = judge(CLAIM, results())
    assert held.verdict == "HOLDS"
    assert held.effect.value == pytest.approx(0.3 * 3.0 - 0.5)
    assert judge(CLAIM, results(fisor=(1.2, 3.4, 0.9))).verdict == "FAILS"  # 0.3 x 3.0 is less
    assert judge(CLAIM, results(cloning=(0.8, 3.0, 0.9))).verdict == "FAILS"
    assert judge(CLAIM, results(fisor=(0.5, 2.0, 0.9))).verdict == "FAILS"  # it freezes
    assert judge(CLAIM, results(fisor=(0.5, 3.4, 0.7))).verdict == "FAILS"  # it misjudges the region
    void = judge(CLAIM, results(reward_only=(0.9, 3.5, 0.9)))
    assert (void.verdict, void.valid) == ("INCONCLUSIVE", False)


# --- whole runs


def train(directory: Path, **changes: Any) -> tuple[dict[str, float], Run]:
    run = Run(directory, seed=0)
    return fisor.train(Config(**{**SMOKE, **changes}), run), run


def outcome(directory: Path, **changes: Any) -> dict[str, Any]:
    """What a run left: weights and evaluation."""
    metrics, run = train(directory, **changes)
    checkpoint = run.load()
    assert checkpoint is not None
    tensors = {name: value.tolist() for name, value in checkpoint.tensors.items() if name.startswith("agent/module")}
    return {**tensors, **{name: value for name, value in metrics.items() if "evaluation" in name or "region" in name}}


@pytest.mark.parametrize("arm", CLAIM.arms)
def test_every_arm_trains(tmp_path: Path, arm: str) -> None:
    metrics, run = train(tmp_path / "run", **CLAIM.arms[arm])
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"evaluation/violations", "evaluation/return", "region/balanced_agreement"} <= set(metrics)
    assert [row["seed"] for row in run.samples()][:4] == [EVALUATION_SEED + number for number in range(4)]


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = outcome(tmp_path / "whole", checkpoint_every=8)
    plain = OfflineLoop.advance

    def killed(loop: OfflineLoop, step: int) -> int:
        if step == 12:
            raise RuntimeError("killed")
        return plain(loop, step)

    monkeypatch.setattr(OfflineLoop, "advance", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "killed", checkpoint_every=8)
    monkeypatch.undo()
    assert outcome(tmp_path / "killed", checkpoint_every=8) == whole


CHANGES: dict[str, Any] = {
    "transitions": 2_000,
    "constraint": "binary",
    "hidden": (16, 8),
    "gamma": 0.9,
    "tau": 0.5,
    "expectile": 0.6,
    "safe_expectile": 0.6,
    "critic_rows": 16,
    "weights": "reward",
    "choose": "highest-value",
    "candidates": 2,
    "reward_temperature": 1.0,
    "safety_temperature": 1.0,
    "reward_cap": 1e-3,
    "safety_cap": 1e-3,
    "diffusion_steps": 3,
    "width": 8,
    "blocks": 2,
    "dropout": 0.5,
    "average": 0.5,
    "batch_size": 32,
    "learning_rate": 1e-2,
    "evaluation_episodes": 3,
}


def test_every_field_has_an_effect(tmp_path: Path) -> None:
    small = {"steps": 3, "transitions": 1_000, "evaluation_episodes": 2}
    base = outcome(tmp_path / "base", **small)
    for name, value in CHANGES.items():
        context = {"weights": "reward"} if name in ("reward_temperature", "reward_cap") else {}
        plain = outcome(tmp_path / f"{name}-plain", **small, **context) if context else base
        assert outcome(tmp_path / name, **{**small, **context, name: value}) != plain, name
    assert outcome(tmp_path / "again", **small) == base
    binary = {**small, "constraint": "binary"}
    assert outcome(tmp_path / "1", **binary) != outcome(tmp_path / "2", **binary, cost_scale=1.0)
    inherited = {"seed", "steps", "evaluate_every", "log_every", "checkpoint_every", "observation_keys", "cost_scale"}
    assert {field.name for field in dataclasses.fields(Config)} == {*CHANGES, *inherited}


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    for name in ("weights", "choose", "constraint"):
        with pytest.raises(UserError, match=f"{name} must be one of .*, not 'other'"):
            train(tmp_path / name, **{name: "other"})
    with pytest.raises(UserError, match="evaluation_episodes must be at least 1"):
        train(tmp_path / "none", evaluation_episodes=0)


def state(*rows: tuple[float, float, float, float]) -> dict[str, np.ndarray]:
    return dict(zip(("x", "y", "speed", "heading"), np.array(rows).T.copy(), strict=True))


def test_hazards_are_less_feasible_than_far_corners() -> None:
    """The smoke of the card: V_h(centre of a hazard) > V_h(far corner) after a short training."""
    config = Config(**{**SMOKE, "hidden": (32, 32), "transitions": 4_000, "learning_rate": 3e-3, "tau": 0.05})
    data = make_data(config, numpy_generator())
    learner, sampler, draws = FISOR(data.spec, config, generator()), transitions(config.gamma)(data), generator(1)
    for _ in range(200):
        learner.update(sampler.sample(64, draws))
    world, count = Hazards(3), np.zeros(3, dtype=np.int64)
    places = state((*HAZARDS[0], 1.0, 1.5), (*HAZARDS[1], 1.0, 1.5), (2.8, -2.8, 1.0, 1.5))
    with torch.no_grad():
        first, second, corner = learner.v_h(torch.from_numpy(world.load_state({**places, "elapsed": count}))).tolist()
    assert min(first, second) > 0 > corner


def test_the_claim_has_valid_arms_that_differ() -> None:
    assert load_recipe("fisor").claims == (CLAIM,)
    configs = [Config(**CLAIM.overrides(arm, smoke)) for arm in CLAIM.arms for smoke in (False, True)]
    assert len(set(configs)) == 6
