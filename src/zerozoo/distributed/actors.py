"""The actor: a ring of vector environments that are stepped in turn, each when its actions have arrived.

While the environments of one slot wait for their actions those of the next are stepped, so that simulation and
inference overlap. The ring goes round strictly: no slot is stepped twice before all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Generator

from zerozoo.control.spec import Spec
from zerozoo.distributed.messages import Message, stack, take
from zerozoo.distributed.policy_worker import draw_noise, ignore
from zerozoo.distributed.streams import InferenceClient, SampleSender
from zerozoo.environments.vector import VecEnv


@dataclass
class Slot:
    """One place of the ring: N copies of an environment, what they show, and the steps since the last sample."""

    place: int
    environment: VecEnv
    obs: np.ndarray | None = None  # (N, *) what the request under way shows; None before the first reset
    rows: list[Message] = field(default_factory=list)
    sent: int = 0  # samples so far


class Actor:
    """Steps environments, asks for actions, and sends samples.

    A sample has T steps of the N copies of one slot, arrays (T, N, ...): obs, action (as drawn, not clipped), log_prob
    (of the policy that drew it), reward (the environment's own), next_obs (the true successor: the last one is the
    bootstrap step, and there is none across a reset), terminated, ended, returns and lengths (of the episode so far),
    version (of the weights that chose the action). `origin` (3,) is (actor, place, number of the sample): nothing
    carries one twice.

    Args:
        environments: one for each slot of the ring, from place `first_place` on.
        generator: of the noise of its actions.
        sample_steps: T.
    """

    def __init__(
        self,
        environments: Sequence[VecEnv],
        spec: Spec,
        inference: InferenceClient,
        samples: SampleSender,
        generator: Generator,
        sample_steps: int,
        number: int = 0,
        first_place: int = 0,
    ) -> None:
        if not environments or sample_steps < 1:
            raise ValueError("an actor needs environments and sample_steps >= 1")
        self.spec, self.inference, self.samples = spec, inference, samples
        self.generator, self.sample_steps, self.number = generator, sample_steps, number
        self.ring = deque(Slot(first_place + index, env) for index, env in enumerate(environments))
        self.phase: Callable[[str], None] = ignore  # hears what the actor begins to do
        self._unsent: Message | None = None

    def poll(self, wait: float = 0.0) -> bool:
        """Steps the slot at the head of the ring if its actions are there; whether it did.

        Waits up to `wait` seconds for the actions, or for room in the sample stream.
        """
        if self._unsent is not None and not self._send(wait):
            return False
        if self.ring[0].obs is None:
            self.phase("stepping its environments")
            for slot in self.ring:
                slot.obs = slot.environment.reset()
                self._ask(slot)
            self.phase("waiting for actions")
        slot = self.ring[0]
        reply = self.inference.poll(slot.place, wait)
        if reply is None:
            return False
        self.phase("stepping its environments")
        self._step(slot, reply)
        self.phase("waiting for actions" if self._unsent is None else "waiting for room in the sample stream")
        self.ring.rotate(-1)
        return True

    def close(self) -> None:
        """Closes the environments."""
        for slot in self.ring:
            slot.environment.close()

    def _ask(self, slot: Slot) -> None:
        noise = draw_noise(self.spec, slot.environment.copies, self.generator)
        self.inference.post(slot.place, {"obs": slot.obs, "noise": noise})

    def _step(self, slot: Slot, reply: Message) -> None:
        action = reply["action"]
        # The environment gets the clipped action; what is learned from is the one that was drawn (trap 23).
        step = slot.environment.step(action if self.spec.discrete else action.clip(-1, 1))
        slot.rows.append(
            {
                "obs": slot.obs,
                **reply,
                "reward": np.asarray(step.reward, dtype=np.float64),
                "next_obs": step.next_obs,
                "terminated": step.terminated,
                "ended": step.ended,
                "returns": step.returns,
                "lengths": step.lengths,
            }
        )
        slot.obs = step.obs
        self._ask(slot)
        if len(slot.rows) == self.sample_steps:
            origin = np.array([self.number, slot.place, slot.sent])
            self._unsent = {**stack(slot.rows), "origin": origin}
            slot.rows, slot.sent = [], slot.sent + 1
            self._send(0.0)

    def _send(self, wait: float) -> bool:
        assert self._unsent is not None
        if not self.samples.push(self._unsent, wait):
            return False
        self._unsent = None
        self.phase("waiting for actions")
        return True

    def state(self) -> Message:
        """The environments, which are in the middle of their episodes, and the steps that were not sent yet.

        The streams' own state and that of the generators is kept by their owners.
        """
        order = np.array([slot.place for slot in self.ring])
        state: Message = {"order": order} | ({"unsent": self._unsent} if self._unsent else {})
        for slot in self.ring:
            if slot.obs is not None:
                rows = {"rows": stack(slot.rows)} if slot.rows else {}
                kept = {"environment": slot.environment.state(), "sent": np.array(slot.sent), **rows}
                state[str(slot.place)] = kept
        return state

    def load_state(self, state: Message) -> None:
        """Goes back to `state`."""
        while [slot.place for slot in self.ring] != state["order"].tolist():
            self.ring.rotate(-1)
        self._unsent = state.get("unsent")
        for slot in self.ring:
            kept = state.get(str(slot.place))
            if kept is not None:
                slot.obs, slot.sent = slot.environment.load_state(kept["environment"]), int(kept["sent"])
                rows = kept.get("rows")
                slot.rows = [] if rows is None else [take(rows, t) for t in range(len(rows["ended"]))]
