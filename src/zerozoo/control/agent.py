"""Agents: one function per loss, in the paper's order; everything else is here.

    class IQL(Agent):
        view = transitions()

        def build(self, spec, config):
            self.q = critic(spec)
            self.q_target = Target(self.q, config.tau)
            self.v = value(spec)
            self.policy = Gaussian(spec, squash=False)

        @trains("v")
        def value_loss(self, batch):
            q = self.q_target(batch.obs, batch.action).amin(0)
            return expectile(q - self.v(batch.obs), self.config.expectile).mean()

        @trains("q")
        def critic_loss(self, batch): ...

        @trains("policy")
        def policy_loss(self, batch): ...

An update runs the losses in the order in which they stand. Each sees the networks as the losses before it left them;
targets move after the last one. Losses are a mean over the batch and a sum over an ensemble (trap 17).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from zerozoo.control.networks import Dropout, FlatParameters, initialise, stop
from zerozoo.control.spec import Spec
from zerozoo.runs.allocator import keep_freed_memory
from zerozoo.runs.streams import derived_seed

__all__ = ["Adam", "Agent", "Target", "stop", "trains"]

Loss = Callable[[Any, Any], Tensor | None]


def trains(*nets: str, every: int = 1) -> Callable[[Loss], Loss]:
    """Marks a method of an agent as the loss of the networks with these names.

    Before its backward pass their gradients are zeroed, after it they and no others take one step. every=n: only in
    every n-th update (the delayed policy of TD3). A loss may also return None: then nothing is trained this time.
    Raises ValueError without a name and for every < 1.
    """
    if not nets or not all(isinstance(net, str) for net in nets):
        raise ValueError('say what the loss trains: @trains("q")')
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")

    def mark(method: Loss) -> Loss:
        method.trains = (nets, every)  # type: ignore[attr-defined]
        return method

    return mark


@dataclass(frozen=True)
class Adam:
    """How a network learns: Adam (Kingma and Ba 2014), with decoupled weight decay (Loshchilov and Hutter 2017).

    The rate rises linearly over the first `warmup_steps` steps of the network and, with `cosine_steps` > 0, falls as
    half a cosine to 0 at that step. clip_norm: largest norm of the network's whole gradient, or None.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    warmup_steps: int = 0
    cosine_steps: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        rate = self.learning_rate
        if self.warmup_steps:
            rate *= min((step + 1) / self.warmup_steps, 1)
        if self.cosine_steps:
            rate *= (1 + math.cos(math.pi * min(step / self.cosine_steps, 1))) / 2
        return rate


class Target(nn.Module):
    """A copy of a network that follows it: target <- (1 - tau) target + tau network. Called as the network.

    The copy takes no gradient and is always in evaluation mode. It moves after each update in which its network was
    trained, with every=n only in every n-th update; tau=1 with every=n is the hard copy of DQN. `Target.module` is the
    copy, for its other methods.
    """

    def __init__(self, network: nn.Module, tau: float, every: int = 1) -> None:
        super().__init__()
        if not 0 < tau <= 1 or every < 1:
            raise ValueError(f"a target needs 0 < tau <= 1 and every >= 1, but got {tau} and {every}")
        self.tau, self.every = tau, every
        self.module = copy.deepcopy(network).eval()
        self._network = (network,)  # in a tuple: the network is not a part of its target

    @property
    def network(self) -> nn.Module:
        """The network that is followed."""
        return self._network[0]

    def join(self) -> None:
        """Copies the network, and puts the copy into one flat tensor that moves in one call."""
        self.module.load_state_dict(self.network.state_dict())
        self._own = FlatParameters(self.module)
        self.module.requires_grad_(False)

    def move(self, source: FlatParameters) -> None:
        """One step towards the network's flat parameters."""
        self._own.values.lerp_(source.values, self.tau)

    def train(self, mode: bool = True) -> Target:
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class Learner:
    """The optimiser of one network: Adam's moments beside its flat parameters."""

    def __init__(self, network: nn.Module, settings: Adam) -> None:
        self.settings, self.flat = settings, FlatParameters(network)
        self.moments = self.flat.values.new_zeros(2, len(self.flat.values))
        self._first, self._second = self.moments
        self.steps = torch.zeros(())  # torch's kernel wants a tensor
        self.taken = 0

    def zero_grad(self) -> None:
        """Zeroes all gradients."""
        self.flat.gradients.zero_()

    def step(self) -> None:
        """One step along the gradients."""
        settings, gradients = self.settings, self.flat.gradients
        if settings.clip_norm is not None:
            norm = torch.linalg.vector_norm(gradients)
            gradients.mul_((settings.clip_norm / (norm + 1e-6)).clamp(max=1))
        self.steps += 1
        torch._fused_adamw_(
            [self.flat.values],
            [gradients],
            [self._first],
            [self._second],
            [],
            [self.steps],
            lr=settings.rate(self.taken),
            beta1=settings.betas[0],
            beta2=settings.betas[1],
            weight_decay=settings.weight_decay,
            eps=settings.eps,
            amsgrad=False,
            maximize=False,
        )
        self.taken += 1


