"""What a step of the zero-RL loop trains on: tasks drawn, answered and judged, also some steps ahead of it.

With `max_lag` 0 the tasks of a step are drawn and answered when the step begins. With `max_lag` k they are handed to
the sampler k steps earlier, so it can write while earlier steps are trained on; the responses then come from weights
that are k updates old. What is under way when a process ends is lost: a checkpoint says that nothing was drawn ahead,
so a resumed run draws the same tasks, with the same random numbers, once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zerozoo.language.algorithm import Algorithm
from zerozoo.language.deck import Deck
from zerozoo.language.evaluation import sampling_metrics
from zerozoo.language.loop_settings import LoopSettings
from zerozoo.language.rollouts import Rollouts, join_rollouts, verify_samples
from zerozoo.language.samplers.interface import AsyncSampler, Decoding, Pending, Ready, Sampler
from zerozoo.language.staleness import row_ages, staleness_metrics, written_by
from zerozoo.language.turns import TurnSampler
from zerozoo.losses.advantages import informative_groups
from zerozoo.rewards.verifier import Verification, Verifier
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.task import Task

Reward = Callable[[Verification], float]


@dataclass(frozen=True)
class _Batch:
    """The tasks of a step whose responses are under way; `before` is the state from which they were drawn."""

    tasks: list[Task]
    prompts: list[list[int]]
    pending: Pending
    before: _State


@dataclass(frozen=True)
class _State:
    """Of the deck and of the random streams that draw tasks and responses."""

    deck: dict[str, Any]
    streams: tuple[Tensor, ...]


@dataclass
class Collector:
    """Draws the tasks of each step, has them answered and judges the answers.

    Attributes:
        deck: deals the tasks.
        prompt: token ids of a task's prompt.
        sampler: answers; an `AsyncSampler` is told of every new version of the weights.
        verifier: judges.
        reward: verdict -> reward.
        decoding: how responses are drawn.
        algorithm: which groups are replaced and which rows are masked.
        settings: what a step holds, and how many steps ahead tasks are drawn.
        run: whose stream "sampler" draws the responses.
        pad_id: of the tokens.
        timed: measures a phase of a step, by its name.
        episodes: draws and judges episodes in place of `sampler` and `verifier`, never ahead.
        version: of the weights: how many steps they have been trained.
        under_way: batches of this and the next steps.
    """

    deck: Deck
    prompt: Callable[[Task], list[int]]
    sampler: Sampler
    verifier: Verifier
    reward: Reward
    decoding: Decoding
    algorithm: Algorithm
    settings: LoopSettings
    run: Run
    pad_id: int
    timed: Callable[[str], AbstractContextManager[None]]
    episodes: TurnSampler | None = None
    version: int = 0
    under_way: deque[_Batch] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.settings.max_lag < 0:
            raise ValueError(f"max_lag must not be negative: {self.settings.max_lag}")
        if self.episodes is not None and self.algorithm.refill_rounds:
            raise UserError("Episodes of several turns cannot be replaced by fresh ones: set refill_rounds to 0.")
        if self.episodes is not None and self.settings.max_lag:
            raise UserError("Episodes of several turns cannot be written ahead of their step: set max_lag to 0.")
        if self.algorithm.refill_rounds and self.settings.max_lag:
            raise UserError(
                "Groups cannot be replaced while later steps are written: set refill_rounds or max_lag to 0."
            )

    def begin(self, version: int) -> None:
        """Nothing is under way, and the weights have been trained for `version` steps."""
        self.under_way.clear()
        self.publish(version)

    def publish(self, version: int) -> None:
        """The policy has new weights."""
        self.version = version
        if isinstance(self.sampler, AsyncSampler):
            with self.timed("publish"):
                self.sampler.publish(version)

    def collect(self, step: int) -> tuple[Rollouts, dict[str, float]]:
        """Rollouts of the step; with refill, groups without signal are replaced while rounds are left."""
        wanted = self.settings.prompts_per_step
        parts = [self._next(step)]
        metrics = self._describe(parts[0])
        for _ in range(self.algorithm.refill_rounds):
            missing = wanted - sum(len(_informative(part)) for part in parts)
            if missing <= 0:
                break
            parts.append(self._next(step))
        metrics["groups/rounds"] = float(len(parts))
        if len(parts) == 1:
            return parts[0], metrics
        joined = join_rollouts(parts, self.pad_id)
        useful = _informative(joined)
        rest = [group for group in range(len(joined.tasks)) if group not in set(useful)]
        return joined.take_groups((useful + rest)[:wanted]), metrics

    @property
    def passes(self) -> int:
        """Shuffled passes over the tasks that were begun by what has been collected."""
        return int(self.under_way[0].before.deck["passes"]) if self.under_way else self.deck.passes

    @contextmanager
    def as_collected(self) -> Iterator[None]:
        """Deck and streams stand as if nothing were under way: what a checkpoint must hold (trap 35)."""
        now = self._state()
        if self.under_way:
            self._return_to(self.under_way[0].before)
        try:
            yield
        finally:
            self._return_to(now)

    def _next(self, step: int) -> Rollouts:
        """The next batch, judged; those of the steps that may be drawn ahead are on their way then."""
        if self.episodes is not None:
            return self._play(self.episodes)
        ahead = max(0, min(self.settings.max_lag, self.settings.steps - step))
        with self.timed("sample"):
            while len(self.under_way) <= ahead:
                self.under_way.append(self._submit())
            batch = self.under_way.popleft()
            samples = batch.pending.result()
        with self.timed("score"):
            verifications = verify_samples(batch.tasks, samples, self.verifier)
            rewards = torch.tensor([self.reward(one) for one in verifications], dtype=torch.float32)
        if not samples.stopped.any() and not rewards.any():
            self.run.say("Every response was cut off at max_new_tokens and earned nothing: raise max_new_tokens.")
        rollouts = self._masked(Rollouts(batch.tasks, batch.prompts, samples, verifications, rewards))
        rollouts.trained = rollouts.trained & (row_ages(samples, self.version) <= self.settings.max_lag)
        return rollouts

    def _submit(self) -> _Batch:
        """Draw the next tasks and have the sampler begin to answer them."""
        before = self._state()
        tasks = self.deck.deal(self.settings.prompts_per_step)
        prompts = [self.prompt(task) for task in tasks]
        asked = prompts, self.settings.samples_per_prompt, self.decoding, self.run.stream("sampler")
        if isinstance(self.sampler, AsyncSampler):
            return _Batch(tasks, prompts, self.sampler.submit(*asked), before)
        samples = self.sampler.sample(*asked)
        return _Batch(tasks, prompts, Ready(written_by(samples, self.version)), before)

    def _play(self, episodes: TurnSampler) -> Rollouts:
        tasks = self.deck.deal(self.settings.prompts_per_step)
        prompts = [self.prompt(task) for task in tasks]
        with self.timed("sample"):  # judging included
            return self._masked(
                episodes.collect(tasks, prompts, self.settings.samples_per_prompt, self.run.stream("sampler"))
            )

    def _masked(self, rollouts: Rollouts) -> Rollouts:
        """The same with truncated rows out of the loss, where the algorithm wants it."""
        if self.algorithm.overlong == "mask":
            stopped = rollouts.samples.stopped
            rollouts.trained = rollouts.trained & (stopped if rollouts.trained.ndim == 1 else stopped[:, None])
        return rollouts

    def _describe(self, rollouts: Rollouts) -> dict[str, float]:
        """What the step's first draw of tasks looked like, before any group was replaced."""
        informative = len(_informative(rollouts)) / len(rollouts.tasks)
        right = torch.tensor([one.verdict.value == "right" for one in rollouts.verifications]).float()
        per_group = right.view(len(rollouts.tasks), -1)
        ahead = self.settings.max_lag and self.episodes is None
        return {
            "reward": float(rollouts.rewards.mean()),
            "reward/highest": float(rollouts.rewards.max()),
            "reward/lowest": float(rollouts.rewards.min()),
            "correct": float(right.mean()),
            "groups/informative": informative,
            "groups/all_wrong": float((per_group.amax(1) == 0).float().mean()),
            "groups/all_right": float((per_group.amin(1) == 1).float().mean()),
            "tokens/prompts": float(sum(map(len, rollouts.prompts))),  # each is run once for its group
            "tokens/responses": float(rollouts.samples.lengths.sum()),
            "tokens/drawn": float(rollouts.samples.drawn),
            "tokens/rows": float(len(rollouts)),
            **sampling_metrics(rollouts),
            **rollouts.metrics(),
            **(staleness_metrics(rollouts.samples, self.version, self.settings.max_lag) if ahead else {}),
        }

    def _state(self) -> _State:
        return _State(self.deck.state(), tuple(stream.get_state() for stream in self._streams()))

    def _return_to(self, state: _State) -> None:
        self.deck.load_state(state.deck)
        for stream, its in zip(self._streams(), state.streams, strict=True):
            stream.set_state(its)

    def _streams(self) -> tuple[torch.Generator, torch.Generator]:
        return self.deck.generator, self.run.stream("sampler")


def _informative(rollouts: Rollouts) -> list[int]:
    """Groups whose rewards differ."""
    return rollouts.groups[informative_groups(rollouts.rewards, rollouts.groups)].unique().tolist()
