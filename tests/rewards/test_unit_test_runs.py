"""Many tests in one sandbox: the same as each in its own, and what one of them may do to the others."""

from __future__ import annotations

import sys

import pytest

from zerozoo.rewards.sandbox import Limits, Sandbox, Status
from zerozoo.rewards.unit_test_runs import describe_tests, execute_together
from zerozoo.rewards.unit_tests import execute, mutants

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
ADD = "def add_one(x):\n    return x + 1"
SANDBOX = Sandbox(Limits(cpu_seconds=10))


def case(*lines):
    return ADD, "def test_it():\n" + "".join(f"    {line}\n" for line in lines)


EXACT = case("assert add_one(1) == 2")
WEAK = case("assert add_one(1) is not None")
WRONG = case("assert add_one(1) == 3")
CASES = [EXACT, WEAK, WRONG, case("raise ValueError"), (ADD, "no test"), case("add_one(")]


def test_the_same_as_one_by_one():
    together = execute_together(SANDBOX, CASES, together=4)
    assert together == execute(SANDBOX, CASES)
    # The mutants are x - 1, x + 2 and None: the exact test finds all of them, the weak one the last.
    assert len(mutants(ADD)) == 3
    assert [(one.passes, one.killed, one.mutants) for one in together[:3]] == [
        (True, 3, 3),
        (True, 1, 3),
        (False, 0, 0),
    ]
    assert [one.status for one in together[2:]] == [Status.FAILED, Status.FAILED, None, None]
    assert execute_together(SANDBOX, CASES[:1], most_mutants=0)[0].mutants == 0


def test_one_test_does_not_end_the_others():
    loop = case("while True:", "    pass")
    leaves = case("import os", "os._exit(0)")
    ends = case("raise SystemExit")
    found = execute_together(SANDBOX, [loop, EXACT, ends, leaves, EXACT, WEAK])
    assert [one.status for one in found[:3]] == [Status.TIMEOUT, Status.OK, Status.FAILED]
    assert [(one.passes, one.killed) for one in found[4:]] == [(True, 3), (True, 1)]


def test_namespaces_are_not_shared():
    changes = case("global add_one", "add_one = None")
    assert [one.passes for one in execute_together(SANDBOX, [changes, EXACT])] == [True, True]
    assert not execute_together(SANDBOX, [case("seen = 1"), case("assert seen")])[1].passes


def test_the_shares_of_a_set_of_tests():
    problems = [{"focal": "add_one", "source": ADD, "seen": seen} for seen in (True, True, True, False)]
    hollow = case("add_one(1)", "assert True")
    sources = [one[1] for one in (EXACT, WEAK, hollow, (ADD, "def test_it("))]
    shares = describe_tests(SANDBOX, problems, sources)
    assert shares == pytest.approx(
        {
            "sound": 2 / 4,
            "syntax": 3 / 4,
            "assertion": 2 / 4,
            "focal-call": 3 / 4,
            "comment": 0.0,
            "descriptive-name": 0.0,
            "no-duplicate-assertion": 3 / 4,
            "no-conditional": 3 / 4,
            "constant-assertion": 1 / 4,
            "ignored-result": 1 / 4,
            "passes": 3 / 4,
            "mutation": (1 + 1 / 3 + 0) / 3,
            "unseen/sound": 0.0,
        }
    )
    nothing = describe_tests(SANDBOX, problems[:1], ["def test_it("])
    assert nothing["passes"] == nothing["mutation"] == 0.0
    assert "unseen/sound" not in nothing
