"""Functions of Python files as problems to write unit tests for, with as much of what stands around them as fits.

The prompt of RLSQM (arXiv 2310.02368, version 2, prompting details) is the first of these that fits: the whole file;
the focal class with its other methods reduced to their signatures; the same without fields and comments; the class's
signature with the focal method. For a function outside of any class the module takes the place of the class.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

from zerozoo.runs.errors import UserError
from zerozoo.tasks.splits import split_heldout
from zerozoo.tasks.task import Task, TaskSet, unique_tasks
from zerozoo.tasks.unit_tests import START, STOP, TEMPLATE

LONGEST = 6000  # characters of a prompt: about 1536 tokens
MAX_NEW_TOKENS = 512
Function = ast.FunctionDef | ast.AsyncFunctionDef


def file_tests(place: str | Path, seed: int = 0, heldout_size: int = 20, longest: int = LONGEST) -> TaskSet:
    """The public functions and methods of a Python file, or of all files below a folder but those of tests.

    Metadata as in `unit_tests`, where `source` is the whole file: the runs at the end import what it imports from the
    standard library. `longest` is in characters. Raises `UserError` for a place without functions.
    """
    path, tasks = Path(place).expanduser(), list[Task]()
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    for file in files:
        try:
            source = file.read_text(encoding="utf-8")
            names = functions_of(source)
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError) as error:
            raise UserError(f"{file} cannot be read as Python: {error}.") from None
        tasks += [] if file.stem.startswith("test") else _tasks(file, source, names, longest)
    if not tasks:
        raise UserError(f"There is no function in {place} that a unit test could call.")
    train, heldout = split_heldout(unique_tasks(tasks), heldout_size, seed)
    return TaskSet(
        name=f"unit-tests:{place}",
        train=train,
        heldout=heldout,
        verifier="unit-tests",
        extractor="lenient",
        template=TEMPLATE,
        stop=STOP,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def functions_of(source: str) -> list[str]:
    """Names of the public functions ("f") and methods ("Class.f") of a file. Raises SyntaxError."""
    names = []
    for node in ast.parse(source).body:
        scope = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found = [one.name for one in scope if isinstance(one, Function) and not one.name.startswith(("_", "test"))]
        names += [prefix + name for name in found]
    return names


def focal_context(source: str, name: str, longest: int = LONGEST) -> str | None:
    """The first of `contexts` with at most `longest` characters; None when none is so short."""
    return next((context for context in contexts(source, name) if len(context) <= longest), None)


def contexts(source: str, name: str) -> Iterator[str]:
    """The file around a function of `functions_of`, shorter and shorter. Raises KeyError for another name."""
    yield source.strip()
    tree = ast.parse(source)
    *owner, method = name.split(".")
    scope: ast.Module | ast.ClassDef = tree
    if owner:
        scope = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}[owner[0]]
    focal = {node.name: node for node in scope.body if isinstance(node, Function)}[method]
    yield _with_signatures(source, scope, focal)
    bare = _without_docstring(focal)
    functions = [node for node in scope.body if isinstance(node, Function)]
    yield _unparsed(scope, [bare if node is focal else _stub(node) for node in functions])
    yield _unparsed(scope, [bare])


def _tasks(file: Path, source: str, names: Sequence[str], longest: int) -> Iterator[Task]:
    for name in names:
        context = focal_context(source, name, longest)
        if context is not None:
            focal = name.rpartition(".")[2]
            # Two functions of a file may have the same context; the question says which is meant.
            question = f"{context}\n\n\n# tests of {name}"
            metadata = {"focal": focal, "source": source, "start": START, "family": file.stem, "seen": True}
            yield Task(f"{file}:{name}", question, "", "unit-tests", metadata=metadata)


def _with_signatures(source: str, scope: ast.Module | ast.ClassDef, focal: Function) -> str:
    """The text of the scope, comments included, in which other functions and classes are signatures."""
    lines = source.splitlines()
    first, last = (1, len(lines)) if isinstance(scope, ast.Module) else _span(scope)
    for node in reversed(scope.body):
        if node is not focal and isinstance(node, Function | ast.ClassDef):
            begin, end = _span(node)
            stub = [" " * node.col_offset + line for line in ast.unparse(_stub(node)).splitlines()]
            lines[begin - 1 : end] = stub
            last += len(stub) - (end - begin + 1)
    return "\n".join(lines[first - 1 : last]).strip()


def _span(node: Function | ast.ClassDef) -> tuple[int, int]:
    """First and last line, decorators included, counted from 1."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return first, node.end_lineno or node.lineno


def _stub(node: Function | ast.ClassDef) -> ast.stmt:
    """The same with nothing in it."""
    return _with_body(node, [ast.Expr(ast.Constant(...))])


def _without_docstring(node: Function) -> ast.stmt:
    described = ast.get_docstring(node, clean=False) is not None and len(node.body) > 1
    return _with_body(node, node.body[1:] if described else node.body)


def _unparsed(scope: ast.Module | ast.ClassDef, body: list[ast.stmt]) -> str:
    if isinstance(scope, ast.Module):
        return "\n\n".join(map(ast.unparse, body))
    return ast.unparse(_with_body(scope, body))


def _with_body(node: Function | ast.ClassDef, body: list[ast.stmt]) -> ast.stmt:
    changed = copy.copy(node)
    changed.body = body
    return changed
