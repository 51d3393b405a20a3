"""`zerozoo runs report`: one local HTML file with curves, samples and verdicts, or with the whole zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import DisallowNone, Positional

from zerozoo.cli.runs_choice import print_sentences
from zerozoo.cli.tables import console, size
from zerozoo.cli.zoo_rows import zoo_rows
from zerozoo.runs.errors import UserError
from zerozoo.runs.records import Record, find_runs, read_record
from zerozoo.runs.report import Page, write_run_page, write_zoo_page
from zerozoo.runs.report_data import SAMPLES_SHOWN

MOST_RUNS = 50  # on one page: more curves than that tell nobody anything
RUN_PAGE, RUNS_PAGE, ZOO_PAGE = "report.html", Path("report.html"), Path("zoo.html")


def report(
    runs: Positional[tuple[Path, ...]] = (),
    *,
    root: Path = Path("runs"),
    output: DisallowNone[Path | None] = None,
    zoo: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    results: Path = Path("results/reproduce"),
    samples: int = SAMPLES_SHOWN,
    plain: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """One HTML file to look at runs with: curves, results, every logged sample, config, figures, verdict.

    The file needs no server and no network and can be sent to others. It holds everything that it shows, so look at
    the samples before you publish it.

    Args:
        runs: run directories, names of runs below --root, or folders with runs below them; by default the newest run
            below --root.
        root: where runs are looked for.
        output: the file to write; by default report.html in the run directory (for several runs in the current
            folder), zoo.html for --zoo.
        zoo: the page of the whole zoo instead: every recipe and planned system with the verdict of its claim.
        results: folder with the result files of `zerozoo reproduce`.
        samples: responses shown at most, spread evenly over the runs and their steps.
        plain: keep the data readable in the file instead of packing them, for old browsers and for text tools.
    """
    if samples < 1:
        raise UserError(f"--samples must be at least 1, not {samples}")
    if output is not None and output.is_dir():
        raise UserError(f"{output} is a folder: give --output a file name, such as {output / 'report.html'}")
    if zoo:
        if runs:
            raise UserError("--zoo makes the page of the whole zoo: leave out the runs")
        path = output or ZOO_PAGE
        rows, notes = zoo_rows(results, path)
        _tell(write_zoo_page(rows, notes, path, plain), f"{len(rows)} recipes and planned systems")
        return 0
    records = chosen_runs(runs, root)
    path = output or (records[0].directory / RUN_PAGE if len(records) == 1 else RUNS_PAGE)
    page = write_run_page(records, path, results, samples, plain)
    _tell(page, str(records[0].directory) if len(records) == 1 else f"{len(records)} runs")
    return 0


def chosen_runs(runs: tuple[Path, ...], root: Path) -> list[Record]:
    """The runs that are meant, each once; the newest one below `root` if none is named. UserError if there is none."""
    if not runs:
        found = [read_record(folder) for folder in find_runs(root)]
        if not found:
            raise UserError(f"there is no run in {root}; `zerozoo train` makes one")
        return [max(found, key=lambda record: record.changed)]
    folders = {folder.absolute(): folder for one in runs for folder in _folders(one, root)}
    if len(folders) > MOST_RUNS:
        raise UserError(f"{len(folders)} runs are too many for one page: name {MOST_RUNS} at most")
    return [read_record(folder) for folder in folders.values()]


def _folders(run: Path, root: Path) -> list[Path]:
    place = run if run.exists() or not (root / run).exists() else root / run
    found = list(find_runs(place)) if place.is_dir() else []
    return found or [place]  # `read_record` says what is wrong with it


def _tell(page: Page, what: str) -> None:
    out = console()
    out.print(f"{page.path}  ({size(page.size)}): {what}", soft_wrap=True)
    print_sentences(out, "Left out or not as it should be:", page.notes)
