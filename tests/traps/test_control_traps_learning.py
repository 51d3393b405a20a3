"""Traps 1, 2, 3, 16, 17, 20, 22, 23 (policy side), 24, 27 and 28 of control: values, losses, policies, agents."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from zerozoo.control.agent import Agent, Target, stop, trains
from zerozoo.control.generative import Diffusion
from zerozoo.control.heads import critic, value
from zerozoo.control.policies import Categorical, Deterministic, Gaussian, Temperature
from zerozoo.control.spec import Spec
from zerozoo.losses.imitation import advantage_weights
from zerozoo.losses.policy import clipped_surrogate
from zerozoo.losses.traces import gae, lambda_returns, n_step_returns
from zerozoo.losses.values import mse

BOX, CHOICE = Spec((4,), 2, discrete=False), Spec((4,), 3, discrete=True)
GAMMA, LAMBDA = 0.9, 0.8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def flags(*steps: int) -> Tensor:
    result = torch.zeros(4, 1, dtype=torch.bool)
    result[list(steps)] = True
    return result


REWARDS, VALUES, NEXT = column(1, 2, 3, 4), column(10, 20, 30, 40), column(20, 99, 40, 50)
NEVER = flags()

# --- 1, 2, 3


def test_trap_01_a_truncated_step_is_bootstrapped_and_a_terminated_one_is_not() -> None:
    """Mistake: done = terminated or truncated, no bootstrap for either. Rule: two flags; only `terminated` drops it."""
    error = {"terminated": 2 - 20.0, "truncated": 2 + GAMMA * 99 - 20}
    for kind, expected in error.items():
        terminated = flags(1) if kind == "terminated" else NEVER
        advantages = gae(REWARDS, VALUES, NEXT, terminated, flags(1), GAMMA, LAMBDA)
        assert float(advantages[1]) == pytest.approx(expected)
        one_step = n_step_returns(REWARDS, NEXT, terminated, flags(1), GAMMA, 3)
        assert float(one_step[1]) == pytest.approx(expected + 20)
    # One flag cannot say it: a call with the same flag twice has no bootstrap, one without ends runs on.
    with pytest.raises(ValueError, match="must be an ended one"):
        gae(REWARDS, VALUES, NEXT, flags(1), NEVER, GAMMA, LAMBDA)


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_trap_02_an_end_of_either_kind_cuts_the_trace(kind: str) -> None:
    """Mistake: a truncation is bootstrapped, but the sum runs on into the next episode. Rule: as split episodes."""
    terminated = flags(1) if kind == "terminated" else NEVER
    together = gae(REWARDS, VALUES, NEXT, terminated, flags(1), GAMMA, LAMBDA)
    parts = [slice(0, 2), slice(2, 4)]
    alone = [gae(*(x[p] for x in (REWARDS, VALUES, NEXT, terminated, flags(1))), GAMMA, LAMBDA) for p in parts]
    torch.testing.assert_close(together, torch.cat(alone))
    later = REWARDS.clone()
    later[2:] += 1000  # what the next episode earns
    for function in (gae, lambda_returns):
        changed = function(later, VALUES, NEXT, terminated, flags(1), GAMMA, LAMBDA)
        assert torch.equal(changed[:2], function(REWARDS, VALUES, NEXT, terminated, flags(1), GAMMA, LAMBDA)[:2])


def test_trap_03_the_bootstrap_is_the_value_of_the_true_successor_and_terminated_wins() -> None:
    """Mistake: V(s_t), or V of the new episode's first row, for V(s'_t). Rule: the successor; terminated wins."""
    for spoiled in (0, 1, 2):  # neither its own value nor that of the row behind enters the return of step 1
        values = VALUES.clone()
        values[spoiled] = 1e6
        returns = lambda_returns(REWARDS, values, NEXT, NEVER, flags(1), GAMMA, 0.0)
        assert float(returns[1]) == pytest.approx(2 + GAMMA * 99)
    both = gae(REWARDS, VALUES, NEXT, flags(1), flags(1), GAMMA, LAMBDA)  # ended says truncated as well
    assert float(both[1]) == 2 - 20


# --- a soft actor-critic and a TD3, small, with every switch


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1e-3
    tau: float = 0.1
    autotune: bool = True
    members: int = 2
    noise: float = 0.5
    noise_clip: float = 0.6


@dataclass
class Rows:
    obs: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Tensor


def rows(seed: int = 0, size: int = 16) -> Rows:
    draws = generator(seed)
    obs, next_obs = (torch.randn(size, 4, generator=draws) for _ in range(2))
    action = torch.rand(size, 2, generator=draws) * 2 - 1
    return Rows(obs, action, torch.randn(size, generator=draws), torch.full((size,), 0.9), next_obs)


class SAC(Agent):
    def build(self, spec: Spec, config: Config) -> None:
        self.q = critic(spec, (8,), ensemble=config.members)
        self.q_target = Target(self.q, config.tau)
        self.policy = Gaussian(spec, squash=True, hidden=(8,))
        self.alpha = Temperature(0.3)

    def target(self, batch: Rows) -> Tensor:
        action, log_prob = stop(self.policy).sample(batch.next_obs, self.random)
        q = self.q_target(batch.next_obs, action).amin(0)
        return batch.reward + batch.discount * (q - stop(self.alpha)() * log_prob)

    @trains("q")
    def critic_loss(self, batch: Rows) -> Tensor:
        return mse(self.q(batch.obs, batch.action), self.target(batch)).mean(-1).sum()

    @trains("policy")
    def policy_loss(self, batch: Rows) -> Tensor:
        action, log_prob = self.policy.sample(batch.obs, self.random)
        return (stop(self.alpha)() * log_prob - stop(self.q)(batch.obs, action).amin(0)).mean()

    @trains("alpha")
    def temperature_loss(self, batch: Rows) -> Tensor | None:
        if not self.config.autotune:
            return None
        _, log_prob = stop(self.policy).sample(batch.obs, self.random)
        return self.alpha.loss(log_prob, -2.0).mean()


class TD3(Agent):
    def build(self, spec: Spec, config: Config) -> None:
        self.q = critic(spec, (8,), ensemble=config.members)
        self.q_target = Target(self.q, config.tau)
        self.policy = Deterministic(spec, (8,))
        self.policy_target = Target(self.policy, config.tau)

    def target(self, batch: Rows) -> Tensor:
        noise = self.config.noise * torch.randn(batch.action.shape, generator=self.random)
        noise = noise.clamp(-self.config.noise_clip, self.config.noise_clip)
        action = (self.policy_target(batch.next_obs) + noise).clamp(-1, 1)
        return batch.reward + batch.discount * self.q_target(batch.next_obs, action).amin(0)

    @trains("q")
    def critic_loss(self, batch: Rows) -> Tensor:
        return mse(self.q(batch.obs, batch.action), self.target(batch)).mean(-1).sum()

    @trains("policy", every=2)
    def policy_loss(self, batch: Rows) -> Tensor:
        return -stop(self.q)(batch.obs, self.policy(batch.obs))[0].mean()


def set_linear(net: torch.nn.Module, slope: list[list[float]], offset: list[float]) -> None:
    """Makes a critic without hidden layers: q_e(s, a) = slope_e . a + offset_e."""
    layer = net.network[0]
    with torch.no_grad():
        layer.weight.zero_()
        for member, (row, constant) in enumerate(zip(slope, offset, strict=True)):
            layer.weight[member, 4:, 0] = torch.tensor(row)
            layer.bias[member] = constant


# --- 16


def test_trap_16_targets_of_twin_critics_with_networks_set_by_hand() -> None:
    """Mistake: noise of one row, not scaled; no minimum, no entropy term. Rule: targets equal those by hand."""

    class Hand(TD3):
        def build(self, spec: Spec, config: Config) -> None:
            super().build(spec, config)
            self.q = critic(spec, (), ensemble=2)
            self.q_target = Target(self.q, config.tau)

    agent, batch = Hand(BOX, Config(), generator()), rows(size=4000)
    set_linear(agent.q_target.module, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.5])
    with torch.no_grad():  # the target policy answers 0
        for parameter in agent.policy_target.parameters():
            parameter.zero_()
    after = (agent.target(batch) - batch.reward) / batch.discount  # min(noise_1, noise_2 + 0.5)
    draws = (0.5 * torch.randn(4000, 2, generator=generator())).clamp(-0.6, 0.6)
    torch.testing.assert_close(after, torch.minimum(draws[:, 0], draws[:, 1] + 0.5), atol=1e-6, rtol=0)
    assert len(after.unique()) > 1000  # each row has its own noise
    assert float(draws.std()) == pytest.approx(0.4, abs=0.02)  # 0.5 less what the clip takes

    soft, batch = SAC(BOX, Config(), generator()), rows(1)
    log_prob = Gaussian.sample(soft.policy, batch.next_obs, generator())[1].detach()
    action = Gaussian.sample(soft.policy, batch.next_obs, generator())[0]
    smaller = torch.minimum(*soft.q_target(batch.next_obs, action)).detach()
    expected = batch.reward + 0.9 * (smaller - 0.3 * log_prob)
    torch.testing.assert_close(soft.target(batch), expected)


# --- 17


def test_trap_17_more_members_do_not_change_what_one_member_learns() -> None:
    """Mistake: the mean over the critics (or half of their sum). Rule: mean over the batch, sum over the ensemble."""

    class Regression(Agent):
        def build(self, spec: Spec, config: Config) -> None:
            self.q = critic(spec, (8,), ensemble=config.members)

        @trains("q")
        def critic_loss(self, batch: Rows) -> Tensor:
            return mse(self.q(batch.obs, batch.action), batch.reward).mean(-1).sum()

    gradients = {}
    for members in (1, 4):
        agent = Regression(BOX, Config(members=members), generator())
        with torch.no_grad():
            for parameter in agent.q.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter[0].numel()).view_as(parameter[0]).expand_as(parameter))
        agent.update(rows())
        gradients[members] = [parameter.grad[0].clone() for parameter in agent.q.parameters()]
        loss = agent.critic_loss(rows())
        single = mse(agent.q(rows().obs, rows().action)[0], rows().reward).mean()
        torch.testing.assert_close(loss, members * single)
    for alone, together in zip(gradients[1], gradients[4], strict=True):
        torch.testing.assert_close(alone, together)
    doubled = Rows(*(torch.cat([part, part]) for part in vars(rows()).values()))
    torch.testing.assert_close(agent.critic_loss(doubled), agent.critic_loss(rows()))  # and a mean over the batch


# --- 20


def test_trap_20_the_cap_is_a_parameter_and_the_clipped_share_is_known() -> None:
    """Mistake: exp(beta A) clipped at 100 in silence. Rule: a parameter without a default, and the share returned."""
    advantages = torch.tensor([0.0, 1.0, 2.0, 500.0])
    for cap, share in [(1.0, 0.75), (math.exp(1.5), 0.5), (1e6, 0.25)]:
        weights, clipped = advantage_weights(advantages, 1.0, cap)
        assert float(clipped) == share
        assert float(weights.max()) == pytest.approx(cap)
        assert bool(weights.isfinite().all())
    with pytest.raises(TypeError):
        advantage_weights(advantages, 1.0)  # type: ignore[call-arg]


# --- 22


def test_trap_22_actions_of_exactly_one_have_finite_log_probs_and_gradients() -> None:
    """Mistake: atanh(1) = inf, log(1 - tanh(u)^2) = -inf. Rule: clip to 1 - 1e-5 and use the softplus form."""
    policy = Gaussian(BOX, squash=True, hidden=(8,), generator=generator())
    obs = torch.randn(4, 4, generator=generator(1))
    action = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.0], [1 - 1e-7, 0.3]])
    log_prob = policy.log_prob(obs, action)
    log_prob.sum().backward()
    assert bool(log_prob.isfinite().all())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in policy.parameters())
    inside = action.clamp(-1 + 1e-5, 1 - 1e-5)
    torch.testing.assert_close(log_prob, policy.log_prob(obs, inside))
    with torch.no_grad():
        policy.network[-1].bias.fill_(30.0)  # saturated samples: tanh(u) is exactly 1 in float32
    drawn, log_prob = policy.sample(obs, generator(2))
    log_prob.sum().backward()
    assert float(drawn.detach().abs().max()) == 1
    assert bool(log_prob.isfinite().all())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in policy.parameters())


# --- 23


@pytest.mark.parametrize("kind", ["gaussian", "squashed", "categorical"])
def test_trap_23_the_ratio_of_stored_actions_is_one_in_the_first_epoch(kind: str) -> None:
    """Mistake: the log-prob of the unclipped draw beside the clipped action. Rule: `sample` gives both unclipped."""
    policy: Any = {
        "gaussian": lambda: Gaussian(BOX, False, (8,), generator=generator()),
        "squashed": lambda: Gaussian(BOX, True, (8,), generator=generator()),
        "categorical": lambda: Categorical(CHOICE, (8,), generator=generator()),
    }[kind]()
    obs = torch.randn(200, 4, generator=generator(1))
    with torch.no_grad():
        stored, old = policy.sample(obs, generator(2))
    new = policy.log_prob(obs, stored)
    torch.testing.assert_close((new - old).exp(), torch.ones(200), atol=2e-3 if kind == "squashed" else 1e-5, rtol=0)
    advantages = torch.randn(200, generator=generator(3))
    loss = clipped_surrogate(new, old, advantages, 0.2, 0.2)
    torch.testing.assert_close(loss, -advantages, atol=1e-2 if kind == "squashed" else 1e-4, rtol=0)
    if kind == "gaussian":
        assert float(stored.abs().max()) > 1
        clipped = policy.act(obs, generator(2))
        torch.testing.assert_close(clipped, stored.clamp(-1, 1))
        assert float((policy.log_prob(obs, clipped) - old).abs().max()) > 0.1  # what storing the clipped one would do


# --- 24


@pytest.mark.parametrize("kind", [SAC, TD3])
def test_trap_24_targets_and_moments_survive_a_resume_bit_for_bit(kind: type[Agent]) -> None:
    """Mistake: after a load the target is a fresh copy of the network. Rule: everything is in the state."""
    straight = kind(BOX, Config(), generator())
    for seed in range(6):
        straight.update(rows(seed))
    state = straight.state()
    resumed = kind(BOX, Config(), generator(7))
    resumed.load_state(state)
    probe = rows(50)
    target = straight.q_target(probe.obs, probe.action)
    assert torch.equal(resumed.q_target(probe.obs, probe.action), target)
    assert not torch.equal(target, straight.q(probe.obs, probe.action))
    for seed in range(6, 12):
        expected, got = straight.update(rows(seed)), resumed.update(rows(seed))
        assert {n: v.item() for n, v in got.items()} == {n: v.item() for n, v in expected.items()}
    final = straight.state()
    assert all(torch.equal(final[name], tensor) for name, tensor in resumed.state().items())


# --- 27


@pytest.mark.parametrize("autotune", [True, False])
def test_trap_27_both_values_of_a_switch_run(autotune: bool) -> None:
    """Mistake: log_alpha exists only with autotune on. Rule: both values of the switch run."""
    agent = SAC(BOX, Config(autotune=autotune), generator())
    for seed in range(3):
        agent.update(rows(seed))
    assert (float(agent.alpha().detach()) == pytest.approx(0.3, abs=1e-7)) != autotune


@pytest.mark.parametrize(("squash", "state_std", "tanh_mean", "layer_norm"), product([True, False], repeat=4))
def test_trap_27_every_combination_of_a_policys_switches_runs(
    squash: bool, state_std: bool, tanh_mean: bool, layer_norm: bool
) -> None:
    """Mistake: a switch that nobody tries breaks unseen. Rule: all sixteen policies act, score and learn."""
    policy = Gaussian(
        BOX, squash, (8,), state_std=state_std, tanh_mean=tanh_mean, layer_norm=layer_norm, generator=generator()
    )
    batch = rows()
    action, log_prob = policy.sample(batch.obs, generator(1))
    (policy.log_prob(batch.obs, batch.action) + log_prob).sum().backward()
    assert action.shape == batch.action.shape
    assert float(policy.act(batch.obs, generator(1)).abs().max()) <= 1


def test_trap_27_weights_of_a_diffusion_are_optional() -> None:
    """Mistake: a branch for absent weights has never run. Rule: with and without them."""
    policy = Diffusion(BOX, width=16, blocks=1, generator=generator())
    batch = rows()
    for weight in (None, torch.ones(16)):
        assert bool(policy.loss(batch.obs, batch.action, generator(1), weight).isfinite().all())
    assert value(BOX, (8,), generator=generator())(batch.obs).shape == (16,)


# --- 28


def test_trap_28_control_runs_eagerly(source_trees: dict[str, ast.Module]) -> None:
    """Mistake: compiled updates learn something else. Rule: there are none; who adds one writes a parity test here."""
    for name, tree in source_trees.items():
        if not name.startswith("control"):
            continue
        used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & {"torch.compile", "torch.jit.script", "torch.jit.trace", "torch.cuda.graph"}, name
