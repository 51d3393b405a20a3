"""A claim on the page is what the result file says, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zerozoo.runs.records import read_record
from zerozoo.runs.report_claim import cell_place, claim_entry, claims_of, read_result
from zerozoo.runs.run import Run

RESULT: dict[str, Any] = {
    "slug": "sums",
    "name": "format",
    "statement": "Soft beats hard.",
    "verdict": "HOLDS",
    "reason": "0.5 is above 0",
    "metric": "accuracy",
    "effect": {"value": 0.5, "low": 0.25, "high": None, "threshold": 0},
    "seeds": [0, 1],
    "arms": {"soft": {"0": 0.75, "1": None}, "hard": {"0": 0.25, "1": 0.5}},
    "summary": {"soft": {"mean": None, "low": None}},
    "seconds": 12.5,
    "commit": "abc",
    "claims": [{"name": "other", "verdict": "splendid", "effect": None}],
}


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """The finished cell of arm soft, seed 0."""
    directory = tmp_path / "runs" / "sums" / "format" / "soft" / "seed-0"
    with Run.start(directory, "sums", {"steps": 1}, 0) as run:
        run.log(1, {"accuracy": 0.75})
    (directory / "cell.json").write_text(json.dumps({"key": "k", "values": {"accuracy": 0.75}, "seconds": 1.0}))
    return directory


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "sums.json").write_text(json.dumps({**RESULT, **changes}))
    return folder


def test_the_claim_of_a_cell(cell, tmp_path):
    claim, notes = claim_entry(read_record(cell), write(tmp_path / "results"))
    assert notes == []
    assert claim is not None
    assert (claim["slug"], claim["name"], claim["arm"], claim["seed"]) == ("sums", "format", "soft", 0)
    assert (claim["verdict"], claim["seeds"], claim["seconds"]) == ("HOLDS", ["0", "1"], 12.5)
    assert claim["effect"] == {"value": 0.5, "low": 0.25, "high": None, "threshold": 0}
    assert claim["arms"] == {"soft": {"0": 0.75, "1": None}, "hard": {"0": 0.25, "1": 0.5}}


def test_a_result_of_another_run_is_said(cell, tmp_path):
    arms = {**RESULT["arms"], "soft": {"0": 0.5}}
    claim, notes = claim_entry(read_record(cell), write(tmp_path / "results", arms=arms))
    assert claim is not None
    path = tmp_path / "results" / "sums.json"
    assert notes == [f"{path} was made from another run of soft, seed 0: there 0.5, in this run 0.75"]


def test_without_a_result_the_verdict_is_not_run(cell, tmp_path):
    claim, notes = claim_entry(read_record(cell), tmp_path / "none")
    assert claim is not None
    assert (claim["verdict"], notes) == ("not run", [])
    assert "effect" not in claim
    other = write(tmp_path / "results", name="difficulty")  # the file has another claim only
    claim, _ = claim_entry(read_record(cell), other)
    assert claim is not None
    assert claim["verdict"] == "not run"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged (not a JSON object)"),
        ('{"slug": "sums"}', "is not a result of `zerozoo reproduce`: it has no verdict, effect"),
        ('{"slug": "x", "verdict": "HOLDS", "effect": {}}', "is the result of x, not of sums"),
    ],
)
def test_a_damaged_result_gives_no_verdict(cell, tmp_path, content, sentence):
    path = write(tmp_path / "results") / "sums.json"
    path.write_text(content)
    claim, notes = claim_entry(read_record(cell), tmp_path / "results")
    assert claim is not None
    assert claim["verdict"] == "unreadable"
    assert len(notes) == 1
    assert notes[0].startswith(f"{path} {sentence}")


def test_only_the_three_words_are_verdicts():
    main, other = claims_of(RESULT)
    assert main["verdict"] == "HOLDS"
    assert (other["verdict"], other["effect"]["value"]) == ("unreadable", None)
    assert claims_of({**RESULT, "verdict": None, "claims": None})[0]["verdict"] == "unreadable"
    assert claims_of({}) == []


def test_other_runs_belong_to_no_claim(cell, tmp_path):
    assert cell_place(read_record(cell)) == ("sums", "format", "soft", 0)
    with Run.start(tmp_path / "seed-0", "sums", {"steps": 1}, 0):
        pass
    assert cell_place(read_record(tmp_path / "seed-0")) is None
    smoke = tmp_path / "sums-smoke" / "format" / "soft" / "seed-0"
    cell.rename(smoke.parent.mkdir(parents=True) or smoke)
    assert cell_place(read_record(smoke)) is None
    assert claim_entry(read_record(smoke), tmp_path) == (None, [])


def test_a_missing_result_is_no_damage(tmp_path):
    assert read_result(tmp_path / "none.json") == ({}, [])
