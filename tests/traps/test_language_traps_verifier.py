"""Traps 29 to 34: verifiers that hang, mistake, execute or can be fooled."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from zerozoo.language.evaluation import verdict_shares
from zerozoo.rewards.code import CodeVerifier
from zerozoo.rewards.countdown import CountdownVerifier
from zerozoo.rewards.equality import fast_equal
from zerozoo.rewards.expressions import evaluate_expression
from zerozoo.rewards.extract import EXTRACTORS
from zerozoo.rewards.sandbox import Limits, Sandbox
from zerozoo.rewards.symbolic import check
from zerozoo.rewards.terms import REWARDS
from zerozoo.rewards.verifier import MathVerifier, Verdict
from zerozoo.rewards.workers import Outcome, WorkerPool
from zerozoo.tasks.gym_scorer import is_harmless
from zerozoo.tasks.task import Task

Make = Callable[..., Any]
TOWERS = ("98**97**96", "9**9**9**9", "(98**97)**96", "98^97^96", "2**-1", "1<<99999999", "9//2", "7%3")
ATTACKS = ("__import__('os').getpid()", "eval('1')", "(lambda: 50)()", "[50][0]", "50 if 1 else 0", "1e9", "0x32")


def question(answer: str, **metadata: Any) -> Task:
    return Task("1", "?", answer, "test", metadata=metadata)


def verdicts(verifier: Any, task: Task, *responses: str) -> list[str]:
    return [one.verdict.value for one in verifier.verify([task] * len(responses), responses)]


@contextmanager
def pool_of(function: str, **options: Any) -> Iterator[WorkerPool]:
    pool = WorkerPool(function, **{"workers": 1, "timeout": 20.0, **options})
    try:
        yield pool
    finally:
        pool.close()


def in_thread(call: Callable[[], Any]) -> Any:
    """The result of a call in another thread, or its exception."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


# --- 29


def test_trap_29_a_hang_is_killed_from_any_thread() -> None:
    """Mistake: alarms work in the main thread only, threads kill nothing. Rule: the process that hangs is killed."""
    with pool_of("builtins:pow", timeout=0.4) as pool:  # C code that keeps the interpreter's lock
        pool.map([[2, 3]])
        (worker,) = pool.pids
        outcome = in_thread(lambda: pool.map([[7, 10**9]])[0])
        assert outcome == Outcome("timeout", milliseconds=400.0)
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
        pool.timeout = 20.0
        assert pool.map([[2, 3]])[0].value == 8  # and the pool goes on


def test_trap_29_time_in_the_queue_is_not_counted() -> None:
    """Mistake: the clock starts when an answer is handed in. Rule: it starts when a worker takes it up."""
    with pool_of("time:sleep", timeout=1.5) as pool:
        outcomes = pool.map([[1.0], [1.0], [0], [0], [0]])  # 2 s in all for the one worker, in its first message too
        assert [outcome.status for outcome in outcomes] == ["done"] * 5


