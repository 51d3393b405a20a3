"""Actors and policy workers as processes of this machine: started, looked after, begun anew, ended.

Processes are spawned, not forked: a forked process inherits torch's locks and may hang. Each notes what it is doing in
a table in shared memory. One that is killed is begun anew; one that fails by itself ends the run with its own words.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from multiprocessing.process import BaseProcess
from typing import Any

from zerozoo.distributed.messages import Message
from zerozoo.distributed.policy_worker import PolicyWorker
from zerozoo.distributed.shared_memory import Region, SharedInference, SharedSamples, SharedWeights
from zerozoo.distributed.streams import InlineInference
from zerozoo.distributed.workers import Setup
from zerozoo.runs.errors import UserError

START_SECONDS = 180.0  # for the imports of a process on a busy machine
STOP_SECONDS = 2.0  # a worker may need that long to close its environments
EARLY_DEATHS = 3  # a worker that dies so often before it was ready will never be
POLL = 0.05  # seconds that a worker waits before it looks whether it should end
PHASES = (
    "starting",
    "waiting for actions",
    "stepping its environments",
    "waiting for room in the sample stream",
    "waiting for requests",
    "computing actions",
    "ended",
)
STARTING, WAITING = 0, ("waiting for actions", "waiting for room in the sample stream", "waiting for requests")


class WorkerTable:
    """What each worker is doing, in shared memory: phase, since when, inference so far, and its last words."""

    COLUMNS, WORDS = 6, 512  # phase, since (ns), batches, rows, inference (ns), bytes of the last words

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._region = Region(8 + workers * (8 * self.COLUMNS + self.WORDS))
        self._open()
        for number in range(workers):
            self.reset(number)

    def _open(self) -> None:
        self._signal = self._region.words(0, 1)  # 0: get ready, 1: work, 2: end
        row = 8 * self.COLUMNS + self.WORDS
        self._rows = [self._region.words(8 + n * row, self.COLUMNS) for n in range(self.workers)]
        self._texts = [self._region.view(8 + n * row + 8 * self.COLUMNS, self.WORDS) for n in range(self.workers)]

    def reset(self, number: int) -> None:
        """A worker begins anew; what it computed before still counts."""
        self._rows[number][5] = 0
        self.enter(number, PHASES[STARTING])

    def enter(self, number: int, phase: str) -> None:
        """The worker does this from now on."""
        self._rows[number][1] = time.monotonic_ns()
        self._rows[number][0] = PHASES.index(phase)

    def phase(self, number: int) -> tuple[str, float]:
        """What it is doing, and for how many seconds."""
        index, since = self._rows[number][0], self._rows[number][1]
        return PHASES[index], (time.monotonic_ns() - since) / 1e9

    def add_inference(self, number: int, batches: int, rows: int, seconds: float) -> None:
        """Counts inference."""
        for column, value in ((2, batches), (3, rows), (4, round(seconds * 1e9))):
            self._rows[number][column] += value

    def inference(self) -> tuple[int, int, float]:
        """Batches, rows and seconds of all workers."""
        batches, rows, nanoseconds = (sum(row[column] for row in self._rows) for column in (2, 3, 4))
        return batches, rows, nanoseconds / 1e9

    def say(self, number: int, words: str) -> None:
        """The last words of a worker that cannot go on."""
        content = words.encode()[: self.WORDS]
        self._texts[number][: len(content)] = content
        self._rows[number][5] = len(content)

    def words(self, number: int) -> str:
        """Its last words, or nothing."""
        return bytes(self._texts[number][: self._rows[number][5]]).decode(errors="replace")

    def go(self) -> None:
        """Lets all workers begin at once: whoever was ready first has nothing done by then."""
        self._signal[0] = 1

    def stop(self) -> None:
        """Asks all workers to end."""
        self._signal[0] = 2

    @property
    def stopped(self) -> bool:
        """Whether they should end."""
        return self._signal[0] == 2

    def wait_to_go(self) -> None:
        """Returns when the workers may begin, or should end."""
        while self._signal[0] == 0:
            time.sleep(0.001)

    def close(self) -> None:
        """Gives the memory back."""
        self._region.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"workers": self.workers, "_region": self._region}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()


@dataclass(frozen=True)
class Links:
    """What a worker process is given beside the setup. `inference` is None where the policy is in the actor."""

    table: WorkerTable
    samples: SharedSamples
    weights: SharedWeights
    inference: SharedInference | None


def actor_process(setup: Setup, links: Links, row: int, number: int, incarnation: int) -> None:
    """The whole life of an actor's process."""
    table = links.table

    def live() -> None:
        worker: PolicyWorker | None = None
        stream: Any = links.inference
        if stream is None:
            stream = InlineInference()
            worker = setup.policy_worker(stream, links.weights, setup.pull_seconds)
            worker.phase = lambda phase: table.enter(row, phase)
            stream.serve = _reporting(worker, table, row)
        actor = setup.actor(number, stream, links.samples.sender(number), incarnation=incarnation)
        actor.phase = lambda phase: table.enter(row, phase)
        table.enter(row, "waiting for actions")
        table.wait_to_go()
        while not table.stopped:
            actor.poll(POLL)
        actor.close()

    _live(table, row, live)


