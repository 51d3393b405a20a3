"""A verifier for programs: what share of hidden tests does the function in a response pass?

The program runs in a sandbox and is given the arguments of the tests only. Values come back as JSON and are compared
here, so the expected values are nowhere the program can read, and neither its exit code nor a file of its own decides
(language trap 34). To write lines among the answers gains nothing: the values must be right.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zerozoo.rewards import code_runner
from zerozoo.rewards.code_runner import encode
from zerozoo.rewards.extract import END_TOKENS, cut_at_stop
from zerozoo.rewards.sandbox import Limits, Program, Result, Sandbox, Status
from zerozoo.rewards.verifier import ClosingVerifier, Problem, Verdict, Verification, check_lengths

TOLERANCE = 1e-9  # of floats, relative or absolute
FENCE = re.compile(r"^[ \t]*```[^\n`]*$", re.MULTILINE)
BEGINNING = re.compile(r"^(?:(?:async def|def|class|import) \w|from [\w.]+ import\b|@\w)", re.MULTILINE)
# A line that carries on a program: blank or indented, a comment, a closing bracket, a statement or an assignment.
CONTINUES = re.compile(
    r"\s|$|[#)\]}@]|(?:async|def|class|import|from|if|elif|else|for|while|try|except|finally|with)\b"
    r"|\w+\s*(?::[^=]+)?=[^=]"
)


class CodeVerifier(ClosingVerifier):
    """Runs the function of a response on the calls of its problem. RIGHT is all tests passed; `score` is their share.

    A problem's metadata hold `function`, its name; `calls`, the arguments of each test; and `expected`, the values. All
    are made of None, bool, int, float, str, list, tuple, set and dict. A problem without them is UNSCORABLE. Values are
    equal as in Python (1 == 1.0 == True, [1] != (1,)), floats within 1e-9. A program that breaks a limit of time is a
    TIMEOUT and keeps the tests that it passed before. `extracted` is the program, `boxed` whether it stood in a closed
    code fence, `milliseconds` the time in the sandbox.

    `sandbox` None is one with 2 seconds of processor time; `workers` programs run at a time. Text from the first of the
    `stop` strings on is ignored. Raises UserError where programs cannot be caged.
    """

    def __init__(self, sandbox: Sandbox | None = None, workers: int = 2, stop: Sequence[str] = ()) -> None:
        self._sandbox = Sandbox(Limits(cpu_seconds=2)) if sandbox is None else sandbox
        self._workers = workers
        self._stops = (*END_TOKENS, *stop)
        self._runner = Path(code_runner.__file__).read_text(encoding="utf-8")

    def verify(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Verification]:
        """One verification for every (problem, response) pair, in order; equal programs of a problem run once."""
        check_lengths(problems, responses)
        found = [extract_program(cut_at_stop(response, self._stops)) for response in responses]
        tests = [_tests(problem.metadata) for problem in problems]
        questions = [
            (text, test[0]) if test is not None and text.strip() else None
            for (text, _), test in zip(found, tests, strict=True)
        ]
        distinct = list(dict.fromkeys(question for question in questions if question is not None))
        programs = [Program({"main.py": self._runner, "solution.py": text}, stdin=calls) for text, calls in distinct]
        results = dict(zip(distinct, self._sandbox.map(programs, self._workers), strict=True))
        return [
            _conclude(text, fenced, test, None if question is None else results[question])
            for (text, fenced), test, question in zip(found, tests, questions, strict=True)
        ]


def extract_program(response: str) -> tuple[str, bool]:
    """(program, whether it stood in a closed code fence).

    The content of the last closed fence; else what follows the last open one; else, without any fence, the lines from
    the first definition or import on, up to the first line that carries on no program. Never raises.
    """
    fences = list(FENCE.finditer(response))
    if len(fences) >= 2:
        last = len(fences) // 2 * 2 - 1
        return response[fences[last - 1].end() : fences[last].start()].strip("\n"), True
    if fences:
        return response[fences[0].end() :].strip("\n"), False
    beginning = BEGINNING.search(response)
    if beginning is None:
        return "", False
    lines = response[beginning.start() :].split("\n")
    end = next((place for place, line in enumerate(lines) if not CONTINUES.match(line)), len(lines))
    return "\n".join(lines[:end]).rstrip(), False


def equal(expected: Any, found: Any) -> bool:
    """Whether two encoded values are equal as Python values, floats within the tolerance, NaN to itself."""
    if isinstance(expected, float) or isinstance(found, float):
        if not isinstance(expected, int | float) or not isinstance(found, int | float):
            return False
        try:
            both_nan = math.isnan(expected) and math.isnan(found)
            return both_nan or math.isclose(expected, found, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        except OverflowError:  # an integer beyond all floats
            return False
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(equal, expected, found))
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(equal(expected[kind], found[kind]) for kind in expected)
    return bool(expected == found)


def _tests(metadata: Mapping[str, Any]) -> tuple[str, list[Any]] | None:
    """(the runner's request, the encoded expected values), or None when the problem has no usable tests."""
    function, calls, expected = (metadata.get(key) for key in ("function", "calls", "expected"))
    if not isinstance(function, str) or not isinstance(calls, Sequence) or not isinstance(expected, Sequence):
        return None
    if not calls or len(calls) != len(expected):
        return None
    try:
        arguments = [[encode(argument) for argument in call] for call in calls]
        return json.dumps({"function": function, "calls": arguments}), [encode(value) for value in expected]
    except TypeError:
        return None


def _conclude(program: str, fenced: bool, test: tuple[str, list[Any]] | None, result: Result | None) -> Verification:
    if test is None or result is None:
        verdict = Verdict.UNSCORABLE if test is None else Verdict.WRONG
        return Verification(verdict, program, 0.0, fenced, 0.0)
    expected = test[1]
    answers = result.stdout.splitlines()  # a program that ended early answered fewer
    passed = sum(map(_is_right, expected, answers))
    verdict = Verdict.RIGHT if passed == len(expected) else Verdict.WRONG
    if result.status is Status.TIMEOUT:
        verdict = Verdict.TIMEOUT
    return Verification(verdict, program, 1000 * result.seconds, fenced, passed / len(expected))


def _is_right(expected: Any, line: str) -> bool:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, list) and len(answer) == 2 and answer[0] == "value" and equal(expected, answer[1])
