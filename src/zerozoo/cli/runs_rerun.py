"""`zerozoo runs rerun`: a run repeated from its config, and whether it came out the same."""

from __future__ import annotations

import json as json_text
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import DisallowNone, Positional

from zerozoo.cli.registry import catalogue
from zerozoo.cli.runs_choice import print_sentences
from zerozoo.cli.tables import console, make_table, number, print_json
from zerozoo.runs.cells import PACKAGE, THREADS
from zerozoo.runs.errors import UserError
from zerozoo.runs.records import CONFIG, METRICS, Record, read_record, read_rows, writing
from zerozoo.runs.rerun import Repetition, compare_runs

DIFFERENT = 1  # exit code when the repetition is not the same
DIFFERENCES_SHOWN = 10


def rerun(
    run: Positional[Path],
    directory: DisallowNone[Path | None] = None,
    at_commit: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Repeat a run from its stored config, with its number of threads, and compare the metrics number by number.

    Exit code 0 if every number is the same (times and memory apart), 1 if not.

    Args:
        run: the run directory; its config.json is enough to repeat it, its metrics.jsonl to compare.
        directory: of the repetition; by default beside the run.
        at_commit: run the program as it was at the run's commit, in a working tree of its own. Packages stay as they
            are.
        json: print the comparison as JSON; what the training prints goes to standard error.
    """
    record = read_record(run)
    _check(record)
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    target = directory or run.with_name(f"{run.name}-rerun-{stamp}")
    if target.exists():
        raise UserError(f"{target} exists already: use another --directory")
    rows, notes = read_rows(run / METRICS)
    if at_commit:
        with source_at(record.versions.get("commit"), PACKAGE) as source:
            _train(record, target, source, json)
    else:
        _train(record, target, None, json)
    repeated = read_record(target)
    result = compare_runs(rows, read_rows(target / METRICS)[0], record.versions, repeated.versions)
    if json:
        print_json({"run": run, "repetition": target, **_as_json(result), "notes": notes})
    else:
        _print(console(), run, target, record, result)
        print_sentences(console(), "Left out of the stored run:", notes)
    return 0 if result.identical else DIFFERENT


def _check(record: Record) -> None:
    if record.state == "damaged":
        raise UserError(f"{record.directory} cannot be repeated: {record.notes[0]}")
    if record.status == "running":
        raise UserError(f"{record.directory} is still running: wait for its end")
    if record.recipe not in {entry.slug for entry in catalogue()}:
        origin = f" (it was imported from {record.about['origin']})" if "origin" in record.about else ""
        raise UserError(f"{record.recipe!r} is no recipe of this zerozoo, so the run cannot be repeated{origin}")
    if not record.rows:
        raise UserError(f"{record.directory} has no metrics to compare with")


def _train(record: Record, target: Path, source: Path | None, quiet: bool) -> None:
    """Trains in a process of its own: numerical libraries read the number of threads when they are loaded."""
    with writing(target):
        target.mkdir(parents=True)
        shutil.copyfile(record.directory / CONFIG, target / CONFIG)
    environment = dict(os.environ)
    threads = record.versions.get("torch_threads")
    if isinstance(threads, int):
        environment |= dict.fromkeys(THREADS, str(threads))
    if source is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(source), *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "zerozoo.cli.main", "train", record.recipe, "--resume", str(target)]
    code = subprocess.run(command, env=environment, stdout=sys.stderr if quiet else None, check=False).returncode
    if code:
        raise UserError(f"the repetition in {target} ended with exit code {code}; why stands above")


@contextmanager
def source_at(commit: str | None, package: Path) -> Iterator[Path]:
    """The folder to import `package` from as it was at `commit`: a working tree of git that is removed again.

    Raises UserError if the commit is not known or not in the repository that `package` is part of.
    """
    if not commit:
        raise UserError("the run does not know its commit, so it cannot be repeated there: leave out --at-commit")
    top = _git(package, "rev-parse", "--show-toplevel")
    with tempfile.TemporaryDirectory(prefix="zerozoo-rerun-") as folder:
        tree = Path(folder) / "tree"
        _git(package, "worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree / package.parent.relative_to(top)
        finally:
            _git(package, "worktree", "remove", "--force", str(tree))


def _git(folder: Path, *arguments: str) -> str:
    # Inside a git hook GIT_DIR and others name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1]
        raise UserError(f"git cannot show the run's commit ({reason}): leave out --at-commit") from error
    return done.stdout.strip()


def _as_json(result: Repetition) -> dict[str, Any]:
    differences = [vars(difference) for difference in result.differences]
    kept = {name: value for name, value in vars(result).items() if name != "differences"}
    return {"identical": result.identical, "largest": result.largest, **kept, "differences": differences}


def _print(out: Console, run: Path, target: Path, record: Record, result: Repetition) -> None:
    compared = f"{result.values} numbers in {result.rows} rows up to step {number(result.last_step)}"
    out.print(f"\n{run}\n{target}", soft_wrap=True)
    if result.identical:
        out.print(f"IDENTICAL: {compared}; the largest difference is 0", style="green", soft_wrap=True)
    elif not result.values:
        out.print("NOT COMPARED: the two runs have no numbers in common", style="yellow")
    else:
        text = f"DIFFERENT: {len(result.differences)} metrics differ, by {number(result.largest)} at most; {compared}"
        out.print(text, style="red", soft_wrap=True)
        shown = result.differences[:DIFFERENCES_SHOWN]
        rows = [[d.metric, number(d.step), *map(_exact, (d.before, d.after, d.largest))] for d in shown]
        out.print(make_table(["metric|", "first at step>", "stored>", "repeated>", "largest difference>"], rows))
        if len(shown) < len(result.differences):
            out.print(f"... and {len(result.differences) - len(shown)} more; --json has all")
    if result.longer:
        out.print(result.longer, soft_wrap=True)
    out.print(f"not compared: {', '.join(result.ignored)}", soft_wrap=True)
    if record.versions.get("dirty"):
        out.print("the run was made with changes that are in no commit", soft_wrap=True)
    if result.made_with:
        rows = [[name, _text(before), _text(after)] for name, (before, after) in result.made_with.items()]
        out.print(make_table(["made with|", "stored", "repeated"], rows))
    else:
        out.print("made with the same program, packages and machine")


def _exact(value: float | str | None) -> str:
    """All digits: a difference may be in the last one."""
    return "not finite" if value is None else repr(value) if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json_text.dumps(value)
