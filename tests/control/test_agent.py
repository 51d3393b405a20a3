from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from zerozoo.control.agent import Adam, Agent, Target, stop, trains
from zerozoo.control.heads import critic, value
from zerozoo.control.networks import mlp
from zerozoo.control.policies import Deterministic, Gaussian, Temperature
from zerozoo.control.spec import Spec
from zerozoo.losses.imitation import advantage_weights
from zerozoo.losses.values import expectile, mse

SPEC = Spec((5,), 3, discrete=False)
HIDDEN = (16, 16)


@dataclass(frozen=True)
class Config:
    learning_rate: float = 3e-3
    tau: float = 0.05
    expectile: float = 0.8
    beta: float = 2.0
    dropout: float = 0.0


@dataclass
class Rows:
    """The fields of a batch that these agents use."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: Tensor | None


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(seed: int, size: int = 32) -> Rows:
    draws = generator(seed)
    obs, next_obs = (torch.randn(size, 5, generator=draws) for _ in range(2))
    action = torch.rand(size, 3, generator=draws) * 2 - 1
    ended = torch.rand(size, generator=draws) < 0.1
    return Rows(obs, action, torch.randn(size, generator=draws), 0.97 * ~ended, next_obs)


class IQL(Agent):
    def build(self, spec: Spec, config: Any) -> None:
        self.q = critic(spec, HIDDEN, ensemble=2)
        self.q_target = Target(self.q, config.tau)
        self.v = value(spec, HIDDEN)
        self.policy = Gaussian(spec, squash=False, hidden=HIDDEN, dropout=config.dropout)

    @trains("v")
    def value_loss(self, batch: Any) -> Tensor:
        q = self.q_target(batch.obs, batch.action).amin(0)
        return expectile(q - self.v(batch.obs), self.config.expectile).mean()

    @trains("q")
    def critic_loss(self, batch: Any) -> Tensor:
        target = batch.reward + batch.discount * stop(self.v)(batch.next_obs)
        return mse(self.q(batch.obs, batch.action), target).mean(-1).sum()

    @trains("policy")
    def policy_loss(self, batch: Any) -> Tensor:
        advantage = stop(self.q_target)(batch.obs, batch.action).amin(0) - stop(self.v)(batch.obs)
        weight, clipped = advantage_weights(advantage, self.config.beta, 100.0)
        self.log("clipped", clipped)
        return -(weight * self.policy.log_prob(batch.obs, batch.action)).mean()


class Delayed(Agent):
    """TD3 with a learned temperature that has nothing to do in it: every feature of an agent in one."""

    def build(self, spec: Spec, config: Any) -> None:
        self.q = critic(spec, HIDDEN)
        self.q_target = Target(self.q, config.tau)
        self.policy = Deterministic(spec, HIDDEN, dropout=config.dropout)
        self.policy_target = Target(self.policy, 1.0, every=4)
        self.alpha = Temperature()

    def optimiser(self, net: str) -> Adam:
        if net == "policy":
            return Adam(1e-3, clip_norm=0.5, warmup_steps=3, cosine_steps=20, weight_decay=0.01)
        return Adam(self.config.learning_rate)

    @trains("q")
    def critic_loss(self, batch: Any) -> Tensor:
        noise = 0.2 * torch.randn(batch.action.shape, generator=self.random)
        following = (self.policy_target(batch.next_obs) + noise).clamp(-1, 1)
        target = batch.reward + batch.discount * self.q_target(batch.next_obs, following).amin(0)
        return mse(self.q(batch.obs, batch.action), target).mean(-1).sum()

    @trains("policy", every=2)
    def policy_loss(self, batch: Any) -> Tensor:
        return -stop(self.q)(batch.obs, self.policy(batch.obs))[0].mean()

    @trains("alpha")
    def temperature_loss(self, batch: Any) -> Tensor:
        return self.alpha.loss(batch.reward, -3.0).mean()


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the whole against plain PyTorch


def plain(net: nn.Module, member: int = 0) -> nn.Sequential:
    """One member of an MLP with nn.Linear."""
    layers: list[nn.Module] = []
    for part in net.network:
        layer = nn.Linear(*part.weight.shape[1:])
        layer.weight.data, layer.bias.data = part.weight[member].T.clone(), part.bias[member, 0].clone()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_iql_equals_a_plain_implementation_over_many_updates():
    agent = IQL(SPEC, Config(), generator())
    qs, v, mean = [plain(agent.q, 0), plain(agent.q, 1)], plain(agent.v), plain(agent.policy)
    targets, log_std = copy.deepcopy(qs), torch.zeros(3, requires_grad=True)
    parameters = {"q": [*qs[0].parameters(), *qs[1].parameters()], "v": list(v.parameters())}
    parameters["policy"] = [*mean.parameters(), log_std]
    optimisers = {name: torch.optim.Adam(group, 3e-3) for name, group in parameters.items()}

    def step(name: str, loss: Tensor) -> float:
        optimisers[name].zero_grad()
        loss.backward()
        optimisers[name].step()
        return float(loss.detach())

    for seed in range(25):
        b = rows(seed)
        both = torch.cat([b.obs, b.action], -1)
        with torch.no_grad():
            low = torch.minimum(targets[0](both), targets[1](both))[:, 0]
        error = low - v(b.obs)[:, 0]
        losses = {"value_loss": step("v", (torch.where(error < 0, 0.2, 0.8) * error**2).mean())}
        with torch.no_grad():
            y = b.reward + b.discount * v(b.next_obs)[:, 0]
        losses["critic_loss"] = step("q", sum(functional.mse_loss(q(both)[:, 0], y) for q in qs))
        with torch.no_grad():
            weight = torch.exp(2.0 * (low - v(b.obs)[:, 0])).clamp(max=100)
        normal = torch.distributions.Normal(mean(b.obs).tanh(), log_std.clamp(-5, 2).exp())
        losses["policy_loss"] = step("policy", -(weight * normal.log_prob(b.action).sum(-1)).mean())
        with torch.no_grad():
            for target, q in zip(targets, qs, strict=True):
                for slow, fast in zip(target.parameters(), q.parameters(), strict=True):
                    slow.mul_(0.95).add_(0.05 * fast)
        metrics = agent.update(b)
        assert {name: float(metrics[name]) for name in losses} == pytest.approx(losses, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(agent.policy.log_std, log_std, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(agent.policy.outputs(b.obs), mean(b.obs), atol=1e-3, rtol=1e-3)
    expected = torch.stack([target(both)[:, 0] for target in targets])
    torch.testing.assert_close(agent.q_target(b.obs, b.action), expected, atol=1e-3, rtol=1e-3)


# --- order, nets, targets


def test_losses_run_in_order_and_each_sees_what_the_one_before_left():
    seen: list[tuple[str, float]] = []

    class Three(Agent):
        def build(self, spec: Spec, config: Any) -> None:
            self.second, self.first = Temperature(), Temperature()
            self.target = Target(self.first, 1.0)

        @trains("first")
        def one(self, batch: Any) -> Tensor:
            seen.append(("one", float(self.first().detach())))
            return self.first.log_alpha

        @trains("second")
        def two(self, batch: Any) -> Tensor:
            seen.append(("two", float(self.first().detach())))
            assert float(self.target().detach()) == seen[-2][1]  # targets move after the last loss
            return self.second.log_alpha

    agent = Three(SPEC, Config(), generator())
    metrics = agent.update(None)
    assert [name for name, _ in seen] == ["one", "two"] == list(metrics)
    assert seen[0][1] == 1
    assert seen[1][1] == pytest.approx(math.exp(-3e-3))
    assert torch.equal(agent.target(), agent.first())


def test_a_subclass_changes_a_loss_in_place_and_adds_others_behind():
    class More(IQL):
        def value_loss(self, batch: Any) -> Tensor:
            return 2 * super().value_loss(batch)

        @trains("v", every=3)
        def extra(self, batch: Any) -> Tensor:
            return self.v(batch.obs).mean()

    first, second = IQL(SPEC, Config(), generator()), More(SPEC, Config(), generator())
    metrics = [(first.update(rows(seed)), second.update(rows(seed))) for seed in range(3)]
    assert float(metrics[0][1]["value_loss"]) == pytest.approx(2 * float(metrics[0][0]["value_loss"]))
    assert list(metrics[0][1]) == ["value_loss", "critic_loss", "clipped", "policy_loss"]
    assert list(metrics[2][1]) == ["value_loss", "critic_loss", "clipped", "policy_loss", "extra"]


def test_only_the_named_networks_move_and_gradients_do_not_add_up():
    class Leaky(Agent):
        """Its policy loss also sends a gradient into q, which must neither be stepped on nor be left behind."""

        def build(self, spec: Spec, config: Any) -> None:
            self.q, self.policy = critic(spec, HIDDEN), Deterministic(spec, HIDDEN)

        @trains("policy")
        def policy_loss(self, batch: Any) -> Tensor:
            return -1000 * self.q(batch.obs, self.policy(batch.obs)).mean()

        @trains("q")
        def critic_loss(self, batch: Any) -> Tensor:
            return mse(self.q(batch.obs, batch.action), batch.reward).mean(-1).sum()

    class Clean(Leaky):
        def policy_loss(self, batch: Any) -> Tensor:
            return -1000 * stop(self.q)(batch.obs, self.policy(batch.obs)).mean()

    leaky, clean = Leaky(SPEC, Config(), generator()), Clean(SPEC, Config(), generator())
    for seed in range(5):
        leaky.update(rows(seed))
        clean.update(rows(seed))
    assert equal(snapshot(leaky), snapshot(clean))


def test_one_loss_may_train_two_networks():
    class Joint(Agent):
        def build(self, spec: Spec, config: Any) -> None:
            self.encoder, self.v = mlp((5, 4)), value(Spec((4,), 3, False), HIDDEN)

        @trains("encoder", "v")
        def loss(self, batch: Any) -> Tensor:
            return mse(self.v(self.encoder(batch.obs)[0]), batch.reward).mean()

    agent = Joint(SPEC, Config(), generator())
    before = snapshot(agent)
    agent.update(rows(0))
    assert not any(torch.equal(before[name], now) for name, now in agent.state_dict().items())


def test_delays_and_targets():
    agent = Delayed(SPEC, Config(), generator())
    q_target = snapshot(agent.q_target.module)
    for update in range(1, 9):
        policy, policy_target = snapshot(agent.policy), snapshot(agent.policy_target.module)
        metrics = agent.update(rows(update))
        trained = update % 2 == 0
        assert ("policy_loss" in metrics) == trained
        assert equal(policy, snapshot(agent.policy)) != trained
        assert equal(policy_target, snapshot(agent.policy_target.module)) == (update % 4 != 0)
        for name, slow in agent.q_target.module.state_dict().items():
            expected = q_target[name] + 0.05 * (agent.q.state_dict()[name] - q_target[name])
            torch.testing.assert_close(slow, expected)
        q_target = snapshot(agent.q_target.module)
    assert equal(snapshot(agent.policy), snapshot(agent.policy_target.module))


def test_a_target_rests_while_its_network_is_not_trained():
    class Resting(Delayed):
        def build(self, spec: Spec, config: Any) -> None:
            super().build(spec, config)
            self.policy_target = Target(self.policy, 0.5)

    agent = Resting(SPEC, Config(), generator())
    for update in range(1, 7):
        before = snapshot(agent.policy_target.module)
        agent.update(rows(update))
        assert equal(before, snapshot(agent.policy_target.module)) == (update % 2 == 1)


def test_a_loss_may_sit_an_update_out():
    class Sometimes(IQL):
        def value_loss(self, batch: Any) -> Tensor | None:
            return super().value_loss(batch) if self.updates % 3 == 0 else None

    agent = Sometimes(SPEC, Config(), generator())
    for update in range(1, 7):
        before = snapshot(agent.v)
        metrics = agent.update(rows(update))
        assert ("value_loss" in metrics) == (update % 3 == 0)
        assert equal(before, snapshot(agent.v)) == (update % 3 != 0)


def test_a_target_takes_no_gradient_and_has_no_dropout():
    agent = IQL(SPEC, Config(dropout=0.5), generator())
    assert not any(p.requires_grad for p in agent.q_target.parameters())
    net = mlp((5, 8, 1), dropout=0.5, generator=generator())
    target = Target(net, 0.1)
    target.train()
    x = torch.ones(2, 5)
    assert torch.equal(target(x), target(x))
    for tau, every in [(0.0, 1), (1.1, 1), (0.1, 0)]:
        with pytest.raises(ValueError, match="a target needs"):
            Target(net, tau, every)


# --- the optimiser


SETTINGS = [
    Adam(1e-2),
    Adam(1e-2, betas=(0.5, 0.9), eps=1e-3),
    Adam(1e-2, weight_decay=0.1),
    Adam(1e-2, clip_norm=0.1),
    Adam(1e-2, warmup_steps=5),
    Adam(1e-2, cosine_steps=10),
    Adam(1e-2, warmup_steps=3, cosine_steps=10),
]


def regression(settings: Adam) -> Agent:
    class Regression(Agent):
        def build(self, spec: Spec, config: Any) -> None:
            self.v = value(spec, HIDDEN)

        def optimiser(self, net: str) -> Adam:
            assert net == "v"
            return settings

        @trains("v")
        def loss(self, batch: Any) -> Tensor:
            return 5 * mse(self.v(batch.obs), batch.reward).mean()

    return Regression(SPEC, Config(), generator())


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_optimiser_is_that_of_torch(settings):
    agent = regression(settings)
    net = copy.deepcopy(agent.v)
    optimiser = torch.optim.AdamW(
        net.parameters(), 1e-2, settings.betas, settings.eps, weight_decay=settings.weight_decay, fused=False
    )
    for step in range(12):
        b = rows(step)
        factor = min((step + 1) / settings.warmup_steps, 1) if settings.warmup_steps else 1
        if settings.cosine_steps:
            factor *= 0.5 * (1 + math.cos(math.pi * min(step, settings.cosine_steps) / settings.cosine_steps))
        optimiser.param_groups[0]["lr"] = 1e-2 * factor
        optimiser.zero_grad()
        (5 * mse(net(b.obs), b.reward).mean()).backward()
        if settings.clip_norm:
            norm = nn.utils.clip_grad_norm_(net.parameters(), settings.clip_norm)
            assert float(norm) > settings.clip_norm
        optimiser.step()
        agent.update(b)
    for own, expected in zip(agent.v.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(own, expected, atol=2e-6, rtol=1e-5)


def test_every_setting_of_the_optimiser_matters():
    """Trap 21. After 12 steps each of the settings above has led somewhere else."""
    results = []
    for settings in SETTINGS:
        agent = regression(settings)
        for step in range(12):
            agent.update(rows(step))
        results.append(agent.v(rows(0).obs).detach())
    for index, result in enumerate(results):
        assert all(float((result - other).abs().max()) > 1e-4 for other in results[:index])


# --- resume


def run(agent: Agent, updates: range) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in agent.update(rows(seed)).items()} for seed in updates]


@pytest.mark.parametrize("kind", [IQL, Delayed])
def test_resume_is_exact_bit_for_bit(kind):
    """Moments, targets, delays, schedules, dropout and the agent's own draws."""
    config = Config(dropout=0.3)
    straight = kind(SPEC, config, generator(1))
    run(straight, range(7))
    state = straight.state()
    expected = run(straight, range(7, 20))
    resumed = kind(SPEC, config, generator(2))
    run(resumed, range(30, 33))
    resumed.load_state(state)
    assert run(resumed, range(7, 20)) == expected
    assert equal(resumed.state(), straight.state())
    obs = rows(0).obs
    assert torch.equal(resumed.act(obs, explore=True), straight.act(obs, explore=True))


