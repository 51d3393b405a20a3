"""Episodes of several turns: the policy answers, reads a fixed text, answers again.

An episode is one row: the first prompt, then all that follows as one response. Every token of it is as it was drawn
(trap 7) or part of the fixed text, and a mask says which turn wrote it. So one forward pass gives the log-probs of all
turns, each given everything before it, and the update leaves out the tokens that the policy has not written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zerozoo.language.evaluation import Evaluation, sampling_metrics
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.samplers.interface import Decoding, Sampler, Samples
from zerozoo.rewards.verifier import Verdict, Verification, Verifier
from zerozoo.runs.errors import UserError
from zerozoo.runs.statistics import proportion_interval
from zerozoo.tasks.task import Task


@dataclass
class TurnRollouts(Rollouts):
    """Rollouts of N episodes with K turns, T tokens behind the first prompt of the longest.

    Rewards, verdicts and `stopped` of the row are those of the last turn; `trained` is (N, T), True where the policy
    wrote. Their texts are whole episodes.

    Attributes:
        turns: (N, T) int64, the turn that wrote each token, from 1; 0 for the fixed texts and where padded.
        turn_rewards: (N, K) float32.
        turn_verifications: K lists of N verdicts.
        turn_stopped: (N, K) bool, whether a turn ended by itself.
        turn_texts: K lists of N texts, as they were judged.
    """

    turns: Tensor = field(default_factory=lambda: torch.empty(0))
    turn_rewards: Tensor = field(default_factory=lambda: torch.empty(0))
    turn_verifications: list[list[Verification]] = field(default_factory=list)
    turn_stopped: Tensor = field(default_factory=lambda: torch.empty(0))
    turn_texts: list[list[str]] = field(default_factory=list)

    def spread(self, values: Tensor) -> Tensor:
        """(N, K) numbers of turns -> (N, T) of their tokens, 0 where no turn wrote: advantages, or weights of a KL."""
        padded = torch.cat([values.new_zeros((len(values), 1)), values], dim=1)
        return padded.gather(1, self.turns)

    def turn_sums(self, values: Tensor) -> Tensor:
        """(N, T) numbers of tokens -> (N, K) their sums over each turn."""
        sums = values.new_zeros((len(values), self.turn_rewards.shape[1] + 1))
        return sums.scatter_add(1, self.turns, torch.where(self.turns > 0, values, 0.0))[:, 1:]

    def take_rows(self, rows: Tensor) -> TurnRollouts:
        """See `Rollouts`."""
        taken, picked = super().take_rows(rows), rows.tolist()
        shallow = {one.name: getattr(taken, one.name) for one in dataclasses.fields(Rollouts)}
        return TurnRollouts(
            **shallow,
            turns=self.turns[rows],
            turn_rewards=self.turn_rewards[rows],
            turn_verifications=[[turn[row] for row in picked] for turn in self.turn_verifications],
            turn_stopped=self.turn_stopped[rows],
            turn_texts=[[turn[row] for row in picked] for turn in self.turn_texts],
        )

    def metrics(self) -> dict[str, float]:
        """Accuracy of every turn, and between neighbours the shares of all episodes that got better and worse."""
        right = [torch.tensor([one.verdict is Verdict.RIGHT for one in turn]) for turn in self.turn_verifications]
        metrics = {f"turns/accuracy_{number}": float(one.float().mean()) for number, one in enumerate(right, start=1)}
        for number, (before, after) in enumerate(zip(right[:-1], right[1:], strict=True), start=1):
            name = f"turns/{number}_to_{number + 1}"
            metrics |= {
                f"{name}_gain": float(after.float().mean() - before.float().mean()),
                f"{name}_wrong_to_right": float((~before & after).float().mean()),
                f"{name}_right_to_wrong": float((before & ~after).float().mean()),
            }
        return metrics


@dataclass(frozen=True)
class TurnSampler:
    """Draws and judges episodes.

    Attributes:
        policy: whose tokens and context these are.
        sampler: draws from it.
        verifier: judges every turn by its own text alone.
        reward: verdict -> reward, of every turn.
        decoding: of every turn.
        instructions: the fixed texts between the turns, one fewer than turns; they hold no hint on what was right.
    """

    policy: LanguageModel
    sampler: Sampler
    verifier: Verifier
    reward: Callable[[Verification], float]
    decoding: Decoding
    instructions: tuple[str, ...]

    def collect(
        self, tasks: Sequence[Task], prompts: Sequence[list[int]], samples: int, generator: torch.Generator
    ) -> TurnRollouts:
        """`samples` episodes of every task; rows as `Sampler` orders them.

        Raises:
            UserError: a later turn would not fit into the model's context.
        """
        drawn = [self.sampler.sample(prompts, samples, self.decoding, generator)]
        groups = drawn[0].groups
        contexts = [list(prompts[group]) for group in groups.tolist()]
        bridges = [list(self.policy.tokenizer.encode(text, add_special_tokens=False)) for text in self.instructions]
        for bridge in bridges:
            contexts = [[*start, *row, *bridge] for start, row in zip(contexts, _rows(drawn[-1]), strict=True)]
            self._check_room(max(map(len, contexts)))
            drawn.append(self.sampler.sample(contexts, 1, self.decoding, generator))
        problems = [tasks[group] for group in groups.tolist()]
        verdicts = [self.verifier.verify(problems, turn.texts) for turn in drawn]
        rewards = torch.tensor([[self.reward(one) for one in turn] for turn in verdicts], dtype=torch.float32)
        written, turns = self._join(drawn, bridges, groups)
        return TurnRollouts(
            tasks=list(tasks),
            prompts=list(prompts),
            samples=written,
            verifications=verdicts[-1],
            rewards=rewards[-1].clone(),
            trained=turns > 0,
            turns=turns,
            turn_rewards=rewards.T.contiguous(),
            turn_verifications=verdicts,
            turn_stopped=torch.stack([turn.stopped for turn in drawn], dim=1),
            turn_texts=[turn.texts for turn in drawn],
        )

    def _join(
        self, drawn: Sequence[Samples], bridges: Sequence[Sequence[int]], groups: Tensor
    ) -> tuple[Samples, Tensor]:
        """The turns and fixed texts of every row behind one another, and which turn wrote each token."""
        tokens: list[list[int]] = [[] for _ in groups]
        logprobs: list[list[float]] = [[] for _ in groups]
        turns: list[list[int]] = [[] for _ in groups]
        versions: list[list[int]] = [[] for _ in groups]
        for number, turn in enumerate(drawn, start=1):
            for row, ids in enumerate(_rows(turn)):
                if number > 1:
                    bridge = bridges[number - 2]
                    tokens[row] += bridge
                    logprobs[row] += [0.0] * len(bridge)
                    turns[row] += [0] * len(bridge)
                    versions[row] += [int(turn.versions[row, 0])] * len(bridge)
                tokens[row] += ids
                logprobs[row] += turn.logprobs[row, : len(ids)].tolist()
                turns[row] += [number] * len(ids)
                versions[row] += turn.versions[row, : len(ids)].tolist()
        lengths = torch.tensor([len(row) for row in tokens])
        longest = int(lengths.max())

        def fill(rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype) -> Tensor:
            return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=dtype)

        samples = Samples(
            tokens=fill(tokens, self.policy.pad_id, torch.int64),
            lengths=lengths,
            logprobs=fill(logprobs, 0.0, torch.float32),
            stopped=drawn[-1].stopped,
            groups=groups,
            texts=[self.policy.decode(row) for row in tokens],
            drawn=sum(turn.drawn for turn in drawn),
            versions=fill(versions, 0, torch.int32),
        )
        return samples, fill(turns, 0, torch.int64)

    def _check_room(self, longest: int) -> None:
        if longest + self.decoding.max_new_tokens > self.policy.max_context:
            raise UserError(
                f"An episode would have up to {longest + self.decoding.max_new_tokens} tokens, but the model has room"
                f" for {self.policy.max_context}: lower max_new_tokens."
            )


def evaluate_turns(
    episodes: TurnSampler, tasks: Sequence[Task], prompts: Sequence[list[int]], generator: torch.Generator
) -> Evaluation:
    """One episode to every task, judged; as `evaluate_tasks`. The accuracy is that of the last turn."""

    def is_right(verification: Verification) -> float:
        return float(verification.verdict is Verdict.RIGHT)

    rollouts = dataclasses.replace(episodes, reward=is_right).collect(tasks, prompts, 1, generator)
    interval = proportion_interval(int(rollouts.rewards.sum()), len(tasks))
    metrics = {"accuracy": interval.value, "low": interval.low, "high": interval.high}
    metrics |= sampling_metrics(rollouts) | rollouts.metrics()
    return Evaluation(rollouts, metrics, rollouts.rewards.view(len(tasks), 1).bool())


def _rows(samples: Samples) -> list[list[int]]:
    """The drawn ids of each row."""
    return [row[:length] for row, length in zip(samples.tokens.tolist(), samples.lengths.tolist(), strict=True)]
