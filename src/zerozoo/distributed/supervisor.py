"""The driver of a run on Ray: places the learners, watches them, and starts them again when one is lost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from zerozoo.distributed.learner import Assignment, Learner, News, Outcome, Place
from zerozoo.distributed.pulse import State, Watchdog
from zerozoo.distributed.ray_actors import actor_class, aside, reason_of
from zerozoo.runs.errors import UserError
from zerozoo.runs.interrupts import Interrupts

STANDSTILL_SECONDS = 60.0  # after which the watchdog names who has not moved; silent learners are replaced after twice
TICK = 0.2  # seconds between two looks
PULSE_EVERY = 1.0
RESTARTS = 3  # of the learners, without a new step in between
GRACE_SECONDS = 20.0  # for the news that one learner is lost, when another has raised an error


class Screen(Protocol):
    """The person who watches."""

    def say(self, text: str) -> None: ...

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


class LostError(Exception):
    """A learner is gone; the message says which and why."""


@dataclass
class _Member:
    """One learner as the driver sees it."""

    actor: Any
    placing: Any
    place: Place | None = None
    training: Any = None
    question: Any = None
    asked: float = 0.0
    news: News | None = None


@dataclass
class Supervisor:
    """Trains one run with `learners` processes.

    Attributes:
        resources: of a learner, as options of a Ray actor.
        standstill: see `STANDSTILL_SECONDS`.
        retries: see `RESTARTS`.
        restarts: how often the learners were started again.
    """

    assignment: Assignment
    learners: int
    screen: Screen
    resources: Mapping[str, Any] = field(default_factory=dict)
    standstill: float = STANDSTILL_SECONDS
    retries: int = RESTARTS
    restarts: int = 0
    members: list[_Member] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.assignment = replace(self.assignment, patience=2 * self.standstill)
        self.furthest = -1  # highest step that was logged
        self._watchdog = Watchdog(self.standstill)

    def run(self) -> Outcome:
        """Train to the end.

        Raises:
            UserError: the learners were lost again and again.
            KeyboardInterrupt: at the second Ctrl-C; every process has ended then.
            RayTaskError: a learner has raised an error that is not the loss of another one.
        """
        in_vain = 0
        with Interrupts(self.screen.say) as interrupts:
            while True:
                before = self.furthest
                try:
                    self._start()
                    return self._watch(interrupts)
                except LostError as error:
                    in_vain = in_vain + 1 if self.furthest <= before else 1
                    if interrupts.requested:
                        self.screen.say(f"{error} The run ends with the newest checkpoint.")
                        return Outcome("interrupted")
                    if in_vain > self.retries:
                        raise UserError(
                            f"{error} The learners were started {in_vain} times without a new step; what is saved in"
                            f" {self.assignment.directory} can be resumed."
                        ) from None
                    self.restarts += 1
                    self.assignment = replace(self.assignment, restarted=True)
                    self.screen.say(f"{error} The learners start again from the newest checkpoint.")
                finally:
                    self._end()

    def _start(self) -> None:
        actor = actor_class(Learner)
        options = {"num_cpus": 1, **self.resources}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        for rank in range(self.learners):
            # The first learner writes the run directory, so it should have the disk of whoever started the run.
            placed = actor.options(**options, **({"scheduling_strategy": here} if rank == 0 else {}))
            learner = placed.remote(rank, self.learners)
            self.members.append(_Member(learner, learner.place.remote()))
            self._watchdog.expect(f"learner {rank}")

    def _end(self) -> None:
        """Kill the learners, and with them the rollout workers, which the first one has made."""
        for rank, member in enumerate(self.members):
            ray.kill(member.actor)
            self._watchdog.forget(f"learner {rank}")
        self._forget_workers()
        self.members = []

    def _watch(self, interrupts: Interrupts) -> Outcome:
        told = False
        while True:
            self._advance()
            for rank in range(self.learners):
                self._listen(rank)
            for sentence in self._watchdog.complaints():
                self.screen.say(sentence)
            if interrupts.requested and not told and self.members[0].training is not None:
                aside(self.members[0].actor.stop)
                told = True
            elif interrupts.requested and not told:  # nothing has begun
                return Outcome("interrupted")
            outcome = self._outcome()
            if outcome is not None:
                return outcome

    def _advance(self) -> None:
        """Start what can start: the first learner when all have a place, the others when the run directory is there."""
        for rank, member in enumerate(self.members):
            if member.place is None and ray.wait([member.placing], timeout=0)[0]:
                member.place = self._get(member.placing, rank)
        first = self.members[0]
        if any(member.place is None for member in self.members) or first.place is None:
            return
        if first.training is None:
            first.training = self._train(first, first.place)
        elif first.news is not None and first.news.opened:
            for rank, member in enumerate(self.members):
                if member.training is None:
                    if not self._get(member.actor.sees.remote(self.assignment.directory), rank):
                        raise UserError(
                            f"Learner {rank} does not see the run directory {self.assignment.directory}: take a"
                            " --directory on a disk that all nodes share."
                        )
                    member.training = self._train(member, first.place)

    def _train(self, member: _Member, meeting: Place) -> Any:
        return member.actor.train.remote(self.assignment, meeting)

    def _listen(self, rank: int) -> None:
        """Take the answer of a learner, pass it on, and ask again."""
        member, now = self.members[rank], time.monotonic()
        if member.place is None:
            self._watchdog.see(State(f"learner {rank}", "waiting for a place in the cluster", waits=True))
        elif member.question is None:
            if now - member.asked >= PULSE_EVERY:
                member.asked = now
                member.question = aside(member.actor.pulse)
        elif ray.wait([member.question], timeout=0)[0]:
            member.news = self._get(member.question, rank)
            member.question = None
            self._pass_on(member.news)
        elif self._watchdog.silent(f"learner {rank}") > 2 * self.standstill:
            raise LostError(f"Learner {rank} has not answered for {2 * self.standstill:.0f} s.")

    def _pass_on(self, news: News) -> None:
        for state in news.states:
            self._watchdog.see(state)
        for kind, content in news.events:
            if kind == "log":
                self.furthest = max(self.furthest, content[0])
                self.screen.log(*content)
            elif kind == "show":
                self.screen.show(content)
            else:
                self.screen.say(content)

    def _forget_workers(self) -> None:
        for number in range(self.assignment.workers):
            self._watchdog.forget(f"rollout worker {number}")

    def _outcome(self) -> Outcome | None:
        """How it ended, once the first learner has ended or any has refused."""
        training = {rank: one.training for rank, one in enumerate(self.members) if one.training is not None}
        if not training:
            time.sleep(TICK)
            return None
        ready, _ = ray.wait(list(training.values()), num_returns=len(training), timeout=TICK)
        outcomes = {rank: self._get(one, rank) for rank, one in training.items() if one in ready}
        refused = [outcome for outcome in outcomes.values() if outcome.kind == "refused"]
        if refused:
            return refused[0]
        if 0 not in outcomes or len(outcomes) < self.learners:
            return None
        first = self.members[0]
        for reference in (
            first.question,
            aside(first.actor.pulse),
        ):  # what a question under way has taken is not told again
            if reference is not None:
                self._pass_on(self._get(reference, 0))
        return outcomes[0]

    def _get(self, reference: Any, rank: int) -> Any:
        """What a learner gives; LostError when it is gone, or has failed because another one is."""
        try:
            return ray.get(reference)
        except RayTaskError:
            self._raise_if_lost()
            raise
        except RayError as error:
            raise LostError(f"Learner {rank} was lost ({reason_of(error)}).") from None

    def _raise_if_lost(self) -> None:
        """An exchange with a learner that is gone fails in the others, perhaps before Ray knows of the loss."""
        if self.learners == 1:
            return
        deadline = time.monotonic() + GRACE_SECONDS
        waiting = {rank: aside(member.actor.pulse) for rank, member in enumerate(self.members)}
        while waiting and time.monotonic() < deadline:
            for rank, reference in list(waiting.items()):
                if not ray.wait([reference], timeout=TICK)[0]:
                    continue
                try:
                    self._pass_on(ray.get(reference))
                except RayError as error:
                    raise LostError(f"Learner {rank} was lost ({reason_of(error)}).") from None
                del waiting[rank]
