"""Runs of Weights & Biases (offline files) and TensorBoard (event files) become run directories of zerozoo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from zerozoo.runs.errors import UserError
from zerozoo.runs.event_files import read_events
from zerozoo.runs.foreign import ForeignRun, MissingPackageError, write_run
from zerozoo.runs.records import METRICS
from zerozoo.runs.wandb_files import read_wandb

EVENTS = "events.out.tfevents."


@dataclass
class Imported:
    """The run directories that were made, and a sentence for everything that was left out."""

    directories: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_runs(source: Path, target: Path, tags: tuple[str, ...] = ()) -> Imported:
    """Imports every run in `source` (a file, or a folder with all below it) into a folder of its own below `target`.

    A folder with event files is one run, as TensorBoard shows it. `tags` are added to those that the runs have. What
    cannot be read is left out. Raises UserError if there is nothing to import, if a format's package is missing, and
    if `target` cannot be written.
    """
    if not source.exists():
        raise UserError(f"there is no {source}")
    imported = Imported()
    found = False
    for paths in _sources(source):
        found = True
        first = paths[0]
        try:
            run, name = _read(source, paths)
        except MissingPackageError:
            raise
        except UserError as error:
            imported.notes.append(f"{first} was left out: {error}")
            continue
        if not run.rows:
            imported.notes.append(f"{first.parent} was left out: it has no numbers{_because(run)}")
            continue
        run.about["tags"] = list(dict.fromkeys([*run.about.get("tags", []), *tags]))
        directory = target / name
        if (directory / METRICS).exists():
            imported.notes.append(f"{first} was left out: {directory} is there already; delete it to import it again")
            continue
        write_run(run, directory)
        imported.directories.append(directory)
        imported.notes += [f"{directory}: {note}" for note in run.notes]
    if not found:
        raise UserError(f"{source} has neither a .wandb file nor an {EVENTS}* file")
    return imported


def _sources(source: Path) -> Iterator[list[Path]]:
    """The files of one run at a time."""
    if source.is_file():
        yield [source]
        return
    for name, folders, files in os.walk(source):
        folders.sort()
        folder = Path(name)
        yield from ([folder / file] for file in sorted(files) if file.endswith(".wandb"))
        events = [folder / file for file in files if file.startswith(EVENTS)]
        if events:
            yield events


def _read(source: Path, paths: list[Path]) -> tuple[ForeignRun, str]:
    """The run, and the name of its directory: its place below `source`, or what Weights & Biases calls it."""
    first = paths[0]
    if first.suffix == ".wandb":
        run = read_wandb(first)
        names = dict.fromkeys(str(run.about[key]) for key in ("name", "id") if run.about.get(key))
        return run, re.sub(r"[^\w.+=-]+", "-", "-".join(names) or first.stem).lstrip(".") or "run"
    if not first.name.startswith(EVENTS):
        raise UserError("it is neither a .wandb file nor an event file")
    run = read_events(paths)
    folder = source.parent if source.is_file() else source
    place = first.parent.relative_to(folder)
    run.about |= {"name": str(place) if place.parts else folder.absolute().name, "project": folder.absolute().name}
    return run, str(run.about["name"])


def _because(run: ForeignRun) -> str:
    return f" ({'; '.join(run.notes)})" if run.notes else ""
