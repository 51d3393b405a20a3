"""Steps of a worked solution: where they begin and end, and (for sums) which of them are right.

A splitter cuts a text into steps whose texts, joined, give it back letter by letter; so offsets can be carried over to
tokens, and a process reward can be placed on the token that ends its step. The rule of splitting decides how many steps
a policy writes, so it is fixed for a run and blank pieces never count.

`check_steps` is an oracle: it knows for every step of a chain of sums whether it is right. Learned process rewards and
Monte-Carlo labels are measured against it; it is no reward for a real task.

Sources: newlines and "Step k" are the boundaries of arXiv 2410.15115; one operation a line is the step of ReST-MCTS*
(arXiv 2406.03816); sentences are for prose without either.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from zerozoo.rewards.expressions import evaluate_expression, plain_operators
from zerozoo.runs.errors import UserError

NUMBERED = re.compile(r"^[ \t]*+[#>*]*+[ \t]*+\**+step[ \t]++\d++\b", re.IGNORECASE | re.MULTILINE)
SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"'”’)\]*]*+\s++|\n\s*+")
ABBREVIATIONS = frozenset(("e.g", "i.e", "cf", "vs", "mr", "mrs", "ms", "dr", "st", "fig", "eq", "approx"))
LONGEST_ABBREVIATION = 12  # characters looked at before a full stop


@dataclass(frozen=True)
class Step:
    """`text` is text[start:end] of the whole solution, with the newline or blanks that follow it."""

    text: str
    start: int
    end: int


def split_steps(text: str, rule: str = "lines") -> list[Step]:
    """The steps of a solution by one of `SPLITTERS`; "".join of their texts is the text.

    A piece without any visible character belongs to the step before it, at the start to the one behind it; text before
    the first "Step k" belongs to that step. "" has no step. Raises `UserError` for an unknown rule.
    """
    if rule not in SPLITTERS:
        raise UserError(f"Unknown rule of steps '{rule}'; choose from: {', '.join(SPLITTERS)}.")
    cuts: list[int] = []
    before = 0
    for cut in (*SPLITTERS[rule](text), len(text)):
        if text[before:cut].strip():
            cuts.append(cut)
        elif cuts:
            cuts[-1] = cut
        before = cut
    if not cuts and text:
        cuts.append(len(text))
    return [Step(text[start:end], start, end) for start, end in pairwise((0, *cuts))]


def last_tokens(steps: Sequence[Step], token_ends: Sequence[int]) -> list[int]:
    """Place of the token with which each step ends: the one that holds its last character.

    `token_ends` are the ends of the tokens in the text, in characters and in order (`offset_mapping` of a tokenizer).
    A token across a boundary ends the step before it. ValueError if the tokens end before the steps do.
    """
    if steps and (not token_ends or token_ends[-1] < steps[-1].end):
        raise ValueError(f"the steps end at character {steps[-1].end}, behind the last token")
    return [bisect_left(token_ends, step.end) for step in steps]


def _lines(text: str) -> Iterator[int]:
    return (match.end() for match in re.finditer(r"\n", text))


def _numbered(text: str) -> Iterator[int]:
    matches = NUMBERED.finditer(text)
    next(matches, None)
    return (match.start() for match in matches)


def _sentences(text: str) -> Iterator[int]:
    return (match.end() for match in SENTENCE_END.finditer(text) if not _goes_on(text, match))


def _goes_on(text: str, match: re.Match[str]) -> bool:
    """Whether this full stop belongs to an abbreviation, or to the number of a list item, and ends no sentence."""
    if match[0].strip() != ".":
        return False
    start = max(text.rfind("\n", 0, match.start()) + 1, match.start() - LONGEST_ABBREVIATION)
    line = text[start : match.start()]
    word = line.rpartition(" ")[2]
    return word.casefold().lstrip("(") in ABBREVIATIONS or (word.isdecimal() and word == line.strip())


SPLITTERS: dict[str, Callable[[str], Iterator[int]]] = {
    "lines": _lines,
    "numbered": _numbered,
    "sentences": _sentences,
}


# --- the oracle for chains of sums ---

MAX_DIGITS = 15
EQUATION = r"(?<![\d.])-?\d++(?:\s*+[-+*]\s*+\d++){1,40}+\s*+=\s*+-?\d++(?!\.\d)"
ANSWER = r"(?:answer is|answer:|ans\s*=|####|\\boxed\{)\s*+(?P<answer>-?\d++)(?!\.\d|\s*[-+*/=])"
CLAIM = re.compile(rf"(?P<equation>{EQUATION})|{ANSWER}", re.IGNORECASE)
OPERATION = re.compile(r"([-+*])\s*(\d+)")
CHAIN = re.compile(r"\d+(?:\s*[-+*]\s*\d+)+")


class StepLabel(StrEnum):
    """RIGHT brings the solution forward, IDLE is true or says nothing but does not, WRONG is false or unfounded."""

    RIGHT = "right"
    IDLE = "idle"
    WRONG = "wrong"


def read_chain(question: str) -> tuple[tuple[int, ...], str]:
    """(numbers, operators) of the first sum in a question: "What is 7 + 5 - 3?" -> (7, 5, 3), "+-".

    Word sums carry both in their metadata. ValueError when there is no sum.
    """
    match = CHAIN.search(plain_operators(question))
    if match is None:
        raise ValueError(f"there is no sum in {question[:80]!r}")
    operations = OPERATION.findall(match[0])
    first = re.match(r"\d+", match[0])
    assert first is not None
    return (int(first[0]), *(int(number) for _, number in operations)), "".join(sign for sign, _ in operations)


def check_steps(steps: Sequence[str], numbers: Sequence[int], operators: str) -> list[StepLabel]:
    """A label for every step of a solution of the chain numbers[0] operators[0] numbers[1] ..., worked left to right.

    An equation is WRONG when it is false or uses a number that is neither given nor derived before, RIGHT when it
    applies a remaining operation to the running value, and else IDLE, as repetitions are. Operations may change places
    as long as none is a product. A final answer ("the answer is 54", a box, `####`, or nothing but a number) is RIGHT
    or WRONG by its value, and IDLE when it comes again. A step that claims several things is WRONG if one of them is,
    else RIGHT if one of them is. So a solution that returns to the right path after a wrong step has RIGHT steps again;
    `first_wrong` says where it left it. Raises ValueError unless there is one number more than operators + - *.
    """
    if len(numbers) != len(operators) + 1 or not set(operators) <= set("+-*"):
        raise ValueError(f"{len(numbers)} numbers and the operators {operators!r} make no chain of + - *")
    chain = _Chain(numbers, operators)
    labels = []
    for step in steps:
        found = [chain.judge(claim) for claim in _claims(plain_operators(step))]
        best = StepLabel.RIGHT if StepLabel.RIGHT in found else StepLabel.IDLE
        labels.append(StepLabel.WRONG if StepLabel.WRONG in found else best)
    return labels


def first_wrong(labels: Sequence[StepLabel]) -> int | None:
    """Place of the first wrong step: prefixes that hold it have lost their way. None when there is none."""
    return next((place for place, label in enumerate(labels) if label is StepLabel.WRONG), None)


def _claims(text: str) -> Iterator[str]:
    """The equations and final answers in a step, in order; an equation has "=" in it."""
    if re.fullmatch(r"-?\d+\.?", text.strip()):
        yield text.strip().rstrip(".")
        return
    for match in CLAIM.finditer(text):
        yield match["equation"] or match["answer"]


class _Chain:
    """The running value of a chain, the operations that are left, and every number that may be used."""

    def __init__(self, numbers: Sequence[int], operators: str) -> None:
        self.value = numbers[0]
        self.left = list(zip(operators, numbers[1:], strict=True))
        self.known = set(numbers)
        self.answered = False
        self.answer = numbers[0]
        for operator, number in self.left:
            self.answer = _apply(self.answer, operator, number)

    def judge(self, claim: str) -> StepLabel:
        left, equals, right = claim.partition("=")
        if not equals:
            return self._judge_answer(claim)
        result = int(right) if len(right.strip()) <= MAX_DIGITS else None
        if result is None or evaluate_expression(left) != result:
            return StepLabel.WRONG
        first = re.match(r"\s*(-?\d+)", left)
        assert first is not None
        start = int(first[1])
        operations = [(sign, int(number)) for sign, number in OPERATION.findall(left, first.end())]
        if not {start, *(number for _, number in operations)} <= self.known:
            return StepLabel.WRONG
        self.known.add(result)
        if len(operations) == 1 and operations[0][0] in "+*" and start != self.value:  # 5 + 7 for 7 + 5
            start, operations = operations[0][1], [(operations[0][0], start)]
        return self._advance(start, operations, result)

    def _advance(self, start: int, operations: list[tuple[str, int]], result: int) -> StepLabel:
        left = self.left.copy()
        for operation in operations:
            reorder = all(sign != "*" for sign, _ in left)
            if operation not in (left if reorder else left[:1]):
                return StepLabel.IDLE
            left.remove(operation)
        if start != self.value or (len(operations) > 1 and any(sign == "*" for sign, _ in operations)):
            return StepLabel.IDLE
        self.value, self.left = result, left
        return StepLabel.RIGHT

    def _judge_answer(self, claim: str) -> StepLabel:
        if len(claim) > MAX_DIGITS or int(claim) != self.answer:
            return StepLabel.WRONG
        label = StepLabel.IDLE if self.answered else StepLabel.RIGHT
        self.answered = True
        return label


def _apply(left: int, operator: str, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right
