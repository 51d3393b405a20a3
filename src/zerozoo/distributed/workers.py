"""What actors and policy workers are made from, and all of them in one process.

Placements: "inline", everything in the trainer's process; "actors", each actor a process that has the policy in it
(IMPALA, Espeholt et al. 2018, arXiv 1802.01561); "central", actors ask policy workers in processes of their own (SEED,
Espeholt et al. 2020, arXiv 1910.06591).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Generator

from zerozoo.control.agent import Agent
from zerozoo.control.sources import World
from zerozoo.control.spec import Spec
from zerozoo.distributed.actors import Actor
from zerozoo.distributed.messages import Layout, Message, map_arrays
from zerozoo.distributed.policy_worker import PolicyWorker, acting_weights
from zerozoo.distributed.sample_buffer import ORIGIN
from zerozoo.distributed.streams import (
    InferenceClient,
    InferenceServer,
    InlineInference,
    InlineSamples,
    InlineWeights,
    SampleSender,
    WeightsReader,
)
from zerozoo.runs.errors import UserError
from zerozoo.runs.streams import Streams

PLACEMENTS = ("inline", "actors", "central")


@dataclass(frozen=True)
class Setup:
    """What every worker needs to know; it travels to worker processes.

    Attributes:
        world: the environment.
        agent: makes an agent from (spec, config, generator); what acts is its policy and normaliser.
        config: for the agent.
        seed: of the run. An actor's streams depend on it, its number and how often it was begun anew.
        actors, ring_size, copies: actors, slots of each, environments in each slot.
        sample_steps: steps of a sample.
        inference_cap, pull_seconds, uniform_first: see `PolicyWorker`.
    """

    world: World
    agent: Callable[[Spec, Any, Generator], Agent]
    config: Any
    seed: int
    actors: int
    ring_size: int
    copies: int
    sample_steps: int
    inference_cap: int
    pull_seconds: float
    uniform_first: bool = False

    def __post_init__(self) -> None:
        for name in ("actors", "ring_size", "copies", "sample_steps", "inference_cap"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}.")

    def actor(
        self,
        number: int,
        inference: InferenceClient,
        samples: SampleSender,
        streams: Streams | None = None,
        incarnation: int = 0,
    ) -> Actor:
        """Actor `number`; with an incarnation above 0 it plays other episodes than the one it replaces."""
        streams = streams or Streams(self.seed)
        suffix = f"/{incarnation}" if incarnation else ""
        first = number * self.ring_size
        environments = [
            self.world.vector(self.copies, streams.numpy(f"environment/{place}{suffix}"))
            for place in range(first, first + self.ring_size)
        ]
        generator = streams.torch(f"actions/{number}{suffix}")
        spec = Spec.of_spaces(environments[0].observation_space, environments[0].action_space)
        return Actor(environments, spec, inference, samples, generator, self.sample_steps, number, first)

    def policy_worker(self, server: InferenceServer, weights: WeightsReader, pull_seconds: float) -> PolicyWorker:
        """A policy worker with an agent of its own."""
        agent = self.agent(self.world.spec(), self.config, Streams(self.seed).torch("agent"))
        return PolicyWorker(agent, server, weights, self.inference_cap, pull_seconds, uniform_first=self.uniform_first)

    def layouts(self) -> dict[str, Layout]:
        """Layouts of "request", "reply", "sample" and "weights", from one step in the environment."""
        inference, samples, weights = InlineInference(), InlineSamples(), InlineWeights()
        worker = self.policy_worker(inference, weights, 0.0)
        weights.publish(0, acting_weights(worker.agent))
        actor = self.actor(0, inference, samples, Streams(0))
        actor.sample_steps = 1
        actor.poll()
        request = inference.state()["requests"]["0"]
        worker.poll()
        reply = inference.state()["replies"]["0"]
        actor.poll()
        (sample,) = samples.pull()
        actor.close()
        steps = {name: sample[name] for name in sample if name != ORIGIN}
        longer = map_arrays(lambda array: np.repeat(array, self.sample_steps, axis=0), steps)
        examples = {
            "request": request,
            "reply": reply,
            "sample": {**longer, ORIGIN: sample[ORIGIN]},
            "weights": acting_weights(worker.agent),
        }
        return {name: Layout.of(example) for name, example in examples.items()}


class InlineWorkers:
    """All actors and one policy worker in this process: nothing happens beside the trainer, everything in turn.

    The policy worker looks for new weights before every batch: a clock would make the run unrepeatable.
    """

    restarts = 0

    def __init__(self, setup: Setup, streams: Streams, samples: InlineSamples, weights: InlineWeights) -> None:
        self.inference_stream = InlineInference()
        self.policy = setup.policy_worker(self.inference_stream, weights, 0.0)
        self.inference_stream.serve = self.policy.poll
        numbers = range(setup.actors)
        self.actors = [setup.actor(number, self.inference_stream, samples, streams) for number in numbers]

    def start(self) -> None:
        """They are ready."""

    def work(self, waited: float) -> None:
        """One step of the head of every actor's ring."""
        for actor in self.actors:
            actor.poll()

    def inference(self) -> tuple[int, int, float]:
        return self.policy.batches, self.policy.rows, self.policy.seconds

    def state(self) -> Message:
        actors = {str(actor.number): actor.state() for actor in self.actors}
        # The policy worker takes the published weights before its next batch: it has nothing of its own.
        return {"actors": actors, "inference": self.inference_stream.state()}

    def load_state(self, state: Message) -> None:
        for actor in self.actors:
            actor.load_state(state["actors"][str(actor.number)])
        self.inference_stream.load_state(state["inference"])

    def close(self) -> None:
        """Closes the environments."""
        for actor in self.actors:
            actor.close()
