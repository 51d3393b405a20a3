"""The supervised loop on a linear regression whose every number is known, and a real kill of a real process."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zerozoo.language.parallel import ALONE, Ranks
from zerozoo.language.scoring import fingerprint
from zerozoo.language.supervised import Order, Share, SupervisedLoop, SupervisedSettings, measure
from zerozoo.runs.errors import DivergedError, UserError
from zerozoo.runs.run import Run

ITEMS = 10


class Squares:
    """Mean of (w x - y)^2, with items of different cost."""

    def __init__(self, model: nn.Linear, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(3)
        self.model = model
        self.x = torch.randn((ITEMS, 3), generator=generator, dtype=torch.float64)
        self.y = scale * torch.randn(ITEMS, generator=generator, dtype=torch.float64)
        self.batches: list[list[int]] = []

    def __len__(self) -> int:
        return ITEMS

    def cost(self, item: int) -> int:
        return 1 + item % 4

    def prepare(self, items: Sequence[int]) -> float:
        self.batches.append(list(items))
        return 1 / len(items)

    def share(self, items: Sequence[int], whole: Any) -> Share:
        errors = (self.model(self.x[list(items)])[:, 0] - self.y[list(items)]).square()
        return Share(whole * errors.sum(), {"error/largest_item": whole * torch.tensor(float(sum(items)))})

    def fingerprint(self) -> str:
        return fingerprint(self.x.tolist(), self.y.tolist())


def linear() -> nn.Linear:
    model = nn.Linear(3, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.2, 0.5]]))
        model.bias.fill_(0.1)
    return model


SETTINGS: dict[str, Any] = {"batch_size": 4, "epochs": 3, "warmup": 0.25, "checkpoint_every": 3, "max_gradient_norm": 1}


def make_loop(directory: Path, model: nn.Linear | None = None, scale: float = 1.0, **changes: Any) -> SupervisedLoop:
    model = model or linear()
    ranks, run = changes.pop("ranks", ALONE), changes.pop("run", None) or Run(directory, seed=7)
    evaluate, objective = changes.pop("evaluate", None), Squares(model, scale)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.01)
    settings = SupervisedSettings(**{**SETTINGS, **changes})
    return SupervisedLoop(model, optimizer, objective, settings, run, evaluate, ranks)


def weights(loop: SupervisedLoop) -> Tensor:
    return torch.cat([value.detach().flatten() for value in loop.model.parameters()])


def rows(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(("seconds/", "time"))} for row in run.history()]


# --- batches and rates


def test_every_pass_holds_every_item_once_in_an_order_of_its_own():
    order = Order(7, seed=1)
    passes = [order.batch(7 * number, 7 * number + 7) for number in range(3)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert Order(7, seed=1).batch(5, 17) == (passes[0] + passes[1] + passes[2])[5:17]
    assert Order(7, seed=2).batch(0, 7) != passes[0]


def test_learning_rates_by_hand():
    def factors(steps: int, **settings: Any) -> list[float]:
        chosen = SupervisedSettings(batch_size=1, **settings)
        return [chosen.learning_rate_factor(step, steps) for step in range(1, steps + 1)]

    assert factors(6, warmup=1 / 3) == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])
    assert factors(3, schedule="constant") == [1, 1, 1]
    assert factors(4, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])
    assert factors(4, schedule="cosine") == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)])
    assert factors(2, warmup=1.0) == [0.5, 1]
    with pytest.raises(UserError, match="Unknown schedule 'square'"):
        SupervisedSettings(batch_size=1, schedule="square")


def test_the_last_batch_takes_what_is_left_and_steps_replace_epochs(tmp_path):
    loop = make_loop(tmp_path / "epochs", epochs=1)
    loop.train()
    assert [len(batch) for batch in loop.objective.batches] == [4, 4, 2]
    assert sorted(item for batch in loop.objective.batches for item in batch) == list(range(ITEMS))
    assert loop.run.history()[-1]["data/passes"] == 1
    loop = make_loop(tmp_path / "steps", steps=4)
    loop.train()
    assert [len(batch) for batch in loop.objective.batches] == [4, 4, 4, 4]


# --- the step against a plain loop over whole batches


def reference_weights(loop: SupervisedLoop, schedule: list[float], batches: list[list[int]]) -> Tensor:
    model, data = linear(), loop.objective
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.01)
    for factor, batch in zip(schedule, batches, strict=True):
        optimizer.param_groups[0]["lr"] = 0.05 * factor
        optimizer.zero_grad()
        (model(data.x[batch])[:, 0] - data.y[batch]).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
    return torch.cat([value.detach().flatten() for value in model.parameters()])


@pytest.mark.parametrize("budget", [1, 5, 1000])
def test_micro_batches_change_nothing(tmp_path, budget):
    loop = make_loop(tmp_path / "run", tokens_per_microbatch=budget)
    loop.train()
    order = Order(ITEMS, seed=7)
    batches = [order.batch(4 * step, min(4 * step + 4, 30)) for step in range(8)]
    schedule = [0.5, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    torch.testing.assert_close(weights(loop), reference_weights(loop, schedule, batches))
    history = rows(loop.run)
    assert [row["learning_rate"] for row in history] == pytest.approx([0.05 * factor for factor in schedule])
    assert [row["error/largest_item"] for row in history] == pytest.approx([sum(b) / len(b) for b in batches])


def test_measuring_is_the_loss_of_all_items_and_trains_nothing():
    model = linear()
    objective = Squares(model)
    expected = float((model(objective.x)[:, 0] - objective.y).square().mean().detach())
    assert measure(objective, tokens_per_microbatch=6)["loss"] == pytest.approx(expected)
    assert model.weight.grad is None


class Thread(Ranks):
    """One of several threads that stand for processes."""

    def __init__(self, rank: int, board: dict[str, Any]) -> None:
        super().__init__(rank, 2)
        object.__setattr__(self, "board", board)

    def gather(self, part: Sequence[Any]) -> list[Any]:
        board: Any = self.board
        board[self.rank] = list(part)
        board["barrier"].wait(60)
        parts = [*board[0], *board[1]]
        board["barrier"].wait(60)
        return parts

    def add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(torch.stack(self.gather([tensor.clone()])).sum(0))


def test_two_processes_take_the_steps_of_one(tmp_path):
    alone = make_loop(tmp_path / "alone")
    alone.train()
    board: dict[str, Any] = {"barrier": threading.Barrier(2)}
    runs = [Run(tmp_path / "both", seed=7), Run.follow(tmp_path / "both", "", {}, 7)]
    loops = [make_loop(tmp_path, run=run, ranks=Thread(rank, board)) for rank, run in enumerate(runs)]
    threads = [threading.Thread(target=loop.train, daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for loop in loops:
        torch.testing.assert_close(weights(loop), weights(alone))
    both, one = rows(runs[0]), rows(alone.run)
    assert len(both) == len(one) == 8
    for first, second in zip(both, one, strict=True):
        assert first == pytest.approx(second)


# --- watching


def test_evaluations_before_between_and_after(tmp_path):
    asked: list[tuple[int, bool]] = []

    def evaluate(step: int, thorough: bool) -> dict[str, float]:
        asked.append((step, thorough))
        return {"heldout/loss": 10.0 - step}

    final = make_loop(tmp_path / "run", evaluate=evaluate, evaluate_every=3).train()
    assert asked == [(0, True), (3, False), (6, False), (8, True)]
    assert (final["heldout/loss"], final["step"]) == (2.0, 8)
    assert {"loss", "gradient_norm", "seconds/step", "seconds/evaluate"} <= final.keys()


def test_no_epochs_only_measure(tmp_path):
    loop = make_loop(tmp_path / "run", epochs=0, evaluate=lambda *_: {"heldout/loss": 1.0})
    assert loop.train()["heldout/loss"] == 1.0
    assert torch.equal(weights(loop), weights(make_loop(tmp_path / "other")))


# --- failures and resume


def test_a_loss_that_is_no_number_ends_the_run_before_the_step(tmp_path):
    model = linear()
    loop = make_loop(tmp_path / "run", model, checkpoint_every=2)
    inner = loop.objective.share

    def broken(items: Sequence[int], whole: Any) -> Share:
        share = inner(items, whole)
        return Share(share.loss * math.nan, {}) if len(loop.objective.batches) == 4 else share

    loop.objective.share = broken
    with pytest.raises(DivergedError, match=r"The loss became nan.* at step 4; the checkpoint of step 2 is kept"):
        loop.train()
    saved = loop.run.load()
    assert saved is not None
    assert saved.step == 2
    assert bool(torch.isfinite(weights(loop)).all())
    assert [row["step"] for row in loop.run.history()] == [1, 2, 3]


def test_a_gradient_that_is_no_number_ends_the_run(tmp_path):
    model = linear()
    model.weight.register_hook(lambda gradient: gradient * math.inf)
    loop = make_loop(tmp_path / "run", model)
    with pytest.raises(DivergedError, match=r"gradient norm became .* there was no checkpoint yet"):
        loop.train()


class Killed(BaseException):
    """Ends a run from inside as a kill does: nothing catches it."""


@pytest.mark.parametrize("step", [2, 5, 7])
def test_a_killed_run_ends_as_the_unbroken_one(tmp_path, step):
    unbroken = make_loop(tmp_path / "unbroken", evaluate_every=2, evaluate=lambda step, _: {"heldout/x": step})
    final = unbroken.train()
    broken = make_loop(tmp_path / "run", evaluate_every=2, evaluate=lambda step, _: {"heldout/x": step})
    inner = broken.objective.share

    def dying(items: Sequence[int], whole: Any) -> Share:
        if len(broken.objective.batches) == step:
            raise Killed
        return inner(items, whole)

    broken.objective.share = dying
    with pytest.raises(Killed):
        broken.train()
    broken.run.close()
    resumed = make_loop(tmp_path / "run", evaluate_every=2, evaluate=lambda step, _: {"heldout/x": step})
    said: list[str] = []
    resumed.run.say = said.append
    assert resumed.train().keys() == final.keys()
    assert said == ([f"Resuming after step {(step - 1) // 3 * 3}."] if step > 3 else [])
    assert torch.equal(weights(resumed), weights(unbroken))
    assert rows(resumed.run) == rows(unbroken.run)


def test_ctrl_c_saves_the_step_and_goes_on(tmp_path):
    unbroken = make_loop(tmp_path / "unbroken", checkpoint_every=100)
    unbroken.train()
    loop = make_loop(tmp_path / "run", checkpoint_every=100)
    inner = loop.objective.share

    def interrupted(items: Sequence[int], whole: Any) -> Share:
        if len(loop.objective.batches) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(items, whole)

    loop.objective.share = interrupted
    with pytest.raises(KeyboardInterrupt):
        loop.train()
    assert loop.run.history()[-1]["step"] == 5
    resumed = make_loop(tmp_path / "run", checkpoint_every=100)
    resumed.train()
    assert len(resumed.objective.batches) == 3
    assert torch.equal(weights(resumed), weights(unbroken))


def test_other_data_or_another_length_is_no_resume(tmp_path):
    make_loop(tmp_path / "run").train()
    with pytest.raises(UserError, match="training data is not that of the checkpoint"):
        make_loop(tmp_path / "run", scale=2.0).train()
    with pytest.raises(UserError, match="has 8 steps and cannot be made longer"):
        make_loop(tmp_path / "run", epochs=4).train()


def test_nothing_to_learn_from(tmp_path, monkeypatch):
    monkeypatch.setattr(Squares, "__len__", lambda _: 0)
    with pytest.raises(UserError, match="nothing to learn from"):
        make_loop(tmp_path / "run")


# --- a real kill of a real process

STEPS = 40


def start(model: str, directory: Path) -> subprocess.Popen[str]:
    fields = ["--data", "arithmetic", "--level", "one-digit", "--heldout-size", "6", "--max-new-tokens", "3"]
    fields += ["--batch-size", "8", "--steps", str(STEPS), "--checkpoint-every", "3", "--learning-rate", "0.003"]
    return subprocess.Popen(
        [sys.executable, "-m", "zerozoo", "train", "sft", "--model", model, "--directory", str(directory), *fields],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_resumed_ends_as_the_unbroken_run(digits_model, tmp_path):
    """SIGKILL between two steps or in the middle of one, at a seeded-random moment."""
    from zerozoo.cli.registry import load_recipe

    moment = random.Random(11)
    for attempt in range(5):  # on a busy machine this process may sleep until the run is over
        directory = tmp_path / f"run-{attempt}"
        process = start(digits_model, directory)
        metrics, seen = directory / "metrics.jsonl", moment.randint(5, STEPS // 2)
        while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < seen):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode != 0:
            break
    assert process.returncode == -signal.SIGKILL, errors
    recipe = load_recipe("sft")
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in Run.open(directory).config.items()}
    said: list[str] = []
    results = []
    for place in (directory, tmp_path / "unbroken"):
        with Run.start(place, "sft", stored, stored["seed"]) as run:
            run.say = said.append
            recipe.train(recipe.make_config(stored), run)
            newest = sorted((place / "checkpoints").glob("step-*"))[-1]
            results.append((rows(run), run.samples(), (newest / "tensors.safetensors").read_bytes()))
    assert said[0].startswith("Resuming after step ")
    assert results[0] == results[1]
    assert [row["step"] for row in results[0][0]] == list(range(STEPS + 1))