class Agent(nn.Module):
    """What learns and acts. A subclass writes `view`, `build`, its losses and, if it has no `policy`, `act`.

    Args:
        spec: shapes of observations and actions.
        config: the recipe's settings; `optimiser` reads config.learning_rate.
        random: the stream "agent" of the run: everything that is drawn while learning and acting. The initial weights
            of a network depend on its seed and on the network's name only, so that agents of one seed start alike
            where they have the same networks, whatever else they have.

    `build` may set `self.normaliser`, a module: losses and policy then see obs and next_obs through it.
    """

    view: ClassVar[Any] = None
    policy: Any
    normaliser: nn.Module | None

    def __init__(self, spec: Spec, config: Any, random: Generator) -> None:
        super().__init__()
        keep_freed_memory()  # of the whole process; updates take and free the same blocks
        self.spec, self.config, self.random = spec, config, random
        self.register_module("normaliser", None)
        self.build(spec, config)
        self._initialise()
        self._losses = self._find_losses()
        names = dict.fromkeys(net for _, nets, _ in self._losses for net in nets)
        self._learners = {net: Learner(getattr(self, net), self.optimiser(net)) for net in names}
        self._targets = self._find_targets()
        self._metrics: dict[str, Tensor] = {}
        self.updates = 0

    def build(self, spec: Spec, config: Any) -> None:
        """Makes the networks and targets as attributes."""
        raise NotImplementedError

    def optimiser(self, net: str) -> Adam:
        """How the network called `net` learns; override it where a paper uses different rates."""
        return Adam(self.config.learning_rate)

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of every loss that is due; returns the losses by their method's name and what `log` was given.

        The values are detached scalars and still tensors: reading them is the caller's business.
        """
        self.updates += 1
        self._metrics = {}
        trained: set[str] = set()
        if self.normaliser is not None:
            batch = self._normalised(batch, self.normaliser)
        for name, nets, every in self._losses:
            loss = None if self.updates % every else getattr(self, name)(batch)
            if loss is None:
                continue
            learners = [self._learners[net] for net in nets]
            for learner in learners:
                learner.zero_grad()
            loss.backward()
            for learner in learners:
                learner.step()
            trained.update(nets)
            self._metrics[name] = loss.detach()
        for target, net in self._targets:
            if net in trained and self.updates % target.every == 0:
                target.move(self._learners[net].flat)
        return self._metrics

    def log(self, name: str, value: Tensor) -> None:
        """Adds the mean of a tensor to what this update returns."""
        self._metrics[name] = value.detach().mean()

    @torch.no_grad()
    def act(self, obs: Tensor, explore: bool, generator: Generator | None = None) -> Tensor:
        """Actions for a batch of observations (B, *obs_shape): (B, m) in [-1, 1] or (B,) int64.

        With `explore` a draw of the policy, from `generator` or else from the agent's own stream; without it the mode,
        which draws nothing from any stream.
        """
        training = self.training
        self.eval()
        if self.normaliser is not None:
            obs = self.normaliser(obs)
        action = self.policy.act(obs, (generator or self.random) if explore else None)
        self.train(training)
        return action

    def state(self) -> dict[str, Tensor]:
        """Everything an exact resume needs, as copies: networks, targets, moments, counters, the random stream."""
        state = {f"module/{name}": tensor.clone() for name, tensor in self.state_dict().items()}
        for net, learner in self._learners.items():
            state[f"moments/{net}"] = learner.moments.clone()
            state[f"steps/{net}"] = torch.tensor(learner.taken)
        return state | {"updates": torch.tensor(self.updates), "random": self.random.get_state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to a `state` of an agent with the same networks; ValueError for any other."""
        wanted = self.state()
        if wanted.keys() != state.keys() or any(wanted[name].shape != state[name].shape for name in wanted):
            different = sorted(wanted.keys() ^ state.keys()) or "shapes"
            raise ValueError(f"the state belongs to another agent: {different} differ")
        prefix = "module/"
        self.load_state_dict({name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)})
        for net, learner in self._learners.items():
            learner.moments.copy_(state[f"moments/{net}"])
            learner.taken = int(state[f"steps/{net}"])
            learner.steps.fill_(learner.taken)
        self.updates = int(state["updates"])
        self.random.set_state(state["random"])

    def _initialise(self) -> None:
        for name, child in self.named_children():
            if not isinstance(child, Target):  # a target becomes a copy of its network
                seed = derived_seed(self.random.initial_seed(), "torch", f"weights/{name}")
                initialise(child, Generator().manual_seed(seed))
        for part in self.modules():
            if isinstance(part, Dropout):
                part.generator = self.random

    def _normalised(self, batch: Any, normaliser: nn.Module) -> Any:
        fields = {name: getattr(batch, name) for name in ("obs", "next_obs")}
        seen = {name: normaliser(value) for name, value in fields.items() if value is not None}
        return dataclasses.replace(batch, **seen)

    def _find_losses(self) -> list[tuple[str, tuple[str, ...], int]]:
        """Marked methods, those of base classes first; an overridden one keeps its place."""
        marked: dict[str, tuple[tuple[str, ...], int]] = {}
        for owner in reversed(type(self).__mro__):
            for name, attribute in vars(owner).items():
                if hasattr(attribute, "trains"):
                    marked[name] = attribute.trains
        for name, (nets, _) in marked.items():
            for net in nets:
                if not isinstance(getattr(self, net, None), nn.Module):
                    raise ValueError(f"{name} trains {net!r}, which is no network of {type(self).__name__}")
        return [(name, nets, every) for name, (nets, every) in marked.items()]

    def _find_targets(self) -> list[tuple[Target, str]]:
        names = {id(getattr(self, net)): net for net in self._learners}
        targets = []
        for name, module in self.named_children():
            if isinstance(module, Target):
                if id(module.network) not in names:
                    raise ValueError(f"{name} follows a network that no loss trains")
                module.join()
                targets.append((module, names[id(module.network)]))
        return targets
