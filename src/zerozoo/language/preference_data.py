"""Preferences between responses: pairs and thumbs up or down, from JSONL rows or from verified samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from zerozoo.language.example_files import Example, Row, tokenise
from zerozoo.language.logprobs import Sequences
from zerozoo.language.models import LanguageModel
from zerozoo.language.rollouts import Rollouts
from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError

PAIR_COLUMNS = ("prompt", "chosen", "rejected")
JUDGED_COLUMNS = ("prompt", "response", "desirable")


@dataclass(frozen=True)
class Pair:
    """A chosen and a rejected response to one prompt, as token ids.

    Steps that both responses share belong to the prompt, so they are in no loss (per-step pairs).
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """Of the prompt and the longer response."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True)
class Judged(Example):
    """A response with a thumb up (`desirable`) or down."""

    desirable: bool


def chosen_first(pairs: Sequence[Pair]) -> Sequences:
    """2P rows: the chosen responses of all pairs, then the rejected ones."""
    prompts = [pair.prompt for pair in pairs]
    return Sequences([*prompts, *prompts], [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)])


def read_pairs(policy: LanguageModel, rows: Sequence[Row]) -> list[Pair]:
    """Pairs from rows {"prompt", "chosen", "rejected"}, texts or ids, with two optional columns.

    "prefix": steps that both responses begin with, text behind the text of the prompt. "ends": false when the two stop
    in the middle (single steps), so that no end token is learned; or a list of two, for chosen and rejected.

    Raises:
        UserError: a row whose responses are the same, a prefix without a prompt of text.
    """
    pairs = []
    for row in rows:
        prompt, prefix = row["prompt"], row.get("prefix", "")
        if prefix:
            if not isinstance(prompt, str) or not isinstance(prefix, str):
                raise UserError("A prefix in the pairs is text behind a prompt of text; put ids into the prompt.")
            prompt += prefix
        ends = row.get("ends", True)
        chosen_ends, rejected_ends = ends if isinstance(ends, list) else (ends, ends)
        start, chosen = tokenise(policy, prompt, row["chosen"], chosen_ends)
        _, rejected = tokenise(policy, prompt, row["rejected"], rejected_ends)
        if chosen == rejected:
            raise UserError(f"A pair prefers a response to itself: {str(row['chosen'])[:60]!r}.")
        pairs.append(Pair(start, chosen, rejected))
    return pairs


def read_judged(policy: LanguageModel, rows: Sequence[Row]) -> list[Judged]:
    """Judged responses from rows {"prompt", "response", "desirable"}, texts or ids, and optional "ends".

    Raises:
        UserError: a "desirable" that is neither true nor false.
    """
    judged = []
    for row in rows:
        if not isinstance(row["desirable"], bool):
            raise UserError(f"desirable must be true or false, not {row['desirable']!r}.")
        start, response = tokenise(policy, row["prompt"], row["response"], row.get("ends", True))
        judged.append(Judged(start, response, row["desirable"]))
    return judged


def pairs_from_rollouts(rollouts: Rollouts, most: int, seed: int) -> list[Row]:
    """Rows for `read_pairs`: at random a right against a wrong response to the same problem, no response used twice.

    Right means judged right and ended by itself. What could not be judged is in no pair (trap 30).

    Args:
        most: pairs of each problem; 0: as many as it gives.
        seed: of the matching, which does not depend on the other problems.
    """
    rows: list[Row] = []
    for group, (right, wrong) in _sides(rollouts).items():
        task = rollouts.tasks[group]
        matching = random.Random(f"pairs/{seed}/{task.id}")
        matching.shuffle(right)
        matching.shuffle(wrong)
        number = min(len(right), len(wrong), most or len(right))
        for good, bad in zip(right[:number], wrong[:number], strict=True):
            sequences = rollouts.sequences([good, bad])
            rows.append(
                {
                    "task": task.id,
                    "prompt": list(sequences.prompts[0]),
                    "chosen": list(sequences.responses[0]),
                    "rejected": list(sequences.responses[1]),
                    "chosen_text": rollouts.samples.texts[good],
                    "rejected_text": rollouts.samples.texts[bad],
                }
            )
    return rows


def judged_from_rollouts(rollouts: Rollouts) -> list[Row]:
    """Rows for `read_judged`: every distinct response to a problem that is right (and ended by itself) or wrong."""
    rows: list[Row] = []
    for group, sides in _sides(rollouts).items():
        for desirable, side in zip((True, False), sides, strict=True):
            sequences = rollouts.sequences(side)
            rows += [
                {
                    "task": rollouts.tasks[group].id,
                    "prompt": list(prompt),
                    "response": list(response),
                    "desirable": desirable,
                    "text": rollouts.samples.texts[place],
                }
                for prompt, response, place in zip(sequences.prompts, sequences.responses, side, strict=True)
            ]
    return rows


def _sides(rollouts: Rollouts) -> dict[int, tuple[list[int], list[int]]]:
    """Rows of the distinct right and wrong responses of each group, in the order in which they were drawn."""
    sides: dict[int, tuple[list[int], list[int]]] = {}
    seen: set[tuple[int, ...]] = set()
    responses = rollouts.sequences(range(len(rollouts))).responses
    for row, group in enumerate(rollouts.groups.tolist()):
        right, wrong = sides.setdefault(group, ([], []))
        key = (group, *responses[row])
        verdict = rollouts.verifications[row].verdict
        if key in seen:
            continue
        seen.add(key)
        if verdict is Verdict.RIGHT and rollouts.samples.stopped[row]:
            right.append(row)
        elif verdict is Verdict.WRONG:
            wrong.append(row)
    return sides
