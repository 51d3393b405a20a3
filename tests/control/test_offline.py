"""The offline loop, and what it shares with the others: rows, checkpoints, interrupts, resume, divergence."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zerozoo.control.agent import Adam, Agent, trains
from zerozoo.control.heads import value
from zerozoo.control.loop import Meter, crosses
from zerozoo.control.offline import OfflineLoop, divergence_as_result
from zerozoo.control.spec import Spec
from zerozoo.control.views import Batch
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.runs.run import Run

SPEC = Spec((2,), 1, discrete=False)
FIELDS: dict[str, Any] = {"steps": 40, "evaluate_every": 16, "log_every": 10, "checkpoint_every": 13}


class Rows:
    """Random batches, as a view of data would give them."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        obs = torch.randn((batch_size, 2), generator=generator) * self.scale
        return Batch(obs, torch.zeros(batch_size, 1), obs.sum(1), torch.ones(batch_size), obs)

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Any) -> None:
        assert not state


class Fit(Agent):
    """Regresses V(s) on the reward, with a noisy metric that every second update has only."""

    def build(self, spec: Spec, config: Any) -> None:
        self.v = value(spec, (8,))

    def optimiser(self, net: str) -> Adam:
        return Adam(0.01)

    @trains("v")
    def value_loss(self, batch: Batch) -> Tensor:
        if self.updates % 2:
            self.log("odd", torch.rand(3, generator=self.random))
        return self.v.loss(batch.obs, batch.reward).mean()


class Evaluations:
    """Takes the place of an evaluator: the value of one observation."""

    def __call__(self, agent: Any, run: Run, step: int) -> dict[str, float]:
        run.sample([{"step": step, "phase": "evaluation"}])
        with torch.no_grad():
            return {"evaluation/return": float(agent.v(torch.ones(1, 2))), "seconds/evaluate": 0.1}


def loop(directory: Path, say: list[str] | None = None, **changes: Any) -> OfflineLoop:
    run = Run(directory, seed=4)
    run.say = (say if say is not None else []).append
    fields: dict[str, Any] = {"data": Rows(), "evaluator": Evaluations(), "batch_size": 6, **FIELDS, **changes}
    return OfflineLoop(agent=Fit(SPEC, None, run.stream("agent")), run=run, **fields)


def rows(directory: Path) -> list[dict[str, Any]]:
    clock = ("time", "seconds/", "steps_per_second", "updates_per_second")
    history = Run(directory).history()
    return [{name: value for name, value in row.items() if not name.startswith(clock)} for row in history]


def checkpoint(directory: Path) -> tuple[bytes, Any]:
    """Bytes of the tensors, and the state, whose streams may have been made in another order."""
    newest = sorted((directory / "checkpoints").glob("step-*"))[-1]
    return (newest / "tensors.safetensors").read_bytes(), json.loads((newest / "state.json").read_text())


