"""What one step of sampling produced, with everything that later parts add to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        rewards: (N,) float32, of whole responses.
        advantages: (N,) float32, or (N, T) where tokens have their own, zero where padded. Zero until credit is given.
        trained: (N,) bool, rows that enter the loss; False for truncated rows that are masked. Or (N, T) bool, tokens
            that do; False for those that an environment wrote into the response.
        token_rewards: (N, T) float32 rewards of single tokens besides `rewards`, as those of steps, zero where padded;
            None where there are none.
        kl_weights: (N, T) float32 factors on the coefficient of a KL in the loss at each token; None: 1 everywhere.
        step: of the loop that drew them, from 1; 0 outside of one.
    """

    tasks: list[Task]
    prompts: list[list[int]]
    samples: Samples
    verifications: list[Verification]
    rewards: Tensor
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    trained: Tensor = field(default_factory=lambda: torch.empty(0))
    token_rewards: Tensor | None = None
    kl_weights: Tensor | None = None
    step: int = 0

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

    def written(self) -> Tensor:
        """(N, T) bool: the tokens of each response, False where padded."""
        return torch.arange(self.samples.tokens.shape[1]) < self.samples.lengths[:, None]

    def own_tokens(self) -> Tensor:
        """(N, T) bool: those that the policy wrote, all of them where `trained` says nothing about tokens."""
        return self.written() if self.trained.ndim == 1 else self.written() & self.trained

    def flat_advantages(self) -> Tensor:
        """(M,) advantages of all tokens behind one another; (N,) of the rows where tokens have none of their own."""
        return self.advantages if self.advantages.ndim == 1 else self.advantages[self.written()]

    def metrics(self) -> dict[str, float]:
        """What rollouts of this kind can tell beyond rewards and lengths."""
        return {}

    def with_row_advantages(self) -> Rollouts:
        """The same with one advantage a row, the mean over its tokens: what a log has room for."""
        if self.advantages.ndim == 1:
            return self
        return replace(self, advantages=self.advantages.sum(1) / self.samples.lengths)

    def take_rows(self, rows: Tensor) -> Rollouts:
        """Only the given rows, (n,) int64; the groups keep their numbers, their tasks and their prompts."""
        picked = rows.tolist()
        return Rollouts(
            tasks=self.tasks,
            prompts=self.prompts,
            samples=Samples(
                tokens=self.samples.tokens[rows],
                lengths=self.samples.lengths[rows],
                logprobs=self.samples.logprobs[rows],
                stopped=self.samples.stopped[rows],
                groups=self.groups[rows],
                texts=[self.samples.texts[row] for row in picked],
                versions=self.samples.versions[rows],
            ),
            verifications=[self.verifications[row] for row in picked],
            rewards=self.rewards[rows],
            advantages=self.advantages[rows],
            trained=self.trained[rows],
            token_rewards=None if self.token_rewards is None else self.token_rewards[rows],
            kl_weights=None if self.kl_weights is None else self.kl_weights[rows],
            step=self.step,
        )

    def take_groups(self, groups: Sequence[int]) -> Rollouts:
        """Only the given groups, numbered anew from 0 in the order given."""
        per_group = len(self) // len(self.tasks)
        taken = self.take_rows(torch.cat([(self.groups == group).nonzero()[:, 0] for group in groups]))
        taken.tasks = [self.tasks[group] for group in groups]
        taken.prompts = [self.prompts[group] for group in groups]
        taken.samples.groups = torch.arange(len(groups)).repeat_interleave(per_group)
        return taken

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
    """Several rollouts as one, groups numbered on. Their tokens have neither rewards nor advantages of their own yet.

    Raises ValueError when they have: the parts may differ in width.
    """
    if len(parts) == 1:
        return parts[0]
    if any(part.token_rewards is not None or part.advantages.ndim > 1 or part.trained.ndim > 1 for part in parts):
        raise ValueError("rollouts are joined before their tokens get rewards, advantages or a mask of their own")
    return Rollouts(
        tasks=[task for part in parts for task in part.tasks],
        prompts=[prompt for part in parts for prompt in part.prompts],
        samples=join_samples([part.samples for part in parts], pad_id),
        verifications=[one for part in parts for one in part.verifications],
        rewards=torch.cat([part.rewards for part in parts]),
        advantages=torch.cat([part.advantages for part in parts]),
        trained=torch.cat([part.trained for part in parts]),
    )
