"""`zerozoo list`: every recipe with its paper and what became of its claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from zerozoo.cli.declared_claims import declared_claims, has_claim
from zerozoo.cli.registry import Entry, catalogue
from zerozoo.cli.tables import console, make_table, print_json
from zerozoo.runs.report_claim import NOT_RUN, UNREADABLE, WORST_FIRST, claims_of

RESULTS = Path("results/reproduce")  # beside the checkout one stands in


def run(json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False) -> int:
    """Every recipe: paper, family, verdicts of its claims.

    The verdicts are those in results/reproduce/ below the current folder, where `zerozoo reproduce` writes them.

    Args:
        json: print JSON in place of a table.
    """
    entries = catalogue()
    verdicts = {entry.slug: claim_verdicts(entry) for entry in entries}
    if json:
        print_json(
            [
                {
                    "slug": entry.slug,
                    "family": entry.family,
                    "paper": entry.paper,
                    "summary": entry.summary,
                    "verdicts": verdicts[entry.slug],
                }
                for entry in entries
            ]
        )
        return 0
    rows, family = [], ""
    for entry in entries:
        shown = entry.family if entry.family != family else None
        family = entry.family
        words = ", ".join(dict.fromkeys(verdicts[entry.slug].values())) or "no claim"
        rows.append([shown, entry.slug, entry.paper or entry.summary, words])
    out = console()
    out.print(make_table(["family|", "recipe|", "paper", "claim|"], rows))
    tested = sum(any(verdict in WORST_FIRST for verdict in claims.values()) for claims in verdicts.values())
    recipes = f"{len(entries)} recipe{'s' * (len(entries) != 1)}"
    out.print(f"\n{recipes}, {tested} with a tested claim. `zerozoo show RECIPE` tells more.", soft_wrap=True)
    return 0


def claim_verdicts(entry: Entry) -> dict[str, str]:
    """Name of each claim of a recipe, the main one first -> its stored verdict, or why there is none; {}: no claims."""
    if not has_claim(entry):
        return {}
    result = stored_result(entry.slug)
    if result == {}:
        return {"main": UNREADABLE}
    stored = {claim["name"]: claim["verdict"] for claim in claims_of(result or {})}
    declared = [name for name, _ in declared_claims(entry.path)] or ["main"]
    return {name: stored.get(name, NOT_RUN) for name in dict.fromkeys([*stored, *declared])}


def stored_result(slug: str) -> dict[str, Any] | None:
    """What `zerozoo reproduce` wrote last; {} for a file that cannot be read, None if there is none."""
    path = RESULTS / f"{slug}.json"
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}