def test_trap_29_the_symbolic_check_needs_no_main_thread() -> None:
    """Mistake: math-verify's own limits are alarms and raise in a thread. Rule: they are off; processes are killed."""
    assert in_thread(lambda: check(r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}")) == "right"


def test_trap_29_no_alarm_in_the_package(source_trees: dict[str, ast.Module]) -> None:
    """Mistake: signal.alarm anywhere in scoring. Rule: nothing in the package sets an alarm."""
    names = {"alarm", "setitimer", "SIGALRM"}
    assert [name for name, tree in source_trees.items() if names & attributes(tree)] == []
    assert names & attributes(ast.parse("import signal\nsignal.alarm(3)"))  # the search finds one


def attributes(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


# --- 30, 31


def test_trap_30_the_gold_comes_first() -> None:
    """Mistake: gold and answer are swapped in a comparison that is not symmetric. Rule: the gold always goes first."""
    assert [fast_equal("2_6", "2"), fast_equal("2", "2_6")] == [True, False]
    verifier, asked = MathVerifier(), []
    verifier.pool = SimpleNamespace(map=lambda calls: asked.extend(calls) or [Outcome("done", "right")] * len(calls))
    verifier.verify([question(r"\frac{x^2-1}{x-1}")], [r"\boxed{x+1}"])
    assert asked == [(r"\frac{x^2-1}{x-1}", "x+1")]


@pytest.mark.parametrize("gold", ["", "{", r"\frac{", "@@@", "  "])
def test_trap_30_an_unreadable_gold_is_counted_apart(gold: str) -> None:
    """Mistake: a gold that cannot be parsed makes answers right, or wrong. Rule: unscorable, reward 0, shown apart."""
    responses = ["7", "", gold, r"\boxed{7}"]
    verifications = MathVerifier().verify([question(gold)] * 4, responses)
    assert [one.verdict for one in verifications] == [Verdict.UNSCORABLE] * 4
    assert [one.score for one in verifications] == [0.0] * 4
    for reward in REWARDS.values():
        assert [reward(one) for one in verifications] == [0.0] * 4
    good = MathVerifier().verify([question("7")] * 4, ["7", "8", "", "7"])
    assert verdict_shares(good + verifications) == {"verifier/unscorable": 0.5, "verifier/timeout": 0.0}


def test_trap_30_unscorable_golds_of_other_verifiers() -> None:
    """Mistake: broken problem data is called a wrong answer. Rule: the same for tasks without usable numbers."""
    broken = [question("5"), question("5", numbers=[1, 2], target="5"), question("5", numbers=None, target=5)]
    assert {one.verdict for one in CountdownVerifier().verify(broken, ["1+2"] * 3)} == {Verdict.UNSCORABLE}
    assert check("x+", "x") == "unscorable"


@pytest.mark.parametrize("extractor", ["first-number", "last-number", "lenient"])
@pytest.mark.parametrize("response", ["-5", " -5", "\u22125", "-5.0", "-$5", "The answer is -5."])
def test_trap_31_the_sign_belongs_to_every_number(extractor: str, response: str) -> None:
    """Mistake: the sign is bound to decimals only and -5 is read as 5. Rule: every form of a number keeps its sign."""
    assert verdicts(MathVerifier(extractor=extractor), question("-5"), response) == ["right"]
    assert verdicts(MathVerifier(extractor=extractor), question("5"), response) == ["wrong"]


def test_trap_31_a_comparison_always_says_something() -> None:
    """Mistake: a comparison falls through and returns None. Rule: every response gets one of four verdicts."""
    assert EXTRACTORS["first-number"]("7-5") == "7"  # behind a number it is an operation
    responses = ["", " ", "\\boxed{}", "\\boxed{", "-", "None", "nan", "∞", "\x00", "5" * 400, "-5 " * 500, "🙂"]
    results = MathVerifier().verify([question("-5")] * len(responses), responses)
    assert len(results) == len(responses)
    assert all(isinstance(one.verdict, Verdict) and isinstance(one.extracted, str) for one in results)
    assert all(one.verdict is not Verdict.RIGHT for one in results if "-5" not in one.extracted)


# --- 32


@pytest.mark.parametrize("text", [*TOWERS, *ATTACKS])
def test_trap_32_only_plus_minus_times_and_divided_by(text: str) -> None:
    """Mistake: a regex of "digits and operators" lets `**` reach eval. Rule: a parser of + - * / and no eval."""
    assert evaluate_expression(text) is None
    problem = question("50", numbers=[98, 97, 96], target=50)
    assert verdicts(CountdownVerifier(), problem, f"<answer>{text}</answer>", text) == ["wrong", "wrong"]


def test_trap_32_towers_of_powers_do_not_hang_the_run() -> None:
    """Mistake: `98**97**96` passes a regex and is computed. Rule: the fast path says no, or a worker with a limit."""
    with MathVerifier(workers=1, timeout=3.0) as verifier:
        responses = [form.format(text) for text in TOWERS for form in ("{}", r"\boxed{{{}}}")]
        results = verifier.verify([question("50")] * len(responses), responses)
        assert {one.verdict for one in results} <= {Verdict.WRONG, Verdict.TIMEOUT}
        assert verdicts(verifier, question("50"), r"\boxed{50}") == ["right"]


def test_trap_32_plain_expressions_still_count() -> None:
    """Mistake: the cure forbids too much. Rule: the four operations, signs and parentheses have their exact value."""
    assert evaluate_expression("(98 + 97) / 3 - 2 * 7") == 51
    assert evaluate_expression("1/3 + 1/3 + 1/3") == 1
    assert evaluate_expression("-(3 - 8)") == 5
    assert evaluate_expression("1/(2-2)") is None


def forbidden(tree: ast.AST) -> list[str]:
    """What runs or unpickles text: each kind with its line."""
    found = []
    modules = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = [name for name in ("eval", "exec", "compile", "__import__", "sympify") if node.func.id == name]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            called = f"{owner}.{node.func.attr}"
            bad = {"os.system", "os.popen", "torch.load", "builtins.eval", "builtins.exec", "sympy.sympify"}
            names = [called] if called in bad or node.func.attr == "parse_expr" else []
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in modules]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if (node.module or "").split(".")[0] in modules else []
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "shell", "allow_pickle"):
            names = [] if isinstance(node.value, ast.Constant) and node.value.value is False else [node.arg]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            key = node.targets[0].slice
            named = isinstance(key, ast.Constant) and key.value == "trust_remote_code"
            names = ["trust_remote_code"] if named and getattr(node.value, "value", None) is not False else []
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if getattr(key, "value", None) == "trust_remote_code" and getattr(value, "value", None) is not False:
                    names = ["trust_remote_code"]
        found += [f"{name} in line {getattr(node, 'lineno', 0)}" for name in names]
    return found


