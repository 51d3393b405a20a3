"""f-DVL and ReCOIL: losses by hand, batches, the count of blow-ups, the claims."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from zerozoo.cli.registry import load_recipe
from zerozoo.control.agents import FDVL, ReCOIL
from zerozoo.control.episodes import Episodes
from zerozoo.control.manifest import digest, read_manifest
from zerozoo.control.sources import Maker
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch
from zerozoo.recipes.offline import dual_rl as recipe
from zerozoo.recipes.offline.dual_rl import (
    CLAIM,
    FDVL_ARMS,
    HALF_RANDOM,
    IMITATION,
    OWN_MAKERS,
    PRESETS,
    XQL_ARMS,
    Config,
    open_sources,
)
from zerozoo.runs.claims import ArmResults, judge
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.runs.run import Run

STABILITY, IMITATING = CLAIM
SPEC = Spec((4,), 2, False)


def config(**changes: Any) -> Config:
    return Config(**{**PRESETS["smoke"], **changes})


def make(kind: type[FDVL] = FDVL, **changes: Any) -> FDVL:
    return kind(SPEC, config(**changes), Generator().manual_seed(0))


@torch.no_grad()
def fix(network: nn.Module, value: float | list[float]) -> None:
    """Makes a network constant: all weights 0, the last bias the value, or one for each member."""
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.zero_()
    parameters[-1].copy_(torch.tensor(value).reshape(-1, 1, 1).expand_as(parameters[-1]))


def batch_of(size: int = 4, seed: int = 0) -> Batch:
    generator = Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(size, 4, generator=generator),
        action=torch.rand(size, 2, generator=generator) * 2 - 1,
        reward=torch.full((size,), -1.0),
        discount=torch.full((size,), 0.99),
        next_obs=torch.randn(size, 4, generator=generator),
        extra={"is_expert": torch.arange(size) >= size // 2},
    )


def with_constants(agent: FDVL, v: float, q: list[float]) -> FDVL:
    fix(agent.v, v)
    fix(agent.q_target.module, q)
    return agent


# --- f-DVL


def test_the_defaults_are_the_authors() -> None:
    authors = {
        "learning_rate": 3e-4,
        "gamma": 0.99,
        "tau": 0.005,
        "batch_size": 1024,
        "steps": 1_000_000,
        "cosine_steps": 1_000_000,
        "hidden": (256, 256),
        "strength": 0.8,
        "maximiser": "total-variation",
        "random_actions": 0,
        "q_threshold": 20.0,
        "beta": 10.0,
        "max_weight": 100.0,
        "reward_shift": -1.0,
        "layer_norm": False,
    }
    assert {name: getattr(Config(), name) for name in authors} == authors


# u = min Q - V = 2 - 1
VALUE_LOSSES = [
    ("total-variation", 0.8, 0.0, 0.8 - 0.2),
    ("chi-square", 0.5, 0.0, 0.5 * (1 + 1 / 4) - 0.5),
    ("expectile", 0.9, 0.0, 0.9),
    ("reverse-kl", 0.5, 0.0, 1 - 3 * math.exp(-2)),  # z = 2 = c: exp(0) - z exp(-c) - exp(-c)
    ("reverse-kl", 0.5, 1.5, 1 - 2.5 * math.exp(-1.5)),
]


@pytest.mark.parametrize(("maximiser", "strength", "clip", "expected"), VALUE_LOSSES)
def test_the_value_loss_by_hand(maximiser: str, strength: float, clip: float, expected: float) -> None:
    agent = with_constants(make(maximiser=maximiser, strength=strength, clip=clip), 1.0, [3.0, 2.0])
    assert agent.value_loss(batch_of()).item() == pytest.approx(expected, rel=1e-5)
    assert float(agent.largest_value) == 1.0


def test_the_largest_value_is_of_all_updates_and_is_kept_in_the_state() -> None:
    agent = make()
    for value in (-3.0, 2.0):
        fix(agent.v, value)
        agent.value_loss(batch_of())
    assert float(agent.largest_value) == 3.0
    assert float(agent.state()["module/largest_value"]) == 3.0
    fix(agent.v, math.nan)
    agent.value_loss(batch_of())
    fix(agent.v, 0.0)
    agent.value_loss(batch_of())
    assert math.isnan(float(agent.largest_value))


def test_the_critics_loss_is_hubers_around_the_new_value() -> None:
    """Target -1 + 0.99 * 100 = 98 against Q = 0: two members with 20 (98 - 10); with discount 0 the target is -1."""
    agent = make()
    fix(agent.v, 100.0)
    fix(agent.q, [0.0, 0.0])
    batch = batch_of()
    assert agent.critic_loss(batch).item() == pytest.approx(2 * 20 * (98 - 10), rel=1e-5)
    batch.discount = torch.zeros(4)
    assert agent.critic_loss(batch).item() == pytest.approx(2 * 0.5)


def test_random_actions_join_the_values_loss_only() -> None:
    agent = make(random_actions=2)
    batch = batch_of()
    seen: list[Tensor] = []
    original = agent.q_target.module.forward

    def spy(obs: Tensor, action: Tensor) -> Tensor:
        seen.append(action)
        return original(obs, action)

    agent.q_target.module.forward = spy  # type: ignore[method-assign]
    obs, q = agent.with_random_actions(batch, torch.full((4,), 7.0))
    assert torch.equal(obs, batch.obs.repeat(3, 1))
    assert torch.equal(q[:4], torch.full((4,), 7.0))
    (action,) = seen
    assert action.shape == (8, 2)
    assert float(action.abs().max()) <= 1
    assert float(action.min()) < -0.3
    assert float(action.max()) > 0.3
    torch.testing.assert_close(q[4:], original(obs[4:], action).amin(0))
    agent.value_loss(batch)
    assert agent.q_data.shape == (4,)  # what the policy weighs is the data's
    none = make()
    assert none.with_random_actions(batch, q[:4])[0] is batch.obs


def test_the_policy_is_weighted_by_the_new_value() -> None:
    agent = with_constants(make(beta=2.0), 0.5, [1.0, 2.0])
    agent.update(batch_of())
    advantage = 1.0 - agent.v(batch_of().obs).detach()
    loss = agent.policy_loss(batch_of())
    expected = -(torch.exp(2 * advantage) * agent.policy.log_prob(batch_of().obs, batch_of().action)).mean()
    torch.testing.assert_close(loss, expected)


# --- ReCOIL


def test_recoils_targets_by_hand() -> None:
    """Rows 2 and 3 are expert: 200. Row 0: -2 + 0.99 V. Row 1 ends: -2 + 0.99 (-200). Squares, both members."""
    agent = with_constants(make(ReCOIL), 1.0, [3.0, 2.0])
    fix(agent.q, [0.0, 0.0])
    batch = batch_of()
    batch.discount[1] = 0.0
    batch.discount[2:] = 0.0  # an expert's end counts as an expert's step
    squares = [(-2 + 0.99) ** 2, (-2 - 198.0) ** 2, 200.0**2, 200.0**2]
    assert agent.critic_loss(batch).item() == pytest.approx(2 * sum(squares) / 4, rel=1e-5)


def test_recoils_value_sees_the_unlabelled_rows_only() -> None:
    changes = {"maximiser": "expectile", "strength": 0.9}
    agent, plain = make(ReCOIL, **changes), make(**changes)
    batch = batch_of(8)
    half = dataclasses.replace(
        batch, obs=batch.obs[:4], action=batch.action[:4], extra={"is_expert": torch.zeros(4, dtype=torch.bool)}
    )
    torch.testing.assert_close(agent.value_loss(batch), plain.value_loss(half))
    assert agent.q_data.shape == (8,)  # the policy clones both halves


def test_recoil_never_uses_a_reward() -> None:
    agents = [make(ReCOIL), make(ReCOIL)]
    for number, agent in enumerate(agents):
        batch = batch_of()
        batch.reward = torch.full((4,), 1e6 * number)
        agent.update(batch)
    for one, other in zip(agents[0].parameters(), agents[1].parameters(), strict=True):
        assert torch.equal(one, other)


# --- data and batches


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """The data sets, made once."""
    return {name: maker.make(np.random.default_rng(seed)) for seed, (name, maker) in enumerate(OWN_MAKERS.items())}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, made: dict[str, Any]) -> None:
    for name, maker in OWN_MAKERS.items():
        monkeypatch.setitem(OWN_MAKERS, name, Maker(maker.world, lambda rng, name=name: made[name]))


def test_half_of_the_data_is_random_and_the_reward_marks_the_end(made: dict[str, Any]) -> None:
    episodes = Episodes.from_list(made[HALF_RANDOM])
    assert 60_000 <= len(episodes) < 60_600
    assert np.array_equal(episodes.reward == 1, episodes.terminated)
    assert set(np.unique(episodes.reward)) == {0.0, 1.0}
    # The noisy controller's actions are mostly at the bounds, uniform ones are not.
    bounds = (np.abs(episodes.action) > 0.999).mean(axis=1)
    assert bounds[-30_000:].mean() < 0.01
    assert bounds[:30_000].mean() > 0.3


def test_imitation_data(made: dict[str, Any]) -> None:
    experts, union = (Episodes.from_list(part) for part in (made[IMITATION][:2], made[IMITATION][2:]))
    assert experts.extras["is_expert"].all()
    assert not union.extras["is_expert"].any()
    assert (experts.episodes, union.episodes) == (2, 220)
    assert (len(experts), len(union)) == (600, 66_000)
    assert not experts.terminated.any()
    assert not union.terminated.any()
    at_goal = union.returns()[-20:]
    assert (at_goal > 50).all()  # clean episodes reach the goal and stay
    assert np.median(union.returns()[:200]) == 0


@pytest.mark.usefixtures("quick")
def test_each_method_gets_its_batches(tmp_path: Path, made: dict[str, Any]) -> None:
    experts, union = (Episodes.from_list(part) for part in (made[IMITATION][:2], made[IMITATION][2:]))
    shares = {"recoil": 0.5, "clone-all": 0.0, "clone-experts": 1.0}
    for method, share in shares.items():
        run = Run(tmp_path / method)
        data, sampler = open_sources(config(method=method, data=IMITATION), run)
        batch = sampler.sample(64, Generator().manual_seed(0))
        flags = batch.extra["is_expert"]
        assert float(flags.float().mean()) == share
        rows = {tuple(row) for row in (experts if share else union).obs.tolist()}
        assert all(tuple(row) in rows for row in batch.obs[flags if share else ~flags].tolist())
        record = read_manifest(run.path("data"))
        assert record is not None
        assert record["sha256"] == digest(Episodes.from_list(made[IMITATION]))
        assert digest(data.episodes) == digest(union)
    data, sampler = open_sources(config(), Run(tmp_path / "f-dvl"))
    assert set(sampler.sample(512, Generator().manual_seed(0)).reward.tolist()) == {-1.0, 0.0}  # reward - 1
    assert data.world == OWN_MAKERS[HALF_RANDOM].world


def test_the_data_seed_alone_makes_the_data(tmp_path: Path) -> None:
    sums = [
        digest(
            open_sources(config(seed=seed, data_seed=data_seed), Run(tmp_path / f"{seed}{data_seed}", seed))[0].episodes
        )
        for seed, data_seed in ((0, 0), (1, 0), (0, 1))
    ]
    assert sums[0] == sums[1] != sums[2]


# --- whole runs

CELLS = [(claim, arm) for claim in CLAIM for arm in claim.arms]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("claim", "arm"), CELLS, ids=[arm for _, arm in CELLS])
def test_every_arm_trains(tmp_path: Path, claim: Any, arm: str) -> None:
    metrics = recipe.train(Config(**claim.overrides(arm, smoke=True)), Run(tmp_path / "run"))
    assert 0 <= metrics[claim.metric] <= 1
    assert metrics["diverged"] == 0
    if claim is STABILITY:
        assert metrics["blow_up"] == 0
        assert metrics["value/bound"] == pytest.approx(200)
        assert 0 < metrics["value/largest_ever"] < 10


@pytest.mark.usefixtures("quick")
def test_a_run_in_two_parts_equals_one(tmp_path: Path) -> None:
    settings = config(random_actions=1, maximiser="chi-square", strength=0.5)
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    first = recipe.train(settings, whole)
    recipe.train(dataclasses.replace(settings, steps=10), parts)
    second = recipe.train(settings, Run(tmp_path / "parts"))
    one, two = whole.load(), parts.load()
    assert one is not None
    assert two is not None
    assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items() if "agent/" in name)
    assert first["value/largest_ever"] == second["value/largest_ever"]


@pytest.mark.usefixtures("quick")
def test_numbers_that_become_infinite_are_a_blow_up_and_no_error(tmp_path: Path) -> None:
    said: list[str] = []
    run = Run(tmp_path / "run")
    run.say = said.append
    metrics = recipe.train(config(learning_rate=1e30), run)
    assert (metrics["blow_up"], metrics["diverged"], metrics["evaluation/success"]) == (1.0, 1.0, 0.0)
    assert any("finite" in line or "nan" in line or "inf" in line for line in said)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("largest", "expected"), [(199.0, 0.0), (201.0, 1.0), (math.nan, 1.0)])
def test_a_blow_up_is_a_value_above_twice_what_can_be_earned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: float, expected: float
) -> None:
    def only_note(loop: Any) -> dict[str, float]:
        loop.agent.largest_value.fill_(largest)
        return {"evaluation/success": 1.0}

    monkeypatch.setattr(recipe.OfflineLoop, "train", only_note)
    assert recipe.train(config(), Run(tmp_path / "run"))["blow_up"] == expected


@pytest.mark.usefixtures("quick")
def test_divergence_of_imitation_counts_as_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(loop: Any) -> dict[str, float]:
        raise DivergedError("The mean of q is nan.")

    monkeypatch.setattr(recipe.OfflineLoop, "train", diverge)
    metrics = recipe.train(config(method="recoil", data=IMITATION), Run(tmp_path / "run"))
    assert metrics == {"evaluation/success": 0.0, "diverged": 1.0}


def test_bad_settings_are_one_sentence(tmp_path: Path) -> None:
    wrong = {
        "unknown maximiser": {"maximiser": "reverse-KL"},  # the README's spelling, which the code ignores
        "lambda of total-variation": {"strength": 0.5},
        "lambda of chi-square": {"maximiser": "chi-square", "strength": 1.0},
        "clip belongs to": {"clip": 5.0},
        "Take method f-dvl": {"method": "recoil"},
        "or the data umaze-imitation": {"data": IMITATION},
        "with one of recoil": {"method": "iql"},
    }
    for text, changes in wrong.items():
        with pytest.raises(UserError, match=text):
            recipe.train(config(**changes), Run(tmp_path / "run"))


def test_presets_are_valid() -> None:
    assert Config(**PRESETS["paper"]) == Config()
    for preset in PRESETS.values():
        made = Config(**preset)
        recipe.implicit_maximum(torch.zeros(1), made.maximiser, made.strength, made.clip or None)


# --- the claims

NOISE = (0.0, 0.01, -0.01, 0.02, -0.02)


def stability(success: dict[str, float], blown: dict[str, float]) -> ArmResults:
    """Arms with this success (0.8 unless given, the gumbel arms with noise) and these blow-ups."""
    values = {
        arm: {seed: success.get(arm, 0.8) + (extra if arm in XQL_ARMS else 0) for seed, extra in enumerate(NOISE)}
        for arm in STABILITY.arms
    }
    rates = {arm: {seed: {"blow_up": blown.get(arm, 0.0)} for seed in range(5)} for arm in STABILITY.arms}
    return ArmResults(STABILITY.metric, values, rates)


def test_the_stability_claim_compares_the_worst_and_the_blow_ups() -> None:
    blown = {"xql-0.2": 1.0}  # one of two: 50 %
    assert judge(STABILITY, stability({"xql-0.2": 0.1}, blown)).verdict == "HOLDS"
    held = judge(STABILITY, stability({"xql-1-clipped": 0.1, "chi-0.5": 0.5}, blown))
    assert held.verdict == "HOLDS"
    assert held.effect.value == pytest.approx(0.4)
    assert judge(STABILITY, stability({"xql-0.2": 0.1, "tv-0.9": 0.15}, blown)).verdict == "FAILS"
    assert judge(STABILITY, stability({"xql-0.2": 0.1}, {})).verdict == "FAILS"  # nobody blew up
    assert judge(STABILITY, stability({"xql-0.2": 0.1}, {**blown, "tv-0.8": 1.0, "tv-0.9": 1.0})).verdict == "FAILS"
    assert judge(STABILITY, stability({"xql-0.2": 0.1, "iql": 0.0}, blown)).verdict == "HOLDS"  # iql is a reference


def test_the_imitation_claim_needs_both_gains() -> None:
    def verdict(recoil: float, everything: float, experts: float) -> str:
        centres = {"recoil": recoil, "clone-all": everything, "clone-experts": experts}
        values = {
            arm: {seed: centre + (extra if arm == "recoil" else 0) for seed, extra in enumerate(NOISE)}
            for arm, centre in centres.items()
        }
        return judge(IMITATING, ArmResults(IMITATING.metric, values)).verdict

    assert verdict(0.9, 0.3, 0.5) == "HOLDS"
    assert verdict(0.9, 0.3, 0.85) == "FAILS"
    assert verdict(0.9, 0.85, 0.3) == "FAILS"


def test_arms_differ_in_valid_fields_and_families_are_equally_large() -> None:
    assert load_recipe("dual-rl").claims == CLAIM
    names = {field.name for field in dataclasses.fields(Config)}
    for claim in CLAIM:
        configs = [Config(**claim.overrides(arm)) for arm in claim.arms]
        assert len(set(configs)) == len(configs)
        assert names >= {*claim.base, *claim.smoke}
    assert len(XQL_ARMS) == len(FDVL_ARMS) == 4
