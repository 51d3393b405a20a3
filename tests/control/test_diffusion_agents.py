"""Agents with diffusion policies: what they share. What is special to FISOR and IDQL is tested with their recipes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zerozoo.control.agent import Agent
from zerozoo.control.agents import FISOR, IDQL, DiffusionBC
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch

SETTINGS: dict[str, Any] = {
    "hidden": (16, 16),
    "learning_rate": 1e-3,
    "cosine_steps": 100,
    "steps": 100,
    "diffusion_steps": 3,
    "average": 0.5,
    "candidates": 4,
    "expectile": 0.7,
    "safe_expectile": 0.9,
    "beta": 3.0,
    "max_weight": 100.0,
    "dropout": 0.1,
    "tau": 0.01,
    "critic_rows": 8,
    "batch_size": 16,
    "weights": "feasibility",
    "choose": "least-violation",
    "reward_temperature": 1.0,
    "safety_temperature": 1.0,
    "reward_cap": 100.0,
    "safety_cap": 100.0,
    "width": 16,
    "blocks": 1,
}


def make(kind: type[Agent], **changes: Any) -> Agent:
    config = SimpleNamespace(**{**SETTINGS, **changes})
    return kind(Spec((3,), 2, discrete=False), config, torch.Generator().manual_seed(0))


def rows(size: int = 16, seed: int = 1) -> Batch:
    draws = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, size, 3, generator=draws) * 5 + 2
    action = torch.rand(size, 2, generator=draws) * 2 - 1
    reward, h = torch.randn(2, size, generator=draws)
    return Batch(obs, action, reward, torch.full((size,), 0.99), next_obs, extra={"h": h})


CASES = [
    (DiffusionBC, {}),
    (IDQL, {}),
    (FISOR, {"choose": "least-violation"}),
    (FISOR, {"choose": "highest-value"}),
    (FISOR, {"choose": "first"}),
]


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_policy_and_critics_act_on_normalised_observations(kind: type[Agent], changes: dict[str, Any]) -> None:
    batch = rows()
    normaliser = Normaliser((3,)).fit(np.asarray(batch.obs))
    plain, scaled = make(kind, **changes), make(kind, **changes)
    scaled.normaliser = normaliser
    for _ in range(3):
        plain.update(Batch(**{**_fields(batch), "obs": normaliser(batch.obs), "next_obs": normaliser(batch.next_obs)}))
        scaled.update(batch)
    for explore in (False, True):
        answer = scaled.act(batch.obs, explore)
        assert torch.equal(answer, plain.act(normaliser(batch.obs), explore))
        assert not torch.equal(answer, plain.act(batch.obs, explore))


def _fields(batch: Batch) -> dict[str, Any]:
    return {name: getattr(batch, name) for name in ("obs", "action", "reward", "discount", "next_obs", "extra")}


@pytest.mark.parametrize(("kind", "changes"), CASES[:3])
def test_a_saved_agent_goes_on_bit_for_bit(kind: type[Agent], changes: dict[str, Any]) -> None:
    one, other = make(kind, **changes), make(kind, **changes)
    for step in range(2):
        one.update(rows(seed=step))
    other.load_state(one.state())
    for agent in (one, other):
        for step in range(2, 4):
            agent.update(rows(seed=step))
    state = other.state()
    assert all(torch.equal(value, state[name]) for name, value in one.state().items())


def test_the_policy_that_acts_is_the_average() -> None:
    agent = make(DiffusionBC)
    obs = rows().obs
    before = agent.act(obs, explore=False)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(1.0)
    assert torch.equal(agent.act(obs, explore=False), before)
