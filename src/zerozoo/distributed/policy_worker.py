"""The policy worker: answers whatever has been asked since its last batch, with the newest weights it knows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from zerozoo.control.agent import Agent
from zerozoo.control.policies import Categorical, Gaussian
from zerozoo.control.spec import Spec
from zerozoo.distributed.messages import Message, concatenate, split
from zerozoo.distributed.streams import InferenceServer, WeightsReader

_ACTING = ("policy.", "normaliser.")  # parts of an agent that acting needs


def acting_weights(agent: Agent) -> Message:
    """Copies of what the agent acts with: name in its state_dict -> array."""
    own = agent.state_dict()
    return {name: own[name].numpy().copy() for name in own if name.startswith(_ACTING)}


def load_acting_weights(agent: Agent, weights: Message) -> None:
    """Puts `acting_weights` of another agent into this one. ValueError if they have other names."""
    own = {name: value for name, value in agent.state_dict().items() if name.startswith(_ACTING)}
    if own.keys() != weights.keys():
        raise ValueError(f"the weights belong to another agent: {sorted(own.keys() ^ weights.keys())}")
    for name, value in own.items():
        value.copy_(torch.from_numpy(weights[name]))


def draw_noise(spec: Spec, rows: int, generator: Generator) -> np.ndarray:
    """What `respond` needs to draw an action for each of N rows: (N, A) exponential or (N, m) normal numbers.

    The actor draws it and sends it along: an action then depends on neither who answers nor what else is asked.
    """
    noise = torch.empty(rows, spec.action_size)
    noise = noise.exponential_(generator=generator) if spec.discrete else noise.normal_(generator=generator)
    return noise.numpy()


@torch.no_grad()
def respond(policy: Any, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions (N,) or (N, m), not clipped, and log-probs (N,): the draw of `policy.sample` that has this noise.

    Discrete: argmax_a p_a / e_a with e_a ~ Exp(1) has the probabilities p (Yellott 1977); torch.multinomial does the
    same. Gaussian: mean + deviation * noise, and tanh of it where the policy is squashed. TypeError for another policy.
    """
    if isinstance(policy, Categorical):
        log_probs = policy.log_probs(obs)
        action = (log_probs.exp() / noise).argmax(-1, keepdim=True)
        return action.squeeze(-1), log_probs.gather(-1, action).squeeze(-1)
    if isinstance(policy, Gaussian):
        return policy.draw(obs, noise)
    raise TypeError(f"a policy worker answers with a Categorical or a Gaussian, not {type(policy)}")


def respond_uniformly(spec: Spec, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform actions (N,) or (N, m) in [-1, 1] from the noise of `respond`, and their log-probs (N,).

    Discrete: the smallest of A exponential numbers is equally often each of them. Continuous: 2 Phi(noise) - 1, which
    is erf(noise / sqrt(2)), with Phi the distribution function of the standard normal.
    """
    rows = len(noise)
    if spec.discrete:
        return noise.argmin(-1), torch.full((rows,), -math.log(spec.action_size))
    return torch.erf(noise / math.sqrt(2)), torch.full((rows,), -spec.action_size * math.log(2))


def ignore(phase: str) -> None:
    """Nobody wants to know."""


class PolicyWorker:
    """Takes all pending requests at once (dynamic batch), answers them, and takes new weights now and then.

    Attributes:
        agent: its policy and normaliser answer; its own weights do not count.
        server: where requests come from.
        weights: where versions come from; nothing is answered before the first.
        cap: rows of a batch at most, but at least one request.
        pull_seconds: between two looks for new weights; 0: before every batch.
        uniform_first: version 0, which has learned nothing, answers with uniform actions; the policy is not asked.
        version: of the weights it answers with, -1 before the first.
        batches, rows, seconds: how many batches it computed, of how many rows together, and how long that took.
    """

    def __init__(
        self,
        agent: Agent,
        server: InferenceServer,
        weights: WeightsReader,
        cap: int,
        pull_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        uniform_first: bool = False,
    ) -> None:
        self.agent, self.server, self.weights = agent.eval(), server, weights
        self.cap, self.pull_seconds, self.clock, self.uniform_first = cap, pull_seconds, clock, uniform_first
        self.phase: Callable[[str], None] = ignore  # hears what the worker begins to do
        self.version = -1
        self.batches, self.rows, self.seconds = 0, 0, 0.0
        self._pulled = -np.inf

    def poll(self, wait: float = 0.0) -> int:
        """One batch; how many rows it had. Waits up to `wait` seconds for the first request."""
        if self.version < 0:
            self.pull()
            if self.version < 0:
                return 0
        requests = self.server.receive(self.cap, wait)
        if not requests:
            return 0
        self.phase("computing actions")
        self.pull()
        began = time.perf_counter()
        reply = self._answer(concatenate([request for _, request in requests]))
        self.seconds += time.perf_counter() - began
        sizes = [len(request["obs"]) for _, request in requests]
        for (place, _), part in zip(requests, split(reply, sizes), strict=True):
            self.server.answer(place, part)
        self.batches += 1
        self.rows += sum(sizes)
        self.phase("waiting for requests")
        return sum(sizes)

    def pull(self) -> None:
        """Takes newer weights, if it is time to look and there are some."""
        now = self.clock()
        if now - self._pulled < self.pull_seconds and self.version >= 0:
            return
        self._pulled = now
        newest = self.weights.read(self.version)
        if newest is not None:
            self.version, weights = newest
            load_acting_weights(self.agent, weights)

    def _answer(self, requests: Message) -> Message:
        obs, noise = torch.from_numpy(requests["obs"]), torch.from_numpy(requests["noise"])
        if self.uniform_first and self.version == 0:
            action, log_prob = respond_uniformly(self.agent.spec, noise)
        else:
            scaled = obs if self.agent.normaliser is None else self.agent.normaliser(obs)
            action, log_prob = respond(self.agent.policy, scaled, noise)
        version = np.full(len(obs), self.version, dtype=np.int32)
        return {"action": action.numpy(), "log_prob": log_prob.numpy(), "version": version}
