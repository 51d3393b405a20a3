"""A run of another tracker, and how it becomes a run directory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zerozoo.runs.errors import UserError
from zerozoo.runs.records import ABOUT, CONFIG, METRICS, VERSIONS, writing

ALGORITHM_FIELDS = ("exp_name", "recipe", "algo", "alg", "algo_name")  # first that the config has names the recipe
NAMES_SHOWN = 5
TEMPORARY = ".importing-"


class MissingPackageError(UserError):
    """A format cannot be read at all until a package is installed."""


@dataclass
class ForeignRun:
    """What was read: rows as in metrics.jsonl, and a sentence in `notes` for what was not."""

    origin: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> str:
        found = (self.config[name] for name in ALGORITHM_FIELDS if isinstance(self.config.get(name), str))
        return next(found, "imported")

    @property
    def seed(self) -> int:
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else 0


def write_run(run: ForeignRun, directory: Path) -> None:
    """Makes the run directory in one go. Raises UserError if it is there already or cannot be written."""
    if directory.exists():
        raise UserError(f"{directory} is there already: delete it to import the run again")
    temporary = directory.with_name(TEMPORARY + directory.name)
    files = {
        CONFIG: json.dumps({"recipe": run.recipe, "seed": run.seed, "config": run.config}, indent=2) + "\n",
        VERSIONS: json.dumps(run.versions, indent=2) + "\n",
        ABOUT: json.dumps({**run.about, "origin": run.origin}, indent=2, allow_nan=False) + "\n",
        METRICS: "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in run.rows),
    }
    try:
        with writing(directory):
            shutil.rmtree(temporary, ignore_errors=True)  # of an import that was killed
            temporary.mkdir(parents=True)
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def left_out(names: Collection[str]) -> str:
    """A sentence about metrics that are not numbers."""
    shown = ", ".join(sorted(names)[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return f"not numbers and left out: {shown}"