def policy_process(setup: Setup, links: Links, row: int, number: int) -> None:
    """The whole life of a policy worker's process."""
    table = links.table

    def live() -> None:
        assert links.inference is not None
        worker = setup.policy_worker(links.inference.server(number), links.weights, setup.pull_seconds)
        worker.phase = lambda phase: table.enter(row, phase)
        serve = _reporting(worker, table, row)
        table.enter(row, "waiting for requests")
        while not table.stopped:
            serve()

    _live(table, row, live)


def _reporting(worker: PolicyWorker, table: WorkerTable, row: int) -> Callable[[], object]:
    """One batch of the worker, counted in the table."""

    def serve() -> None:
        before = worker.batches, worker.rows, worker.seconds
        if worker.poll(POLL):
            table.add_inference(row, worker.batches - before[0], worker.rows - before[1], worker.seconds - before[2])
        elif worker.version < 0:
            time.sleep(POLL)  # no weights yet

    return serve


def _live(table: WorkerTable, row: int, live: Callable[[], None]) -> None:
    # Ctrl-C reaches every process of the terminal; the trainer decides when the workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_parent()
    import torch

    torch.set_num_threads(1)  # every process has a core; more threads would wait for each other
    try:
        live()
    except UserError as error:
        table.say(row, str(error))
        os._exit(2)
    except BaseException:
        table.say(row, traceback.format_exc().strip().splitlines()[-1])
        traceback.print_exc()
        os._exit(1)
    table.enter(row, "ended")
    os._exit(0)  # without the garbage collector, which would close memory that is still looked at


