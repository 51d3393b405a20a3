"""Supervised fine-tuning: make written responses more likely. Also what rejection sampling (RFT) learns from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from zerozoo.language.example_files import Example, Row, sequences_of
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts
from zerozoo.language.scoring import Scorer, fingerprint, take
from zerozoo.language.supervised import Share
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError
from zerozoo.tasks.prompts import render
from zerozoo.tasks.task import Task
from zerozoo.tasks.word_sums import worked_response

PLAIN = "plain"


class FineTuning:
    """L = - 1 / sum_i |y_i|  sum_i sum_t log pi(y_it | x_i, y_i<t): cross-entropy of the response tokens.

    Prompt tokens are in no loss; the end token is, once, where the response has one. The mean runs over the tokens of
    the whole batch, so a long response weighs more, and no split into micro-batches changes it. Items are responses.
    """

    def __init__(self, scorer: Scorer, examples: Sequence[Example]) -> None:
        self.scorer, self.sequences = scorer, sequences_of(examples)

    def __len__(self) -> int:
        return len(self.sequences.responses)

    def cost(self, item: int) -> int:
        return len(self.sequences.prompts[item]) + len(self.sequences.responses[item]) - 1

    def prepare(self, items: Sequence[int]) -> float:
        """The weight of every token."""
        return 1 / sum(len(self.sequences.responses[item]) for item in items)

    def share(self, items: Sequence[int], whole: Any) -> Share:
        scores = self.scorer.tokens(take(self.sequences, items))
        return Share(-whole * scores.logprobs.sum(), {"policy/entropy": whole * scores.entropy.sum()})

    def fingerprint(self) -> str:
        return fingerprint(self.sequences.prompts, self.sequences.responses)


def solved_tasks(tasks: Sequence[Task], policy: LanguageModel, template: str, style: str, seed: int) -> list[Row]:
    """Rows with the right response to every problem, written in a style of `word_sums`.

    "plain" is a blank and the answer and exists for all problems; the working of others is not known here.

    Raises:
        UserError: another style for problems that are no word sums.
    """
    rows: list[Row] = []
    for task in tasks:
        if style == PLAIN:
            response = f" {task.answer}"
        elif task.source == "word-sums":
            response = worked_response(task, style, random.Random(f"{seed}/{task.id}"))
        else:
            raise UserError(f"The problems of {task.source} come with their answers alone: use style plain.")
        rows.append({"prompt": render(template, task.question, policy.tokenizer), "response": response})
    return rows


def right_answers(rollouts: Rollouts, most: int = 0) -> list[Row]:
    """Rows {"prompt", "response", "task", "text"} of the right responses that ended by themselves.

    Of responses to one problem that spell the same, apart from blanks, the first is kept: rejection sampling learns
    from distinct solutions (Yuan et al. 2023, arXiv 2308.01825). Prompts and responses are the ids as they
    were drawn.

    Args:
        most: responses kept of each problem; 0: all.
    """
    sequences = rollouts.sequences(range(len(rollouts)))
    kept: dict[int, dict[str, Row]] = {}
    for row, group in enumerate(rollouts.groups.tolist()):
        if rollouts.verifications[row].verdict is not Verdict.RIGHT or not rollouts.samples.stopped[row]:
            continue
        text = rollouts.samples.texts[row]
        distinct = kept.setdefault(group, {})
        if most and len(distinct) >= most:
            continue
        example = {"prompt": list(sequences.prompts[row]), "response": list(sequences.responses[row])}
        distinct.setdefault(" ".join(text.split()), {"task": rollouts.tasks[group].id, **example, "text": text})
    return [example for group in kept.values() for example in group.values()]