def assert_same(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    assert Run(one).samples() == Run(other).samples()
    assert checkpoint(one) == checkpoint(other)


class Killed(BaseException):
    """Ends a run from inside as a kill does: nothing catches it."""


def kill(training: OfflineLoop, step: int) -> None:
    """Trains until `step` steps are done; what they did is lost like in a kill."""
    advance = training.advance

    def dying(done: int) -> int:
        if done == step:
            raise Killed
        return advance(done)

    training.advance = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        training.train()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("unbroken") / "run"
    loop(directory).train()
    return directory


def test_rows_stand_where_they_are_due(unbroken: Path) -> None:
    found = rows(unbroken)
    assert [row["step"] for row in found] == [0, 10, 16, 20, 30, 32, 40]
    assert [row["step"] for row in found if "value_loss" in row] == [10, 20, 30, 40]
    assert [row["step"] for row in found if "evaluation/return" in row] == [0, 16, 32, 40]
    names = sorted(path.name for path in (unbroken / "checkpoints").glob("step-*"))
    assert names == ["step-000039", "step-000040"]
    timed = [row for row in Run(unbroken).history() if "value_loss" in row]
    for row in timed:
        assert row["updates_per_second"] * row["seconds/train"] == pytest.approx(10)
        assert row["steps_per_second"] * row["seconds/train"] == pytest.approx(10)


def test_losses_are_means_over_the_steps_since_the_last_row(tmp_path: Path) -> None:
    training = loop(tmp_path / "run")
    losses: list[float] = []
    odd: list[float] = []
    update = training.agent.update

    def watched(batch: Batch) -> dict[str, Tensor]:
        metrics = update(batch)
        losses.append(float(metrics["value_loss"]))
        odd.extend([float(metrics["odd"])] if "odd" in metrics else [])
        return metrics

    training.agent.update = watched  # type: ignore[method-assign]
    training.train()
    found = [row for row in rows(tmp_path / "run") if "value_loss" in row]
    assert [row["value_loss"] for row in found] == pytest.approx(
        [np.mean(losses[i : i + 10]) for i in range(0, 40, 10)]
    )
    assert [row["odd"] for row in found] == pytest.approx([np.mean(odd[i : i + 5]) for i in range(0, 20, 5)])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("step", [3, 13, 29, 39])
def test_a_killed_run_ends_as_the_unbroken_one(unbroken: Path, tmp_path: Path, step: int) -> None:
    """Checkpoints at 13, 26, 39; rows at other steps, so that means are cut in two."""
    said: list[str] = []
    kill(loop(tmp_path / "run"), step)
    final = loop(tmp_path / "run", said).train()
    kept = step // 13 * 13
    assert said == ([f"Resuming after step {kept}."] if kept else [])
    assert_same(tmp_path / "run", unbroken)
    assert final["evaluation/return"] == rows(unbroken)[-1]["evaluation/return"]


def test_killed_twice(unbroken: Path, tmp_path: Path) -> None:
    kill(loop(tmp_path / "run"), 20)
    kill(loop(tmp_path / "run"), 33)
    loop(tmp_path / "run").train()
    assert_same(tmp_path / "run", unbroken)


def test_a_damaged_checkpoint_is_skipped(unbroken: Path, tmp_path: Path) -> None:
    kill(loop(tmp_path / "run"), 30)
    (tmp_path / "run" / "checkpoints" / "step-000026" / "tensors.safetensors").write_bytes(b"")
    said: list[str] = []
    loop(tmp_path / "run", said).train()
    assert said[0].startswith("checkpoint step-000026 is damaged")
    assert said[1] == "Resuming after step 13."
    assert_same(tmp_path / "run", unbroken)


def test_a_finished_run_run_again_changes_nothing(unbroken: Path, tmp_path: Path) -> None:
    first = loop(tmp_path / "run").train()
    assert loop(tmp_path / "run").train() == first
    assert_same(tmp_path / "run", unbroken)


def test_a_run_made_longer_learns_what_the_longer_run_does(unbroken: Path, tmp_path: Path) -> None:
    loop(tmp_path / "run", steps=20).train()
    loop(tmp_path / "run").train()
    assert checkpoint(tmp_path / "run") == checkpoint(unbroken)


def test_ctrl_c_saves_and_the_resumed_run_is_the_same(unbroken: Path, tmp_path: Path) -> None:
    said: list[str] = []
    training = loop(tmp_path / "run", said)
    advance = training.advance

    def interrupted(step: int) -> int:
        if step == 17:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(step)

    training.advance = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        training.train()
    assert said == ["Stopping after this step; press Ctrl-C again to stop at once."]
    loop(tmp_path / "run", said).train()
    assert said[1] == "Resuming after step 18."
    assert rows(tmp_path / "run") == rows(unbroken)
    assert checkpoint(tmp_path / "run") == checkpoint(unbroken)


def test_evaluating_more_often_changes_no_training(unbroken: Path, tmp_path: Path) -> None:
    loop(tmp_path / "run", evaluate_every=1).train()
    assert checkpoint(tmp_path / "run") == checkpoint(unbroken)
    loop(tmp_path / "never", evaluator=None).train()
    assert checkpoint(tmp_path / "never") == checkpoint(unbroken)


@pytest.mark.parametrize(
    ("checkpoint_every", "kept", "sentence"),
    [
        (13, ["step-000013"], "stopped after step 25; the checkpoint of step 13 is kept."),  # nothing is saved at 26
        (20, ["step-000020"], "stopped after step 29; the checkpoint of step 20 is kept."),  # the row of 30 shows it
    ],
)
def test_divergence_is_one_sentence_and_keeps_the_last_sound_checkpoint(
    tmp_path: Path, checkpoint_every: int, kept: list[str], sentence: str
) -> None:
    training = loop(tmp_path / "run", checkpoint_every=checkpoint_every)
    advance = training.advance

    def poisoned(step: int) -> int:
        if step == 22:
            training.agent.v.network[0].weight.data[0, 0, 0] = torch.nan
        return advance(step)

    training.advance = poisoned  # type: ignore[method-assign]
    with pytest.raises(DivergedError, match=f"The mean of value_loss is nan: try a lower .* Training {sentence}"):
        training.train()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == kept


def test_without_a_checkpoint_it_says_so(tmp_path: Path) -> None:
    training = loop(tmp_path / "run", data=Rows(float("inf")))
    with pytest.raises(DivergedError, match="Training stopped after step 9; there was no checkpoint yet."):
        training.train()


@pytest.mark.parametrize("name", ["log_every", "evaluate_every", "checkpoint_every"])
def test_an_interval_of_nothing_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be at least 1, not 0"):
        loop(tmp_path / "run", **{name: 0})


def test_crossing_a_multiple() -> None:
    assert [crosses(10, before, before + 4) for before in range(0, 24, 4)] == [False, False, True, False, True, False]
    assert crosses(10, 0, 35)


def test_a_meter_counts_every_number_the_same_and_stays_small() -> None:
    meter, rng = Meter(), np.random.Generator(np.random.PCG64(0))
    numbers = rng.random(5000).astype(np.float32)
    for number in numbers[:-3]:
        meter.add({"x": torch.tensor(number)})
    meter.add({"x": torch.from_numpy(numbers[-3:]), "y": torch.tensor([2.0])})
    assert meter.means() == pytest.approx({"x": numbers.astype(np.float64).mean(), "y": 2.0})
    assert len(meter._values["x"]) < 1100
    other = Meter()
    other.load_state(meter.state())
    meter.add({"x": torch.tensor(5.0)})
    other.add({"x": torch.tensor(5.0)})
    assert other.means() == meter.means()
    meter.clear()
    assert meter.means() == {}


def test_divergence_can_be_a_result(tmp_path: Path) -> None:
    said: list[str] = []
    run = Run(tmp_path / "run")
    run.say = said.append

    def diverge() -> dict[str, float]:
        raise DivergedError("The mean of q is nan.")

    assert divergence_as_result(lambda: {"score": 3.0}, run, {"score": 0.0}) == {"score": 3.0, "diverged": 0.0}
    assert not said
    assert divergence_as_result(diverge, run, {"score": 0.0}) == {"score": 0.0, "diverged": 1.0}
    assert said == ["The mean of q is nan."]
