"""Losses of every agent against numbers computed by hand or by an independent formula, on linear nets set by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zerozoo.control.agents import (
    BC,
    CQL,
    DQN,
    IQL,
    PPO,
    RLPD,
    SAC,
    TD3,
    TD3BC,
    XQL,
    DecisionTransformer,
    ReBRAC,
)
from zerozoo.control.episodes import Episode, Episodes
from zerozoo.control.on_policy import Minibatch
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch, sequences
from zerozoo.runs.errors import UserError

SPEC = Spec((2,), 1, discrete=False)
CHOICE = Spec((2,), 3, discrete=True)
HALF_LOG_2PI = math.log(2 * math.pi) / 2
COMMON: dict[str, Any] = {"hidden": (), "learning_rate": 0.01, "tau": 0.1, "dropout": 0.0, "cosine_steps": 0}
SOFT = {**COMMON, "temperature": 0.5, "learn_temperature": True, "entropy_per_dimension": -1.0}
DELAYED = {**COMMON, "target_noise": 0.0, "noise_clip": 0.5, "exploration_noise": 0.1}


def make(kind: type, spec: Spec = SPEC, **settings: Any) -> Any:
    return kind(spec, SimpleNamespace(**settings), torch.Generator().manual_seed(0))


def fill(net: nn.Module, weight: Any, bias: Any) -> None:
    """Sets the only layer of a network: weight (E, n_in, n_out), bias (E, n_out)."""
    layer: Any = net.network[-1]  # type: ignore[index,union-attr]
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight).view_as(layer.weight))
        layer.bias.copy_(torch.tensor(bias).view_as(layer.bias))


def batch(**changes: Any) -> Batch:
    """Two steps; after the second the task has ended."""
    fields: dict[str, Any] = {
        "obs": torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        "action": torch.tensor([[0.5], [-0.5]]),
        "reward": torch.tensor([1.0, 2.0]),
        "discount": torch.tensor([0.9, 0.0]),
        "next_obs": torch.tensor([[0.0, 1.0], [1.0, 1.0]]),
    }
    return Batch(**{**fields, **changes})


def set_critics(agent: Any, target: float = 0.0) -> None:
    """Q1 = s1 + s2 + a and Q2 = 2 s1 + 1; on the batch (1.5, 1.5) and (3, 1). The targets are higher by `target`."""
    weight = [[1.0, 1.0, 1.0], [2.0, 0.0, 0.0]]
    fill(agent.q, weight, [0.0, 1.0])
    fill(agent.q_target.module, weight, [target, 1.0 + target])


def clone(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(generator.get_state())


def value(loss: Tensor) -> float:
    assert loss.shape == ()
    return float(loss.detach())


# --- cloning


def test_bc_is_the_negative_log_likelihood() -> None:
    agent = make(BC, **COMMON)
    fill(agent.policy, [0.0, 0.0], [0.0])  # mean 0, deviation 1
    assert value(agent.policy_loss(batch())) == pytest.approx(0.125 + HALF_LOG_2PI)


def test_bc_of_discrete_actions_is_the_cross_entropy() -> None:
    agent = make(BC, CHOICE, **COMMON)
    fill(agent.policy, np.zeros((2, 3), np.float32), [0.0, 0.0, math.log(2)])
    loss = value(agent.policy_loss(batch(action=torch.tensor([2, 0]))))
    assert loss == pytest.approx((math.log(2) + math.log(4)) / 2)


# --- IQL and XQL


def iql(kind: type = IQL, **changes: Any) -> Any:
    own = {"expectile": 0.7, "beta": 3.0, "max_weight": 5.0}
    agent = make(kind, **{**COMMON, **own, **changes})
    set_critics(agent)
    fill(agent.v, [0.5, 0.5], [0.2])  # 0.7 and 1.2 on the batch, 0.7 and 1.2 on the successors
    fill(agent.policy, [0.0, 0.0], [0.0])
    return agent


def test_iql_by_hand() -> None:
    agent, rows = iql(), batch()
    # min Q = (1.5, 1), so u = (0.8, -0.2)
    assert value(agent.value_loss(rows)) == pytest.approx((0.7 * 0.64 + 0.3 * 0.04) / 2)
    # targets 1 + 0.9 * 0.7 and 2 alone
    critic = (0.13**2 + 0.5**2) / 2 + (1.37**2 + 1.0**2) / 2
    assert value(agent.critic_loss(rows)) == pytest.approx(critic)
    weight = (5.0 + math.exp(-0.6)) / 2  # exp(2.4) is over the cap
    assert value(agent.policy_loss(rows)) == pytest.approx(weight * (0.125 + HALF_LOG_2PI), rel=1e-6)
    assert float(agent._metrics["policy/clipped_share"]) == 0.5


def test_iql_advantages_are_those_of_the_target_critic() -> None:
    agent, rows = iql(max_weight=1e9), batch()
    fill(agent.q, [[9.0, 9.0, 9.0], [9.0, 9.0, 9.0]], [9.0, 9.0])
    assert value(agent.value_loss(rows)) == pytest.approx(0.23)
    weight = (math.exp(2.4) + math.exp(-0.6)) / 2
    assert value(agent.policy_loss(rows)) == pytest.approx(weight * (0.125 + HALF_LOG_2PI), rel=1e-5)


def test_iql_works_for_discrete_actions() -> None:
    agent = make(IQL, CHOICE, **COMMON, expectile=0.5, beta=1.0, max_weight=10.0)
    metrics = agent.update(batch(action=torch.tensor([2, 0])))
    assert set(metrics) >= {"value_loss", "critic_loss", "policy_loss"}
    assert agent.act(torch.zeros(4, 2), explore=False).dtype == torch.int64


def test_xql_regresses_to_the_soft_maximum() -> None:
    agent, rows = iql(XQL, value_beta=0.5, value_clip=1.0, q_threshold=20.0, layer_norm=False), batch()
    z = np.minimum(np.array([0.8, -0.2]) / 0.5, 1.0)
    shift = z.max()
    expected = np.mean(np.exp(z - shift) - (z + 1) * np.exp(-shift))
    assert value(agent.value_loss(rows)) == pytest.approx(expected, rel=1e-5)
    # Huber below its threshold: half of the square
    assert value(agent.critic_loss(rows)) == pytest.approx(((0.13**2 + 0.5**2) + (1.37**2 + 1.0**2)) / 4)


def test_the_policys_rate_of_iql_falls_as_a_cosine() -> None:
    agent = iql(cosine_steps=100)
    assert agent.optimiser("policy").rate(50) == pytest.approx(0.005)
    assert agent.optimiser("q").rate(50) == 0.01


# --- TD3, TD3+BC, ReBRAC


def td3(kind: type = TD3, **changes: Any) -> Any:
    agent = make(kind, **{**DELAYED, **changes})
    set_critics(agent, target=1.0)
    fill(agent.policy, [0.0, 0.0], [math.atanh(0.5)])  # a = 0.5 everywhere
    fill(agent.policy_target.module, [0.0, 0.0], [math.atanh(-0.5)])
    return agent


def test_td3_by_hand() -> None:
    agent, rows = td3(), batch()
    # a' = -0.5: Q1' = 1 - 0.5 + 1, Q2' = 0 + 2 in s' = (0, 1)
    target = 1 + 0.9 * 1.5
    critic = ((1.5 - target) ** 2 + 0.25) / 2 + ((3 - target) ** 2 + 1) / 2
    assert value(agent.critic_loss(rows)) == pytest.approx(critic, rel=1e-6)
    # Q1 alone: 1 + 0.5 and 2 + 0.5
    assert value(agent.policy_loss(rows)) == pytest.approx(-2.0)


def test_the_target_noise_is_clipped_and_its_action_stays_in_bounds() -> None:
    agent = td3(target_noise=5.0, noise_clip=0.3)
    many = batch(next_obs=torch.zeros(400, 2))
    action = agent.next_action(many)
    assert action.shape == (400, 1)
    assert action.min() == pytest.approx(-0.8)
    assert action.max() == pytest.approx(-0.2)
    assert action.unique().numel() > 10  # drawn for every row
    fill(agent.policy_target.module, [0.0, 0.0], [9.0])
    assert agent.next_action(many).max() == 1.0


def test_td3_moves_policy_and_targets_every_second_update() -> None:
    agent, rows = td3(), batch()

    def snapshot() -> list[Tensor]:
        nets = (agent.q, agent.policy, agent.q_target, agent.policy_target)
        return [torch.cat([value.flatten().clone() for value in net.state_dict().values()]) for net in nets]

    moved = []
    for _ in range(4):
        before = snapshot()
        metrics = agent.update(rows)
        moved.append([not torch.equal(a, b) for a, b in zip(before, snapshot(), strict=True)])
        assert ("policy_loss" in metrics) == moved[-1][1]
    assert moved == [[True, False, False, False], [True] * 4] * 2


def test_td3_bc_by_hand() -> None:
    agent, rows = td3(TD3BC, alpha=2.5), batch()
    # Q = (1.5, 2.5), mean |Q| = 2; squared distances (0, 1)
    assert value(agent.policy_loss(rows)) == pytest.approx(-2.5 / 2 * 2 + 0.5)
    assert torch.equal(agent.act(rows.obs, explore=True), agent.act(rows.obs, explore=False))


def test_rebrac_by_hand() -> None:
    settings = {"actor_bc": 0.4, "critic_bc": 0.2, "layer_norm": False, "policy_learning_rate": 0.5}
    agent = td3(ReBRAC, **settings)
    rows = batch(
        discount=torch.tensor([0.9, 0.9]),
        next_action=torch.tensor([[0.5], [0.5]]),
        next_action_valid=torch.tensor([True, False]),
    )
    # In s' = (0, 1) Q' = 1.5 as in TD3, less 0.2 * (-0.5 - 0.5)^2; in (1, 1) Q' = min(2.5, 4) with nothing taken off.
    first, second = 1 + 0.9 * (1.5 - 0.2), 2 + 0.9 * 2.5
    critic = ((1.5 - first) ** 2 + (1.5 - second) ** 2) / 2 + ((3 - first) ** 2 + (1 - second) ** 2) / 2
    assert value(agent.critic_loss(rows)) == pytest.approx(critic, rel=1e-6)
    # min Q at a = 0.5: (1.5, 1), mean |Q| = 1.25; squared distances (0, 1)
    assert value(agent.policy_loss(rows)) == pytest.approx((0 + 0.4) / 2 - 1.0)
    assert (agent.optimiser("policy").learning_rate, agent.optimiser("q").learning_rate) == (0.5, 0.01)


# --- SAC, RLPD, CQL


def soft(kind: type = SAC, **changes: Any) -> Any:
    agent = make(kind, **{**SOFT, **changes})
    fill(agent.policy, [[0.3, 0.0], [-0.2, 0.0]], [0.0, 0.0])  # mean 0.3 s1 - 0.2 s2, log-std -1.5: halfway in [-5, 2]
    return agent


def squashed(obs: Tensor, draws: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Actions and log-densities of tanh(mean + exp(-1.5) noise), in float64."""
    eps = torch.randn((len(obs), 1), generator=draws).double().numpy()[:, 0]
    before = obs.double().numpy() @ np.array([0.3, -0.2]) + np.exp(-1.5) * eps
    return np.tanh(before), -(eps**2) / 2 + 1.5 - HALF_LOG_2PI - np.log(1 - np.tanh(before) ** 2)


