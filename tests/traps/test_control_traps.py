"""The index of the trap suite of control and offline RL: mistakes of well-known libraries, one test or more for each.

The tests are in test_control_traps_data.py, ..._environments.py, ..._learning.py and ..._loops.py; several traps have
tests in more than one, for the parts that they concern.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

FILES = sorted(Path(__file__).parent.glob("test_control_traps_*.py"))
NAME = re.compile(r"test_trap_(\d\d)_\w+")
TRAPS = {
    1: "terminated or truncated both stop the bootstrap",
    2: "a truncation bootstraps but does not cut the trace of the advantage",
    3: "the bootstrap is the value before the step, or both flags are true and terminated loses",
    4: "the automatic reset makes a transition from one episode into the next",
    5: "episodes are counted by names in the info that a new version does not have",
    6: "T observations for T steps: one step too few, and the last advantage is 0",
    7: "statistics of observations differ between copies, are not saved, or go on in evaluation",
    8: "returns of normalised rewards are reported as scores",
    9: "rewards of recorded data and of the environment have another shift and scale",
    10: "a scale by the range of returns leaves out the last episode, or has a second code path online",
    11: "ends of episodes are guessed from distances between observations",
    12: "the successor of a last step is the first observation of the next episode; timeouts are dropped",
    13: "a target uses the next action across the end of an episode",
    14: "the successor of a last step is zeros, or that step is dropped",
    15: "the last slot of a ring buffer is never sampled",
    16: "twin critics: noise of one row, no scale, no entropy term, no minimum",
    17: "the loss of an ensemble is a mean, a sum or half a sum",
    18: "the order of the three losses of IQL is not stated",
    19: "settings that papers tune have a default",
    20: "weights are clipped without anybody knowing",
    21: "a setting is accepted and has no effect",
    22: "the squashed log-density of a recorded action of 1 is infinite",
    23: "the ratio of PPO is not 1 in the first epoch",
    24: "targets are copied anew after a resume",
    25: "evaluation draws from the generator of training",
    26: "evaluation begins in the same states every time, or in those of training",
    27: "a branch behind a switch has never run",
    28: "compiled code learns something else",
    29: "success in the last allowed step counts as a timeout",
}


def trap_tests() -> dict[str, ast.FunctionDef]:
    """Every trap test by name."""
    tests: dict[str, ast.FunctionDef] = {}
    for path in FILES:
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.FunctionDef) and NAME.fullmatch(node.name):
                assert node.name not in tests, f"two tests are called {node.name}"
                tests[node.name] = node
    return tests


def test_every_trap_has_a_test_that_runs() -> None:
    """A skipped test, or one without an assertion, covers nothing."""
    covered = set()
    for name, node in trap_tests().items():
        calls = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
        marks = " ".join(ast.unparse(mark) for mark in node.decorator_list)
        checks = any(isinstance(part, ast.Assert) for part in ast.walk(node))
        checks |= any(call.rsplit(".", 1)[-1].startswith(("assert_", "raises")) for call in calls)
        if checks and "skip" not in marks and "xfail" not in marks and "pytest.skip" not in calls:
            covered.add(int(name[10:12]))
    missing = {number: TRAPS[number] for number in TRAPS.keys() - covered}
    assert missing == {}
    assert covered <= TRAPS.keys(), "a trap without a description"


def test_every_trap_test_says_the_mistake_and_our_rule() -> None:
    """One line, so that a failing trap explains itself."""
    texts = {name: ast.get_docstring(node) or "" for name, node in trap_tests().items()}
    wrong = [name for name, text in texts.items() if not re.match(r"Mistake: .+ Rule: .+", text, re.DOTALL)]
    assert wrong == []
