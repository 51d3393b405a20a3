"""Evaluation: the same documented episodes every time, apart from training, in the environment's own rewards.

Episode k starts from seed EVALUATION_SEED + k, whatever the run's seed is. Training draws the seeds of its episodes
below EVALUATION_SEED, so no episode of training is one of evaluation. Nothing here draws from a stream of the run:
evaluating more often, or not at all, changes no training (traps 25 and 26).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from zerozoo.control.sources import World
from zerozoo.environments.vector import VecEnv
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.runs.statistics import mean_interval

EVALUATION_SEED = 2**31
BATCHED_COPIES, SINGLE_COPIES = 100, 10  # most copies side by side, of batched worlds and of gymnasium environments
LONGEST = 100_000  # steps of an episode after which its environment is said to have no end


class Player(Protocol):
    """Plays one episode in each of N copies that begin together. An agent with a memory has `player(copies)`."""

    def act(self, obs: Tensor) -> Tensor:
        """(N, *obs_shape) -> (N, m) or (N,)."""
        ...

    def observe(self, reward: np.ndarray) -> None:
        """The rewards (N,) that the last actions earned."""
        ...


class Greedy:
    """The mode of an agent's policy; remembers nothing."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    def act(self, obs: Tensor) -> Tensor:
        return self.agent.act(obs, explore=False)

    def observe(self, reward: np.ndarray) -> None:
        """Rewards do not matter to it."""


@dataclass(frozen=True)
class Played:
    """n episodes: seeds (n,), returns (n,) in the world's own rewards, lengths (n,), and successes (n,) or None."""

    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray | None

    def metrics(self, reference: tuple[float, float] | None = None) -> dict[str, float]:
        """evaluation/return, its 95 % interval low and high (Student's t over the episodes), length, success, score.

        reference: the returns that score 0 and 100.
        """
        interval = mean_interval(self.returns)
        metrics = {
            "return": interval.value,
            "low": interval.low,
            "high": interval.high,
            "length": float(self.lengths.mean()),
        }
        if self.success is not None:
            metrics["success"] = float(self.success.mean())
        if reference is not None:
            metrics["score"] = normalised(interval.value, reference)
        return {f"evaluation/{name}": value for name, value in metrics.items()}

    def rows(self, step: int) -> Iterator[dict[str, Any]]:
        """One row for each episode, for samples.jsonl."""
        for number, seed in enumerate(self.seeds):
            row = {"step": step, "phase": "evaluation", "episode": number, "seed": int(seed)}
            row |= {"return": float(self.returns[number]), "length": int(self.lengths[number])}
            yield row if self.success is None else {**row, "success": bool(self.success[number])}


def normalised(value: float, reference: tuple[float, float]) -> float:
    """100 (value - low) / (high - low) with the returns of a random and an expert policy (D4RL, arXiv 2004.07219)."""
    low, high = reference
    return 100 * (value - low) / (high - low)


def evaluate(
    agent: Any, environment: VecEnv, episodes: int, first_seed: int = EVALUATION_SEED, success: str | None = None
) -> Played:
    """Plays `episodes` episodes, all copies at once, with the agent's most likely actions.

    agent: has `act(obs, explore)`, or `player(copies)`. success: name in the environment's info, which it must have
    been asked for; an episode succeeds if it is true in any of its steps. UserError for an episode that does not end.
    """
    copies = environment.copies
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    succeeded = np.zeros(episodes, dtype=bool)
    for begin in range(0, episodes, copies):
        player: Player = agent.player(copies) if hasattr(agent, "player") else Greedy(agent)
        obs = environment.reset(range(first_seed + begin, first_seed + begin + copies))
        playing = np.arange(copies) < episodes - begin  # (N,) the first episode of this copy counts and goes on
        reached = np.zeros(copies, dtype=bool)
        for _ in range(LONGEST):
            step = environment.step(player.act(torch.from_numpy(obs)).numpy())
            player.observe(step.reward)
            if success is not None:
                reached |= step.info[success].astype(bool)
            ended = playing & step.ended
            rows = begin + np.flatnonzero(ended)
            returns[rows], lengths[rows], succeeded[rows] = step.returns[ended], step.lengths[ended], reached[ended]
            playing &= ~step.ended
            if not playing.any():
                break
            obs = step.obs
        else:
            raise UserError(f"An episode of {environment.name} had no end after {LONGEST} steps: give it a time limit.")
    seeds = first_seed + np.arange(episodes)
    return Played(seeds, returns, lengths, succeeded if success is not None else None)


class Evaluator:
    """Evaluates an agent in a world: metrics, and one row for each episode in samples.jsonl.

    The environments are its own. UserError, at once, for a world that cannot be made. `drawn` is the world of which a
    loop makes a picture at its end (`pictures`), None for evaluators of another kind.
    """

    drawn: World | None = None

    def __init__(self, world: World, episodes: int) -> None:
        if episodes < 1:
            raise UserError(f"evaluation_episodes must be at least 1, not {episodes}.")
        self.drawn, self.episodes = world, episodes
        self.success, self.reference = world.success_name(), world.reference()
        copies = min(episodes, BATCHED_COPIES if world.batched else SINGLE_COPIES)
        info = [] if self.success is None else [self.success]
        # What is drawn here starts episodes that nobody counts: those of copies that have played theirs.
        self.environment = world.vector(copies, np.random.Generator(np.random.PCG64(0)), info)

    def __call__(self, agent: Any, run: Run, step: int) -> dict[str, float]:
        """Metrics of the agent as it is after `step`."""
        began = time.perf_counter()
        played = evaluate(agent, self.environment, self.episodes, success=self.success)
        run.sample(played.rows(step))
        return {**played.metrics(self.reference), "seconds/evaluate": time.perf_counter() - began}
