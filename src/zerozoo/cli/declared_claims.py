"""The claims that a recipe's file declares, read without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from zerozoo.cli.registry import Entry


def has_claim(entry: Entry) -> bool:
    """Whether the recipe's file defines CLAIM; a baseline does not."""
    return re.search(r"^CLAIM\b", entry.path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def declared_claims(path: Path) -> list[tuple[str, str]]:
    """(name, statement) of the claims in a recipe's file.

    A statement that is not written as plain text there is "".
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = dict(_assignments(tree))
    parts = _elements(assigned.get("CLAIM"), assigned)
    calls = [part for part in parts if isinstance(part, ast.Call) and _called(part) == "Claim"]
    return [(_text(call, "name", None) or "main", _text(call, "statement", 0) or "") for call in calls]


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value


def _elements(value: ast.expr | None, assigned: dict[str, ast.expr]) -> list[ast.expr]:
    """The parts of a tuple or the value itself; names stand for what was assigned to them."""
    parts = value.elts if isinstance(value, (ast.Tuple, ast.List)) else [value] if value is not None else []
    return [assigned.get(part.id, part) if isinstance(part, ast.Name) else part for part in parts]


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _text(call: ast.Call, keyword: str, position: int | None) -> str | None:
    values = [one.value for one in call.keywords if one.arg == keyword]
    if not values and position is not None:
        values = call.args[position : position + 1]
    value = values[0] if values else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