def q_values(obs: Tensor, action: np.ndarray, higher: float = 0.0) -> np.ndarray:
    """Q1 and Q2 of `set_critics`, (2, B)."""
    first, second = obs.double().numpy().T
    return np.stack([first + second + action, 2 * first + 1]) + higher


def squares(prediction: np.ndarray, target: np.ndarray) -> float:
    return float(((prediction - target) ** 2).mean(1).sum())


def test_sac_by_an_independent_formula() -> None:
    agent, rows = soft(), batch()
    set_critics(agent, target=1.0)
    action, log_prob = squashed(rows.next_obs, clone(agent.random))
    bootstrap = q_values(rows.next_obs, action, 1.0).min(0) - 0.5 * log_prob
    target = np.array([1 + 0.9 * bootstrap[0], 2.0])
    assert value(agent.critic_loss(rows)) == pytest.approx(squares(np.array([[1.5, 1.5], [3, 1]]), target), rel=1e-5)

    action, log_prob = squashed(rows.obs, clone(agent.random))
    policy = np.mean(0.5 * log_prob - q_values(rows.obs, action).min(0))
    temperature = np.mean(-math.log(0.5) * (log_prob - 1.0))
    loss = agent.policy_loss(rows)
    assert value(loss) == pytest.approx(policy + temperature, rel=1e-5)
    loss.backward()
    gradient = agent.temperature.log_alpha.grad
    assert float(gradient) == pytest.approx(-np.mean(log_prob - 1.0), rel=1e-5)  # the policy's term gives it nothing


