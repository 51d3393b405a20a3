"""What the page says about a claim: verdict, effect with its interval, seeds. Nothing is judged anew here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zerozoo.runs.claims import WORST_FIRST
from zerozoo.runs.records import CELL, Record

NOT_RUN, UNREADABLE = "not run", "unreadable"
SEED_FOLDER = re.compile(r"seed-(\d+)")
ENDS = ("value", "low", "high", "threshold")


def claim_entry(record: Record, results: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The claim that the run is a cell of, as `results` tells it, and sentences about what is amiss.

    None for a run that is no cell. A cell lies in <slug>/<claim>/<arm>/seed-<n>; without a result file its verdict is
    "not run".
    """
    cell = cell_place(record)
    if cell is None:
        return None, []
    slug, claim, arm, seed = cell
    entry: dict[str, Any] = {"slug": slug, "name": claim, "arm": arm, "seed": seed, "verdict": NOT_RUN}
    path = results / f"{slug}.json"
    document, notes = read_result(path)
    found = next((one for one in claims_of(document) if one["name"] == claim), None)
    if found is None:
        return {**entry, "verdict": UNREADABLE if notes else NOT_RUN, "file": str(path)}, notes
    stored = found["arms"].get(arm, {}).get(str(seed))
    own = _cell_value(record, found["metric"])
    if own is not None and own != stored:
        notes.append(f"{path} was made from another run of {arm}, seed {seed}: there {stored}, in this run {own}")
    return {**entry, **found, "file": str(path)}, notes


def cell_place(record: Record) -> tuple[str, str, str, int] | None:
    """Slug, claim, arm and seed of a run that `reproduce` began; None for other runs and for those of --smoke."""
    folder = record.directory.absolute()
    seed = SEED_FOLDER.fullmatch(folder.name)
    if seed is None or len(folder.parents) < 3 or not record.recipe:
        return None
    arm, claim, slug = folder.parents[0].name, folder.parents[1].name, folder.parents[2].name
    begun = (folder / CELL).exists() or folder.with_name(folder.name + ".started").exists()
    return (slug, claim, arm, int(seed[1])) if begun and slug == record.recipe else None


def read_result(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A result file of `zerozoo reproduce`; {} and a sentence if it cannot be read, {} alone if there is none."""
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        return {}, [f"{path} cannot be read ({error.strerror})"]
    except (ValueError, RecursionError) as error:
        return {}, [f"{path} is damaged ({error})"]
    if not isinstance(stored, dict):
        return {}, [f"{path} is damaged (not a JSON object)"]
    wrong = [name for name in ("slug", "verdict", "effect") if name not in stored]
    if wrong:
        return {}, [f"{path} is not a result of `zerozoo reproduce`: it has no {', '.join(wrong)}"]
    if stored["slug"] != path.stem:
        return {}, [f"{path} is the result of {stored['slug']}, not of {path.stem}"]
    return stored, []


def claims_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The claims of a result file, the main one first, in the form that the page takes."""
    if not document:
        return []
    others = document.get("claims")
    found = [document, *(others if isinstance(others, list) else [])]
    return [_claim(one) for one in found if isinstance(one, Mapping)]


def _claim(stored: Mapping[str, Any]) -> dict[str, Any]:
    verdict, effect = stored.get("verdict"), stored.get("effect")
    effect = effect if isinstance(effect, Mapping) else {}
    arms = _mapping(stored.get("arms"))
    return {
        "name": str(stored.get("name", "main")),
        "statement": str(stored.get("statement", "")),
        # Anything else than the three words is no verdict, whatever the file says.
        "verdict": verdict if verdict in WORST_FIRST else UNREADABLE,
        "reason": str(stored.get("reason", "")),
        "metric": str(stored.get("metric", "")),
        "effect": {name: _number(effect.get(name)) for name in ENDS},
        "seeds": [str(seed) for seed in stored.get("seeds") or []],
        "arms": {
            str(arm): {str(seed): _number(value) for seed, value in _mapping(by_seed).items()}
            for arm, by_seed in arms.items()
        },
        "summary": {
            str(arm): {str(name): _number(value) for name, value in _mapping(summary).items()}
            for arm, summary in _mapping(stored.get("summary")).items()
        },
        "seconds": _number(stored.get("seconds")),
        "commit": str(stored.get("commit") or ""),
    }


def _cell_value(record: Record, metric: str) -> float | None:
    """What the finished cell returned; None if it has not finished or cannot be read."""
    try:
        stored = json.loads((record.directory / CELL).read_bytes())
        return _number(stored["values"][metric])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
