"""Prompts: a few steps of another trajectory of the same task, shown in front of a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from zerozoo.control.episodes import Episodes
from zerozoo.control.normaliser import Normaliser
from zerozoo.control.views import Batch, Sequences, SequenceSampler
from zerozoo.runs.errors import UserError

SELECTIONS = ("uniform", "sampled", "largest")


@dataclass(frozen=True)
class Prompt:
    """k steps for each of B rows: return_to_go (B, k) divided by the scale, obs (B, k, n) standardised, action
    (B, k, m), timestep (B, k)."""

    return_to_go: Tensor
    obs: Tensor
    action: Tensor
    timestep: Tensor

    @classmethod
    def of_batch(cls, batch: Batch) -> Prompt | None:
        """The prompt of a batch of `PromptedSequences`, or None where it has none."""
        fields = {name.removeprefix("prompt/"): value for name, value in batch.extra.items() if "prompt/" in name}
        return cls(**fields) if fields else None


class PromptPool:
    """Trajectories from which prompts of `length` steps are cut.

    errors: (N,) how badly a world model predicts each step. selection of where a prompt starts: "uniform", "sampled"
    (probability proportional to the sum of the errors of its steps, as in the released code of Meta-DT), "largest" (the
    start of the largest sum, as the paper says). The sum runs over the prompt's own steps; the released code sums to
    the end of the episode when it acts, which favours early starts. UserError for an unknown selection and for an
    episode that is shorter than a prompt.
    """

    def __init__(
        self,
        data: Episodes,
        length: int,
        selection: str,
        errors: Tensor | None,
        normaliser: Normaliser,
        return_scale: float,
    ) -> None:
        if selection not in SELECTIONS:
            raise UserError(f"Unknown selection of prompts {selection!r}; choose from: {', '.join(SELECTIONS)}.")
        shortest = int(data.lengths.min())
        if not 1 <= length <= shortest:
            raise UserError(f"A prompt can have 1 to {shortest} steps here, the length of an episode, not {length}.")
        self.offsets = torch.arange(length)
        self.obs = normaliser(torch.from_numpy(data.obs)).index_select(0, torch.from_numpy(data.obs_index))  # (N, n)
        self.action = torch.from_numpy(data.action)
        self.return_to_go = torch.from_numpy(data.returns_to_go()).float() / return_scale
        self.first = torch.from_numpy(data.starts)
        self.weights = self._weights(data, length, selection, errors)  # (E, T - k + 1) with T the longest

    def draw(self, trajectories: Tensor, generator: Generator) -> Prompt:
        """A prompt from each of these trajectories (B,)."""
        start = torch.multinomial(self.weights[trajectories], 1, generator=generator)  # (B, 1)
        timestep = start + self.offsets  # (B, k)
        steps = (self.first[trajectories][:, None] + timestep).flatten()

        def take(values: Tensor) -> Tensor:
            return values.index_select(0, steps).view(*timestep.shape, *values.shape[1:])

        return Prompt(take(self.return_to_go), take(self.obs), take(self.action), timestep)

    @staticmethod
    def _weights(data: Episodes, length: int, selection: str, errors: Tensor | None) -> Tensor:
        if errors is None or selection == "uniform":
            errors = torch.ones(len(data))
        starts = torch.arange(int(data.lengths.max()) - length + 1)
        inside = starts <= torch.from_numpy(data.lengths - length)[:, None]  # (E, S)
        steps = torch.from_numpy(data.starts)[:, None, None] + starts[:, None] + torch.arange(length)  # (E, S, k)
        score = errors[steps.clamp(max=len(data) - 1)].sum(-1).clamp(min=1e-12) * inside
        if selection == "largest":
            return torch.nn.functional.one_hot(score.argmax(-1), len(starts)).float()
        return score


class PromptedSequences(SequenceSampler):
    """Windows with a prompt each, from one of the best trajectories of the same task.

    data: episodes with extras["task"] (N,) int; all other extra fields go into the batches as usual. pool: of the same
    episodes, or None for no prompts. best: how many trajectories of a task, those of the highest returns, prompts are
    taken from. Batches have extra["prompt/..."], the fields of `Prompt`.
    """

    def __init__(self, data: Episodes, view: Sequences, pool: PromptPool | None, best: int) -> None:
        super().__init__(data, view)
        self.pool = pool
        self.task = torch.from_numpy(data.extras["task"])  # (N,)
        self.best = best_of_tasks(data, best)

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        batch = super().sample(batch_size, generator)
        if self.pool is not None:
            chosen = draw_trajectories(self.best, self.task[batch.index], generator)
            prompt = self.pool.draw(chosen, generator)
            batch.extra |= {f"prompt/{name}": value for name, value in vars(prompt).items()}
        return batch


def best_of_tasks(data: Episodes, number: int) -> Tensor:
    """(K, number) the episodes of the highest returns of each task 0 .. K - 1, the best first.

    A task with fewer episodes repeats them. UserError for a task without any.
    """
    task, returns = data.extras["task"][data.starts], data.returns()
    rows = []
    for kind in range(int(task.max()) + 1):
        own = np.flatnonzero(task == kind)
        if not len(own):
            raise UserError(f"Task {kind} has no episode in the data.")
        order = own[np.argsort(-returns[own], kind="stable")][:number]
        rows.append(np.resize(order, number))
    return torch.from_numpy(np.stack(rows))


def draw_trajectories(best: Tensor, task: Tensor, generator: Generator) -> Tensor:
    """(B,) one of the best trajectories of each task (B,)."""
    column = torch.randint(best.shape[1], (len(task),), generator=generator)
    return best[task, column]
