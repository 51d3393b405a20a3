"""Workers in processes of their own: the same samples, kills, Ctrl-C, stuck and failing ones, nothing left behind."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from process_watch import PATIENCE, alive, segments, until

from zerozoo.control.agents import PPO
from zerozoo.control.sources import World
from zerozoo.distributed.messages import Message, flatten
from zerozoo.distributed.policy_worker import acting_weights
from zerozoo.distributed.streams import InlineSamples, InlineWeights
from zerozoo.distributed.worker_processes import ProcessWorkers
from zerozoo.distributed.workers import InlineWorkers, Setup
from zerozoo.recipes.systems import srl
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.streams import Streams

CONFIG = srl.Config(
    **{**srl.PRESETS["smoke"], "environment": "pendulum", "pull_seconds": 0.0, "queue_size": 4, "stuck_seconds": 30.0}
)


def setup(config: srl.Config = CONFIG, world: World | None = None, **changes: Any) -> Setup:
    sizes = {name: getattr(config, name) for name in ("actors", "copies", "sample_steps", "inference_cap")}
    sizes |= {"seed": config.seed, "pull_seconds": 0.0, "ring_size": 1, **changes}
    return Setup(world=world or srl.make_world(config), agent=PPO, config=config, **sizes)


def inline_samples(parts: Setup, count: int) -> list[Message]:
    samples, weights = InlineSamples(), InlineWeights()
    workers = InlineWorkers(parts, Streams(parts.seed), samples, weights)
    weights.publish(0, acting_weights(workers.policy.agent))
    pulled: list[Message] = []
    while len(pulled) < count:
        workers.work(0.0)
        pulled += samples.pull()
    return pulled


@pytest.mark.parametrize("servers", [0, 1])
def test_processes_make_the_samples_that_one_process_makes(servers: int) -> None:
    parts, before = setup(), segments()
    workers = ProcessWorkers(parts, servers, 2, 30.0, print)
    pulled: list[Message] = []
    try:
        agent = parts.agent(parts.world.spec(), parts.config, Streams(parts.seed).torch("agent"))
        workers.weights.publish(0, acting_weights(agent))
        workers.start()
        assert len(workers.pids) == 1 + servers
        while len(pulled) < 6:  # more than the stream holds at once
            workers.work(0.0)
            pulled += workers.samples.pull(0.1)
    finally:
        pids = workers.pids
        workers.close()
    for one, other in zip(inline_samples(parts, 6), pulled, strict=False):
        flat = flatten(other)
        for name, array in flatten(one).items():
            assert flat[name].tobytes() == array.tobytes(), name
    assert workers.inference()[0] >= 6 * 10
    assert not any(alive(pid) for pid in pids.values())
    assert segments() == before


class Watched:
    """A run of the recipe whose workers and samples the test can see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workers: list[ProcessWorkers] = []
        self.samples: list[Message] = []
        self.said: list[str] = []
        from zerozoo.distributed import sample_buffer, worker_processes

        made, put = worker_processes.ProcessWorkers, sample_buffer.SampleBuffer.put

        def make(*given: Any) -> ProcessWorkers:
            self.workers.append(made(*given))
            return self.workers[-1]

        def keep(buffer: Any, sample: Message) -> None:
            self.samples.append(sample)
            put(buffer, sample)

        monkeypatch.setattr(worker_processes, "ProcessWorkers", make)
        monkeypatch.setattr(sample_buffer.SampleBuffer, "put", keep)

    def train(self, config: srl.Config, directory: Path) -> dict[str, float]:
        with Run.start(directory, "srl", asdict(config), config.seed, extendable=srl.EXTENDABLE) as run:
            run.say = self.said.append
            return srl.train(config, run)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.mark.parametrize("victim", ["actor 0", "policy worker 0"])
