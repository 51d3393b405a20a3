"""Whole runs on a cluster of two nodes: the numbers of one process, whatever is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from moody_writer import NODE, actor_processes, die, held_up, moody
from safetensors.torch import load_file

from zerozoo.cli.registry import load_recipe
from zerozoo.distributed.learner import Assignment, Outcome
from zerozoo.distributed.supervisor import Supervisor
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run

RECIPE = "simplerl-zoo"
STEPS = 4
# Each process cuts and pads its own micro-batches and drops finished rows of its own.
MEASURED_APART = ("time", "seconds/", "update/tokens", "update/padded", "tokens/drawn")


class Watcher:
    """The person who watches: keeps what is said, and does something once a step is logged."""

    def __init__(self, at: Mapping[int, Callable[[], None]] | None = None) -> None:
        self.said: list[str] = []
        self.steps: list[int] = []
        self.shown = 0
        self.at = dict(at or {})

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.shown += len(rows)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(step)
        self.at.pop(step, lambda: None)()


@pytest.fixture(scope="module")
def config(digits_model: str) -> Any:
    return load_recipe(RECIPE).make_config(
        {
            **{"model": digits_model, "data": "arithmetic", "level": "one-digit", "heldout_size": 6},
            **{"max_new_tokens": 6, "prompts_per_step": 4, "samples_per_prompt": 8, "updates_per_step": 2},
            **{"kl_coefficient": 0.01, "steps": STEPS, "learning_rate": 1e-3, "samples_logged": 32},
            **{"checkpoint_every": 1, "evaluate_every": 2, "sampler": "native"},
        }
    )


@pytest.fixture(scope="module")
def alone(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a single process."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    with Run.start(directory, RECIPE, dataclasses.asdict(config), config.seed) as run:
        load_recipe(RECIPE).train(config, run)
    return directory


def supervise(
    directory: Path, config: Any, watcher: Watcher, learners: int = 1, workers: int = 2, **options: Any
) -> Outcome:
    standstill, delay = options.pop("standstill", 60.0), options.pop("delay", 0.0)
    folder = directory.parent / "moods"
    folder.mkdir(exist_ok=True)
    assignment = Assignment(
        slug=RECIPE,
        config=config,
        train=options.pop("train", load_recipe(RECIPE).train),
        directory=str(directory),
        extendable=load_recipe(RECIPE).extendable,
        workers=workers,
        writers={"native": moody(folder, delay)},
    )
    return Supervisor(assignment, learners, watcher, standstill=standstill, **options).run()


def rows(directory: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / name).read_text(encoding="utf-8").splitlines()]


def assert_same_run(directory: Path, wanted: Path) -> None:
    """Every step once, with the metrics, the responses and the weights of another run, to 1e-5."""
    one, other = rows(directory, "metrics.jsonl"), rows(wanted, "metrics.jsonl")
    assert [row["step"] for row in one] == [row["step"] for row in other] == list(range(STEPS + 1))
    for first, second in zip(one, other, strict=True):
        names = {name for name in first if not name.startswith(MEASURED_APART)}
        assert names == {name for name in second if not name.startswith(MEASURED_APART)}
        for name in sorted(names):
            assert first[name] == pytest.approx(second[name], abs=1e-5), (first["step"], name)
    assert any(row.get("policy/gradient_norm", 0) > 0 for row in one)  # or nothing was compared
    asked = ("step", "task", "response")
    samples = [[[row[name] for name in asked] for row in rows(run, "samples.jsonl")] for run in (directory, wanted)]
    assert samples[0] == samples[1]
    weights = [load_file(run / "model" / "model.safetensors") for run in (directory, wanted)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-5, rtol=0)


def kill(name: str, draw: random.Random, below: int | None = None) -> None:
    """SIGKILL to one process of the actors of a class."""
    draw.choice(actor_processes(name, below)).send_signal(signal.SIGKILL)


def soon(action: Callable[..., None], draw: random.Random, *arguments: Any) -> Callable[[], None]:
    """Does something at a random time within the next 0.4 seconds."""
    return lambda: threading.Timer(draw.uniform(0.0, 0.4), action, arguments).start()


def test_two_learners_with_half_the_weights_each_and_two_workers_train_like_one_process(
    ray_connection: Any, config: Any, alone: Path, tmp_path: Path
) -> None:
    watcher = Watcher()
    sharded = dataclasses.replace(config, shard=True)  # learners that each have all weights are lost with a node below
    outcome = supervise(tmp_path / "run", sharded, watcher, learners=2, workers=2)
    assert outcome.kind == "done"
    assert outcome.metrics["heldout/greedy_accuracy"] == rows(alone, "metrics.jsonl")[-1]["heldout/greedy_accuracy"]
    assert watcher.steps == list(range(STEPS + 1))
    assert watcher.shown == len(rows(alone, "samples.jsonl"))
    assert_same_run(tmp_path / "run", alone)


def test_a_lost_worker_and_a_lost_learner_leave_the_same_run(
    ray_connection: Any, config: Any, alone: Path, tmp_path: Path
) -> None:
    draw = random.Random(3)
    watcher = Watcher({1: soon(kill, draw, "RolloutWorker", draw), 2: soon(kill, draw, "Learner", draw)})
    outcome = supervise(tmp_path / "run", config, watcher, workers=2, delay=0.25)
    assert outcome.kind == "done"
    assert any("Rollout worker" in line and "another one takes its place" in line for line in watcher.said)
    [restart] = [line for line in watcher.said if line.startswith("Learner 0 was lost (")]
    assert restart.endswith("The learners start again from the newest checkpoint.")
    assert any(line.startswith("Resuming after step ") for line in watcher.said)
    assert_same_run(tmp_path / "run", alone)


def test_a_lost_node_leaves_the_same_run(ray_connection: Any, config: Any, alone: Path, tmp_path: Path) -> None:
    """The second learner goes with it, and workers; the learners start again when a new node has room for them."""
    cluster, draw = ray_connection, random.Random(5)
    [node] = cluster.worker_nodes
    [raylet] = [one.process.pid for one in node.all_processes["raylet"]]
    went: list[str] = []

    def lose() -> None:
        went.extend(name for name in ("Learner", "RolloutWorker") for _ in actor_processes(name, raylet))
        cluster.remove_node(node, allow_graceful=False)

    class Operator(Watcher):
        def say(self, text: str) -> None:
            super().say(text)
            if "start again" in text:
                cluster.add_node(**NODE)

    watcher = Operator({1: soon(lose, draw)})
    # A node has room for one such learner and one worker.
    wide = {"num_cpus": NODE["num_cpus"] - 1}
    outcome = supervise(tmp_path / "run", config, watcher, learners=2, workers=2, delay=0.25, resources=wide)
    assert outcome.kind == "done"
    assert "Learner" in went
    assert any(line.startswith("Learner 1 was lost (") for line in watcher.said)
    assert_same_run(tmp_path / "run", alone)


def test_the_watchdog_names_the_phase_that_stands_still_and_the_run_goes_on(
    ray_connection: Any, config: Any, alone: Path, tmp_path: Path
) -> None:
    (tmp_path / "moods").mkdir()
    released = threading.Event()

    def stands_still(line: str) -> bool:
        words = "Rollout worker 0 has not moved for ", " s: distributed.rollout_worker.write."
        return line.startswith(words[0]) and line.endswith(words[1])

    class Impatient(Watcher):
        def say(self, text: str) -> None:
            super().say(text)
            if stands_still(text):
                released.set()

    watcher = Impatient()

    def hold() -> None:
        with held_up(tmp_path / "moods", [0]):
            released.wait(100)

    holder = threading.Thread(target=hold)
    holder.start()
    outcome = supervise(tmp_path / "run", config, watcher, workers=1, standstill=6.0)
    released.set()
    holder.join()
    assert outcome.kind == "done"
    assert any(map(stands_still, watcher.said))
    assert any(
        line.startswith("Learner 0 has not moved for ") and "waiting for the rollout workers" in line
        for line in watcher.said
    )
    assert_same_run(tmp_path / "run", alone)


def test_learners_that_are_lost_again_and_again_end_the_run(ray_connection: Any, config: Any, tmp_path: Path) -> None:
    watcher = Watcher()
    with pytest.raises(UserError, match=r"started 2 times without a new step; what is saved in .* can be resumed"):
        supervise(tmp_path / "run", config, watcher, workers=0, train=die, retries=1)
    assert len([line for line in watcher.said if "start again" in line]) == 1


def test_a_refusal_leaves_no_directory(ray_connection: Any, config: Any, tmp_path: Path) -> None:
    wrong = dataclasses.replace(config, sampler="transformers")
    outcome = supervise(tmp_path / "run", wrong, Watcher(), workers=1)
    assert (outcome.kind, outcome.message) == (
        "refused",
        "Rollout workers do not write with --sampler transformers: take native or vllm.",
    )
    assert not (tmp_path / "run").exists()
