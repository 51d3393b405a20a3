"""The four algorithms as one would write them in a single file of plain PyTorch, for benchmarks/control.py.

`nn.Linear`, `torch.optim.Adam`, two critics as two networks, `torch.distributions`: nothing is tuned for speed, nothing
is slower than usual. Batches are dictionaries of obs, action, reward, terminal, next_obs.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

DISCOUNT, TAU, RATE = 0.99, 0.005, 3e-4
SAMPLED_ACTIONS = 10
Batch = dict[str, Tensor]


def network(inputs: int, outputs: int, width: int) -> nn.Sequential:
    """Two hidden layers."""
    layers = (nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))
    return nn.Sequential(*layers)


class Plain:
    """Twin critics with their target, and a policy with `policy_outputs` numbers for each dimension of an action."""

    policy_outputs = 1

    def __init__(self, obs: int, action: int, width: int) -> None:
        self.action_size = action
        self.q = nn.ModuleList(network(obs + action, 1, width) for _ in range(2))
        self.q_target = copy.deepcopy(self.q).requires_grad_(False)
        self.policy = network(obs, self.policy_outputs * action, width)
        self.q_optimiser = torch.optim.Adam(self.q.parameters(), RATE)
        self.policy_optimiser = torch.optim.Adam(self.policy.parameters(), RATE)
        self.updates = 0

    def values(self, critics: nn.ModuleList, obs: Tensor, action: Tensor) -> Tensor:
        """(2, B)."""
        both = torch.cat([obs, action], -1)
        return torch.stack([critic(both)[:, 0] for critic in critics])

    def step(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        """One gradient step."""
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def move(self, target: nn.Module, source: nn.Module) -> None:
        """A target follows its network."""
        with torch.no_grad():
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.mul_(1 - TAU).add_(TAU * new)

    def fit_critics(self, batch: Batch, next_value: Tensor, extra: Tensor | float = 0.0) -> None:
        """Mean squared error to the one-step target."""
        target = batch["reward"] + DISCOUNT * (1 - batch["terminal"]) * next_value
        q = self.values(self.q, batch["obs"], batch["action"])
        self.step(self.q_optimiser, ((q - target) ** 2).mean(1).sum() + extra)


class IQL(Plain):
    """Value, critics, weighted cloning."""

    def __init__(self, obs: int, action: int, width: int) -> None:
        super().__init__(obs, action, width)
        self.v = network(obs, 1, width)
        self.v_optimiser = torch.optim.Adam(self.v.parameters(), RATE)
        self.log_std = nn.Parameter(torch.zeros(action))
        self.policy_optimiser = torch.optim.Adam([*self.policy.parameters(), self.log_std], RATE)

    def update(self, batch: Batch) -> None:
        obs, action = batch["obs"], batch["action"]
        with torch.no_grad():
            q = self.values(self.q_target, obs, action).amin(0)
        error = q - self.v(obs)[:, 0]
        self.step(self.v_optimiser, (torch.where(error > 0, 0.7, 0.3) * error**2).mean())
        with torch.no_grad():
            next_value = self.v(batch["next_obs"])[:, 0]
            weight = (3.0 * (q - self.v(obs)[:, 0])).exp().clamp(max=100.0)
        self.fit_critics(batch, next_value)
        policy = Normal(self.policy(obs).tanh(), self.log_std.clamp(-5, 2).exp())
        self.step(self.policy_optimiser, -(weight * policy.log_prob(action).sum(-1)).mean())
        self.move(self.q_target, self.q)


class TD3BC(Plain):
    """Twin critics with a smoothed target action; the policy in every second update."""

    def __init__(self, obs: int, action: int, width: int) -> None:
        super().__init__(obs, action, width)
        self.policy_target = copy.deepcopy(self.policy).requires_grad_(False)

    def update(self, batch: Batch) -> None:
        self.updates += 1
        with torch.no_grad():
            noise = (torch.randn_like(batch["action"]) * 0.2).clamp(-0.5, 0.5)
            action = (self.policy_target(batch["next_obs"]).tanh() + noise).clamp(-1, 1)
            next_value = self.values(self.q_target, batch["next_obs"], action).amin(0)
        self.fit_critics(batch, next_value)
        if self.updates % 2 == 0:
            action = self.policy(batch["obs"]).tanh()
            q = self.q[0](torch.cat([batch["obs"], action], -1))[:, 0]
            weight = 2.5 / q.abs().mean().detach()
            self.step(self.policy_optimiser, -(weight * q).mean() + functional.mse_loss(action, batch["action"]))
            self.move(self.q_target, self.q)
            self.move(self.policy_target, self.policy)


class SAC(Plain):
    """Squashed Gaussian policy, learned temperature."""

    policy_outputs = 2

    def __init__(self, obs: int, action: int, width: int) -> None:
        super().__init__(obs, action, width)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.alpha_optimiser = torch.optim.Adam([self.log_alpha], RATE)

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log-densities, with a gradient through both."""
        mean, log_std = self.policy(obs).chunk(2, -1)
        normal = Normal(mean, log_std.clamp(-5, 2).exp())
        raw = normal.rsample()
        squash = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))
        return raw.tanh(), (normal.log_prob(raw) - squash).sum(-1)

    def penalty(self, batch: Batch) -> Tensor | float:
        """Added to the critics' loss."""
        return 0.0

    def update(self, batch: Batch) -> None:
        alpha = self.log_alpha.exp().detach()
        with torch.no_grad():
            action, log_prob = self.sample(batch["next_obs"])
            next_value = self.values(self.q_target, batch["next_obs"], action).amin(0) - alpha * log_prob
        self.fit_critics(batch, next_value, self.penalty(batch))
        action, log_prob = self.sample(batch["obs"])
        q = self.values(self.q, batch["obs"], action).amin(0)
        self.step(self.policy_optimiser, (alpha * log_prob - q).mean())
        self.step(self.alpha_optimiser, -(self.log_alpha * (log_prob.detach() - self.action_size)).mean())
        self.move(self.q_target, self.q)


class CQL(SAC):
    """SAC whose critics are pushed down on sampled actions and up on the data's."""

    def penalty(self, batch: Batch) -> Tensor:
        obs, size = batch["obs"], len(batch["obs"])
        here = obs.repeat_interleave(SAMPLED_ACTIONS, 0)
        uniform = torch.rand(len(here), self.action_size) * 2 - 1
        with torch.no_grad():
            now, log_now = self.sample(here)
            then, log_then = self.sample(batch["next_obs"].repeat_interleave(SAMPLED_ACTIONS, 0))
        log_uniform = torch.full_like(log_now, -self.action_size * math.log(2))
        values = [
            (self.values(self.q, here, action) - density).view(2, size, SAMPLED_ACTIONS)
            for action, density in ((uniform, log_uniform), (now, log_now), (then, log_then))
        ]
        soft = torch.cat(values, -1).logsumexp(-1) - math.log(3 * SAMPLED_ACTIONS)
        return 5.0 * (soft - self.values(self.q, obs, batch["action"])).mean(1).sum()


REFERENCES = {"iql": IQL, "td3-bc": TD3BC, "sac": SAC, "cql": CQL}