@pytest.mark.parametrize("learn", [True, False])
def test_the_temperature_moves_only_if_it_is_learned(learn: bool) -> None:
    agent = soft(learn_temperature=learn)
    for _ in range(3):
        metrics = agent.update(batch())
    assert (float(agent.temperature().detach()) != pytest.approx(0.5)) == learn
    assert float(metrics["temperature"]) == pytest.approx(0.5, rel=0.1)


def test_rlpd_takes_the_minimum_of_a_few_and_climbs_the_mean_of_all() -> None:
    own = {"critics": 3, "critics_in_target": 2, "layer_norm": False, "updates_per_step": 3}
    agent = soft(RLPD, **own)
    q = torch.tensor([[1.0, 5.0], [2.0, 4.0], [3.0, 3.0]])
    pairs = {(1.0, 4.0), (1.0, 3.0), (2.0, 3.0)}
    seen = {tuple(agent.pessimistic(q).tolist()) for _ in range(60)}
    assert seen == pairs
    assert torch.equal(agent.judged(q), torch.tensor([2.0, 4.0]))
    updates = [agent.update(batch()) for _ in range(6)]
    assert ["policy_loss" in metrics for metrics in updates] == [False, False, True] * 2
    assert all("critic_loss" in metrics for metrics in updates)
    with pytest.raises(UserError, match="critics_in_target must lie between 1 and critics, 3"):
        make(RLPD, **{**SOFT, **own, "critics_in_target": 4})


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("backup_actions", [1, 3])
def test_cql_by_an_independent_formula(calibrated: bool, backup_actions: int) -> None:
    number, size, alpha = 4, 2, 0.7
    own = {"sampled_actions": number, "backup_actions": backup_actions, "calibrated": calibrated, "alpha": alpha}
    agent = soft(CQL, **own, policy_learning_rate=0.5)
    set_critics(agent, target=1.0)
    returns = torch.tensor([2.5, -math.inf])  # nothing is known of the second step yet
    rows = batch(extra={"return_to_go": returns} if calibrated else {})
    draws = clone(agent.random)

    next_obs = rows.next_obs.repeat(backup_actions, 1)
    action, _ = squashed(next_obs, draws)
    best = q_values(next_obs, action, 1.0).min(0).reshape(backup_actions, size).max(0)
    target = np.array([1 + 0.9 * best[0], 2.0])  # no entropy
    uniform = (torch.rand((number * size, 1), generator=draws) * 2 - 1).double().numpy()[:, 0]
    obs = rows.obs.repeat(number, 1)
    here, log_here = squashed(obs, draws)
    there, log_there = squashed(rows.next_obs.repeat(number, 1), draws)
    from_policy = np.concatenate([q_values(obs, here), q_values(obs, there)], 1)
    if calibrated:
        from_policy = np.maximum(from_policy, np.tile(returns.numpy(), 2 * number))
    corrected = np.concatenate(
        [q_values(obs, uniform) + math.log(2), from_policy - np.concatenate([log_here, log_there])], 1
    ).reshape(2, 3 * number, size)
    data = np.array([[1.5, 1.5], [3.0, 1.0]])
    penalty = np.log(np.exp(corrected).mean(1)) - data
    expected = squares(data, target) + alpha * penalty.mean(1).sum()
    assert value(agent.critic_loss(rows)) == pytest.approx(expected, rel=1e-5)
    assert (agent.optimiser("policy").learning_rate, agent.optimiser("q").learning_rate) == (0.5, 0.01)


