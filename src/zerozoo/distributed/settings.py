"""Fields of recipes whose experience comes over streams, with the comments that `zerozoo show` prints, and what is made
from them. A recipe's Config derives from `StreamSettings` and one of `control.settings`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zerozoo.control.sources import World
from zerozoo.distributed.workers import PLACEMENTS, Setup
from zerozoo.runs.errors import UserError

STREAMS = ("shared", "ray")


@dataclass(frozen=True)
class StreamSettings:
    """Actors, policy workers and the streams between them; defaults of api/config.py of SRL (arXiv 2306.16688)."""

    placement: str = "central"  # inline: one process; actors: policy in each actor's; central: policy workers
    streams: str = "shared"  # between processes: shared memory, or ray
    actors: int = 1  # actor processes
    policy_workers: int = 1  # of the central placement
    ring_size: int = 2  # slots of an actor; each holds `copies` environments, stepped together
    sample_steps: int = 200  # steps of a sample; the true successor of the last one is its bootstrap step
    inference_cap: int = 10_240  # rows that a policy worker answers at once, at most
    pull_seconds: float = 1.0  # between two looks of a policy worker for new weights; 0: before every batch
    queue_size: int = 128  # samples of an actor that may wait in the stream; then the actor waits
    preemption_steps: int = -1  # samples are dropped when they are more versions behind than this; -1: never
    publish_delay: int = 0  # versions by which weights are published late: an experiment, not a feature
    stuck_seconds: float = 60.0  # after which the run ends if a worker neither works nor waits and no sample comes


def check_at_least(config: Any, least: int, *names: str) -> None:
    """UserError for the first of these fields that is below `least`, which is 0 or 1."""
    for name in names:
        if getattr(config, name) < least:
            limit = "must not be negative, but is" if least == 0 else f"must be at least {least}, not"
            raise UserError(f"{name} {limit} {getattr(config, name)}.")


def check_streams(config: Any) -> None:
    """UserError for stream settings that cannot run."""
    for name, choices in (("placement", PLACEMENTS), ("streams", STREAMS)):
        if getattr(config, name) not in choices:
            raise UserError(f"Unknown {name} {getattr(config, name)!r}; choose from: {', '.join(choices)}.")
    check_at_least(config, 1, "policy_workers", "queue_size")
    check_at_least(config, 0, "publish_delay", "pull_seconds")
    if config.preemption_steps < -1 or config.stuck_seconds <= 0:
        raise UserError("preemption_steps must be -1 or more and stuck_seconds above 0.")
    if 0 <= config.preemption_steps < config.publish_delay:
        raise UserError("With a publish_delay above preemption_steps every sample is dropped: nothing is learned.")
    if config.placement == "central" and config.policy_workers > config.actors:
        raise UserError(f"{config.policy_workers} policy_workers for {config.actors} actors: give each an actor.")


def plan_workers(config: Any) -> list[tuple[str, str]]:
    """The lines of a plan on processes, environments and samples."""
    workers = {"inline": 0, "actors": config.actors, "central": config.actors + config.policy_workers}
    frames = config.sample_steps * config.copies
    return [
        ("processes", f"trainer and {workers[config.placement]} others"),
        ("environments", f"{config.actors} x {config.ring_size} x {config.copies}"),
        ("sample", f"{config.sample_steps} steps of {config.copies} environments: {frames} frames"),
    ]


def make_setup(config: Any, world: World, agent: Callable[..., Any], uniform_first: bool = False) -> Setup:
    """What the workers are made from."""
    return Setup(
        world=world,
        agent=agent,
        config=config,
        seed=config.seed,
        actors=config.actors,
        ring_size=config.ring_size,
        copies=config.copies,
        sample_steps=config.sample_steps,
        inference_cap=config.inference_cap,
        pull_seconds=config.pull_seconds,
        uniform_first=uniform_first,
    )


def stream_fields(config: Any) -> dict[str, Any]:
    """What `run_workers` wants from the stream settings."""
    return {
        "placement": config.placement,
        "streams": config.streams,
        "policy_workers": config.policy_workers,
        "queue_size": config.queue_size,
        "preemption_steps": float("inf") if config.preemption_steps < 0 else config.preemption_steps,
        "publish_delay": config.publish_delay,
        "stuck_seconds": config.stuck_seconds,
    }
