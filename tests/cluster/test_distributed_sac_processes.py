"""SAC with actors in processes of their own: one is killed in the middle, and one is faster than the trainer."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_watch import alive, segments, until

from zerozoo.distributed.messages import Message
from zerozoo.distributed.replay_trainer import ReplayTrainer
from zerozoo.recipes.baselines import distributed_sac as recipe
from zerozoo.runs.run import Run

CONFIG = recipe.Config(
    **{**recipe.PRESETS["smoke"], "environment": "pendulum", "placement": "actors", "queue_size": 2, "ring_size": 1}
)


def train(config: recipe.Config, directory: Path) -> dict[str, float]:
    with Run.start(directory, "distributed-sac", asdict(config), config.seed, extendable=recipe.EXTENDABLE) as run:
        return recipe.train(config, run)


def test_an_actor_is_killed_and_every_frame_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Message] = []
    advance, keep = ReplayTrainer.advance, ReplayTrainer.keep
    loops: list[ReplayTrainer] = []

    def killing(loop: ReplayTrainer, step: int) -> int:
        if not loops and step >= 200:
            loops.append(loop)
            pid: int = loop.workers.pids["actor 0"]  # type: ignore[attr-defined]
            os.kill(pid, signal.SIGKILL)
            until(lambda: not alive(pid), "the kill")
        return advance(loop, step)

    def noted(loop: ReplayTrainer, sample: Message) -> None:
        kept.append(sample)
        keep(loop, sample)

    monkeypatch.setattr(ReplayTrainer, "advance", killing)
    monkeypatch.setattr(ReplayTrainer, "keep", noted)
    before = segments()
    config = replace(CONFIG, placement="central", steps=600, evaluate_every=600, checkpoint_every=200)
    results = train(config, tmp_path / "run")
    assert (results["frames"], results["restarts"], results["updates"]) == (600, 1, 580)
    assert int(loops[0].replay.state()["added"]) == 600
    contents = [sample["obs"].tobytes() for sample in kept]
    assert len(set(contents)) == len(contents) == 60
    assert results["overflow_samples"] == 0
    versions = np.concatenate([sample["version"].ravel() for sample in kept])
    assert versions.min() == 0
    assert versions.max() > 20  # what came after the kill knew new weights
    assert segments() == before


def test_a_fast_actor_waits_for_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer stands still until the stream is full; then every sample that was made is learned from, in number."""
    numbers: list[int] = []
    learn = ReplayTrainer._learn

    def slow(loop: ReplayTrainer, batch: Any) -> None:
        if not numbers:
            workers: Any = loop.workers
            until(lambda: workers.table.phase(0)[0] == "waiting for room in the sample stream", "a full stream")
        numbers.extend(int(entry.sample["origin"][2]) for entry in batch.entries)
        learn(loop, batch)

    monkeypatch.setattr(ReplayTrainer, "_learn", slow)
    results = train(replace(CONFIG, steps=200, evaluate_every=200, checkpoint_every=200), tmp_path / "run")
    assert results["overflow_samples"] == results["stale_samples"] == 0
    assert max(numbers) < 20 + 2 * 2  # taken together once, and once more in the stream
    assert len(set(numbers)) == len(numbers) == 20