def test_trap_32_nothing_in_the_package_executes_text(source_trees: dict[str, ast.Module]) -> None:
    """Mistake: eval, exec, pickle or a model's own code on foreign text. Rule: none outside the sandbox."""
    # The text of code_runner is sent into the sandbox and runs there: code.py imports its path and one function. The
    # code tasks and the functions to be tested evaluate expressions written in their own modules, never a model's.
    assert len(source_trees) > 60
    found = {name: len(hits) for name, tree in source_trees.items() if (hits := forbidden(tree))}
    assert found == {"rewards/code_runner.py": 2, "tasks/code.py": 1, "tasks/unit_tests.py": 1}
    importers = [
        name
        for name, tree in source_trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module == "zerozoo.rewards.code_runner" or "code_runner" in [alias.name for alias in node.names])
    ]
    assert set(importers) == {"rewards/code.py"}


@pytest.mark.parametrize(
    "code",
    [
        "eval(text)", "exec(text)", "compile(text, '', 'eval')", "__import__(name)", "import pickle", "sympify(text)",
        "from pickle import loads", "torch.load(path)", "os.system(text)", "parser.parse_expr(text)",
        "load(name, trust_remote_code=True)", "load(name, trust_remote_code=flag)", "run(text, shell=True)",
        "options['trust_remote_code'] = True", "options = {'trust_remote_code': True}", "np.load(f, allow_pickle=True)",
    ],
)  # fmt: skip
def test_trap_32_the_search_finds_each_kind(code: str) -> None:
    """Mistake: a search that cannot find anything. Rule: every forbidden form is found, its harmless twins are not."""
    assert len(forbidden(ast.parse(code))) == 1
    harmless = "model.eval()\nre.compile(x)\nload(x, trust_remote_code=False)\noptions['trust_remote_code'] = False"
    assert forbidden(ast.parse(harmless)) == []


# --- 33, 34


