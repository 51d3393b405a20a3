"""Rewards for generated unit tests: static qualities by reading them, and (in the sandbox) whether they find faults.

The static qualities are those of RLSQM (arXiv 2310.02368) for Python instead of C#: read from the syntax tree, nothing
is executed. The analyser is exact, so it can be the reward itself; its answers are easy to please, so what a test is
worth is measured apart from them: does it pass on the function it tests, and fail on faulty variants of it (mutants)?

Known ways to please an analyser are closed: an assertion about constants only (`assert True`) is no assertion, a focal
call in a comment or a text is no call, and two assertions are compared as trees, so that blanks make no difference.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from zerozoo.rewards.sandbox import Program, Sandbox, Status

LONGEST = 20_000  # characters of a test; a longer one is no test
NEXT_TEST = re.compile(r"^(?:async )?def test", re.MULTILINE)
CONDITIONALS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar, ast.Match)
RUNNER = """\
import sys
namespace = {"__name__": "unit_test"}
for name in ("focal.py", "unit.py"):
    with open(name, encoding="utf-8") as file:
        exec(compile(file.read(), name, "exec"), namespace)
namespace[sys.argv[1]]()
"""


@dataclass(frozen=True)
class UnitTest:
    """A parsed test: its text, its function (the first whose name starts with "test"), the name of what it tests."""

    source: str
    function: ast.FunctionDef | ast.AsyncFunctionDef
    focal: str


def parse_unit_test(source: str, focal: str) -> UnitTest | None:
    """The test in a text, or None when the text is no Python or has no function whose name starts with "test"."""
    tree = _parse(source) if len(source) <= LONGEST else None
    for node in [] if tree is None else tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            return UnitTest(source, node, focal)
    return None


def first_unit_test(text: str) -> str:
    """The text up to its second test function: a model that runs on is judged by the first one."""
    starts = [match.start() for match in NEXT_TEST.finditer(text)]
    return text[: starts[1]].rstrip() + "\n" if len(starts) > 1 else text


# --- qualities ---


def has_assertion(test: UnitTest) -> bool:
    """It asserts something that is not constant: `assert`, a call named assert..., or a `with ...raises(...)`."""
    return any(not _is_constant(parts) for _, parts in _assertions(test.function))


def has_constant_assertion(test: UnitTest) -> bool:
    """It asserts something about constants only, such as `assert True`: a hollow assertion, to be counted apart."""
    return any(_is_constant(parts) for _, parts in _assertions(test.function))


def calls_focal(test: UnitTest) -> bool:
    """The function under test is called, by its name or as an attribute (`module.function`)."""
    return any(_called(node) == test.focal for node in ast.walk(test.function))


def ignores_result(test: UnitTest) -> bool:
    """A call of the function under test stands alone as a statement: its result is thrown away. To be counted apart."""
    nodes = ast.walk(test.function)
    return any(isinstance(node, ast.Expr) and _called(node.value) == test.focal for node in nodes)


def has_comment(test: UnitTest) -> bool:
    """There is a comment or a docstring with a word in it."""
    if (ast.get_docstring(test.function) or "").strip():
        return True
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(test.source).readline))
    except (tokenize.TokenError, SyntaxError):  # it is stricter than the parser in odd places
        return False
    return any(token.type == tokenize.COMMENT and re.search(r"\w", token.string) is not None for token in tokens)


def has_descriptive_name(test: UnitTest) -> bool:
    """The name says more than "test" and the focal name: two words of two letters or more, one of them not of it."""
    words = re.findall(r"[a-z]{2,}", test.function.name.removeprefix("test").lower())
    return len(words) >= 2 and not set(words) <= set(re.findall(r"[a-z]{2,}", test.focal.lower()))


def has_no_duplicate_assertion(test: UnitTest) -> bool:
    """No assertion stands twice in a row."""
    asserting = {id(statement) for statement, _ in _assertions(test.function)}
    for node in ast.walk(test.function):
        for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            for one, other in pairwise(body if isinstance(body, list) else []):
                if {id(one), id(other)} <= asserting and ast.dump(one) == ast.dump(other):
                    return False
    return True


def has_no_conditional(test: UnitTest) -> bool:
    """No if, match, loop or try statement: a test with branches may check nothing."""
    return not any(isinstance(node, CONDITIONALS) for node in ast.walk(test.function))


QUALITIES: dict[str, Callable[[UnitTest], bool]] = {
    "assertion": has_assertion,
    "focal-call": calls_focal,
    "comment": has_comment,
    "descriptive-name": has_descriptive_name,
    "no-duplicate-assertion": has_no_duplicate_assertion,
    "no-conditional": has_no_conditional,
}
SYNTAX = "syntax"
NEEDED = (SYNTAX, "assertion", "focal-call", "no-duplicate-assertion", "no-conditional")
# Our choice: the paper's weights are not known.
WEIGHTS = {
    **{"assertion": 1.0, "focal-call": 1.0, "no-duplicate-assertion": 1.0, "no-conditional": 1.0},
    **{"descriptive-name": 0.5, "comment": 0.5},
}


def analyse(source: str, focal: str) -> dict[str, bool]:
    """Every quality of a test by name, "syntax" first; a text without a test in it has none of them."""
    test = parse_unit_test(source, focal)
    qualities = {name: test is not None and check(test) for name, check in QUALITIES.items()}
    return {SYNTAX: test is not None, **qualities}


def quality_reward(source: str, focal: str, quality: str) -> float:
    """One quality as a reward: -1 when there is no test that parses, else 1 if it has the quality and 0 if not.

    `quality` is "syntax" or a key of `QUALITIES`; KeyError otherwise.
    """
    qualities = analyse(source, focal)
    return float(qualities[quality]) if qualities[SYNTAX] else -1.0


def combined_reward(source: str, focal: str, weights: Mapping[str, float] = WEIGHTS) -> float:
    """All qualities as one reward: -1 when there is no test that parses, else the weighted mean in 0..1."""
    qualities = analyse(source, focal)
    if not qualities[SYNTAX]:
        return -1.0
    return sum(weight * qualities[name] for name, weight in weights.items()) / sum(weights.values())


def is_sound(qualities: Mapping[str, bool]) -> bool:
    """Whether a test has all of `NEEDED`: the share of such tests is the paper's central figure."""
    return all(qualities[name] for name in NEEDED)


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():  # of odd escapes in a model's text
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
        ast.dump(tree)  # fails on trees too deep for everything that follows
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree


