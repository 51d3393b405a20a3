"""One self-contained HTML file: the page's own script and style, the data, and the pictures, all inside it.

The page asks nobody for anything: its content policy forbids every address but pictures that lie in the file, and only
the script and the style that are named there by their hash may run. Data are no script: model text reaches the page as
JSON and is put into it as text.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import zerozoo
from zerozoo.runs.errors import UserError
from zerozoo.runs.records import Record, label_runs, writing
from zerozoo.runs.report_claim import cell_place
from zerozoo.runs.report_data import SAMPLES_SHOWN, run_entry

# In the order in which they are joined to one script.
RUN_SCRIPTS = (
    "core.js",
    "list.js",
    "chart.js",
    "curves.js",
    "samples.js",
    "sample.js",
    "episodes.js",
    "claim.js",
    "overview.js",
    "main.js",
)
ZOO_SCRIPTS = ("core.js", "claim.js", "zoo.js")
PICTURES = {
    ".png": ("image/png", b"\x89PNG\r\n\x1a\n"),
    ".gif": ("image/gif", b"GIF8"),
    ".jpg": ("image/jpeg", b"\xff\xd8\xff"),
    ".jpeg": ("image/jpeg", b"\xff\xd8\xff"),
    ".webp": ("image/webp", b"RIFF"),
}
OWN_FOLDERS = ("checkpoints", "model", "tensorboard", "wandb")  # hold no pictures of what happened
PICTURE_BYTES = 40_000_000  # of all pictures on a page
FIGURES_FOLDER = "figures"


@dataclass(frozen=True)
class Page:
    """What was written: the file, its size in bytes, and a sentence for everything that was left out."""

    path: Path
    size: int
    notes: tuple[str, ...]


def write_run_page(
    records: Sequence[Record],
    output: Path,
    results: Path,
    samples: int = SAMPLES_SHOWN,
    plain: bool = False,
) -> Page:
    """The page of one or several runs.

    results: folder with the result files of claims. samples: responses (and episodes) shown at most, shared equally by
    the runs. plain: data as JSON that people can read, in place of gzip, for browsers without DecompressionStream.
    Raises UserError for no runs and where the file cannot be written.
    """
    if not records:
        raise UserError("there is no run to report")
    cell = cell_place(records[0])
    labels = [f"{cell[2]}/seed-{cell[3]}"] if cell and len(records) == 1 else label_runs(records)
    share = max(1, samples // len(records))
    entries, blocks, notes = [], [], []
    room = PICTURE_BYTES
    for index, (record, label) in enumerate(zip(records, labels, strict=True)):
        entry, later = run_entry(record, label, results, share)
        pictures, amiss, room = read_pictures(record.directory, room)
        entry["pictures"] = [{"name": name, "block": f"picture-{index}-{at}"} for at, (name, _) in enumerate(pictures)]
        entry["notes"] += amiss
        blocks += [(f"picture-{index}-{at}", address) for at, (_, address) in enumerate(pictures)]
        entry["blocks"] = {part: f"{part}-{index}" for part in later}
        blocks += [(name, data_block(name, later[part], plain)) for part, name in entry["blocks"].items()]
        entries.append(entry)
        notes += [f"{label}: {note}" for note in entry["notes"]]
    data = {"made": made(), "runs": entries}
    title = labels[0] if len(labels) == 1 else f"{len(labels)} runs"
    text = page(f"{title} - zerozoo", data, RUN_SCRIPTS, blocks, plain)
    return Page(output, write_text(output, text), tuple(notes))


def write_zoo_page(rows: Sequence[Mapping[str, Any]], notes: Sequence[str], output: Path, plain: bool = False) -> Page:
    """The page of all recipes; `rows` as `cli.zoo_rows` makes them."""
    data = {"made": made(), "rows": list(rows), "notes": list(notes)}
    return Page(output, write_text(output, page("The zoo - zerozoo", data, ZOO_SCRIPTS, (), plain)), tuple(notes))


def page(
    title: str, data: Any, scripts: Sequence[str], blocks: Sequence[tuple[str, str]] = (), plain: bool = False
) -> str:
    """The whole HTML text. `blocks` are by id: pictures as data addresses, and what `data_block` has made."""
    script = "\n".join(asset(name) for name in scripts)
    script = f"(() => {{\n'use strict';\n{script}\n}})();\n"
    style = asset("page.css")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    inner = [data_block("data", data, plain)]
    inner += [text if text.startswith("<") else picture_block(name, text) for name, text in blocks]
    filled = {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": "\n".join(inner),
        "SCRIPT": script,
    }
    # In one pass over the template: a title or a text that holds such a mark is not filled in again.
    parts = asset("page.html").split("@@")
    return "".join(filled[part] if index % 2 else part for index, part in enumerate(parts))


def data_block(name: str, value: Any, plain: bool = False) -> str:
    """JSON in a script element that browsers do not run; gzip in base64 unless `plain`."""
    text = safe_json(value)
    if plain:
        return f'<script type="application/json" id="{name}">{text}</script>'
    packed = base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()
    return f'<script type="text/plain" id="{name}" data-packed="gzip">{packed}</script>'


def picture_block(name: str, address: str) -> str:
    return f'<script type="text/plain" id="{name}">{address}</script>'


def safe_json(value: Any) -> str:
    """JSON without the characters that end a script element, begin a tag or an entity, or end a line of a script.

    They stand as escapes inside JSON's strings, the only place where they can be. A lone surrogate, which has no
    UTF-8, becomes JSON's escape for it.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode()


def read_pictures(directory: Path, room: int = PICTURE_BYTES) -> tuple[list[tuple[str, str]], list[str], int]:
    """Pictures of a run by path, as data addresses, figures last; what was left out; the bytes left of `room`."""
    found: list[tuple[str, str]] = []
    notes = []
    for path in _picture_files(directory):
        name = path.relative_to(directory).as_posix()
        kind, signature = PICTURES[path.suffix.lower()]
        try:
            content = path.read_bytes()
        except OSError as error:
            notes.append(f"{name} cannot be read ({error.strerror})")
            continue
        if not content.startswith(signature):
            notes.append(f"{name} is not a picture and was left out")
        elif len(content) > room:
            notes.append(f"{name} was left out, because the pictures of the page would be larger than 40 MB")
        else:
            room -= len(content)
            found.append((name, f"data:{kind};base64,{base64.b64encode(content).decode()}"))
    return found, notes, room


def _picture_files(directory: Path) -> Iterator[Path]:
    skipped = {directory / name for name in OWN_FOLDERS}
    files_found = []
    for folder, names, file_names in os.walk(directory):
        names[:] = sorted(n for n in names if Path(folder, n) not in skipped and not n.startswith("."))
        files_found += [Path(folder, name) for name in file_names if Path(name).suffix.lower() in PICTURES]
    yield from sorted(files_found, key=lambda path: (path.parent.name == FIGURES_FOLDER, path))


def asset(name: str) -> str:
    """A file of the page, with the line ends that the hashes are made of."""
    return (files("zerozoo.runs") / "report_page" / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def made() -> dict[str, Any]:
    return {"version": zerozoo.__version__, "time": round(time.time())}


def write_text(path: Path, text: str) -> int:
    """Writes the file in one go: a reader finds the old page or the new one. Returns its bytes."""
    content = text.encode("utf-8", "replace")  # a folder's name may be no text
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return len(content)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
