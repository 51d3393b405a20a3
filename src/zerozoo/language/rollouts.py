"""What one step of sampling produced, with everything that later parts add to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from zerozoo.language.logprobs import Sequences
from zerozoo.language.samplers.interface import Samples, join_samples
from zerozoo.rewards.verifier import Verification, Verifier
from zerozoo.tasks.task import Task


@dataclass
class Rollouts:
    """N = groups x samples responses to the tasks of one step.

    Attributes:
        tasks: the task of each group.
        prompts: token ids of each group's prompt, as the sampler got them.
        samples: what the sampler drew; its token ids are never made anew from text (trap 7).
        verifications: N verdicts of the verifier.
        rewards: (N,) float32.
        advantages: (N,) float32, zero until credit is given.
        trained: (N,) bool, rows that enter the loss; False for truncated rows that are masked.
    """

    tasks: list[Task]
    prompts: list[list[int]]
    samples: Samples
    verifications: list[Verification]
    rewards: Tensor
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    trained: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        if not len(self.advantages):
            self.advantages = torch.zeros_like(self.rewards)
        if not len(self.trained):
            self.trained = torch.ones_like(self.rewards, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def groups(self) -> Tensor:
        return self.samples.groups

    def sequences(self, rows: Sequence[int]) -> Sequences:
        """Prompt and response ids of the given rows."""
        group_of = self.groups.tolist()
        lengths = self.samples.lengths.tolist()
        tokens = self.samples.tokens
        return Sequences(
            [self.prompts[group_of[row]] for row in rows],
            [tokens[row, : lengths[row]].tolist() for row in rows],
        )

    def flat(self, values: Tensor, rows: Sequence[int]) -> Tensor:
        """The valid entries of (N, T) `values` for the given rows, behind one another: (M,)."""
        picked = torch.as_tensor(rows)
        lengths = self.samples.lengths[picked]
        return values[picked][torch.arange(values.shape[1]) < lengths[:, None]]

    def take_groups(self, groups: Sequence[int]) -> Rollouts:
        """Only the given groups, numbered anew from 0 in the order given."""
        per_group = len(self) // len(self.tasks)
        rows = torch.cat([(self.groups == group).nonzero()[:, 0] for group in groups])
        picked = rows.tolist()
        return Rollouts(
            tasks=[self.tasks[group] for group in groups],
            prompts=[self.prompts[group] for group in groups],
            samples=Samples(
                tokens=self.samples.tokens[rows],
                lengths=self.samples.lengths[rows],
                logprobs=self.samples.logprobs[rows],
                stopped=self.samples.stopped[rows],
                groups=torch.arange(len(groups)).repeat_interleave(per_group),
                texts=[self.samples.texts[row] for row in picked],
            ),
            verifications=[self.verifications[row] for row in picked],
            rewards=self.rewards[rows],
            advantages=self.advantages[rows],
            trained=self.trained[rows],
        )

    def rows_for_log(
        self, step: int, most: int | None = None, spell: Callable[[int], str] | None = None
    ) -> list[Mapping[str, Any]]:
        """One mapping per response for samples.jsonl: what was asked, what came, how it was judged.

        With `spell`, which gives the text of a token id, also every drawn token ("tokens", the end token included) and
        its log-prob under the distribution that it was drawn from ("logprobs", nats, rounded to 2 decimals).
        """
        group_of = self.groups.tolist()
        spelled = cache(spell) if spell else None
        return [
            {
                "step": step,
                "group": group_of[row],
                "task": self.tasks[group_of[row]].id,
                "question": self.tasks[group_of[row]].question,
                "gold": self.tasks[group_of[row]].answer,
                "response": self.samples.texts[row],
                "verdict": self.verifications[row].verdict.value,
                "extracted": self.verifications[row].extracted,
                "boxed": self.verifications[row].boxed,
                "reward": float(self.rewards[row]),
                "advantage": float(self.advantages[row]),
                "length": int(self.samples.lengths[row]),
                "finish": "stop" if self.samples.stopped[row] else "length",
                **(self._tokens_for_log(row, spelled) if spelled else {}),
            }
            for row in range(len(self) if most is None else min(most, len(self)))
        ]

    def _tokens_for_log(self, row: int, spelled: Callable[[int], str]) -> dict[str, Any]:
        written = slice(0, int(self.samples.lengths[row]))
        logprobs = self.samples.logprobs[row, written].tolist()
        # + 0.0: a token that was certain has 0.0 and not -0.0.
        return {
            "tokens": [spelled(token) for token in self.samples.tokens[row, written].tolist()],
            "logprobs": [round(logprob, 2) + 0.0 for logprob in logprobs],
        }


def verify_samples(tasks: Sequence[Task], samples: Samples, verifier: Verifier) -> list[Verification]:
    """Judge every response by its text alone; the question never reaches the verifier (card, Pitfalls)."""
    problems = [tasks[group] for group in samples.groups.tolist()]
    return verifier.verify(problems, samples.texts)


def join_rollouts(parts: Sequence[Rollouts], pad_id: int) -> Rollouts:
    """Several rollouts as one, groups numbered on."""
    if len(parts) == 1:
        return parts[0]
    return Rollouts(
        tasks=[task for part in parts for task in part.tasks],
        prompts=[prompt for part in parts for prompt in part.prompts],
        samples=join_samples([part.samples for part in parts], pad_id),
        verifications=[one for part in parts for one in part.verifications],
        rewards=torch.cat([part.rewards for part in parts]),
        advantages=torch.cat([part.advantages for part in parts]),
        trained=torch.cat([part.trained for part in parts]),
    )
