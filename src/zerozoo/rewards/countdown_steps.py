"""Countdown worked off step by step: one operation a line, until the target alone is left."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from zerozoo.rewards.extract import END_TOKENS, cut_at_stop, has_box
from zerozoo.rewards.verifier import ClosingVerifier, Problem, Verdict, Verification, check_lengths

LINE = re.compile(r"\s*(\d{1,9})\s*([-+*])\s*(\d{1,9})\s*=\s*(\d{1,9})\s*")


def work_off(lines: Sequence[str], numbers: Sequence[int]) -> list[int] | None:
    """The numbers that are left when each line "a + b = c" has taken a and b and put c in their place.

    None when a line is no such equation, a false one, or uses a number that is not there (any more).
    """
    left = list(numbers)
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None:
            return None
        first, second, result = (int(match[place]) for place in (1, 3, 4))
        for used in (first, second):
            if used not in left:
                return None
            left.remove(used)
        values = {"+": first + second, "-": first - second, "*": first * second}
        if values[match[2]] != result:
            return None
        left.append(result)
    return left


class CountdownStepsVerifier(ClosingVerifier):
    """Right when the lines of a response work the numbers of the problem off to its target and nothing else.

    A problem's metadata hold `numbers` and `target`; without them it is UNSCORABLE. Text from the first of the `stop`
    strings on is ignored, and so are blank lines. Nothing is executed.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stops = (*END_TOKENS, *stop)

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verification]:
        """One verification for every (problem, response) pair, in order; `extracted` is the last line."""
        check_lengths(problems, responses)
        return [
            self._verify_one(problem.metadata, response) for problem, response in zip(problems, responses, strict=True)
        ]

    def _verify_one(self, metadata: Mapping[str, Any], response: str) -> Verification:
        start = time.perf_counter()
        text = cut_at_stop(response, self._stops)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        numbers, target = metadata.get("numbers"), metadata.get("target")
        if not isinstance(numbers, Sequence) or not all(type(number) is int for number in (*numbers, target)):
            verdict = Verdict.UNSCORABLE
        else:
            verdict = Verdict.RIGHT if work_off(lines, numbers) == [target] else Verdict.WRONG
        last = lines[-1] if lines else ""
        milliseconds = 1000 * (time.perf_counter() - start)
        return Verification(verdict, last, milliseconds, has_box(text), 1.0 if verdict is Verdict.RIGHT else 0.0)
