"""Programs of one number x in postfix notation: their interpreter, and a verifier that runs hidden tests.

"x 3 * 4 + 20 min" is min(3x + 4, 20). A program is a sequence of tokens on a stack of integers; nothing is executed by
Python, so no sandbox is needed and a test costs microseconds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zerozoo.rewards.extract import END_TOKENS, cut_at_stop, has_box
from zerozoo.rewards.verifier import ClosingVerifier, Problem, Verdict, Verification, check_lengths

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "min": min,
    "max": max,
}
NUMBER = re.compile(r"[0-9]{1,9}")
MOST_TOKENS = 64  # so that no product grows without bound


def run_postfix(program: str, x: int) -> int | None:
    """The value of a program at x; None for anything that is no program: an unknown token, too few numbers on the
    stack, more than one at the end, more than 64 tokens."""
    tokens = program.split()
    if len(tokens) > MOST_TOKENS:
        return None
    stack: list[int] = []
    for token in tokens:
        if token == "x":
            stack.append(x)
        elif NUMBER.fullmatch(token):
            stack.append(int(token))
        elif token in OPERATIONS and len(stack) > 1:
            right = stack.pop()
            stack.append(OPERATIONS[token](stack.pop(), right))
        else:
            return None
    return stack[0] if len(stack) == 1 else None


class PostfixVerifier(ClosingVerifier):
    """Runs the first line of a response on the hidden inputs. RIGHT is all tests passed; `score` is their share.

    A problem's metadata hold `inputs` and `expected`, lists of integers of one length; without them it is UNSCORABLE.
    Text from the first of the `stop` strings on is ignored.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stops = (*END_TOKENS, *stop)

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verification]:
        """One verification for every (problem, response) pair, in order; `extracted` is the program."""
        check_lengths(problems, responses)
        return [self._verify_one(one.metadata, text) for one, text in zip(problems, responses, strict=True)]

    def _verify_one(self, metadata: Mapping[str, Any], response: str) -> Verification:
        start = time.perf_counter()
        text = cut_at_stop(response, self._stops)
        program = text.strip().partition("\n")[0].strip()
        inputs, expected = metadata.get("inputs"), metadata.get("expected")
        verdict, score = Verdict.UNSCORABLE, 0.0
        if isinstance(inputs, Sequence) and isinstance(expected, Sequence) and len(inputs) == len(expected) > 0:
            passed = sum(run_postfix(program, x) == y for x, y in zip(inputs, expected, strict=True))
            verdict = Verdict.RIGHT if passed == len(inputs) else Verdict.WRONG
            score = passed / len(inputs)
        return Verification(verdict, program, 1000 * (time.perf_counter() - start), has_box(text), score)
