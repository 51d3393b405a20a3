"""How fast a cluster would train and how old its responses would be: a discrete-event model fed with measured times.

    python -m zerozoo.distributed.forecast --workers 1 2 4 --tokens-per-second 900 --update-seconds 30

It follows the engine: batches are cut by `groups_per_chunk`, handed over `max_lag` steps ahead of the step that trains
on them (`language.collect`), written in the order of the batches by whoever is free (`worker_pool`), with the weights
of the moment at which they were handed over. What takes time:

- the first learner hands out one chunk after the other, `hand_seconds` each;
- a node fetches each version once, when the first of its workers needs it. All fetches share the learner's network and
  follow one another: the last of n arrives after n x weight_bytes / bytes_per_second, as it would with fair shares. Ray
  lets nodes pass weights on to each other, too; that is not counted on;
- a chunk takes chunk_seconds + prompt tokens / prompt_tokens_per_second + longest response x token_seconds
  + response tokens / tokens_per_second: what a worker needs however few rows it writes, and what many rows cost it;
- a step ends `update_seconds` after its last chunk was written and the step before it had ended.

Not in the model: `slice_tokens`, `refill_rounds`, evaluation, checkpoints, the loss of a learner or of an idle worker.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from zerozoo.distributed.chunks import TRIES, groups_per_chunk
from zerozoo.runs.errors import UserError


def _number(default: float, text: str, low: float = 0, high: float = math.inf, above: bool = False) -> Any:
    """A field: what it is, and from where to where (`above`: more than `low`) it may lie."""
    return field(default=default, metadata={"text": text, "low": low, "high": high, "above": above})


class _Checked:
    def __post_init__(self) -> None:
        """Raises UserError for a number out of its range."""
        for one in fields(self):  # type: ignore[arg-type]
            value, low, high, above = (
                getattr(self, one.name),
                *(one.metadata[name] for name in ("low", "high", "above")),
            )
            infinite = value == math.inf and not one.name.endswith("_per_second")  # at such a rate things take no time
            if not low <= value <= high or (above and value == low) or infinite:
                least = f"more than {low:g}" if above else f"at least {low:g}"
                most = "" if high == math.inf else f" and at most {high:g}"
                flag = "--" + one.name.replace("_", "-")
                raise UserError(f"{flag} is {value:g}, but must be a number of {least}{most}.")


@dataclass(frozen=True)
class Work(_Checked):
    """What a run does; the names are those of the recipes' config.

    Lengths of responses are drawn from a gamma distribution, then cut at `max_new_tokens`.
    """

    steps: int = _number(20, "steps to simulate", 1)
    prompts_per_step: int = _number(1024, "problems in a step", 1)
    samples_per_prompt: int = _number(8, "responses to each", 1)
    max_lag: int = _number(0, "steps that are written ahead", 0)
    rows_at_once: int = _number(256, "responses that a worker writes side by side", 1)
    prompt_tokens: float = _number(0.0, "mean tokens of a prompt", 0)
    response_tokens: float = _number(1.0, "mean tokens of a response, before the cut", 0, above=True)
    response_spread: float = _number(0.0, "standard deviation of their number / mean; 0: all alike", 0)
    max_new_tokens: int = _number(0, "at which responses are cut; 0: never", 0)


@dataclass(frozen=True)
class Times(_Checked):
    """What was measured. Tokens are those of all rows of a worker together, except in `token_seconds`."""

    tokens_per_second: float = _number(math.inf, "response tokens/s of one worker that writes many rows", 0, above=True)
    token_seconds: float = _number(0.0, "seconds of one worker for each token of the longest row", 0)
    prompt_tokens_per_second: float = _number(math.inf, "prompt tokens/s that one worker reads", 0, above=True)
    chunk_seconds: float = _number(0.0, "seconds of a worker for a chunk besides its tokens", 0)
    hand_seconds: float = _number(0.0, "seconds in which the learner hands out one chunk", 0)
    update_seconds: float = _number(0.0, "seconds/step - seconds/sample of the learners", 0)
    weight_bytes: float = _number(0.0, "bytes of one version of the weights", 0)
    bytes_per_second: float = _number(math.inf, "bytes/s that leave the first learner's node", 0, above=True)


@dataclass(frozen=True)
class Cluster(_Checked):
    """Who writes, and how well."""

    workers: int = _number(1, "rollout workers", 1)
    workers_per_node: int = _number(1, "of them that share one copy of the weights", 1)
    slow_share: float = _number(0.0, "share of the workers that are slow", 0, 1)
    slow_factor: float = _number(1.0, "how many times as long those take to write", 1)
    failure_seconds: float = _number(0.0, "mean seconds of writing until a worker is lost; 0: never", 0)
    restart_seconds: float = _number(0.0, "seconds until another one is in its place", 0)


@dataclass
class Forecast:
    """What came of a simulated run, from the first batch that was handed over to the end of the last update.

    Attributes:
        workers: how many.
        ends: seconds at which each step ended.
        waits: seconds in which the learner waited for the responses of each step.
        ages: updates between the weights that wrote the responses of each step and those trained; a batch is written by
            one version, so this is the mean and the highest of its responses.
        tokens: response tokens trained.
        chunks: times that each chunk of each step was written.
        writing, fetching: seconds of all workers together, without what was lost.
        fetches: versions that nodes have fetched.
        lost: workers.
    """

    workers: int
    ends: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)
    tokens: float = 0.0
    chunks: list[list[int]] = field(default_factory=list)
    writing: float = 0.0
    fetching: float = 0.0
    fetches: int = 0
    lost: int = 0

    @property
    def seconds(self) -> float:
        return self.ends[-1]

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / len(self.ends)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else math.inf

    @property
    def waiting(self) -> float:
        """Share of the time in which the learner waits."""
        return sum(self.waits) / self.seconds if self.seconds else 0.0

    @property
    def utilisation(self) -> float:
        """Share of the time in which a worker writes, mean over the workers."""
        return self.writing / (self.workers * self.seconds) if self.seconds else 0.0


def simulate(work: Work, times: Times, cluster: Cluster, seed: int = 0) -> Forecast:
    """Simulate a run. The lengths of responses depend on seed and step alone, not on who writes them.

    Raises UserError when a chunk has cost as many workers as the engine puts up with.
    """
    return _Simulation(work, times, cluster, seed).run()


WRITTEN, LOST, BACK, TRAINED = range(4)  # kinds of events


class _Simulation:
    def __init__(self, work: Work, times: Times, cluster: Cluster, seed: int) -> None:
        self.work, self.times, self.cluster, self.seed = work, times, cluster, seed
        self.result = Forecast(cluster.workers)
        self.events: list[tuple[float, int, int, int, int, int]] = []  # time, order, kind, worker, step, chunk
        self.order = 0
        self.free = deque(range(cluster.workers))
        self.chance = np.random.default_rng([seed, 0])
        slow = self.chance.permutation(cluster.workers)[: round(cluster.slow_share * cluster.workers)].tolist()
        self.slowness = [1.0] * cluster.workers
        for worker in slow:
            self.slowness[worker] = cluster.slow_factor
        self.nodes = -(-cluster.workers // cluster.workers_per_node)
        self.arrived: dict[int, float] = {}  # when a version is on a node, by version x nodes + node
        self.link_free = self.hand_free = 0.0
        self.waiting: deque[tuple[int, int]] = deque()  # (step, chunk)
        self.durations: list[list[float]] = []  # of the chunks of each step, and likewise:
        self.tries: list[list[int]] = []
        self.missing: list[int] = []
        self.versions: list[int] = []
        self.asked, self.step = 0.0, 0

    def run(self) -> Forecast:
        self._begin_step(0, 0.0)
        while len(self.result.ends) < self.work.steps:
            self._hand_out()
            now, _, kind, worker, step, chunk = heapq.heappop(self.events)
            self.now = now
            if kind == WRITTEN:
                self._written(worker, step, chunk)
            elif kind == LOST:
                self._lost(worker, step, chunk)
            elif kind == BACK:
                self.free.append(worker)
            else:
                self.result.ends.append(now)
                if step + 1 < self.work.steps:
                    self._begin_step(step + 1, now)
        return self.result

    def _begin_step(self, step: int, now: float) -> None:
        """The learner has trained `step` steps, which is the version of its weights."""
        self.now = self.asked = now
        self.step = step
        while len(self.versions) <= min(step + self.work.max_lag, self.work.steps - 1):
            self._submit(step)
        if not self.missing[step]:
            self._train()

    def _submit(self, version: int) -> None:
        """Cut the next batch, and have it written by weights of `version`."""
        work, step = self.work, len(self.versions)
        lengths = self._lengths(step)
        total, samples = work.prompts_per_step, work.samples_per_prompt
        starts = np.arange(0, total, groups_per_chunk(total, samples, self.cluster.workers, work.rows_at_once))
        prompts = np.diff(starts, append=total)
        durations = (
            self.times.chunk_seconds
            + prompts * work.prompt_tokens / self.times.prompt_tokens_per_second
            + np.maximum.reduceat(lengths.max(1), starts) * self.times.token_seconds
            + np.add.reduceat(lengths.sum(1), starts) / self.times.tokens_per_second
        )
        self.durations.append(durations.tolist())
        self.tries.append([0] * len(starts))
        self.result.chunks.append([0] * len(starts))
        self.missing.append(len(starts))
        self.versions.append(version)
        self.waiting.extend((step, chunk) for chunk in range(len(starts)))
        self.result.tokens += float(lengths.sum())

    def _lengths(self, step: int) -> np.ndarray:
        """(prompts, samples) tokens."""
        work, shape = self.work, (self.work.prompts_per_step, self.work.samples_per_prompt)
        if variance := work.response_spread**2:
            draw = np.random.default_rng([self.seed, 1, step])
            lengths = draw.gamma(1 / variance, work.response_tokens * variance, shape)
        else:
            lengths = np.full(shape, work.response_tokens)
        return np.minimum(lengths, work.max_new_tokens) if work.max_new_tokens else lengths

    def _hand_out(self) -> None:
        while self.waiting and self.free:
            worker, (step, chunk) = self.free.popleft(), self.waiting.popleft()
            start = self.hand_free = max(self.now, self.hand_free) + self.times.hand_seconds
            ready = max(start, self._arrival(worker // self.cluster.workers_per_node, self.versions[step], start))
            end = ready + self.durations[step][chunk] * self.slowness[worker]
            if self.cluster.failure_seconds:
                dies = start + self.chance.exponential(self.cluster.failure_seconds)
                if dies < end:
                    self._later(dies, LOST, worker, step, chunk)
                    continue
            self.result.fetching += ready - start
            self.result.writing += end - ready
            self._later(end, WRITTEN, worker, step, chunk)

    def _arrival(self, node: int, version: int, now: float) -> float:
        """When a version is on a node; who asks first has it fetched."""
        key = version * self.nodes + node
        if key not in self.arrived:
            self.link_free = max(now, self.link_free) + self.times.weight_bytes / self.times.bytes_per_second
            self.arrived[key] = self.link_free
            self.result.fetches += 1
        return self.arrived[key]

    def _written(self, worker: int, step: int, chunk: int) -> None:
        self.free.append(worker)
        self.result.chunks[step][chunk] += 1
        self.missing[step] -= 1
        if not self.missing[step] and step == self.step:
            self._train()

    def _lost(self, worker: int, step: int, chunk: int) -> None:
        self.result.lost += 1
        self.tries[step][chunk] += 1
        if self.tries[step][chunk] >= TRIES:
            raise UserError(
                f"{TRIES} workers were lost over one chunk, after which a run ends: they fail too often for chunks that"
                f" take {self.durations[step][chunk]:.0f} s."
            )
        self.waiting.appendleft((step, chunk))
        self._later(self.now + self.cluster.restart_seconds, BACK, worker)

    def _train(self) -> None:
        self.result.waits.append(self.now - self.asked)
        self.result.ages.append(self.step - self.versions[self.step])
        self._later(self.now + self.times.update_seconds, TRAINED, step=self.step)

    def _later(self, time: float, kind: int, worker: int = 0, step: int = 0, chunk: int = 0) -> None:
        self.order += 1  # events of one moment come in the order in which they were foreseen
        heapq.heappush(self.events, (time, self.order, kind, worker, step, chunk))
