"""What a process does, told from its stack, and the watchdog that names who stands still."""

from __future__ import annotations

import threading

import pytest

from zerozoo.distributed.pulse import IDLE, Activity, State, Watchdog, phase_of
from zerozoo.language import samplers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("calls", "words", "waits"),
    [
        ([("threading", "run")], "starting", False),
        ([("zerozoo.language.zero_rl", "step")], "language.zero_rl.step", False),
        (
            [("zerozoo.language.zero_rl", "step"), ("zerozoo.language.update", "update"), ("torch.optim", "step")],
            "update (language.update.update)",
            False,
        ),
        (
            [("zerozoo.language.evaluation", "evaluate"), ("zerozoo.language.samplers.native", "write")],
            "evaluation > sampling (language.samplers.native.write)",
            False,
        ),
        (
            [
                ("zerozoo.language.update", "update"),
                ("zerozoo.language.parallel", "add"),
                ("torch.distributed", "wait"),
            ],
            "update > waiting for the other learners (language.parallel.add)",
            True,
        ),
        (
            [("zerozoo.distributed.learner", "train"), ("zerozoo.distributed.chunks", "result"), ("threading", "wait")],
            "waiting for the rollout workers (distributed.chunks.result)",
            True,
        ),
        # The exchange is on the stack, but what is under way is sampling.
        (
            [("zerozoo.language.parallel", "sample"), ("zerozoo.language.samplers.native", "write")],
            "sampling (language.samplers.native.write)",
            False,
        ),
    ],
)
def test_the_words_for_a_stack(calls: list[tuple[str, str]], words: str, waits: bool) -> None:
    assert phase_of(calls) == (words, waits)


def test_a_thread_that_waits_keeps_its_mark_and_one_that_works_does_not() -> None:
    activity = Activity("worker")
    assert activity.state() == State("worker")
    first, second = threading.Event(), threading.Event()

    def work() -> None:
        with activity.working():
            first.wait()
            second.wait()

    thread = threading.Thread(target=work)
    thread.start()
    marks = []
    for event in (first, second):
        still = activity.state()
        for _ in range(100_000):  # until the thread has reached its event
            again = activity.state()
            if again == still and still.phase != IDLE and still.mark not in marks:
                break
            still = again
        assert activity.state() == still
        marks.append(still.mark)
        event.set()
    thread.join()
    assert len(set(marks)) == 2
    assert activity.state() == State("worker", mark=1)


def test_whoever_moves_or_is_idle_is_not_named() -> None:
    clock = Clock()
    watchdog = Watchdog(60, clock)
    for second in range(0, 200, 10):
        clock.now = 100.0 + second
        watchdog.see(State("learner 0", "update", mark=second))
        watchdog.see(State("worker 0", IDLE, mark=7))
        assert watchdog.complaints() == []


def test_who_stands_still_is_named_once_in_every_span() -> None:
    clock = Clock()
    watchdog = Watchdog(60, clock)
    named = []
    for second in range(0, 151, 10):
        clock.now = 100.0 + second
        watchdog.see(State("learner 1", "update (language.update.update)", mark=5))
        named += [(second, sentence) for sentence in watchdog.complaints()]
    assert named == [
        (60, "Learner 1 has not moved for 60 s: update (language.update.update)."),
        (120, "Learner 1 has not moved for 120 s: update (language.update.update)."),
    ]


def test_who_waits_is_named_only_when_everybody_stands_still() -> None:
    clock = Clock()
    watchdog = Watchdog(60, clock)
    for second in range(0, 121, 10):
        clock.now = 100.0 + second
        watchdog.see(State("learner 0", "waiting for the rollout workers", mark=1, waits=True))
        watchdog.see(State("rollout worker 0", "sampling", mark=second))
        assert watchdog.complaints() == []
    for second in range(130, 171, 10):  # now the worker has stopped, too
        clock.now = 100.0 + second
        watchdog.see(State("learner 0", "waiting for the rollout workers", mark=1, waits=True))
        watchdog.see(State("rollout worker 0", "sampling", mark=120))
        assert watchdog.complaints() == []
    clock.now = 100.0 + 180
    assert watchdog.complaints() == [
        "Learner 0 has not moved for 180 s: waiting for the rollout workers.",
        "Rollout worker 0 has not moved for 60 s: sampling.",
    ]


def test_who_does_not_answer_is_named_with_what_it_did_last() -> None:
    clock = Clock()
    watchdog = Watchdog(60, clock)
    watchdog.expect("learner 0")
    watchdog.see(State("learner 0", "checkpoint (runs.checkpoints.save)", mark=3))
    clock.now += 61
    assert watchdog.silent("learner 0") == 61
    assert watchdog.complaints() == [
        "Learner 0 has not answered for 61 s; it was last seen in: checkpoint (runs.checkpoints.save)."
    ]
    watchdog.forget("learner 0")
    clock.now += 100
    assert watchdog.complaints() == []


def test_the_phases_are_modules_that_exist() -> None:
    from importlib import import_module

    from zerozoo.distributed.pulse import PHASES, WAITING

    assert samplers.__name__ in PHASES
    for module in (*PHASES, *WAITING):
        import_module(module)