def test_a_state_is_a_copy_and_can_be_saved():
    agent = Delayed(SPEC, Config(), generator())
    state = agent.state()
    before = {name: tensor.clone() for name, tensor in state.items()}
    run(agent, range(3))
    assert equal(state, before)
    pointers = [tensor.untyped_storage().data_ptr() for tensor in state.values()]
    assert len(set(pointers)) == len(pointers)  # safetensors refuses shared memory
    assert all(isinstance(tensor, Tensor) for tensor in state.values())


def test_the_state_of_another_agent_is_refused():
    agent = IQL(SPEC, Config(), generator())
    with pytest.raises(ValueError, match="another agent"):
        agent.load_state(Delayed(SPEC, Config(), generator()).state())
    with pytest.raises(ValueError, match="another agent"):
        agent.load_state(IQL(Spec((6,), 3, False), Config(), generator()).state())


# --- weights, metrics, acting


def test_initial_weights_depend_on_the_seed_and_the_name_only():
    one, other, third = (kind(SPEC, Config(), generator(seed)) for kind, seed in [(IQL, 4), (Delayed, 4), (IQL, 5)])
    assert equal(snapshot(one.q), snapshot(other.q))
    assert equal(snapshot(one.q), snapshot(one.q_target.module))
    assert not torch.equal(one.q.network[0].weight, third.q.network[0].weight)
    assert not torch.equal(one.v.network[0].weight, one.policy.network[0].weight)
    before = torch.get_rng_state()
    IQL(SPEC, Config(), generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_metrics_are_detached_scalars():
    agent = IQL(SPEC, Config(), generator())
    metrics = agent.update(rows(0))
    assert set(metrics) == {"value_loss", "critic_loss", "policy_loss", "clipped"}
    assert all(isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad for value in metrics.values())
    agent.log("mean", torch.tensor([1.0, 3.0], requires_grad=True))
    assert float(agent._metrics["mean"]) == 2


def test_acting_draws_only_when_it_explores_and_leaves_the_agent_as_it_was():
    agent = IQL(SPEC, Config(dropout=0.5), generator())
    obs = rows(0).obs
    state = agent.random.get_state()
    assert torch.equal(agent.act(obs, explore=False), agent.act(obs, explore=False))
    assert torch.equal(agent.act(obs, True, generator(1)), agent.act(obs, True, generator(1)))
    assert torch.equal(agent.random.get_state(), state)
    first = agent.act(obs, explore=True)
    assert not torch.equal(agent.random.get_state(), state)
    assert not torch.equal(first, agent.act(obs, explore=True))
    assert float(first.abs().max()) <= 1
    assert agent.training
    assert agent.policy.training
    assert not agent.q_target.module.training


def test_the_normaliser_is_seen_by_losses_and_policy_and_is_part_of_the_state():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("std", torch.tensor(4.0))

        def forward(self, x: Tensor) -> Tensor:
            return x / self.std

    class Scaled(IQL):
        def build(self, spec: Spec, config: Any) -> None:
            super().build(spec, config)
            self.normaliser = Scale()

    scaled, other = Scaled(SPEC, Config(), generator()), IQL(SPEC, Config(), generator())
    b = rows(0)
    large = replace(b, obs=4 * b.obs, next_obs=4 * b.next_obs)
    assert {n: float(v) for n, v in scaled.update(large).items()} == {n: float(v) for n, v in other.update(b).items()}
    assert torch.equal(scaled.act(large.obs, False), other.act(b.obs, False))
    assert "module/normaliser.std" in scaled.state()
    assert torch.equal(large.obs, 4 * b.obs)
    assert Scaled(SPEC, Config(), generator())._normalised(replace(b, next_obs=None), Scale()).next_obs is None


# --- mistakes of whoever writes an agent


def broken(method) -> type[Agent]:
    class Broken(Agent):
        def build(self, spec: Spec, config: Any) -> None:
            self.v = value(spec, HIDDEN)
            self.w = mlp((5, 1))
            self.target = Target(self.w, 0.1)

        loss = method

    return Broken


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="trains 'nothing', which is no network"):
        broken(trains("nothing")(lambda self, batch: None))(SPEC, Config(), generator())
    with pytest.raises(ValueError, match="target follows a network that no loss trains"):
        broken(trains("v")(lambda self, batch: None))(SPEC, Config(), generator())
    with pytest.raises(ValueError, match="every"):
        trains("v", every=0)
    with pytest.raises(ValueError, match="say what the loss trains"):
        trains()
    with pytest.raises(ValueError, match="say what the loss trains"):
        trains(lambda self, batch: None)
    with pytest.raises(NotImplementedError):
        Agent(SPEC, Config(), generator())