def _called(node: ast.AST) -> str | None:
    """The last name of what a call calls; None for any other node."""
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else None


def _assertions(function: ast.AST) -> Iterator[tuple[ast.stmt, Sequence[ast.AST]]]:
    """Every statement that asserts something, with the parts that it asserts something about."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            yield node, [node.test]
        elif isinstance(node, ast.Expr) and (_called(node.value) or "").lower().startswith("assert"):
            assert isinstance(node.value, ast.Call)
            yield node, [*node.value.args, *node.value.keywords]
        elif isinstance(node, ast.With) and any(_called(item.context_expr) == "raises" for item in node.items):
            yield node, node.body


def _is_constant(parts: Sequence[ast.AST]) -> bool:
    """Whether no name occurs in the parts, so that they have one value for ever."""
    return not any(isinstance(node, ast.Name) for part in parts for node in ast.walk(part))


# --- execution ---


@dataclass(frozen=True)
class Execution:
    """Whether a test passes on its function, how it ended there, and how many of how many mutants it fails on.

    Only tests that pass meet mutants.
    """

    passes: bool
    status: Status | None
    killed: int = 0
    mutants: int = 0

    @property
    def mutation_score(self) -> float:
        """Share of the mutants that are found; 0 for a test that does not pass."""
        return self.killed / self.mutants if self.mutants else 0.0


def execute(
    sandbox: Sandbox, cases: Sequence[tuple[str, str]], most_mutants: int = 6, workers: int = 2
) -> list[Execution]:
    """Runs tests in the sandbox, each in one of its own: (source of the function, source of the test) for each case.

    The test sees what the function's source defines, and the standard library; it takes no arguments. A mutant is
    killed when the test does not end well on it, so by an endless loop as well. A test cannot tell a mutant from the
    original but by its behaviour or its text. `status` is None for a text without a test. Raises ValueError for a
    function that does not parse.
    """
    tests = [parse_unit_test(first_unit_test(source), "") for _, source in cases]
    variants = [mutants(source, most_mutants) for source, _ in cases]
    known = [place for place, test in enumerate(tests) if test is not None]
    results = sandbox.map([_program(cases[place][0], tests[place]) for place in known], workers)
    status = dict(zip(known, (result.status for result in results), strict=True))
    passing = [place for place in known if status[place] is Status.OK]
    runs = [(place, variant) for place in passing for variant in variants[place]]
    outcomes = sandbox.map([_program(variant, tests[place]) for place, variant in runs], workers)
    killed = dict.fromkeys(passing, 0)
    for (place, _), outcome in zip(runs, outcomes, strict=True):
        killed[place] += outcome.status is not Status.OK
    return [
        Execution(True, Status.OK, killed[place], len(variants[place]))
        if place in killed
        else Execution(False, status.get(place))
        for place in range(len(cases))
    ]


def _program(function: str, test: UnitTest | None) -> Program:
    assert test is not None
    return Program({"main.py": RUNNER, "focal.py": function, "unit.py": test.source}, (test.function.name,))


# --- mutants ---

_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.USub: ast.UAdd, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


def mutants(source: str, most: int = 6) -> list[str]:
    """Up to `most` variants of a function with one fault each, always the same, from everywhere in the function.

    Faults: another operator or comparison, a changed constant, a negated condition, min for max, None returned. Some
    may behave as the original does; they lower the score of every test alike. Raises ValueError for a source that does
    not parse.
    """
    tree = _parse(source)
    if tree is None:
        raise ValueError(f"the function does not parse: {source[:80]!r}")
    original = ast.unparse(tree)
    found: dict[str, None] = {}
    nodes = list(ast.walk(tree))
    statements = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings: their value is not used
    for node in nodes:
        if id(node) in statements:
            continue
        for name, value in _faults(node):
            kept = getattr(node, name)
            setattr(node, name, value)
            found[ast.unparse(tree)] = None
            setattr(node, name, kept)
    found.pop(original, None)
    variants = list(found)
    number = min(most, len(variants))
    return [variants[len(variants) * place // number] for place in range(number)]


def _faults(node: ast.AST) -> Iterator[tuple[str, object]]:
    """Fields of a node with values that make it faulty."""
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.UnaryOp(op=op) if type(op) in _OPERATORS:
            yield "op", _OPERATORS[type(op)]()
        case ast.Compare(ops=[first, *others]) if type(first) in _OPERATORS:
            yield "ops", [_OPERATORS[type(first)](), *others]
        case ast.Constant(value=bool(value)):
            yield "value", not value
        case ast.Constant(value=int(value) | float(value)):
            yield "value", value + 1
        case ast.Constant(value=str(value)):
            yield "value", value + "x"
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield "test", ast.UnaryOp(op=ast.Not(), operand=test)
        case ast.Name(id=name) if name in _FUNCTIONS:
            yield "id", _FUNCTIONS[name]
        case ast.Return(value=ast.expr()):
            yield "value", ast.Constant(value=None)
