"""Streams and workers on a Ray cluster. Imported only where the streams of a run are "ray".

Ray places the workers, carries the messages and notices what dies. All streams of a run meet in one actor beside the
trainer, the hub: it holds what was asked and not answered, sent and not pulled, and where in the object store the
newest weights are. A worker that is lost, alone or with its node, is begun anew elsewhere; what it was asked is still
in the hub.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zerozoo.distributed.connect import Needs, connected
from zerozoo.distributed.messages import Message, map_arrays
from zerozoo.distributed.policy_worker import PolicyWorker
from zerozoo.distributed.streams import InlineInference, Requests, first_rows
from zerozoo.distributed.worker_processes import EARLY_DEATHS, POLL, START_SECONDS, WAITING
from zerozoo.distributed.workers import Setup
from zerozoo.runs.errors import UserError

LOOK_SECONDS = 1.0  # between two questions to the workers what they are doing
LIVES = 2  # methods of a worker that run side by side: its life, and the answer to that question


class Hub:
    """What lies between the workers. One event loop: nothing happens twice at once, and waiting costs nothing."""

    def __init__(self, queue_size: int, ring_size: int, servers: int) -> None:
        self.queue_size, self.ring_size, self.servers = queue_size, ring_size, servers
        self.requests: dict[int, tuple[str, Message]] = {}  # place -> (token, message), in the order of posting
        self.replies: dict[int, tuple[str, Message]] = {}
        self.samples: deque[tuple[int, Message]] = deque()
        self.weights: tuple[int, list[Any]] | None = None
        self.changed = asyncio.Condition()

    async def _when(self, ready: Callable[[], bool], wait: float) -> bool:
        """Whether it is so within `wait` seconds."""
        async with self.changed:
            waiting: Awaitable[Any] = self.changed.wait_for(ready)
            try:
                await asyncio.wait_for(waiting, wait)
            except TimeoutError:
                return False
            return True

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def post(self, place: int, token: str, request: Message) -> None:
        self.requests.pop(place, None)
        self.requests[place] = token, request
        await self._tell()

    async def reply(self, place: int, token: str, wait: float) -> Message | None:
        def there() -> bool:
            return place in self.replies and self.replies[place][0] == token

        if not there() and not await self._when(there, wait):
            return None
        return self.replies.pop(place)[1]

    async def receive(self, server: int, cap: int, wait: float) -> tuple[Requests, list[str]]:
        def mine() -> list[int]:
            return [place for place in self.requests if place // self.ring_size % self.servers == server]

        await self._when(lambda: bool(mine()), wait)
        chosen = first_rows([(place, self.requests[place][1]) for place in mine()], cap)
        return chosen, [self.requests[place][0] for place, _ in chosen]

    async def answer(self, place: int, token: str, reply: Message) -> None:
        if place in self.requests and self.requests[place][0] == token:
            del self.requests[place]
            self.replies[place] = token, reply
            await self._tell()

    async def push(self, actor: int, sample: Message, wait: float) -> bool:
        def room() -> bool:
            return sum(other == actor for other, _ in self.samples) < self.queue_size

        if not room() and not await self._when(room, wait):
            return False
        self.samples.append((actor, sample))
        await self._tell()
        return True

    async def pull(self, wait: float) -> list[Message]:
        await self._when(lambda: bool(self.samples), wait)
        pulled = [sample for _, sample in self.samples]
        self.samples.clear()
        await self._tell()
        return pulled

    async def publish(self, version: int, boxed: list[Any]) -> None:
        self.weights = version, boxed

    async def newest(self, newer_than: int) -> tuple[int, list[Any]] | None:
        return self.weights if self.weights is not None and self.weights[0] > newer_than else None


class RayInference:
    """The actor's end of the inference stream. `name` tells this life of the actor from others."""

    def __init__(self, hub: Any, name: str) -> None:
        self.hub, self.name, self._count = hub, name, 0
        self._tokens: dict[int, str] = {}

    def post(self, place: int, request: Message) -> None:
        self._count += 1
        self._tokens[place] = f"{self.name}/{self._count}"
        self.hub.post.remote(place, self._tokens[place], request)

    def poll(self, place: int, wait: float = 0.0) -> Message | None:
        reply = ray.get(self.hub.reply.remote(place, self._tokens[place], wait))
        return None if reply is None else own(reply)


