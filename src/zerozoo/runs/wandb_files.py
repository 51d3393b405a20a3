"""Reads a run of Weights & Biases from its file `run-ID.wandb`, which an offline run leaves. Needs wandb's protocol.

The file is a log in LevelDB's format: after a header of 7 bytes, blocks of 32 kB hold records, and a record is cut into
pieces where a block ends. A piece has a CRC-32 (not LevelDB's CRC-32C) of its kind and content, a length and a kind.
Each record is a message of wandb_internal.proto. After a damaged piece reading goes on with the next block.
"""

from __future__ import annotations

import importlib
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zerozoo.runs.errors import UserError
from zerozoo.runs.foreign import ForeignRun, MissingPackageError, left_out
from zerozoo.runs.records import RUNTIME

BLOCK, HEADER = 32768, 7
IDENT, MAGIC = b":W&B", 0xBEE1
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
METADATA = Path("files", "wandb-metadata.json")
NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def read_wandb(path: Path) -> ForeignRun:
    """The run in `path`, as far as it can be read. Raises UserError without wandb and for a file of another format."""
    protocol, decode_error = _protocol()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    run = ForeignRun(origin=f"wandb {path}", about={"project": ""})
    reader = _Reader(run)
    damaged = 0
    for content in log_records(data, run.notes):
        record = protocol.Record()
        try:
            record.ParseFromString(content)
        except decode_error:
            damaged += 1
            continue
        reader.take(record)
    if damaged:
        run.notes.append(f"{damaged} records could not be read and were left out")
    reader.finish(_metadata(path.parent))
    return run


def log_records(data: bytes, notes: list[str]) -> Iterator[bytes]:
    """The records of the log. Raises UserError for a file that is none; `notes` gets what was left out."""
    if len(data) < HEADER or struct.unpack_from("<4sH", data) != (IDENT, MAGIC):
        raise UserError("it is empty or no file of Weights & Biases")
    position, damaged, half = HEADER, 0, False
    pieces: list[bytes] | None = None
    while position < len(data):
        room = BLOCK - position % BLOCK
        if room < HEADER:  # zeros, for no header fits
            position += room
            continue
        if position + HEADER > len(data):
            half = True
            break
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        end = position + HEADER + length
        if (checksum, length, kind) == (0, 0, 0):
            position += room
            continue
        sound = FULL <= kind <= LAST and HEADER + length <= room
        if sound and end > len(data):
            half = True
            break
        piece = data[position + HEADER : end]
        if not sound or zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            damaged, pieces, position = damaged + 1, None, position + room
            continue
        position = end
        if kind in (FULL, FIRST):
            pieces = []
        if pieces is not None:  # else the beginning of the record was damaged
            pieces.append(piece)
            if kind in (FULL, LAST):
                yield b"".join(pieces)
                pieces = None
    if half or pieces is not None:
        notes.append("the last record is half-written and was left out")
    if damaged:
        notes.append(f"{damaged} blocks of {BLOCK} bytes are damaged; what followed in them was left out")


class _Reader:
    """Puts the records together."""

    def __init__(self, run: ForeignRun) -> None:
        self.run = run
        self.config: dict[str, Any] = {}
        self.dropped: set[str] = set()
        self.exit_code: int | None = None

    def take(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            self._history(record.history)
        elif kind == "config":
            self._configure(record.config)
        elif kind == "run":
            self._describe(record.run)
        elif kind == "exit":
            self.exit_code = int(record.exit.exit_code)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        self.config.pop("_wandb", None)  # its own notes
        self.run.config = self.config
        if metadata.get("username"):
            self.run.about["user"] = str(metadata["username"])
        self.run.about["state"] = "done" if self.exit_code == 0 else "stopped"
        if self.exit_code is None:
            self.run.notes.append("it does not say how the run ended, so the run counts as stopped")
        if self.dropped:
            self.run.notes.append(left_out(self.dropped))

    def _describe(self, run: Any) -> None:
        """Comes once at the start, and again when something has changed."""
        known = {"id": run.run_id, "name": run.display_name, "project": run.project, "entity": run.entity}
        self.run.about |= {key: str(value) for key, value in known.items() if value}
        if run.tags:
            self.run.about["tags"] = list(run.tags)
        made_with = {
            "python": run.telemetry.python_version,
            "wandb": run.telemetry.cli_version,
            "commit": run.git.commit,
        }
        self.run.versions |= {name: value for name, value in made_with.items() if value}
        self._configure(run.config)

    def _configure(self, config: Any) -> None:
        for item in config.update:
            _put(self.config, _path(item), _value(item))
        for item in config.remove:
            *parents, last = _path(item)
            place = self.config
            for key in parents:
                place = place.get(key, {})
            place.pop(last, None)

    def _history(self, history: Any) -> None:
        logged: dict[str, Any] = {}
        for item in history.item:
            _put(logged, _path(item), _value(item))
        row: dict[str, float | None] = {}
        for name, value in logged.items():
            self._number(name, value, row)
        step = row.pop("_step", None)
        time = row.pop("_timestamp", None)
        if step is None and history.HasField("step"):
            step = history.step.num
        if step is None:
            step = len(self.run.rows)
        if row.keys() - {RUNTIME}:
            self.run.rows.append({"step": int(step), **({} if time is None else {"time": time}), **row})

    def _number(self, name: str, value: Any, row: dict[str, float | None]) -> None:
        """Numbers by name; nested metrics by dotted names; pictures, tables and texts are left out."""
        if isinstance(value, dict) and "_type" not in value:
            for key, inner in value.items():
                self._number(f"{name}.{key}", inner, row)
        elif isinstance(value, (bool, int, float)):
            row[name] = value if math.isfinite(value) else None
        elif value is None or value in NOT_FINITE:
            row[name] = None
        else:
            self.dropped.add(name)


def _put(place: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """place["a"]["b"] = value for the path a, b."""
    *parents, last = path
    for key in parents:
        inner = place.get(key)
        place[key] = place = inner if isinstance(inner, dict) else {}
    place[last] = value


def _path(item: Any) -> Sequence[str]:
    return list(item.nested_key) or [item.key]


def _value(item: Any) -> Any:
    try:
        return json.loads(item.value_json)
    except ValueError:
        return item.value_json


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        stored = json.loads((folder / METADATA).read_bytes())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _protocol() -> tuple[Any, type[Exception]]:
    try:
        protocol = importlib.import_module("wandb.proto.wandb_internal_pb2")
        return protocol, importlib.import_module("google.protobuf.message").DecodeError
    except ImportError as error:
        hint = "run `pip install wandb`"
        raise MissingPackageError(f"files of Weights & Biases need wandb ({error}): {hint}") from error
