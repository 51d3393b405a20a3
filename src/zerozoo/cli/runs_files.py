"""`zerozoo runs tag`, `import` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, UseAppendAction

from zerozoo.cli.runs_choice import Filters, print_sentences
from zerozoo.cli.tables import console
from zerozoo.runs.errors import UserError
from zerozoo.runs.records import read_record, write_about


def tag_runs(
    directories: Positional[tuple[Path, ...]],
    *,
    tag: UseAppendAction[tuple[str, ...]] = (),
    remove: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Give runs tags, by which `list --tag` and queries find them. They stand in about.json of the run directory.

    Args:
        directories: run directories.
        tag: the tag; may be given several times.
        remove: take the tags away.
    """
    if not directories or not tag:
        raise UserError("give run directories and --tag NAME")
    records = [read_record(directory) for directory in directories]  # all, before anything is written
    for record in records:
        kept = [old for old in record.tags if old not in tag] if remove else list(dict.fromkeys([*record.tags, *tag]))
        write_about(record.directory, {"tags": kept})
        console().print(f"{record.directory}: {', '.join(kept) or 'no tags'}", soft_wrap=True)
    return 0


def import_files(
    source: Positional[Path],
    directory: Path = Path("runs/imported"),
    *,
    tag: UseAppendAction[tuple[str, ...]] = (),
) -> int:
    """Make run directories from the offline files of Weights & Biases (.wandb) and from TensorBoard's event files.

    Only numbers and the config are taken. A folder with event files is one run.

    Args:
        source: a file, or a folder with all below it.
        directory: where the run directories go.
        tag: given to the runs besides the tags that they have; may be given several times.
    """
    from zerozoo.runs.imports import import_runs

    imported = import_runs(source, directory, tag)
    out = console()
    for made in imported.directories:
        out.print(made, soft_wrap=True)
    print_sentences(out, "Left out or not as it should be:", imported.notes)
    if not imported.directories:
        raise UserError(f"nothing of {source} could be imported")
    return 0


def export_files(
    directory: Positional[Path] = Path("runs"),
    output: Path = Path("export"),
    *,
    filters: Filters,
) -> int:
    """Write runs.parquet (one row a run) and metrics.parquet (one row a value). Needs DuckDB.

    Args:
        directory: where to look for runs, with all folders below.
        output: folder of the two files.
    """
    from zerozoo.runs.exports import export_runs

    records, notes = filters.runs(directory)
    exported = export_runs(records, output)
    out = console()
    for path in exported.paths:
        out.print(path, soft_wrap=True)
    out.print(f"{exported.runs} runs, {exported.values} values")
    print_sentences(out, "Left out or not as it should be:", [*notes, *exported.notes])
    return 0