class RayServer:
    """The policy worker's end of the inference stream."""

    def __init__(self, hub: Any, number: int) -> None:
        self.hub, self.number = hub, number
        self._tokens: dict[int, str] = {}

    def receive(self, cap: int, wait: float = 0.0) -> Requests:
        requests, tokens = ray.get(self.hub.receive.remote(self.number, cap, wait))
        self._tokens = {place: token for (place, _), token in zip(requests, tokens, strict=True)}
        return [(place, own(request)) for place, request in requests]

    def answer(self, place: int, reply: Message) -> None:
        # Waited for: whoever asks for more before the hub has heard the answer would get the same request again.
        ray.get(self.hub.answer.remote(place, self._tokens[place], reply))


@dataclass
class RaySamples:
    """The sample stream: an actor pushes under its number, the trainer pulls."""

    hub: Any
    actor: int = 0

    def push(self, sample: Message, wait: float = 0.0) -> bool:
        return ray.get(self.hub.push.remote(self.actor, sample, wait))

    def pull(self, wait: float = 0.0) -> list[Message]:
        try:
            return [own(sample) for sample in ray.get(self.hub.pull.remote(wait))]
        except RayActorError:
            raise UserError("The streams of this run were lost with their process: resume it.") from None


class RayWeights:
    """The weights stream: they travel once a version and node, through the object store."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub

    def publish(self, version: int, weights: Message) -> None:
        ray.get(self.hub.publish.remote(version, [ray.put(weights)]))

    def read(self, newer_than: int) -> tuple[int, Message] | None:
        found = ray.get(self.hub.newest.remote(newer_than))
        return None if found is None else (found[0], own(ray.get(found[1][0])))


def own(message: Message) -> Message:
    """A copy that may be changed: what Ray gives is a view of its store."""
    return map_arrays(np.array, message)


class RemoteWorker:
    """One actor or policy worker of the run, in a process of Ray."""

    def __init__(self) -> None:
        self._phase, self._since, self._stopped = "starting", time.monotonic(), False
        self._policy: PolicyWorker | None = None

    def _enter(self, phase: str) -> None:
        self._phase, self._since = phase, time.monotonic()

    def look(self) -> tuple[str, float, tuple[int, int, float]]:
        """What it is doing, for how many seconds, and its inference so far."""
        policy = self._policy
        inference = (policy.batches, policy.rows, policy.seconds) if policy else (0, 0, 0.0)
        return self._phase, time.monotonic() - self._since, inference

    def stop(self) -> None:
        """Ends its life soon."""
        self._stopped = True

    def act(self, setup: Setup, hub: Any, number: int, incarnation: int, central: bool) -> None:
        """The whole life of an actor."""
        stream: Any = RayInference(hub, f"{number}/{incarnation}")
        if not central:
            stream = InlineInference()
            self._policy = setup.policy_worker(stream, RayWeights(hub), setup.pull_seconds)
            self._policy.phase = self._enter
            stream.serve = self._policy.poll
        actor = setup.actor(number, stream, RaySamples(hub, number), incarnation=incarnation)
        actor.phase = self._enter
        self._enter("waiting for actions")
        while not self._stopped:
            if not actor.poll(POLL) and not central:
                time.sleep(0.001)  # no weights yet, or no room
        actor.close()

    def serve(self, setup: Setup, hub: Any, number: int) -> None:
        """The whole life of a policy worker."""
        self._policy = setup.policy_worker(RayServer(hub, number), RayWeights(hub), setup.pull_seconds)
        self._policy.phase = self._enter
        self._enter("waiting for requests")
        while not self._stopped:
            if not self._policy.poll(POLL) and self._policy.version < 0:
                time.sleep(POLL)


@dataclass
class _Remote:
    name: str
    number: int
    acts: bool  # an actor, else a policy worker
    handle: Any = None
    life: Any = None  # the reference of what `act` or `serve` returns
    incarnation: int = 0
    early_deaths: int = 0
    seen: tuple[str, float, tuple[int, int, float]] = ("starting", 0.0, (0, 0, 0.0))
    warned: bool = False


class RayWorkers:
    """See `trainer.Workers` and `ProcessWorkers`. In a cluster that this process is part of, or else in its own."""

    def __init__(
        self, setup: Setup, servers: int, queue_size: int, stuck_seconds: float, say: Callable[[str], None]
    ) -> None:
        self.setup, self.servers, self.stuck_seconds, self.say = setup, servers, stuck_seconds, say
        self.restarts = 0
        self._lost = (0, 0, 0.0)  # inference of workers that were lost
        self._looked, self._closed = 0.0, False
        self._workers: list[_Remote] = []
        self._cluster = ExitStack()
        if not ray.is_initialized():
            self._cluster.enter_context(connected(None, Needs(1, setup.actors + servers)))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        make_hub = ray.remote(Hub).options(num_cpus=0, scheduling_strategy=here, max_concurrency=1000)
        self.hub = make_hub.remote(queue_size, setup.ring_size, max(servers, 1))
        self.samples, self.weights = RaySamples(self.hub), RayWeights(self.hub)

    @property
    def handles(self) -> dict[str, Any]:
        """Ray's handles of the workers by name."""
        return {worker.name: worker.handle for worker in self._workers if worker.handle is not None}

    def start(self) -> None:
        self._workers += [_Remote(f"policy worker {number}", number, acts=False) for number in range(self.servers)]
        self._workers += [_Remote(f"actor {number}", number, acts=True) for number in range(self.setup.actors)]
        for worker in self._workers:
            self._begin(worker)
        until = time.monotonic() + START_SECONDS
        while any(worker.seen[0] == "starting" for worker in self._workers):
            self._looked = 0.0
            self.work(0.0)
            if time.monotonic() > until:
                raise UserError(f"The workers were not ready within {START_SECONDS:.0f} s: has the cluster room?")
            time.sleep(POLL)

    def _begin(self, worker: _Remote) -> None:
        worker.handle = ray.remote(RemoteWorker).options(num_cpus=1, max_concurrency=LIVES).remote()
        given = self.setup, self.hub, worker.number
        if worker.acts:
            worker.life = worker.handle.act.remote(*given, worker.incarnation, bool(self.servers))
        else:
            worker.life = worker.handle.serve.remote(*given)

    def work(self, waited: float) -> None:
        lives = {worker.life: worker for worker in self._workers}
        ended, _ = ray.wait(list(lives), num_returns=len(lives), timeout=0)
        for life in ended:
            self._bury(lives[life])
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look(waited)
            self._looked = time.monotonic()

    def _bury(self, worker: _Remote) -> None:
        """Begins a lost worker anew; UserError for one that failed by itself."""
        try:
            ray.get(worker.life)
        except RayTaskError as error:
            words = str(error.cause).strip().splitlines()
            raise UserError(f"{worker.name} could not go on: {(words or ['no reason'])[0].rstrip('.')}.") from None
        except RayActorError:
            pass
        worker.early_deaths = worker.early_deaths + 1 if worker.seen[0] == "starting" else 0
        if worker.early_deaths >= EARLY_DEATHS:
            raise UserError(f"{worker.name} was lost {EARLY_DEATHS} times before it was ready.")
        self._lost = _sum(self._lost, worker.seen[2])
        worker.seen = ("starting", 0.0, (0, 0, 0.0))
        worker.incarnation += 1
        self.restarts += 1
        self.say(f"{worker.name} was lost; it begins anew.")
        self._begin(worker)

    def _look(self, waited: float) -> None:
        """Asks what they are doing, and names one that does one thing for too long."""
        asked = [(worker, worker.handle.look.remote()) for worker in self._workers]
        for worker, answer in asked:
            try:
                worker.seen = ray.get(answer, timeout=POLL if worker.seen[0] == "starting" else LOOK_SECONDS)
            except (GetTimeoutError, RayActorError):
                phase, seconds, inference = worker.seen
                worker.seen = phase, seconds + LOOK_SECONDS, inference
        late = [w for w in self._workers if w.seen[0] != "starting" and w.seen[1] > self.stuck_seconds]
        busy = [worker for worker in late if worker.seen[0] not in WAITING]
        for worker in busy:
            if not worker.warned:
                self.say(f"{worker.name} has been {worker.seen[0]} for {worker.seen[1]:.0f} s.")
                worker.warned = True
        if waited > self.stuck_seconds and len(late) == len(self._workers):
            name, (phase, seconds, _) = (busy or late)[0].name, (busy or late)[0].seen
            raise UserError(f"{name} is stuck: it has been {phase} for {seconds:.0f} s, and all others wait.")

    def inference(self) -> tuple[int, int, float]:
        total = self._lost
        for worker in self._workers:
            total = _sum(total, worker.seen[2])
        return total

    def state(self) -> Message:
        """Nothing: what workers were in the middle of is lost with them."""
        return {}

    def load_state(self, state: Message) -> None:
        raise ValueError("remote workers keep no state")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if ray.is_initialized():
            if self._workers:
                self._look(0.0)
            for handle in [*self.handles.values(), self.hub]:
                ray.kill(handle)
        self._cluster.close()


def _sum(one: tuple[int, int, float], other: tuple[int, int, float]) -> tuple[int, int, float]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