def test_trap_33_text_behind_the_answer_does_not_hide_it() -> None:
    """Mistake: only the last line is scored. Rule: the answer that was committed to counts, whatever follows it."""
    numbers = question("50", numbers=[55, 7, 2], target=50)
    answers = ("<answer>(55-7)+2</answer>", "The answer is (55 - 7) + 2 = 50.", r"\boxed{(55-7)+2}")
    for answer in answers:
        for behind in ("", "\nI hope this helps!", "\n\nEach number was used once.\nGoodbye."):
            assert verdicts(CountdownVerifier(use_all=True), numbers, f"Let me see.\n{answer}{behind}") == ["right"]
    other = "<answer>(55-7)+2</answer>\nNote that 55 + 7 would have been too large."
    assert verdicts(CountdownVerifier(use_all=True), numbers, other) == ["right"]
    for answer in ("The answer is 12.", r"\boxed{12}", "#### 12", "so 7 + 5 = 12"):
        for behind in ("", "\nI hope this helps!", "\n\nThat is all. Goodbye."):
            assert verdicts(MathVerifier(), question("12"), f"7 plus 5.\n{answer}{behind}") == ["right"]
    late = "The answer is 13.\nWait, I made a mistake. The answer is 12."
    assert verdicts(MathVerifier(), question("12"), late) == ["right"]
    assert verdicts(MathVerifier(), question("13"), late) == ["wrong"]


def test_trap_34_an_exit_code_is_no_verdict() -> None:
    """Mistake: exit code 0 counts as passed. Rule: only an answer on the pipe counts; an exit is a failure."""
    with pool_of("os:_exit") as pool:
        outcome = pool.map([[0]])[0]
        assert (outcome.status, outcome.value) == ("failed", None)
    verifier = MathVerifier()
    verifier.pool = SimpleNamespace(map=lambda calls: [Outcome("failed", error="the worker process died")] * len(calls))
    assert verdicts(verifier, question("x^2"), r"\boxed{x^3}") == ["wrong"]


def test_trap_34_a_worker_cannot_be_answered_for_on_its_output() -> None:
    """Mistake: results come from a stream or file that anything may write. Rule: a private pipe, no output."""
    with pool_of("builtins:print") as pool:
        outcome = pool.map([['["done", "right", 0.0]']])[0]
        assert (outcome.status, outcome.value) == ("done", None)  # what print returns, not what it printed


def test_trap_34_foreign_scorers_see_harmless_text_only() -> None:
    """Mistake: a library's scorer evaluates what the model wrote. Rule: such answers never reach it."""
    for answer in ("__import__('os').system('true')", "open('x','w')", "().__class__", "exec(1)", "x.y"):
        assert not is_harmless("countdown", answer)
        assert not is_harmless("polynomial_multiplication", answer)
    assert is_harmless("countdown", "(98 - 97) * 96")
    assert is_harmless("polynomial_multiplication", "x**2 - 2*x + 1")


@pytest.mark.parametrize(
    "program",
    [
        "import os\ndef f(x):\n    os._exit(0)",
        "import os\nos.write(1, b'[\"value\", true]\\n' * 3)\ndef f(x):\n    return None",
        "import sys\nsys.exit(0)",
        "open('reward.json', 'w').write('1.0')\nopen('result', 'w').write('right')\ndef f(x):\n    return None",
        "class Equal:\n    __eq__ = lambda self, other: True\ndef f(x):\n    return Equal()",
        "import json\njson.dumps = lambda *a, **k: '[\"value\", 1]'\ndef f(x):\n    return None",
    ],
)
def test_trap_34_code_sandbox(program: str) -> None:
    """Mistake: exit code or a file of the tested program decides. Rule: values are compared outside of the sandbox."""
    tests = {"function": "f", "calls": [[1], [2], [3]], "expected": [10, 20, 30]}
    with CodeVerifier(Sandbox(Limits(seconds=120.0, cpu_seconds=30))) as verifier:
        honest, cheat = verifier.verify(
            [question("", **tests)] * 2, ["```python\ndef f(x):\n    return 10 * x\n```", f"```python\n{program}\n```"]
        )
    assert (honest.verdict.value, honest.score) == ("right", 1.0)
    assert (cheat.verdict.value, cheat.score) == ("wrong", 0.0)
