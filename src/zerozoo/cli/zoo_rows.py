"""The rows of the page of the zoo: every recipe and every planned system, with what became of its claim.

A verdict comes from a result file of `zerozoo reproduce` and from nowhere else. Without one a row says "not run", "not
written yet" (no recipe) or "no claim" (a baseline).
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zerozoo.cli.list_recipes import has_claim
from zerozoo.cli.planned import planned
from zerozoo.cli.registry import Entry, catalogue
from zerozoo.runs.report_claim import NOT_RUN, UNREADABLE, claims_of, read_result

NOT_WRITTEN, NO_CLAIM = "not written yet", "no claim"
DOCUMENTS = Path("docs/recipes")  # beside the checkout one stands in, as the results are
ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})\b")


def zoo_rows(results: Path, output: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for every recipe and planned system, by family, and a sentence for every result file that was left out.

    results: folder of the result files. output: the page; the links of the rows are relative to its folder.
    """
    recipes = {entry.slug: entry for entry in catalogue()}
    plan = {system.slug: system for system in planned()}
    papers = {slug: (system.family, system.paper) for slug, system in plan.items()}
    papers |= {slug: (entry.family, entry.paper or entry.summary) for slug, entry in recipes.items()}
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for slug, (family, paper) in papers.items():
        path = results / f"{slug}.json"
        document, amiss = read_result(path)
        notes += amiss
        number = ARXIV.search(paper)
        rows.append(
            {
                "slug": slug,
                "family": family,
                "paper": paper,
                "arxiv": f"https://arxiv.org/abs/{number[1]}" if number else None,
                "planned": slug in plan,
                "docs": _link(DOCUMENTS / f"{slug}.md", output),
                "results": _link(path, output),
                **_claims(recipes.get(slug), document, bool(amiss)),
            }
        )
    families = list(dict.fromkeys([*(system.family for system in plan.values()), *(row["family"] for row in rows)]))
    rows.sort(key=lambda row: (families.index(row["family"]), not row["planned"]))
    strangers = sorted(path.name for path in results.glob("*.json") if path.stem not in papers)
    notes += [f"{results / name} belongs to no recipe and was left out" for name in strangers]
    return rows, notes


def declared_claims(path: Path) -> list[tuple[str, str]]:
    """(name, statement) of the claims in a recipe's file, read without importing it.

    A statement that is not written as plain text there is "".
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assigned = dict(_assignments(tree))
    parts = _elements(assigned.get("CLAIM"), assigned)
    calls = [part for part in parts if isinstance(part, ast.Call) and _called(part) == "Claim"]
    return [(_text(call, "name", None) or "main", _text(call, "statement", 0) or "") for call in calls]


def _claims(entry: Entry | None, document: dict[str, Any], damaged: bool) -> dict[str, Any]:
    """Status, main claim and further claims of one row."""
    if entry is None:
        return {"status": NOT_WRITTEN, "claim": None, "others": [], "summary": ""}
    if not has_claim(entry) and not document:
        return {"status": UNREADABLE if damaged else NO_CLAIM, "claim": None, "others": [], "summary": entry.summary}
    judged = claims_of(document)
    known = {claim["name"] for claim in judged}
    waiting = [
        {"name": name, "statement": text, "verdict": NOT_RUN}
        for name, text in declared_claims(entry.path)
        if name not in known
    ]
    first, *others = [*judged, *waiting] or [{"name": "main", "statement": "", "verdict": NOT_RUN}]
    status = UNREADABLE if damaged else first["verdict"]
    return {"status": status, "claim": first, "others": others, "summary": entry.summary}


def _link(path: Path, output: Path) -> str | None:
    """The file's address seen from the page; None if it is not there."""
    if not path.is_file():
        return None
    return quote(Path(os.path.relpath(path, output.parent)).as_posix())


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
