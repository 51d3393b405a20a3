"""What thousands of unit tests are worth, measured in few sandboxes: how many pass, and how many mutants they find.

`unit_tests.execute` gives every run of a test a sandbox of its own, which costs a tenth of a second. Here the runs of
many tests share a process, each in a namespace of its own and under a clock. So a test that means to can disturb those
beside it: this is for measuring, and never for a reward. Tests that a process has not come to are run by `execute`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from zerozoo.rewards.sandbox import Limits, Program, Sandbox, Status
from zerozoo.rewards.unit_tests import (
    QUALITIES,
    SYNTAX,
    Execution,
    analyse,
    execute,
    first_unit_test,
    has_constant_assertion,
    ignores_result,
    is_sound,
    mutants,
    parse_unit_test,
)

SECONDS = 0.5  # of the clock, for one run of one test
TOGETHER = 25  # tests in a process
_RUNNER = """\
import json, os, signal, sys
answers = os.dup(1)
silent = os.open(os.devnull, os.O_WRONLY)
os.dup2(silent, 1)
os.dup2(silent, 2)
def late(number, frame):
    raise TimeoutError
signal.signal(signal.SIGALRM, late)
def run(function, test, name, seconds):
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            namespace = {"__name__": "unit_test"}
            exec(compile(function, "focal.py", "exec"), namespace)
            exec(compile(test, "unit.py", "exec"), namespace)
            namespace[name]()
            return "ok"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeoutError:
        return "timeout"
    except MemoryError:
        return "memory"
    except BaseException:
        return "failed"
for case in json.loads(sys.stdin.read()):
    test = case["test"], case["name"], case["seconds"]
    status = run(case["function"], *test)
    found = sum(run(mutant, *test) != "ok" for mutant in case["mutants"]) if status == "ok" else 0
    os.write(answers, (json.dumps([status, found]) + "\\n").encode())
"""


def execute_together(
    sandbox: Sandbox, cases: Sequence[tuple[str, str]], most_mutants: int = 6, together: int = TOGETHER
) -> list[Execution]:
    """As `unit_tests.execute`, for (source of the function, source of the test); `together` tests share a process.

    A test that ends its process early counts as failed. Raises ValueError for a function that does not parse.
    """
    variants = {function: mutants(function, most_mutants) for function in dict.fromkeys(case[0] for case in cases)}
    requests: dict[int, dict[str, Any]] = {}
    for place, (function, source) in enumerate(cases):
        test = parse_unit_test(first_unit_test(source), "")
        if test is not None:
            requests[place] = {
                **{"function": function, "mutants": variants[function], "seconds": SECONDS},
                **{"test": test.source, "name": test.function.name},
            }
    executions = [Execution(False, None)] * len(cases)
    places = list(requests)
    for first in range(0, len(places), together):
        chunk = places[first : first + together]
        program = Program({"main.py": _RUNNER}, stdin=json.dumps([requests[place] for place in chunk]))
        answers = [_read(line) for line in sandbox.run(program).stdout.splitlines()]
        for place, answer in zip(chunk, answers, strict=False):
            status, killed = answer
            known = len(variants[cases[place][0]])
            passes = status is Status.OK
            executions[place] = Execution(True, status, killed, known) if passes else Execution(False, status)
        missed = chunk[len(answers) :]
        if missed:
            alone = execute(sandbox, [cases[place] for place in missed], most_mutants, workers=1)
            for place, execution in zip(missed, alone, strict=True):
                executions[place] = execution
    return executions


def describe_tests(
    sandbox: Sandbox, problems: Sequence[Mapping[str, Any]], sources: Sequence[str], most_mutants: int = 6
) -> dict[str, float]:
    """Shares of a set of tests; `problems` hold the metadata of their tasks, `focal` and `source`.

    "sound" and every quality by name; "constant-assertion" and "ignored-result" of hollow tests; "passes"; "mutation",
    the mean share of mutants that the passing tests find (0 when none passes). Where some problems say that they
    are not `seen`, also "unseen/sound" of these.
    """
    found: list[dict[str, float]] = []
    for problem, source in zip(problems, sources, strict=True):
        qualities = analyse(source, problem["focal"])
        test = parse_unit_test(source, problem["focal"])
        found.append(
            {
                "sound": float(is_sound(qualities)),
                **{name: float(qualities[name]) for name in (SYNTAX, *QUALITIES)},
                "constant-assertion": float(test is not None and has_constant_assertion(test)),
                "ignored-result": float(test is not None and ignores_result(test)),
            }
        )
    cases = [(problem["source"], source) for problem, source in zip(problems, sources, strict=True)]
    executions = execute_together(sandbox, cases, most_mutants)
    shares = {name: fmean(row[name] for row in found) for name in found[0]}
    shares["passes"] = fmean(one.passes for one in executions)
    scores = [one.mutation_score for one in executions if one.passes and one.mutants]
    shares["mutation"] = fmean(scores) if scores else 0.0
    unseen = [row["sound"] for row, problem in zip(found, problems, strict=True) if problem.get("seen") is False]
    if unseen:
        shares["unseen/sound"] = fmean(unseen)
    return shares


def measuring_sandbox() -> Sandbox:
    """A sandbox with the time that a process of many tests takes."""
    return Sandbox(Limits(cpu_seconds=20, seconds=120.0))


def _read(line: str) -> tuple[Status, int]:
    status, killed = json.loads(line)
    return Status(status), int(killed)
