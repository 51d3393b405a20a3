"""Stages: what one gives reaches the next, and a kill goes on in the right one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.language.stages import Outputs, Stage, prepare, run_stages
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run


class Killed(BaseException):
    """Ends a run from inside as a kill does: nothing catches it."""


class Training:
    """Counts to `steps` from the number that the stage before has written; a checkpoint every other step."""

    def __init__(self, name: str, steps: int, before: str = "", dies_at: int = 0) -> None:
        self.name, self.steps, self.before, self.dies_at = name, steps, before, dies_at
        self.done: list[int] = []

    def __call__(self, run: Run, outputs: Mapping[str, Outputs]) -> Outputs:
        checkpoint = run.load()
        start, total = 0, torch.zeros(())
        if checkpoint is not None:
            start, total = checkpoint.step, checkpoint.tensors["total"]
        elif self.before:
            total = torch.tensor(float(outputs[self.before].files["number"].read_text()))
        run.rewind(start if checkpoint else -1)
        if start == 0:
            run.log(0, {"total": float(total)})
        for step in range(start + 1, self.steps + 1):
            total = total + 1 + torch.rand((), generator=run.stream("noise"))
            run.log(step, {"total": float(total)})
            run.sample([{"step": step, "text": self.name}, {"text": "without step"}])
            self.done.append(step)
            if step == self.dies_at:
                raise Killed
            if step % 2 == 0 or step == self.steps:
                run.save(step, {"total": total}, {})
        run.path("number").write_text(str(float(total)))
        return Outputs({"number": run.path("number")}, {"total": float(total), "broken": float("nan")})


def stages(*dies_at: int) -> tuple[list[Training], list[Stage]]:
    first, second, third = dies_at or (0, 0, 0)
    works = [
        Training("sft", 3, dies_at=first),
        Training("dpo", 5, "sft", dies_at=second),
        Training("rl", 2, "dpo", dies_at=third),
    ]
    return works, [Stage(work.name, work) for work in works]


def rows(run: Run) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "time"} for row in run.history()]


def test_stages_pass_on_files_and_numbers_and_log_one_behind_another(tmp_path):
    run = Run(tmp_path / "run", seed=4)
    said: list[str] = []
    run.say = said.append
    works, parts = stages()
    outputs = run_stages(run, parts)
    assert list(outputs) == ["sft", "dpo", "rl"]
    assert outputs["dpo"].files["number"] == tmp_path / "run" / "stages" / "2-dpo" / "number"
    assert outputs["rl"].metrics["total"] == float(outputs["rl"].files["number"].read_text()) > 10
    assert [(row["step"], row["stage"]) for row in rows(run)] == [
        *((step, 1) for step in range(4)),
        *((step, 2) for step in range(4, 10)),
        *((step, 3) for step in range(10, 13)),
    ]
    totals = [row["total"] for row in rows(run)]
    assert totals == sorted(totals)
    assert [row["step"] for row in rows(Run(tmp_path / "run" / "stages" / "2-dpo"))] == list(range(6))
    samples = run.samples()
    assert [row["step"] for row in samples if row["text"] == "dpo"] == [5, 6, 7, 8, 9]
    assert {row["stage"] for row in samples if "step" not in row} == {1, 2, 3}
    assert said == [f"Stage {number} of 3: {work.name}." for number, work in enumerate(works, start=1)]


def test_stages_draw_numbers_of_their_own(tmp_path):
    _, parts = stages()
    run_stages(Run(tmp_path / "run"), parts)
    noise = []
    for name in ("1-sft", "2-dpo"):
        totals = [row["total"] for row in rows(Run(tmp_path / "run" / "stages" / name))]
        noise.append(totals[1] - totals[0])
    assert noise[0] != noise[1]


@pytest.mark.parametrize(("dies_at", "left"), [((2, 0, 0), [[1, 2, 3], 5, 2]), ((0, 4, 0), [[], [3, 4, 5], 2])])
def test_a_kill_goes_on_in_the_right_stage_at_the_right_step(tmp_path, dies_at, left):
    whole, parts = stages()
    unbroken = Run(tmp_path / "unbroken")
    expected = run_stages(unbroken, parts)
    _, parts = stages(*dies_at)
    run = Run(tmp_path / "run")
    with pytest.raises(Killed):
        run_stages(run, parts)
    run.close()
    again, parts = stages()
    outputs = run_stages(Run(tmp_path / "run"), parts)
    assert again[0].done == left[0]
    assert again[1].done == (left[1] if isinstance(left[1], list) else list(range(1, left[1] + 1)))
    assert again[2].done == [1, 2] == whole[2].done
    assert rows(Run(tmp_path / "run")) == rows(unbroken)
    assert outputs["rl"].metrics["total"] == expected["rl"].metrics["total"]
    with_step = [[row for row in one.samples() if "step" in row] for one in (Run(tmp_path / "run"), unbroken)]
    assert with_step[0] == with_step[1]


def test_a_finished_run_calls_nothing_again(tmp_path):
    _, parts = stages()
    first = run_stages(Run(tmp_path / "run"), parts)
    again, parts = stages()
    second = run_stages(Run(tmp_path / "run"), parts)
    assert [work.done for work in again] == [[], [], []]
    assert {name: one.files for name, one in first.items()} == {name: one.files for name, one in second.items()}
    assert second["rl"].metrics["total"] == first["rl"].metrics["total"]
    record = json.loads((tmp_path / "run" / "stages" / "1-sft" / "done.json").read_text())
    assert record["metrics"].keys() == {"total"}  # strict JSON has no NaN


def test_a_moved_run_still_finds_its_files(tmp_path):
    _, parts = stages()
    run = Run(tmp_path / "run")
    run_stages(run, parts)
    run.close()
    (tmp_path / "run").rename(tmp_path / "moved")
    outputs = run_stages(Run(tmp_path / "moved"), parts)
    assert outputs["sft"].files["number"].is_file()


def test_files_that_are_not_there(tmp_path):
    def gives(path: Path) -> Stage:
        return Stage("one", lambda run, _: Outputs({"model": path}))

    with pytest.raises(ValueError, match="not in its directory"):
        run_stages(Run(tmp_path / "missing"), [gives(tmp_path / "missing" / "stages" / "1-one" / "model")])
    with pytest.raises(ValueError, match="not in its directory"):
        run_stages(Run(tmp_path / "outside"), [gives(tmp_path)])
    _, parts = stages()
    run_stages(Run(tmp_path / "run"), parts)
    (tmp_path / "run" / "stages" / "1-sft" / "number").unlink()
    with pytest.raises(UserError, match=r"1-sft is done, but its number is gone; delete .*done.json to repeat it"):
        run_stages(Run(tmp_path / "run"), parts)
    with pytest.raises(ValueError, match="name of its own"):
        run_stages(Run(tmp_path / "twice"), [parts[0], parts[0]])


def test_stages_before_a_training_leave_its_curves_alone(tmp_path):
    _, parts = stages()
    with Run(tmp_path / "run", seed=3) as run:
        outputs = prepare(run, parts)
        assert run.history() == []
        assert run.samples() == []
    inside = tmp_path / "run" / "preparation"
    assert outputs["sft"].files["number"] == inside / "stages" / "1-sft" / "number"
    alone = run_stages(Run(tmp_path / "alone", seed=3), stages()[1])
    assert outputs["rl"].metrics == alone["rl"].metrics
    assert rows(Run(inside)) == rows(Run(tmp_path / "alone"))
    _, parts = stages(0, 3, 0)  # not called again, so it does not die
    with Run(tmp_path / "run", seed=3) as run:
        assert prepare(run, parts)["rl"].metrics == outputs["rl"].metrics
