"""SAC on SRL's streams: actors make the experience, a replay buffer keeps it, a trainer learns from it.

The agent and its update are those of `sac`; actors, policy workers, streams and placements are those of `srl`, and so
is what is counted: staleness, drops, versions, episodes. A frame that came in has its `updates_per_step` updates, no
matter who is faster: slow actors are waited for, fast ones wait once their streams are full.

What differs from `sac`:

* Frames come in samples of `sample_steps` steps of all copies. The updates of a sample are made in a row; the actors go
  on meanwhile (not in one process) and hear of new weights after the last one.
* Uniform actions end with the first version that has learned something and not after a number of steps: an actor draws
  them for as long as it knows nothing but version 0. So the first actions of the policy come after the first updates,
  later than after `warmup` frames, by as much as the actors are ahead.
* The random numbers of actions come from streams of the actors, not from the agent's.

With `placement` inline, one actor, ring and copy, samples of one step and no warm-up nothing of this is left: given the
same numbers for actions and environment the networks are those of `sac`, bit for bit (a test).

What can be repeated: an inline run, bit for bit, also after a kill. With worker processes the order of samples depends
on the clock; a killed trainer goes on from its checkpoint, replay buffer included, with new episodes.
"""

import sys
from dataclasses import dataclass
from typing import Any

from zerozoo.control.agents import SAC
from zerozoo.control.build import loop_fields, make_replay, make_reward, make_world
from zerozoo.distributed.placement import run_workers
from zerozoo.distributed.replay_trainer import ReplayTrainer
from zerozoo.distributed.settings import (
    StreamSettings,
    check_at_least,
    check_streams,
    make_setup,
    plan_workers,
    stream_fields,
)
from zerozoo.recipes.baselines import sac
from zerozoo.runs.run import Run

PAPER = "Soft Actor-Critic Algorithms and Applications (2018), arXiv 1812.05905; on the streams of SRL, 2306.16688"


@dataclass(frozen=True)
class Config(StreamSettings, sac.Config):
    """SAC's fields carry its paper's defaults. Short samples and queues keep the actors close to the trainer."""

    sample_steps: int = 20  # steps of a sample, whose updates are made in a row
    pull_seconds: float = 0.0  # between two looks of a policy worker for new weights; 0: before every batch
    queue_size: int = 8  # samples of an actor that may wait in the stream; then the actor waits
    target_return: float = -200.0  # mean return of the last 100 episodes at which the clock is read


EXTENDABLE = sac.EXTENDABLE
PRESETS: dict[str, dict[str, Any]] = {
    # The trainer and one actor, a core for each. A ring hides inference, of which an actor of its own has none.
    "laptop": {
        **sac.PRESETS["laptop"],
        "environment": "Pendulum-v1",
        "placement": "actors",
        "ring_size": 1,
        "sample_steps": 10,
    },
    "smoke": {**sac.PRESETS["smoke"], "environment": "Pendulum-v1", "placement": "inline", "sample_steps": 5},
}


def check(config: Config) -> None:
    """UserError for what cannot run."""
    check_streams(config)
    check_at_least(config, 1, "batch_size", "capacity")
    check_at_least(config, 0, "warmup", "updates_per_step")


def plan(config: Config) -> list[tuple[str, str]]:
    """Processes and sizes."""
    check(config)
    updates = config.sample_steps * config.copies * config.updates_per_step
    return [
        *plan_workers(config),
        ("updates", f"{updates:g} for each sample after {config.warmup} frames, of {config.batch_size} rows each"),
        ("replay", f"{config.capacity} frames"),
    ]


def train(config: Config, run: Run) -> dict[str, float]:
    """Run to `config.steps` frames, resuming where the run directory stands; numbers of the run, see `results`."""
    check(config)
    world = make_world(config)
    return run_workers(
        make_setup(config, world, SAC, uniform_first=config.warmup > 0),
        ReplayTrainer,
        buffer_size=sys.maxsize,  # the streams bound how many samples there are; none is dropped for want of room
        reuses=1,
        batch_samples=1,
        agent=SAC(world.spec(), config, run.stream("agent")),
        replay=make_replay(world, config),
        warmup=config.warmup,
        updates_per_step=config.updates_per_step,
        batch_size=config.batch_size,
        gamma=config.gamma,
        target_return=config.target_return,
        reward=make_reward(config),
        **stream_fields(config),
        **loop_fields(config, run, world),
    )