# --- DQN


def dqn(**changes: Any) -> Any:
    own = {"double": True, "target_every": 1, "epsilon_start": 1.0, "epsilon_end": 0.2, "epsilon_steps": 40}
    agent = make(DQN, CHOICE, **{**COMMON, "tau": 1.0, **own, **changes})
    fill(agent.q, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0.0, 0.5, 0.0])  # Q = (s1, s2 + 0.5, 0)
    fill(agent.q_target.module, [[0.0, 0.0, 0.0], [3.0, 1.0, 0.0]], [0.0, 0.0, 0.0])  # Q' = (3 s2, s2, 0)
    return agent


@pytest.mark.parametrize(("double", "bootstrap"), [(True, 1.0), (False, 3.0)])
def test_dqn_by_hand(double: bool, bootstrap: float) -> None:
    # In s' = (0, 1) the network prefers action 1, its target action 0.
    target = 1 + 0.9 * bootstrap
    # Q(s, a) = 1 and 0, targets 1.9 or 3.7, and 2: Huber at threshold 1
    errors = np.array([target - 1.0, 2.0])
    expected = np.where(errors <= 1, errors**2 / 2, errors - 0.5).mean()
    assert value(dqn(double=double).critic_loss(batch(action=torch.tensor([0, 2])))) == pytest.approx(expected)


