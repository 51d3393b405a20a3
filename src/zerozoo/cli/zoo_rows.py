"""The rows of the page of the zoo: every recipe and every planned system, with what became of its claim.

A verdict comes from a result file of `zerozoo reproduce` and from nowhere else. Without one a row says "not run", "not
written yet" (no recipe) or "no claim" (a baseline).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from zerozoo.cli.declared_claims import declared_claims, has_claim
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
