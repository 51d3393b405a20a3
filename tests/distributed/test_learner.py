"""A learner without Ray: a run as torchrun's processes have it, told to whoever asks."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zerozoo.distributed.learner import Assignment, Learner, Place, rank_environment
from zerozoo.runs import interrupts
from zerozoo.runs.errors import UserError
from zerozoo.runs.interrupts import Interrupts, stop_after_step
from zerozoo.runs.run import Run

HERE = Place("node", "10.0.0.1", 1234)


@dataclass(frozen=True)
class Config:
    seed: int = 3
    steps: int = 2


def assignment(directory: Path, train: Any, **options: Any) -> Assignment:
    return Assignment("recipe", Config(), train, str(directory), workers=0, **options)


def two_steps(config: Config, run: Run) -> dict[str, float]:
    run.say("begins")
    for step in range(config.steps + 1):
        run.log(step, {"reward": 0.5 * step})
        run.sample([{"step": step, "response": "7"}])
    return {"reward": 1.0}


def test_it_trains_and_tells_everything_once_and_in_order(tmp_path: Path) -> None:
    learner = Learner(0, 1)
    assert not learner.pulse().opened
    outcome = learner.train(assignment(tmp_path / "run", two_steps), HERE)
    assert (outcome.kind, outcome.metrics) == ("done", {"reward": 1.0})
    news = learner.pulse()
    assert news.opened
    assert [event[0] for event in news.events] == ["say", "log", "show", "log", "show", "log", "show"]
    assert news.events[0] == ("say", "begins")
    assert news.events[3] == ("log", (1, {"reward": 0.5}))
    assert news.events[4] == ("show", [{"step": 1, "response": "7"}])
    assert learner.pulse().events == []
    assert [row["step"] for row in Run.open(tmp_path / "run").history()] == [0, 1, 2]
    assert Run.open(tmp_path / "run").seed == 3


def test_another_rank_writes_nothing(tmp_path: Path) -> None:
    first, second = Learner(0, 2), Learner(1, 2)
    assert not second.sees(str(tmp_path / "run"))
    first.train(assignment(tmp_path / "run", lambda config, run: {}), HERE)
    assert second.sees(str(tmp_path / "run"))
    assert second.train(assignment(tmp_path / "run", two_steps), HERE).kind == "done"
    assert second.pulse().events == []
    assert Run.open(tmp_path / "run").history() == []


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # put back after a learner has set it
        monkeypatch.delenv(name)


def test_what_torchrun_would_have_told() -> None:
    assert rank_environment(0, 1, HERE, gpu=False) == {}
    place = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "WORLD_SIZE": "3"}
    assert rank_environment(2, 3, HERE, gpu=False) == {**place, "RANK": "2", "LOCAL_RANK": "2"}
    # Ray shows a process its own GPU alone.
    assert rank_environment(2, 3, HERE, gpu=True) == {**place, "RANK": "2", "LOCAL_RANK": "0"}


@pytest.mark.parametrize("logged", [False, True])
def test_a_refusal_is_told_and_an_unused_directory_removed(tmp_path: Path, logged: bool) -> None:
    def refuse(config: Config, run: Run) -> dict[str, float]:
        if logged:
            run.log(0, {"reward": 0.0})
        raise UserError("No.")

    outcome = Learner(0, 1).train(assignment(tmp_path / "run", refuse), HERE)
    assert (outcome.kind, outcome.message) == ("refused", "No.")
    assert (tmp_path / "run").exists() is logged


def test_a_directory_in_use_is_refused_and_left_by_the_first_learners_and_waited_for_by_later_ones(
    tmp_path: Path,
) -> None:
    holder = f"import time; from zerozoo.runs.run import Run; run = Run({str(tmp_path / 'run')!r}); run.log(0, {{}})"
    holder += "; print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    (tmp_path / "run" / "config.json").write_text('{"recipe": "recipe", "seed": 3, "config": {"seed": 3, "steps": 2}}')
    outcome = Learner(0, 1).train(assignment(tmp_path / "run", two_steps), HERE)
    assert outcome.kind == "refused"
    assert f"in use by process {process.pid}" in outcome.message
    assert (tmp_path / "run").exists()
    threading.Timer(0.5, process.kill).start()
    again = assignment(tmp_path / "run", lambda config, run: {}, restarted=True)
    assert Learner(0, 1).train(again, HERE).kind == "done"
    process.wait()


def test_an_error_of_ours_is_raised(tmp_path: Path) -> None:
    def fail(config: Config, run: Run) -> dict[str, float]:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        Learner(0, 1).train(assignment(tmp_path / "run", fail), HERE)


def test_it_stops_after_a_step_when_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_asked", type(interrupts._asked)())
    learner = Learner(0, 1)

    def train(config: Config, run: Run) -> dict[str, float]:
        with Interrupts(run.say) as interrupt:
            for step in range(10):
                run.log(step, {})
                if step == 1:
                    learner.stop()
                if interrupt.requested:
                    raise KeyboardInterrupt
        return {}

    assert learner.train(assignment(tmp_path / "run", train), HERE).kind == "interrupted"
    assert [row["step"] for row in Run.open(tmp_path / "run").history()] == [0, 1]


def test_a_wish_to_stop_is_kept_for_a_loop_that_begins_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_asked", type(interrupts._asked)())
    with Interrupts(print) as interrupt:
        assert not interrupt.requested
    stop_after_step()
    with Interrupts(print) as interrupt:
        assert interrupt.requested