def test_epsilon_falls_with_the_actions_taken_and_is_saved() -> None:
    agent = dqn()
    obs = torch.tensor([[1.0, 0.0]]).repeat(10, 1)
    assert agent.epsilon() == 1.0
    for _ in range(2):
        agent.act(obs, explore=True)
        agent.act(obs, explore=False)  # does not count
    assert agent.epsilon() == pytest.approx(0.6)
    other = dqn()
    other.load_state(agent.state())
    assert other.epsilon() == pytest.approx(0.6)
    for _ in range(5):
        agent.act(obs, explore=True)
    assert agent.epsilon() == pytest.approx(0.2)
    many = torch.tensor([[1.0, 0.0]]).repeat(3000, 1)
    counts = agent.act(many, explore=True).bincount(minlength=3) / 3000
    assert counts.tolist() == pytest.approx([0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3], abs=0.03)


def test_the_target_of_dqn_is_copied_every_few_updates() -> None:
    agent = dqn(target_every=3)
    same = []
    for _ in range(6):
        agent.update(batch(action=torch.tensor([0, 2])))
        same.append(torch.equal(agent.q_target.module.network[0].weight, agent.q.network[0].weight))
    assert same == [False, False, True] * 2


# --- PPO


PROXIMAL: dict[str, Any] = {
    "hidden": (),
    "learning_rate": 0.01,
    "falls_until": 0,
    "max_gradient_norm": 100.0,
    "clip": 0.2,
    "entropy_coefficient": 0.1,
    "normalise_advantage": False,
    "normalise": False,
}


