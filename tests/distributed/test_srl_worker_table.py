"""What worker processes note in shared memory, and what the trainer makes of it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from zerozoo.distributed import worker_processes
from zerozoo.distributed.placement import trainer_threads
from zerozoo.distributed.worker_processes import PHASES, START_SECONDS, ProcessWorkers, WorkerTable, _Worker
from zerozoo.runs.errors import UserError


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the table, in seconds."""
    time = [100.0]
    clock = SimpleNamespace(monotonic_ns=lambda: round(time[0] * 1e9), monotonic=lambda: time[0], sleep=None)
    monkeypatch.setattr(worker_processes, "time", clock)
    return time


@pytest.fixture
def table(now: list[float]) -> Iterator[WorkerTable]:
    made = WorkerTable(2)
    yield made
    made.close()


def test_phases_and_counts_are_seen_by_whoever_has_the_table(table: WorkerTable, now: list[float]) -> None:
    there: WorkerTable = pickle.loads(pickle.dumps(table))  # as it travels to a process
    assert table.phase(1) == ("starting", 0.0)
    there.enter(1, "computing actions")
    now[0] = 102.5
    assert table.phase(1) == ("computing actions", 2.5)
    assert table.phase(0) == ("starting", 2.5)
    there.add_inference(1, 2, 20, 0.5)
    there.add_inference(1, 1, 5, 0.25)
    there.add_inference(0, 1, 1, 0.25)
    assert table.inference() == (4, 26, 1.0)
    there.say(0, "no display")
    assert (table.words(0), table.words(1)) == ("no display", "")
    table.reset(0)
    assert (table.words(0), table.inference()) == ("", (4, 26, 1.0))
    table.go()
    there.wait_to_go()
    assert not there.stopped
    table.stop()
    assert there.stopped
    there.close()


def test_long_last_words_are_cut(table: WorkerTable) -> None:
    table.say(1, "ä" * 1000)
    assert table.words(1).startswith("äää")
    assert len(table.words(1)) <= WorkerTable.WORDS


class Process:
    """Alive until a test says otherwise."""

    exitcode: int | None = None
    pid = 1

    def is_alive(self) -> bool:
        return self.exitcode is None


@pytest.fixture
def workers(table: WorkerTable) -> Any:
    """A policy worker and an actor that are only entries in the table."""
    made = ProcessWorkers.__new__(ProcessWorkers)
    made.table, made.stuck_seconds, made.restarts = table, 60.0, 0
    made.said = []  # type: ignore[attr-defined]
    made.say = made.said.append  # type: ignore[attr-defined]
    rows = enumerate(("policy worker 0", "actor 0"))
    made._workers = [_Worker(name, row, lambda life: Process(), Process()) for row, name in rows]  # type: ignore
    for row, phase in enumerate(("waiting for requests", "stepping its environments")):
        table.enter(row, phase)
    return made


def test_a_worker_is_stuck_when_it_works_too_long_and_nothing_else_comes(workers: Any, now: list[float]) -> None:
    now[0] += 59
    workers.work(waited=59.0)
    assert workers.said == []
    now[0] += 2
    workers.work(waited=1.0)  # slow, but samples come from others
    workers.work(waited=1.0)
    assert workers.said == ["actor 0 has been stepping its environments for 61 s."]
    with pytest.raises(UserError, match="actor 0 is stuck: it has been stepping its environments for 61 s, and all"):
        workers.work(waited=61.0)


def test_nobody_is_stuck_while_somebody_works(workers: Any, now: list[float]) -> None:
    now[0] += 100
    workers.table.enter(0, "computing actions")
    workers.work(waited=100.0)


def test_a_worker_that_starts_has_time_for_its_imports(workers: Any, now: list[float]) -> None:
    workers.table.reset(1)
    now[0] += START_SECONDS - 1
    workers.work(waited=START_SECONDS - 1)
    now[0] += 2
    with pytest.raises(UserError, match="actor 0 is stuck: it has been starting"):
        workers.work(waited=START_SECONDS + 1)


def test_a_killed_worker_begins_anew_but_not_for_ever(workers: Any) -> None:
    actor = workers._workers[1]
    actor.process.exitcode = -9
    workers.work(0.0)
    assert (workers.restarts, actor.incarnation, actor.process.exitcode) == (1, 1, None)
    assert workers.table.phase(1)[0] == PHASES[0]
    for _ in range(2):  # killed before it was ready
        actor.process.exitcode = -9
        workers.work(0.0)
    actor.process.exitcode = -9
    with pytest.raises(UserError, match="actor 0 was killed 3 times before it was ready"):
        workers.work(0.0)


def test_a_worker_that_fails_ends_the_run(workers: Any) -> None:
    workers.table.say(1, "The environment is broken.")
    workers._workers[1].process.exitcode = 2
    with pytest.raises(UserError, match=r"^actor 0 could not go on: The environment is broken\.$"):
        workers.work(0.0)
    workers._workers[1].process = Process()
    workers._workers[0].process.exitcode = 0
    with pytest.raises(UserError, match="policy worker 0 could not go on: it ended with exit code 0"):
        workers.work(0.0)


def test_the_trainer_leaves_a_core_to_each_worker() -> None:
    assert trainer_threads(threads=8, cores=8, workers=3) == 5
    assert trainer_threads(threads=2, cores=2, workers=2) == 1
    assert trainer_threads(threads=1, cores=16, workers=2) == 1
    assert trainer_threads(threads=4, cores=2, workers=0) == 4
