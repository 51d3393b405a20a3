"""`zerozoo runs rerun`: one real repetition, and what is said when it is not the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from zerozoo.cli import runs_rerun
from zerozoo.cli.main import main
from zerozoo.cli.runs_rerun import source_at
from zerozoo.runs.cells import THREADS
from zerozoo.runs.errors import UserError
from zerozoo.runs.records import read_record


def make_run(directory: Path, recipe: str = "simplerl-zoo", **versions: Any) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"recipe": recipe, "seed": 0, "config": {"steps": 2}}))
    (directory / "versions.json").write_text(json.dumps({"torch": "2.6.0", "torch_threads": 3, **versions}))
    rows = [{"step": step, "time": 5.0 * step, "reward": 0.1 * step} for step in (1, 2)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """In place of training: the stored run's files, with `changes` to its first row. Returns the calls."""
    calls: list[dict[str, Any]] = []

    def run(command: list[str], env: dict[str, str], stdout: Any, check: bool) -> subprocess.CompletedProcess[str]:
        target = Path(command[-1])
        calls.append({"command": command, "env": env, "files": sorted(path.name for path in target.iterdir())})
        shutil.copy("run/metrics.jsonl", target)
        shutil.copy("run/versions.json", target)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(runs_rerun.subprocess, "run", run)
    return calls


def test_a_real_run_is_repeated_bit_by_bit(digits_model: str, capfd: pytest.CaptureFixture[str]) -> None:
    flags = "--data arithmetic --level one-digit --heldout-size 6 --max-new-tokens 3 --prompts-per-step 4"
    flags += " --samples-per-prompt 4 --updates-per-step 1 --kl-coefficient 0 --steps 2 --directory run"
    assert main(["train", "simplerl-zoo", "--model", digits_model, *flags.split()]) == 0
    capfd.readouterr()
    assert main(["runs", "rerun", "run", "--directory", "again", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["identical"]
    assert (result["largest"], result["differences"], result["last_step"]) == (0.0, [], 2)
    assert result["values"] > 50
    assert "time" in result["ignored"]
    assert "seconds/step" in result["ignored"]
    assert read_record(Path("again")).config == read_record(Path("run")).config


def test_only_the_config_goes_into_the_repetition(trained: list[dict[str, Any]], capsys: Any) -> None:
    make_run(Path("run"))
    assert main(["runs", "rerun", "run", "--directory", "new"]) == 0
    (call,) = trained
    assert call["files"] == ["config.json"]
    assert call["command"][1:] == ["-m", "zerozoo.cli.main", "train", "simplerl-zoo", "--resume", "new"]
    assert {call["env"][name] for name in THREADS} == {"3"}  # as many threads as the run had
    output = capsys.readouterr().out
    assert "IDENTICAL: 2 numbers in 2 rows up to step 2; the largest difference is 0" in output
    assert "made with the same program, packages and machine" in output


def test_a_difference_in_the_last_bit_is_found(
    trained: list[dict[str, Any]], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(Path("run"), commit="abc", dirty=True)
    stored = Path("run/metrics.jsonl").read_text()
    original = runs_rerun._train

    def other(record: Any, target: Path, source: Any, quiet: bool) -> None:
        original(record, target, source, quiet)
        (target / "metrics.jsonl").write_text(stored.replace("0.2", "0.20000000000000004"))
        (target / "versions.json").write_text('{"torch": "2.7.0", "torch_threads": 3, "commit": "def", "dirty": false}')

    monkeypatch.setattr(runs_rerun, "_train", other)
    assert main(["runs", "rerun", "run", "--directory", "new"]) == 1
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "DIFFERENT: 1 metrics differ, by 2.78e-17 at most; 2 numbers in 2 rows up to step 2" in lines
    assert "reward 2 0.2 0.20000000000000004 2.7755575615628914e-17" in lines
    assert "the run was made with changes that are in no commit" in lines
    assert "torch 2.6.0 2.7.0" in lines
    assert "commit abc def" in lines


def test_the_default_directory_is_beside_the_run(trained: list[dict[str, Any]]) -> None:
    make_run(Path("deep/run"))
    shutil.copytree("deep/run", "run")  # what the stand-in for the training copies
    assert main(["runs", "rerun", "deep/run"]) == 0
    (name,) = [path.name for path in Path("deep").iterdir() if path.name != "run"]
    assert name.startswith("run-rerun-2")


def test_a_training_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    make_run(Path("run"))
    failed = subprocess.CompletedProcess([], 2)
    monkeypatch.setattr(runs_rerun.subprocess, "run", lambda *_, **__: failed)
    assert main(["runs", "rerun", "run", "--directory", "new"]) == 2
    assert "error: the repetition in new ended with exit code 2; why stands above" in capsys.readouterr().err


def test_what_cannot_be_repeated(capsys: Any) -> None:
    def refused(*arguments: str) -> str:
        assert main(["runs", "rerun", *arguments]) == 2
        return capsys.readouterr().err

    make_run(Path("run"))
    assert "there is no run directory nowhere" in refused("nowhere")
    assert "run exists already: use another --directory" in refused("run", "--directory", "run")
    imported = make_run(Path("imported"), recipe="ppo_atari")
    (imported / "about.json").write_text('{"origin": "wandb x"}')
    assert "'ppo_atari' is no recipe of this zerozoo" in refused("imported")
    assert "(it was imported from wandb x)" in refused("imported")
    (make_run(Path("empty")) / "metrics.jsonl").write_text("")
    assert "empty has no metrics to compare with" in refused("empty")
    (make_run(Path("bad")) / "config.json").write_text("{")
    assert "bad cannot be repeated: config.json is damaged" in refused("bad")
    assert "does not know its commit" in refused("run", "--at-commit", "--directory", "new")
    assert not Path("new").exists()


def git(*arguments: str) -> str:
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", "repository", *arguments]
    done = subprocess.run(command, env={**os.environ, **identity}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_source_at_a_commit(folder: Path) -> None:
    package = folder / "repository" / "src" / "package"
    package.mkdir(parents=True)
    (package / "a.py").write_text("old")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    (package / "a.py").write_text("new")
    with source_at(commit, package) as source:
        assert (source / "package" / "a.py").read_text() == "old"
        assert source.name == "src"
    assert (package / "a.py").read_text() == "new"
    assert not source.exists()
    assert len(git("worktree", "list").splitlines()) == 1
    with pytest.raises(UserError, match="git cannot show the run's commit"), source_at("0" * 40, package):
        pass
    with pytest.raises(UserError, match="git cannot show the run's commit"), source_at(commit, folder):
        pass