def test_ppo_by_hand() -> None:
    agent = make(PPO, CHOICE, **PROXIMAL)
    fill(agent.policy, np.zeros((2, 3), np.float32), [0.0, 0.0, math.log(2)])  # 1/4, 1/4, 1/2
    fill(agent.v, [1.0, 1.0], [0.0])
    old = torch.tensor([0.25, 1.0]).log()  # ratios 2 and 1/4
    rows = Minibatch(batch().obs, torch.tensor([2, 0]), old, torch.tensor([1.0, -1.0]), torch.tensor([3.0, 2.0]))
    entropy = 0.25 * math.log(4) * 2 + 0.5 * math.log(2)
    # A > 0: cut at 1.2; A < 0: the ratio below 0.8 is cut at 0.8
    assert value(agent.policy_loss(rows)) == pytest.approx((-1.2 + 0.8) / 2 - 0.1 * entropy, rel=1e-5)
    assert float(agent._metrics["policy/clip_fraction"]) == 1.0
    assert value(agent.value_loss(rows)) == pytest.approx((2.0**2 + 0.0) / 2)


def test_ppo_normalises_advantages_of_the_minibatch() -> None:
    agent = make(PPO, CHOICE, **{**PROXIMAL, "normalise_advantage": True, "entropy_coefficient": 0.0})
    fill(agent.policy, np.zeros((2, 3), np.float32), [0.0, 0.0, math.log(2)])
    old = torch.tensor([0.5, 0.25]).log()  # ratios of 1 for both
    rows = Minibatch(batch().obs, torch.tensor([2, 0]), old, torch.tensor([5.0, 1.0]), torch.zeros(2))
    assert value(agent.policy_loss(rows)) == pytest.approx(0.0, abs=1e-6)
    rows.log_prob = torch.tensor([0.5, 0.5]).log()  # 1 and 1/2: -(1) and -(-1) * 0.8
    assert value(agent.policy_loss(rows)) == pytest.approx((-1.0 + 0.8) / 2, rel=1e-5)


def test_ppos_rate_falls_linearly() -> None:
    agent = make(PPO, **{**PROXIMAL, "falls_until": 10})
    adam = agent.optimiser("v")
    assert [adam.rate(step) for step in (0, 5, 10, 11)] == pytest.approx([0.01, 0.005, 0.0, 0.0])
    assert (adam.eps, adam.clip_norm) == (1e-5, 100.0)


# --- decision transformer


SEQUENCE: dict[str, Any] = {
    "width": 8,
    "blocks": 2,
    "heads": 2,
    "dropout": 0.3,
    "length": 4,
    "longest": 6,
    "return_scale": 2.0,
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "warmup_updates": 4,
    "max_gradient_norm": 1.0,
}


@pytest.mark.parametrize("spec", [SPEC, CHOICE], ids=["continuous", "discrete"])
def test_the_decision_transformer_acts_as_it_was_trained(spec: Spec) -> None:
    """What it does while it plays is what the training view of that very episode asks the network for."""
    agent = make(DecisionTransformer, spec, **SEQUENCE)
    draws, steps, copies = torch.Generator().manual_seed(1), 9, 3
    obs = torch.randn((steps + 1, copies, 2), generator=draws)
    rewards = torch.randn((steps, copies), generator=draws)
    agent.aim(1.5)
    player = agent.player(copies)
    actions = []
    for step in range(steps):
        actions.append(player.act(obs[step]))
        player.observe(rewards[step].double().numpy())
    assert len(set(torch.stack(actions).flatten().tolist())) > 1
    for copy_number in range(copies):
        episode = Episodes.from_list(
            [
                Episode(
                    obs[:, copy_number].numpy(),
                    torch.stack(actions)[:, copy_number].numpy(),
                    rewards[:, copy_number].numpy(),
                )
            ],
            spec,
        )
        windows = sequences(SEQUENCE["length"])(episode)
        rows = windows.sample(60, torch.Generator().manual_seed(0))
        # The recording's returns differ from those asked for by one number.
        total = float(rewards[:, copy_number].sum())
        wanted = torch.where(rows.mask, rows.return_to_go + 1.5 - total, 0.0) / 2.0
        agent.eval()
        with torch.no_grad():
            answer = agent.policy(rows.obs, rows.action, wanted, rows.timestep, rows.mask)[:, -1]
        assert set(rows.index.tolist()) == set(range(steps))
        for index, row in zip(rows.index.tolist(), answer, strict=True):
            expected = actions[index][copy_number]
            assert torch.equal(row.argmax(), expected) if spec.discrete else torch.allclose(row, expected, atol=1e-5)


