"""The streams between workers, and the ones that stay in one process.

    inference   request and reply: an actor posts observations of a place, a policy worker answers with actions
    sample      push and pull: an actor pushes pieces of experience, the trainer pulls them
    weights     publish and read: the trainer publishes versions, policy workers read the newest

A place is a slot of an actor's ring, numbered over all actors; each has at most one request under way. Whoever uses a
stream does not see which kind it has: `streams` in one process, `shared_memory` between the processes of a machine,
`ray_streams` between the nodes of a cluster.

Source: Mei et al. 2024 (SRL), arXiv 2306.16688, section 4.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np

from zerozoo.distributed.messages import Message

Requests = list[tuple[int, Message]]  # (place, message)


class InferenceClient(Protocol):
    """The actor's end of an inference stream."""

    def post(self, place: int, request: Message) -> None:
        """Asks for actions: {"obs": (N, *), "noise": (N, *)}."""
        ...

    def poll(self, place: int, wait: float = 0.0) -> Message | None:
        """The reply to the last request, {"action", "log_prob", "version"} of N rows each; None: not after `wait` s."""
        ...


class InferenceServer(Protocol):
    """The policy worker's end of an inference stream."""

    def receive(self, cap: int, wait: float = 0.0) -> Requests:
        """All unanswered requests, first come first served, up to `cap` rows together but at least one request."""
        ...

    def answer(self, place: int, reply: Message) -> None:
        """Sends the reply to the request of a place."""
        ...


class SampleSender(Protocol):
    """The actor's end of a sample stream."""

    def push(self, sample: Message, wait: float = 0.0) -> bool:
        """Sends a sample; False if there was no room for it within `wait` seconds."""
        ...


class SampleReceiver(Protocol):
    """The trainer's end of a sample stream."""

    def pull(self, wait: float = 0.0) -> list[Message]:
        """All samples that have arrived; waits up to `wait` seconds for the first. No sample comes twice."""
        ...


class WeightsWriter(Protocol):
    """The trainer's end of a weights stream."""

    def publish(self, version: int, weights: Message) -> None:
        """Replaces what readers get."""
        ...


class WeightsReader(Protocol):
    """The policy worker's end of a weights stream."""

    def read(self, newer_than: int) -> tuple[int, Message] | None:
        """The newest weights with their version, if it is above `newer_than`."""
        ...


class InlineInference:
    """Both ends in one process. `serve` is called when a reply is asked for that is not there yet."""

    def __init__(self, serve: Callable[[], object] | None = None) -> None:
        self.serve = serve
        self._requests: dict[int, Message] = {}  # in the order of posting
        self._replies: dict[int, Message] = {}

    def post(self, place: int, request: Message) -> None:
        self._replies.pop(place, None)
        self._requests[place] = request

    def poll(self, place: int, wait: float = 0.0) -> Message | None:
        if place not in self._replies and self.serve is not None:
            self.serve()
        return self._replies.pop(place, None)

    def receive(self, cap: int, wait: float = 0.0) -> Requests:
        chosen = first_rows(list(self._requests.items()), cap)
        for place, _ in chosen:
            del self._requests[place]
        return chosen

    def answer(self, place: int, reply: Message) -> None:
        self._replies[place] = reply

    def state(self) -> Message:
        """Requests and replies under way."""
        named = {"requests": self._requests, "replies": self._replies}
        order = {"order": np.array(list(self._requests), dtype=np.int64)}
        return order | {kind: {str(place): m for place, m in kept.items()} for kind, kept in named.items()}

    def load_state(self, state: Message) -> None:
        requests, replies = state.get("requests", {}), state.get("replies", {})
        self._requests = {place: requests[str(place)] for place in state["order"].tolist()}
        self._replies = {int(place): reply for place, reply in replies.items()}


class InlineSamples:
    """Both ends in one process; room for any number of samples."""

    def __init__(self) -> None:
        self._samples: deque[Message] = deque()

    def push(self, sample: Message, wait: float = 0.0) -> bool:
        self._samples.append(sample)
        return True

    def pull(self, wait: float = 0.0) -> list[Message]:
        pulled = list(self._samples)
        self._samples.clear()
        return pulled


class InlineWeights:
    """Both ends in one process."""

    def __init__(self) -> None:
        self._newest: tuple[int, Message] | None = None

    def publish(self, version: int, weights: Message) -> None:
        self._newest = version, weights

    def read(self, newer_than: int) -> tuple[int, Message] | None:
        return self._newest if self._newest is not None and self._newest[0] > newer_than else None


class Publisher:
    """Publishes each version `delay` versions late, under its own number; 0: at once.

    The first version is published at once in any case: nobody can act without weights. A delay has no use but to show
    in an experiment what stale policies do.
    """

    def __init__(self, stream: WeightsWriter, delay: int = 0) -> None:
        if delay < 0:
            raise ValueError(f"the delay must not be negative, but is {delay}")
        self.stream, self.delay = stream, delay
        self.published = -1
        self._held: deque[tuple[int, Message]] = deque()

    def publish(self, version: int, weights: Message) -> None:
        """Takes the weights of the next version; they must not change afterwards."""
        self._held.append((version, weights))
        while self.published < 0 or (self._held and self._held[0][0] <= version - self.delay):
            number, content = self._held.popleft()
            if number > self.published:
                self.stream.publish(number, content)
                self.published, self._last = number, content

    def state(self) -> Message:
        """The version that is out and those that are held back."""
        if self.published < 0:
            return {}
        kept = [(self.published, self._last), *self._held]
        return {
            "versions": np.array([version for version, _ in kept]),
            "weights": {str(place): weights for place, (_, weights) in enumerate(kept)},
        }

    def load_state(self, state: Mapping[str, Message]) -> None:
        """Goes back to `state`, and publishes what was out then."""
        if not state:
            return
        kept = [(int(version), state["weights"][str(place)]) for place, version in enumerate(state["versions"])]
        (self.published, self._last), self._held = kept[0], deque(kept[1:])
        self.stream.publish(self.published, self._last)


def first_rows(requests: Requests, cap: int) -> Requests:
    """The first requests that have at most `cap` rows together; one at least, if there is one."""
    chosen: Requests = []
    rows = 0
    for place, request in requests:
        rows += len(request["obs"])
        if chosen and rows > cap:
            break
        chosen.append((place, request))
    return chosen
