"""The 77 systems that the zoo is to hold, whether their recipes are written yet or not."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Planned:
    """A system by its slug, the folder of recipes it belongs to, and the paper: title (year), arXiv number."""

    slug: str
    family: str
    paper: str


def planned() -> list[Planned]:
    """All of them, family by family (planned.tsv)."""
    _, *lines = (files("zerozoo.cli") / "planned.tsv").read_text(encoding="utf-8").splitlines()
    return [Planned(*line.split("\t")) for line in lines]
