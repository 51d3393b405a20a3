"""Discrete CQL and BCQ: losses against a second implementation in float64, the allowed actions, a solved problem."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Generator, Tensor

from zerozoo.control.agent import Agent
from zerozoo.control.agents.discrete import DiscreteBCQ, DiscreteCQL
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch
from zerozoo.runs.errors import UserError

SPEC = Spec((3,), 4, discrete=True)
KINDS = (DiscreteCQL, DiscreteBCQ)


def make(kind: type[Agent], **changes: float) -> Agent:
    settings = {"hidden": (8,), "learning_rate": 1e-2, "alpha": 2.0, "threshold": 0.5, "target_every": 3}
    return kind(SPEC, SimpleNamespace(**{**settings, **changes}), Generator().manual_seed(0))


def rows(size: int = 6) -> Batch:
    generator = Generator().manual_seed(1)
    obs, next_obs = torch.randn((2, size, 3), generator=generator)
    action = torch.randint(4, (size,), generator=generator)
    reward = torch.randn(size, generator=generator)
    return Batch(obs, action, reward, torch.tensor([0.9, 0.9, 0.0, 0.9, 0.9, 0.0])[:size], next_obs)


def huber(error: float) -> float:
    return error**2 / 2 if abs(error) <= 1 else abs(error) - 0.5


def moved(agent: Agent) -> Agent:
    """After two updates, so that network and target differ."""
    for _ in range(2):
        agent.update(rows())
    return agent


def test_the_loss_of_cql_is_the_formula() -> None:
    agent, batch = moved(make(DiscreteCQL)), rows()
    values, after, target = (
        net(obs)[0].double().tolist()
        for net, obs in ((agent.q, batch.obs), (agent.q, batch.next_obs), (agent.q_target, batch.next_obs))
    )
    assert after != target
    losses = []
    for i in range(6):
        best = max(range(4), key=lambda a: after[i][a])
        y = float(batch.reward[i]) + float(batch.discount[i]) * target[i][best]
        q = values[i][int(batch.action[i])]
        losses.append(huber(q - y) + 2.0 * (math.log(sum(math.exp(v) for v in values[i])) - q))
    assert float(agent.critic_loss(batch)) == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_the_loss_of_bcq_is_the_formula() -> None:
    agent, batch = moved(make(DiscreteBCQ)), rows()
    values, log_g, logits = (part.double().tolist() for part in agent.q(batch.obs))
    after, log_g_after, _ = (part.double().tolist() for part in agent.q(batch.next_obs))
    target = agent.q_target(batch.next_obs)[0].double().tolist()
    losses = []
    for i in range(6):
        likely = [math.exp(g) / max(math.exp(x) for x in log_g_after[i]) > 0.5 for g in log_g_after[i]]
        best = max((a for a in range(4) if likely[a]), key=lambda a: after[i][a])
        y = float(batch.reward[i]) + float(batch.discount[i]) * target[i][best]
        action = int(batch.action[i])
        squares = sum(x**2 for x in logits[i]) / 4
        losses.append(huber(values[i][action] - y) - log_g[i][action] + 0.01 * squares)
    assert float(agent.critic_loss(batch)) == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_bcq_considers_likely_actions_only() -> None:
    """G = (0.6, 0.3, 0.06, 0.04), Q rises with the action: allowed are G / 0.6 > threshold."""
    log_g = torch.tensor([0.6, 0.3, 0.06, 0.04]).log()

    def outputs(obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size = len(obs)
        return torch.arange(4.0).expand(size, 4), log_g.expand(size, 4), log_g.expand(size, 4)

    for threshold, action in ((0.01, 3), (0.08, 2), (0.4, 1), (0.55, 0)):
        agent = make(DiscreteBCQ, threshold=threshold)
        agent.q.forward = outputs
        assert agent.act(torch.zeros(2, 3), explore=False).tolist() == [action] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_copied_every_third_update(kind: type[Agent]) -> None:
    agent = make(kind)

    def same() -> bool:
        pairs = zip(agent.q.parameters(), agent.q_target.module.parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    equal = []
    for _ in range(6):
        agent.update(rows())
        equal.append(same())
    assert equal == [False, False, True] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_bandit_is_solved_and_the_unseen_arm_is_left_alone(kind: type[Agent]) -> None:
    """Arms 0, 1, 2 pay 0, 1, 0.5; nobody ever tried arm 3."""
    agent = make(kind, alpha=0.5, threshold=0.3)
    generator = Generator().manual_seed(2)
    for _ in range(300):
        action = torch.randint(3, (64,), generator=generator)
        reward = torch.tensor([0.0, 1.0, 0.5])[action]
        obs = torch.randn((64, 3), generator=generator)
        agent.update(Batch(obs, action, reward, torch.zeros(64), obs))
    assert agent.act(torch.randn((50, 3), generator=generator), explore=False).tolist() == [1] * 50


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_cannot_do_is_refused(kind: type[Agent]) -> None:
    with pytest.raises(ValueError, match="does not explore"):
        make(kind).act(torch.zeros(1, 3), explore=True)
    with pytest.raises(UserError, match=f"{kind.__name__} needs discrete actions"):
        kind(Spec((3,), 2, discrete=False), SimpleNamespace(), Generator())