def test_no_action_of_the_decision_transformer_sees_itself_or_the_future() -> None:
    agent = make(DecisionTransformer, **SEQUENCE).eval()
    draws = torch.Generator().manual_seed(1)
    obs, action = torch.randn((1, 4, 2), generator=draws), torch.rand((1, 4, 1), generator=draws)
    returns, steps, mask = torch.randn((1, 4), generator=draws), torch.arange(4)[None], torch.ones(1, 4).bool()
    before = agent.policy(obs, action, returns, steps, mask)
    last = torch.zeros(1, 4)
    last[:, 3] = 1.0
    for changed in (
        (obs + last[..., None], action, returns),
        (obs, action, returns + last),
        (obs, action + last[..., None], returns),
    ):
        after = agent.policy(*changed, steps, mask)
        assert torch.equal(after[:, :3], before[:, :3])
        assert torch.equal(after[:, 3], before[:, 3]) == (changed[1] is not action)


def test_the_loss_of_the_decision_transformer_leaves_the_padding_out() -> None:
    agent = make(DecisionTransformer, **{**SEQUENCE, "dropout": 0.0})
    with torch.no_grad():
        agent.policy.head.weight.zero_()
        agent.policy.head.bias.fill_(math.atanh(0.5))
    mask = torch.tensor([[False, True]])
    rows = Batch(
        obs=torch.zeros(1, 2, 2),
        action=torch.tensor([[[9.0], [0.2]]]),
        reward=torch.zeros(1, 2),
        discount=torch.ones(1, 2),
        next_obs=torch.zeros(1, 2, 2),
        mask=mask,
        timestep=torch.zeros(1, 2, dtype=torch.int64),
        return_to_go=torch.zeros(1, 2),
    )
    assert value(agent.policy_loss(rows)) == pytest.approx(0.09, rel=1e-5)
    assert agent.optimiser("policy").rate(0) == pytest.approx(0.01 / 4)


def test_a_decision_transformer_has_to_be_aimed_and_played() -> None:
    agent = make(DecisionTransformer, **SEQUENCE)
    with pytest.raises(ValueError, match="call aim before playing"):
        agent.player(2)
    with pytest.raises(ValueError, match=r"use player\(copies\)"):
        agent.act(torch.zeros(1, 2), explore=False)


# --- all of them


@pytest.mark.parametrize(
    ("kind", "spec", "settings", "sentence"),
    [
        (SAC, CHOICE, SOFT, "SAC needs continuous actions"),
        (TD3BC, CHOICE, {**DELAYED, "alpha": 1.0}, "TD3BC needs continuous actions"),
        (DQN, SPEC, COMMON, "DQN needs discrete actions"),
    ],
)
def test_actions_of_the_wrong_kind_are_one_sentence(kind: type, spec: Spec, settings: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make(kind, spec, **settings)


def test_losses_give_their_gradient_to_the_named_networks_only() -> None:
    """A loss that reached into another network would leave a gradient there, for its next step."""
    rows = batch()
    for agent in (iql(), td3(), td3(TD3BC, alpha=2.5), soft()):
        agent.update(rows)
        for name, nets, _ in agent._losses:
            for parameter in agent.parameters():
                parameter.grad = None
            getattr(agent, name)(rows).backward()
            reached = {net for net in agent._learners for p in getattr(agent, net).parameters() if p.grad is not None}
            assert reached == set(nets), (type(agent).__name__, name)
