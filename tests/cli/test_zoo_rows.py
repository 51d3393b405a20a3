"""The rows of the zoo: every recipe, every planned system, and no verdict that nobody measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from zerozoo.cli import zoo_rows as module
from zerozoo.cli.declared_claims import declared_claims
from zerozoo.cli.planned import Planned, planned
from zerozoo.cli.registry import Entry, catalogue
from zerozoo.cli.zoo_rows import zoo_rows

RECIPE = '''"""Sums made easy."""
from zerozoo.runs.claims import Claim

OTHER = Claim(name="other", statement="A further " "statement.", arms={})
CLAIM = (
    Claim("The statement, " "in two parts.", arms={}),
    OTHER,
    Claim(name="computed", statement=f"{1}", arms={}),
)
'''
RESULT: dict[str, Any] = {
    "slug": "sums",
    "name": "main",
    "statement": "The statement, as it was run.",
    "verdict": "FAILS",
    "reason": "it was below",
    "metric": "accuracy",
    "effect": {"value": -0.5, "low": -1.0, "high": -0.25, "threshold": 0.0},
    "seeds": [0, 1, 2],
    "arms": {},
    "seconds": 60.0,
    "claims": [{"name": "other", "verdict": "HOLDS", "statement": "B", "effect": None}],
}


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A zoo of one recipe, one baseline and two planned systems; the current folder has docs and results."""
    files = {"sums": RECIPE, "cloning": '"""Copies."""\nPAPER = "Copying (1988)"\n'}
    entries = []
    for family, slug, paper in (("easy", "sums", "Sums (2030), arXiv 2030.12345"), ("baselines", "cloning", "Copying")):
        path = tmp_path / f"{slug}.py"
        path.write_text(files[slug])
        entries.append(Entry(slug, family, path, paper, "A summary."))
    systems = [Planned("later", "easy", "Later (2031)"), Planned("sums", "easy", "Sums, as planned")]
    monkeypatch.setattr(module, "catalogue", lambda: entries)
    monkeypatch.setattr(module, "planned", lambda: systems)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs" / "recipes").mkdir(parents=True)
    (tmp_path / "docs" / "recipes" / "sums.md").write_text("# Sums")
    (tmp_path / "results").mkdir()
    return tmp_path


def rows_of(zoo: Path, output: str = "pages/zoo.html") -> tuple[dict[str, dict[str, Any]], list[str]]:
    rows, notes = zoo_rows(Path("results"), Path(output))
    return {row["slug"]: row for row in rows}, notes


def test_without_results_nothing_has_a_verdict(zoo):
    rows, notes = rows_of(zoo)
    assert {slug: row["status"] for slug, row in rows.items()} == {
        "later": "not written yet",
        "sums": "not run",
        "cloning": "no claim",
    }
    assert notes == []
    main = {"name": "main", "statement": "The statement, in two parts.", "verdict": "not run"}
    assert rows["sums"]["claim"] == main
    assert [(one["name"], one["statement"], one["verdict"]) for one in rows["sums"]["others"]] == [
        ("other", "A further statement.", "not run"),
        ("computed", "", "not run"),
    ]
    assert rows["later"]["claim"] is None
    assert list(rows) == ["later", "sums", "cloning"]  # the families of the plan first


def test_papers_and_links(zoo):
    (zoo / "results" / "sums.json").write_text(json.dumps(RESULT))
    rows, _ = rows_of(zoo)
    assert rows["sums"]["paper"] == "Sums (2030), arXiv 2030.12345"  # the recipe's own words
    assert rows["sums"]["arxiv"] == "https://arxiv.org/abs/2030.12345"
    assert (rows["sums"]["docs"], rows["sums"]["results"]) == ("../docs/recipes/sums.md", "../results/sums.json")
    assert (rows["later"]["arxiv"], rows["later"]["docs"], rows["later"]["results"]) == (None, None, None)
    assert rows_of(zoo, "zoo.html")[0]["sums"]["docs"] == "docs/recipes/sums.md"
    assert [rows[slug]["planned"] for slug in ("later", "sums", "cloning")] == [True, True, False]


def test_a_result_gives_verdict_effect_seeds_and_seconds(zoo):
    (zoo / "results" / "sums.json").write_text(json.dumps(RESULT))
    row = rows_of(zoo)[0]["sums"]
    assert row["status"] == "FAILS"
    assert row["claim"]["statement"] == "The statement, as it was run."
    assert row["claim"]["effect"] == {"value": -0.5, "low": -1.0, "high": -0.25, "threshold": 0.0}
    assert (row["claim"]["seeds"], row["claim"]["seconds"]) == (["0", "1", "2"], 60.0)
    assert [(one["name"], one["verdict"]) for one in row["others"]] == [("other", "HOLDS"), ("computed", "not run")]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is damaged"),
        (json.dumps({**RESULT, "slug": "other"}), "is the result of other, not of sums"),
        (json.dumps({"slug": "sums"}), "is not a result of `zerozoo reproduce`"),
    ],
)
def test_a_damaged_result_gives_no_verdict_and_is_said(zoo, content, sentence):
    (zoo / "results" / "sums.json").write_text(content)
    rows, notes = rows_of(zoo)
    assert rows["sums"]["status"] == "unreadable"
    assert len(notes) == 1
    assert sentence in notes[0]


def test_words_that_are_no_verdict_are_not_shown_as_one(zoo):
    (zoo / "results" / "sums.json").write_text(json.dumps({**RESULT, "verdict": "WONDERFUL"}))
    assert rows_of(zoo)[0]["sums"]["status"] == "unreadable"


def test_results_of_nobody_are_said(zoo):
    (zoo / "results" / "stranger.json").write_text("{}")
    assert rows_of(zoo)[1] == ["results/stranger.json belongs to no recipe and was left out"]


def test_claims_of_the_real_recipes_are_read_without_importing_them():
    (entry,) = [entry for entry in catalogue() if entry.slug == "simplerl-zoo"]
    claims = declared_claims(entry.path)
    assert [name for name, _ in claims] == ["format", "difficulty"]
    assert claims[0][1].startswith("A strict format penalty lowers the ceiling of zero RL for a base model")


def test_the_plan_has_77_systems_and_every_recipe_stands_in_its_family():
    systems = {system.slug: system for system in planned()}
    assert len(systems) == len(planned()) == 77
    assert Counter(system.family for system in systems.values()) == {
        "reasoning": 10,
        "alignment": 10,
        "reward_models": 5,
        "agents": 9,
        "vision": 4,
        "offline": 9,
        "finetuning": 7,
        "unsupervised": 4,
        "preferences": 4,
        "control": 8,
        "robots": 5,
        "systems": 2,
    }
    assert all(module.ARXIV.search(system.paper) for system in systems.values())
    for entry in catalogue():
        if entry.family != "baselines":
            assert systems[entry.slug].family == entry.family
