"""`zerozoo runs report` as a command: which runs it takes, where the page goes, and what it says of bad input."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tyro

from zerozoo.cli.runs_report import report
from zerozoo.runs.errors import UserError
from zerozoo.runs.run import Run


def make_run(directory: Path, seed: int = 0, time: float = 100.0) -> Path:
    with Run.start(directory, "easy-sums", {"steps": 2}, seed) as run:
        run.log(1, {"reward": 0.5})
        run.sample([{"step": 1, "phase": "train", "response": f"seed {seed}", "reward": 1.0, "verdict": "right"}])
    path = directory / "metrics.jsonl"
    path.write_text(re.sub(r'"time": [0-9.]+', f'"time": {time}', path.read_text()))
    return directory


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> int:
    """As `zerozoo runs` calls it."""
    return int(tyro.cli(report, args=list(arguments), config=(tyro.conf.OmitArgPrefixes,)))


def data(path: Path) -> Any:
    text = path.read_text()
    found = re.search(r'id="data"( data-packed="gzip")?>([^<]*)<', text)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found[2])) if found[1] else found[2])


def labels(path: Path) -> list[str]:
    return [run["label"] for run in data(path)["runs"]]


def test_the_newest_run_by_default_into_its_directory(capsys):
    make_run(Path("runs/deep/older"), time=100.0)
    newest = make_run(Path("runs/newer"), time=200.0)
    assert call() == 0
    assert labels(newest / "report.html") == ["newer"]
    assert re.fullmatch(r"runs/newer/report.html  \([0-9.]+ kB\): runs/newer\n", capsys.readouterr().out)


def test_runs_by_path_by_name_and_by_folder_each_once(capsys):
    for name in ("runs/a", "runs/claims/soft/seed-0", "runs/claims/hard/seed-0"):
        make_run(Path(name))
    assert call("runs/a", "a", "claims", "--output", "out/page.html") == 0
    assert labels(Path("out/page.html")) == ["runs/a", "hard/seed-0", "soft/seed-0"]
    assert "3 runs" in capsys.readouterr().out
    assert call("runs/a", "runs/claims/hard/seed-0") == 0
    assert len(labels(Path("report.html"))) == 2


def test_root_samples_and_plain():
    directory = make_run(Path("elsewhere/a"))
    with open(directory / "samples.jsonl", "a") as file:
        file.write('{"step": 2, "response": "x"}\n')
    assert call("a", "--root", "elsewhere", "--samples", "1", "--plain") == 0
    page = directory / "report.html"
    assert 'type="application/json" id="data"' in page.read_text()
    (run,) = data(page)["runs"]
    assert (run["samples"]["count"], run["samples"]["total"]) == (1, 2)


def test_what_was_left_out_is_printed(capsys):
    directory = make_run(Path("runs/a"))
    with open(directory / "samples.jsonl", "a") as file:
        file.write('{"step": 2, "resp')
    assert call() == 0
    out = capsys.readouterr().out
    assert "Left out or not as it should be:" in out
    assert "a: the last row of samples.jsonl is half-written and was left out" in out


def test_the_claim_comes_from_results():
    directory = make_run(Path("runs/reproduce/easy-sums/main/soft/seed-0"))
    (directory / "cell.json").write_text(json.dumps({"key": "k", "values": {"reward": 0.5}, "seconds": 1.0}))
    result = {"slug": "easy-sums", "name": "main", "verdict": "FAILS", "metric": "reward", "effect": None}
    Path("verdicts").mkdir()
    Path("verdicts/easy-sums.json").write_text(json.dumps({**result, "arms": {"soft": {"0": 0.5}}}))
    assert call(str(directory), "--results", "verdicts") == 0
    assert data(directory / "report.html")["runs"][0]["claim"]["verdict"] == "FAILS"
    assert call(str(directory)) == 0
    assert data(directory / "report.html")["runs"][0]["claim"]["verdict"] == "not run"


def test_the_zoo(capsys):
    assert call("--zoo", "--output", "pages/zoo.html") == 0
    rows = data(Path("pages/zoo.html"))["rows"]
    assert sum(row["planned"] for row in rows) == 77
    assert re.fullmatch(r"pages/zoo.html  \([0-9.]+ kB\): \d+ recipes and planned systems\n", capsys.readouterr().out)
    assert call("--zoo") == 0
    assert Path("zoo.html").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "there is no run in runs"),
        (("nowhere",), "there is no run directory nowhere"),
        (("plain",), "plain is not a run directory"),
        (("runs", "--samples", "0"), "--samples must be at least 1, not 0"),
        (("--output", "plain"), "plain is a folder"),
        (("--zoo", "plain"), "leave out the runs"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
    Path("plain").mkdir()
    with pytest.raises(UserError, match=re.escape(sentence)):
        call(*arguments)


def test_a_page_that_cannot_be_written():
    make_run(Path("runs/a"))
    Path("file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        call("--output", "file/report.html")


def test_too_many_runs(monkeypatch):
    monkeypatch.setattr("zerozoo.cli.runs_report.MOST_RUNS", 1)
    make_run(Path("runs/a"))
    make_run(Path("runs/b"))
    with pytest.raises(UserError, match="2 runs are too many for one page: name 1 at most"):
        call("runs")