def _end_with_parent() -> None:
    """A killed trainer leaves nothing running."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that are started meanwhile ignore Ctrl-C from their first moment on."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Worker:
    name: str
    row: int
    spawn: Callable[[int], BaseProcess]  # of an incarnation
    process: BaseProcess
    incarnation: int = 0
    early_deaths: int = 0
    warned: bool = False


class ProcessWorkers:
    """See `trainer.Workers`. `samples` and `weights` are the trainer's ends of the streams.

    servers: policy workers; 0: each actor has the policy in its process. stuck_seconds: how long a worker may do one
    thing other than wait before it counts as stuck; say: gets a line for the person who watches.
    """

    def __init__(
        self, setup: Setup, servers: int, queue_size: int, stuck_seconds: float, say: Callable[[str], None]
    ) -> None:
        self.setup, self.servers, self.stuck_seconds, self.say = setup, servers, stuck_seconds, say
        self.restarts = 0
        self._inference = (0, 0, 0.0)
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._owned: list[Any] = []
        layouts = setup.layouts()
        try:
            self.samples = self._own(SharedSamples(setup.actors, queue_size, layouts["sample"], self._context))
            self.weights = self._own(SharedWeights(layouts["weights"]))
            self.table = self._own(WorkerTable(setup.actors + servers))
            inference = None
            if servers:
                cells = (layouts["request"], layouts["reply"])
                inference = SharedInference(setup.actors, setup.ring_size, servers, *cells, self._context)
                self._own(inference)
            self.links = Links(self.table, self.samples, self.weights, inference)
        except BaseException:
            self.close()
            raise

    def _own(self, stream: Any) -> Any:
        self._owned.append(stream)
        return stream

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {worker.name: worker.process.pid or 0 for worker in self._workers}

    def start(self) -> None:
        actors, servers = range(self.setup.actors), range(self.servers)
        for number in servers:
            self._add(f"policy worker {number}", policy_process, number, counted=False)
        for number in actors:
            self._add(f"actor {number}", actor_process, number, counted=True)
        until = time.monotonic() + START_SECONDS
        while any(self.table.phase(worker.row)[0] == PHASES[STARTING] for worker in self._workers):
            self.work(0.0)
            if time.monotonic() > until:
                raise UserError(f"The worker processes were not ready within {START_SECONDS:.0f} s.")
            time.sleep(POLL)
        self.table.go()

    def _add(self, name: str, target: Callable[..., None], number: int, counted: bool) -> None:
        row = len(self._workers)

        def spawn(incarnation: int) -> BaseProcess:
            last = (incarnation,) if counted else ()
            process = self._context.Process(
                target=target, args=(self.setup, self.links, row, number, *last), name=name, daemon=True
            )
            with _interrupts_ignored():
                process.start()
            return process

        self._workers.append(_Worker(name, row, spawn, spawn(0)))

    def work(self, waited: float) -> None:
        for worker in self._workers:
            if not worker.process.is_alive():
                self._bury(worker)
        self._look_for_stuck(waited)

    def _bury(self, worker: _Worker) -> None:
        """Begins a killed worker anew; UserError for one that failed by itself."""
        code = worker.process.exitcode
        if code is None or code >= 0:
            words = self.table.words(worker.row) or f"it ended with exit code {code}"
            raise UserError(f"{worker.name} could not go on: {words.rstrip('.')}.")
        if self.table.phase(worker.row)[0] == PHASES[STARTING]:
            worker.early_deaths += 1
            if worker.early_deaths >= EARLY_DEATHS:
                raise UserError(f"{worker.name} was killed {EARLY_DEATHS} times before it was ready (signal {-code}).")
        else:
            worker.early_deaths = 0
        worker.incarnation += 1
        self.restarts += 1
        self.say(f"{worker.name} was killed by signal {-code}; it begins anew.")
        self.table.reset(worker.row)
        worker.process = worker.spawn(worker.incarnation)

    def _look_for_stuck(self, waited: float) -> None:
        """Names a worker that does one thing for too long; UserError if the trainer gets nothing from the others."""
        phases = [(worker, *self.table.phase(worker.row)) for worker in self._workers]
        if any(phase == PHASES[STARTING] and seconds < START_SECONDS for _, phase, seconds in phases):
            return  # imports take their time
        late = [row for row in phases if row[2] > self.stuck_seconds]
        busy = [row for row in late if row[1] not in WAITING]
        for worker, phase, seconds in busy:
            if not worker.warned:
                self.say(f"{worker.name} has been {phase} for {seconds:.0f} s.")
                worker.warned = True
        if waited > self.stuck_seconds and len(late) == len(phases):
            worker, phase, seconds = (busy or late)[0]
            raise UserError(f"{worker.name} is stuck: it has been {phase} for {seconds:.0f} s, and all others wait.")

    def inference(self) -> tuple[int, int, float]:
        return self.table.inference() if self._owned else self._inference

    def state(self) -> Message:
        """Nothing: what worker processes were in the middle of is lost with them."""
        return {}

    def load_state(self, state: Message) -> None:
        raise ValueError("worker processes keep no state")

    def close(self) -> None:
        if not self._owned:
            return
        if hasattr(self, "table"):
            self.table.stop()
        until = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, until - time.monotonic()))
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()
        if hasattr(self, "table"):
            self._inference = self.table.inference()
        for stream in self._owned:
            stream.close()
        self._owned.clear()
