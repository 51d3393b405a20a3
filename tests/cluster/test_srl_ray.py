"""The same workers as Ray actors: a run, a killed worker, and what one of them could not do."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest

ray = pytest.importorskip("ray")

from zerozoo.control.agents import PPO  # noqa: E402
from zerozoo.control.sources import World  # noqa: E402
from zerozoo.distributed.messages import Message, flatten  # noqa: E402
from zerozoo.distributed.policy_worker import acting_weights  # noqa: E402
from zerozoo.distributed.ray_streams import RayWorkers  # noqa: E402
from zerozoo.distributed.streams import InlineSamples, InlineWeights  # noqa: E402
from zerozoo.distributed.workers import InlineWorkers, Setup  # noqa: E402
from zerozoo.recipes.systems import srl  # noqa: E402
from zerozoo.runs.errors import UserError  # noqa: E402
from zerozoo.runs.run import Run  # noqa: E402
from zerozoo.runs.streams import Streams  # noqa: E402

pytestmark = pytest.mark.usefixtures("ray_connection")
CONFIG = srl.Config(
    **{**srl.PRESETS["smoke"], "environment": "pendulum", "pull_seconds": 0.0, "queue_size": 4, "streams": "ray"}
)


def setup(world: World | None = None) -> Setup:
    sizes = {"actors": 1, "ring_size": 1, "copies": 2, "sample_steps": 10, "inference_cap": 100, "pull_seconds": 0.0}
    return Setup(world=world or World("pendulum"), agent=PPO, config=CONFIG, seed=0, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("servers", [0, 1])
def test_remote_workers_make_the_samples_that_one_process_makes(servers: int) -> None:
    parts = setup()
    samples, weights = InlineSamples(), InlineWeights()
    inline = InlineWorkers(parts, Streams(0), samples, weights)
    weights.publish(0, acting_weights(inline.policy.agent))
    expected: list[Message] = []
    while len(expected) < 3:
        inline.work(0.0)
        expected += samples.pull()
    workers = RayWorkers(parts, servers, 2, 60.0, print)
    pulled: list[Message] = []
    try:
        workers.weights.publish(0, acting_weights(inline.policy.agent))
        workers.start()
        while len(pulled) < 3:
            workers.work(0.0)
            pulled += workers.samples.pull(0.1)
    finally:
        workers.close()
    for one, other in zip(expected, pulled, strict=False):
        flat = flatten(other)
        for name, array in flatten(one).items():
            assert flat[name].tobytes() == array.tobytes(), name
    assert workers.inference()[0] >= 10


def test_a_lost_worker_is_replaced_and_nothing_counts_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zerozoo.distributed import ray_streams
    from zerozoo.distributed.trainer import TrainerLoop

    made: list[RayWorkers] = []
    make, advance = ray_streams.RayWorkers, TrainerLoop.advance
    kills = {200: "actor 0", 400: "policy worker 0"}
    contents: list[bytes] = []

    def watched(*given: Any) -> RayWorkers:
        made.append(make(*given))
        return made[-1]

    def killing(loop: TrainerLoop, step: int) -> int:
        if step in kills:
            ray.kill(made[0].handles[kills.pop(step)])
        learn = loop._learn
        loop._learn = lambda batch: (  # type: ignore[method-assign,assignment]
            contents.extend(entry.sample["obs"].tobytes() for entry in batch.first),
            learn(batch),
        )
        step = advance(loop, step)
        loop._learn = learn  # type: ignore[method-assign]
        return step

    monkeypatch.setattr(ray_streams, "RayWorkers", watched)
    monkeypatch.setattr(TrainerLoop, "advance", killing)
    config = replace(CONFIG, placement="central", steps=600, evaluate_every=600, checkpoint_every=600)
    with Run.start(tmp_path / "run", "srl", asdict(config), 0) as run:
        results = srl.train(config, run)
    assert (results["frames"], results["restarts"]) == (600, 2)
    assert len(set(contents)) == len(contents) == 30


def test_a_remote_worker_that_cannot_go_on_ends_the_run_with_its_words() -> None:
    gymnasium.register("OnlyHere-v1", entry_point="gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20)
    workers = RayWorkers(setup(World("OnlyHere-v1")), 0, 2, 60.0, print)
    try:
        with pytest.raises(UserError, match="actor 0 could not go on: The environment 'OnlyHere-v1' cannot be made"):
            workers.start()
    finally:
        workers.close()
