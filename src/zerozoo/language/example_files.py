"""Written examples: from JSONL files and from text to token ids, and those that a run has made, kept in its directory.

A value of a row is either text, which is tokenised here, or a list of token ids, which is taken as it is: responses
that a model has written keep the ids that were drawn (trap 7).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zerozoo.language.logprobs import Sequences
from zerozoo.language.models import LanguageModel
from zerozoo.language.parallel import Ranks
from zerozoo.runs.checkpoints import replace_file
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run
from zerozoo.tasks.prompts import render

T = TypeVar("T")
Row = Mapping[str, Any]
KEPT = "examples.jsonl"  # in a run directory


@dataclass(frozen=True)
class Example:
    """A prompt and a response to it, as token ids."""

    prompt: list[int]
    response: list[int]

    @property
    def tokens(self) -> int:
        """Of prompt and response."""
        return len(self.prompt) + len(self.response)


def sequences_of(examples: Sequence[Example]) -> Sequences:
    """Prompts and responses as two lists."""
    return Sequences([one.prompt for one in examples], [one.response for one in examples])


def read_examples(policy: LanguageModel, rows: Sequence[Row]) -> list[Example]:
    """Token ids of rows with "prompt" and "response" (see `tokenise`); "ends": false where a response goes on."""
    return [Example(*tokenise(policy, row["prompt"], row["response"], row.get("ends", True))) for row in rows]


def read_rows(path: str | Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a JSONL file, which must all have the given columns; blank lines are skipped.

    Raises:
        UserError: no such file, no JSON object on a line, a column is missing, or there is no row at all.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The examples in {path} cannot be read as UTF-8 text: {error}.") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"Line {number} of {path} is no JSON: {error}.") from None
        missing = [name for name in columns if not isinstance(row, dict) or name not in row]
        if missing:
            raise UserError(f"Line {number} of {path} needs the column(s) {', '.join(missing)}.")
        rows.append(row)
    if not rows:
        raise UserError(f"The file {path} has no examples in it.")
    return rows


def kept_rows(run: Run, make: Callable[[], Sequence[Row]], columns: Sequence[str], ranks: Ranks) -> list[Row]:
    """The rows that `make` gives, made once and kept in the run directory, so that a resumed run learns from the same.

    Every process calls `make`, so it may sample together; the first one writes.

    Raises:
        UserError: `make` gives none.
    """
    path = run.path(KEPT)
    kept: list[Row] | None = ranks.from_first(lambda: read_rows(path, columns) if path.exists() else None)
    if kept is not None:
        return kept
    rows = list(make())
    if not rows:
        raise UserError("There are no examples to learn from.")
    if run.writes:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return rows


def tokenise(
    policy: LanguageModel, prompt: str | Sequence[int], response: str | Sequence[int], ends: bool = True
) -> tuple[list[int], list[int]]:
    """Ids of a prompt and of its response: what the sampler is given, and what should come back.

    The prompt is tokenised alone, as it is before sampling. The response is what the two texts together have beyond the
    prompt's tokens; where tokens would merge across the border it is tokenised alone, because after this prompt the
    merged token can no longer be written. An end token is appended once to a response of text (trap 4), unless the
    response stops in the middle (`ends` False).

    Raises:
        UserError: one of them is empty, or a list holds something else than ids of the vocabulary.
    """
    start = policy.encode(prompt) if isinstance(prompt, str) else _ids(policy, prompt)
    if isinstance(response, str):
        written = _continuation(policy, prompt, start, response)
        if ends and not (written and written[-1] in policy.eos_ids):
            written.append(policy.eos_ids[0])
    else:
        written = _ids(policy, response)
    if not start or not written:
        raise UserError("A prompt or a response in the examples is empty.")
    return start, written


def prompt_text(policy: LanguageModel, prompt: str | Sequence[int], template: str) -> str | Sequence[int]:
    """A prompt of a file put into a template; as it is when there is none or when it is ids already."""
    return render(template, prompt, policy.tokenizer) if template and isinstance(prompt, str) else prompt


def split_off(items: Sequence[T], count: int, prompt: Callable[[T], object]) -> tuple[list[T], list[T]]:
    """(the rest, about `count` items to measure on); no prompt is in both.

    Prompts are taken in the order of a hash, so an item's side does not depend on the order of the file.
    """
    by_prompt: dict[str, list[T]] = {}
    for item in items:
        key = hashlib.sha256(json.dumps(prompt(item)).encode()).hexdigest()
        by_prompt.setdefault(key, []).append(item)
    measured: list[T] = []
    for key in sorted(by_prompt):
        if len(measured) < count:
            measured += by_prompt[key]
    if len(measured) == len(items):
        raise UserError(f"heldout_examples is {count}, which leaves none of the {len(items)} examples to learn from.")
    chosen = {id(item) for item in measured}
    return [item for item in items if id(item) not in chosen], measured


def _continuation(policy: LanguageModel, prompt: str | Sequence[int], start: list[int], response: str) -> list[int]:
    if isinstance(prompt, str):
        both = policy.encode(prompt + response)
        if both[: len(start)] == start:
            return both[len(start) :]
    return list(policy.tokenizer.encode(response, add_special_tokens=False))


def _ids(policy: LanguageModel, values: Sequence[int]) -> list[int]:
    size = len(policy.tokenizer)
    if not isinstance(values, Sequence) or not all(type(value) is int and 0 <= value < size for value in values):
        raise UserError(f"A prompt or response in the examples is neither text nor a list of token ids below {size}.")
    return list(values)