def test_a_killed_worker_is_replaced_and_nothing_counts_twice(
    victim: str, watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice while the trainer learns, at steps that a seeded generator draws."""
    config = replace(CONFIG, placement="central", steps=1600, checkpoint_every=400, evaluate_every=800)
    kills = sorted(np.random.default_rng(5).choice(np.arange(100, 1000, 100), 2, replace=False).tolist())
    from zerozoo.distributed.trainer import TrainerLoop

    advance = TrainerLoop.advance

    def killing(loop: TrainerLoop, step: int) -> int:
        if kills and step >= kills[0]:
            kills.pop(0)
            (workers,) = watched.workers
            until(lambda: workers.table.phase(list(workers.pids).index(victim))[0] != "starting", "the restart")
            os.kill(workers.pids[victim], signal.SIGKILL)
            until(lambda: not alive(workers.pids[victim]), "the kill")
        return advance(loop, step)

    monkeypatch.setattr(TrainerLoop, "advance", killing)
    before = segments()
    results = watched.train(config, tmp_path / "run")
    assert results["frames"] == 1600
    assert results["restarts"] == 2
    assert sum(f"{victim} was killed by signal 9; it begins anew." == line for line in watched.said) == 2
    contents = [sample["obs"].tobytes() for sample in watched.samples]
    assert len(set(contents)) == len(contents)
    assert math.isfinite(results["policy_loss"])
    assert segments() == before


def test_a_run_in_processes_goes_on_from_its_checkpoint(watched: Watched, tmp_path: Path) -> None:
    config = replace(CONFIG, placement="actors", steps=200, actors=2, checkpoint_every=100)
    first = watched.train(config, tmp_path / "run")
    longer = watched.train(replace(config, steps=400), tmp_path / "run")
    assert (first["frames"], longer["frames"]) == (200, 400)
    assert longer["mean_staleness"] >= 0
    versions = np.concatenate([sample["version"].ravel() for sample in watched.samples])
    assert versions.min() == 0
    assert versions.max() >= 10  # the second part began with version 10
    assert {int(sample["origin"][0]) for sample in watched.samples} == {0, 1}


def test_a_stuck_worker_is_named(tmp_path: Path) -> None:
    slow = World("synthetic", {"milliseconds": 5000.0})
    workers = ProcessWorkers(setup(world=slow, copies=1, sample_steps=1), 1, 2, 1.0, print)
    try:
        agent = PPO(slow.spec(), CONFIG, Streams(0).torch("agent"))
        workers.weights.publish(0, acting_weights(agent))
        workers.start()
        workers.work(waited=0.0)  # as long as samples come from elsewhere nobody complains
        until(lambda: all(workers.table.phase(row)[1] > 1.0 for row in range(2)), "the wait")
        with pytest.raises(UserError, match="actor 0 is stuck: it has been stepping its environments for"):
            workers.work(waited=1.1)
    finally:
        workers.close()


def test_a_worker_that_cannot_go_on_ends_the_run_with_its_words() -> None:
    gymnasium.register("OnlyHere-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20)
    before = segments()
    workers = ProcessWorkers(setup(world=World("OnlyHere-v0")), 0, 2, 30.0, print)
    try:
        with pytest.raises(UserError, match="actor 0 could not go on: The environment 'OnlyHere-v0' cannot be made"):
            workers.start()
    finally:
        workers.close()
    assert segments() == before


def started(directory: Path) -> subprocess.Popen[bytes]:
    """A long run in a process group of its own, as a terminal would have it."""
    words = ["--preset", "smoke", "--placement", "central", "--environment", "pendulum", "--steps", "100000000"]
    words += ["--log-every", "20", "--evaluate-every", "100000000", "--checkpoint-every", "100000000"]
    command = [sys.executable, "-m", "zerozoo.cli.main", "train", "srl", *words, "--directory", str(directory)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: (directory / "metrics.jsonl").exists() or process.poll() is not None, "the first row")
    assert process.poll() is None
    until(lambda: len((directory / "metrics.jsonl").read_text().splitlines()) > 1, "an update")
    return process


def group(pid: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rsplit(")", 1)[1].split()[3]) == pid and alive(int(path.name)):
                found.append(int(path.name))
        except (OSError, ValueError):
            continue
    return found


def test_ctrl_c_saves_and_ends_every_process(tmp_path: Path) -> None:
    before = segments()
    process = started(tmp_path / "run")
    assert len(group(process.pid)) >= 3
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    until(lambda: not group(process.pid), "the end of all processes")
    assert segments() == before
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert int("".join(filter(str.isdigit, checkpoint.name))) >= rows[-1]["step"] > 0


def test_nothing_outlives_a_trainer_that_is_killed(tmp_path: Path) -> None:
    before = segments()
    process = started(tmp_path / "run")
    process.kill()
    process.wait()
    until(lambda: not group(process.pid), "the end of all processes")
    until(lambda: segments() == before, "the end of the shared memory")
