"""Reads a run of TensorBoard from a folder of event files (`events.out.tfevents.*`). Needs TensorBoard's protocol.

A record is a length, a checksum of the length, the content and a checksum of the content (CRC-32C, masked). The content
is an Event of event.proto. A record whose content is damaged is skipped; where a length is damaged the file ends.
"""

from __future__ import annotations

import ast
import html
import importlib
import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zerozoo.runs.foreign import ForeignRun, MissingPackageError, left_out

LENGTH, CHECKSUM = 8, 4
# Texts that hold the config: CleanRL's table and the JSON of zerozoo's own sink.
CONFIG_TEXTS = ("hyperparameters/text_summary", "config/text_summary")
TABLE_ROW = re.compile(r"^\|(.+?)\|(.*)\|\s*$", re.MULTILINE)


class Point(NamedTuple):
    """One value of one tag."""

    step: int
    time: float
    value: float | None


class _Protocol:
    """The parts of TensorBoard that know its formats."""

    def __init__(self) -> None:
        try:
            self.event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
            self.hparams = importlib.import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData
            self.array = importlib.import_module("tensorboard.util.tensor_util").make_ndarray
            stub = importlib.import_module("tensorboard.compat.tensorflow_stub.pywrap_tensorflow")
            self.checksum = stub.masked_crc32c
            self.decode_error = importlib.import_module("google.protobuf.message").DecodeError
        except ImportError as error:
            hint = "run `pip install tensorboard`"
            raise MissingPackageError(f"event files need TensorBoard ({error}): {hint}") from error


def read_events(paths: Sequence[Path]) -> ForeignRun:
    """One run from all event files of its folder, oldest first. Raises UserError without TensorBoard.

    Where a later file logs a tag again from an earlier step on (a resumed run), its values replace the older ones.
    """
    reader = _Reader(_Protocol(), ForeignRun(origin=f"tensorboard {paths[0].parent}", about={"state": "done"}))
    for path in sorted(paths, key=lambda path: path.name):
        reader.read_file(path)
    return reader.finish()


class _Reader:
    def __init__(self, protocol: _Protocol, run: ForeignRun) -> None:
        self.protocol, self.run = protocol, run
        self.points: dict[str, list[Point]] = {}
        self.plugins: dict[str, str] = {}  # by tag; only its first value must name the plugin
        self.dropped: set[str] = set()
        self.replaced = 0

    def read_file(self, path: Path) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            self.run.notes.append(f"{path.name} cannot be read ({error.strerror})")
            return
        found: dict[str, list[Point]] = {}
        damaged = 0
        for content in self._records(data, path.name):
            event = self.protocol.event()
            try:
                event.ParseFromString(content)
            except self.protocol.decode_error:
                damaged += 1
                continue
            for value in event.summary.value:
                self._take(event, value, found)
        if damaged:
            self.run.notes.append(f"{damaged} records of {path.name} could not be read and were left out")
        for tag, points in found.items():
            first = min(point.step for point in points)
            kept = [point for point in self.points.get(tag, []) if point.step < first]
            self.replaced += len(self.points.get(tag, [])) - len(kept)
            self.points[tag] = kept + points

    def finish(self) -> ForeignRun:
        self.run.rows = rows_of(self.points)
        if self.replaced:
            self.run.notes.append(f"{self.replaced} values were logged again by a later file, which counts")
        if self.dropped:
            self.run.notes.append(left_out(self.dropped))
        return self.run

    def _records(self, data: bytes, name: str) -> Iterator[bytes]:
        position, damaged = 0, 0
        head = LENGTH + CHECKSUM
        while position + head <= len(data):
            length, checksum = struct.unpack_from("<QI", data, position)
            if self.protocol.checksum(data[position : position + LENGTH]) != checksum:
                rest = len(data) - position
                self.run.notes.append(f"{name} is damaged at byte {position}; the last {rest} bytes were left out")
                break
            start, end = position + head, position + head + length
            if end + CHECKSUM > len(data):
                self.run.notes.append(f"the last record of {name} is half-written and was left out")
                break
            content = data[start:end]
            if self.protocol.checksum(content) == struct.unpack_from("<I", data, end)[0]:
                yield content
            else:
                damaged += 1
            position = end + CHECKSUM
        else:
            if position < len(data):
                self.run.notes.append(f"the last record of {name} is half-written and was left out")
        if damaged:
            self.run.notes.append(f"{damaged} records of {name} are damaged and were left out")

    def _take(self, event: Any, value: Any, found: dict[str, list[Point]]) -> None:
        plugin = value.metadata.plugin_data.plugin_name or self.plugins.get(value.tag, "")
        self.plugins[value.tag] = plugin
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            number = float(value.simple_value)
        elif kind == "tensor" and plugin == "scalars":
            number = float(self.protocol.array(value.tensor).item())
        elif plugin == "hparams":
            self._hparams(value.metadata.plugin_data.content)
            return
        elif value.tag in CONFIG_TEXTS and value.tensor.string_val:
            self.run.config |= parse_config(value.tensor.string_val[0].decode(errors="replace"))
            return
        else:
            self.dropped.add(value.tag)
            return
        point = Point(int(event.step), float(event.wall_time), number if math.isfinite(number) else None)
        found.setdefault(value.tag, []).append(point)

    def _hparams(self, content: bytes) -> None:
        message = self.protocol.hparams()
        message.ParseFromString(content)
        for name, value in message.session_start_info.hparams.items():
            kind = value.WhichOneof("kind")
            if kind is not None:
                self.run.config[name] = getattr(value, kind)


def rows_of(points: dict[str, list[Point]]) -> list[dict[str, Any]]:
    """Rows in the order of the steps; values of one tag and step (episodes that ended together) have one row each."""
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    for tag, series in points.items():
        repeats: dict[int, int] = {}
        for point in series:
            number = repeats.get(point.step, 0)
            repeats[point.step] = number + 1
            row = rows.setdefault((point.step, number), {"step": point.step, "time": point.time})
            row[tag] = point.value
    return [row for _, row in sorted(rows.items(), key=lambda entry: entry[0])]


def parse_config(text: str) -> dict[str, Any]:
    """The config in a text: a table in Markdown, "|name|value|", or JSON in <pre>."""
    if text.startswith("<pre>"):
        try:
            stored = json.loads(html.unescape(text.removeprefix("<pre>").removesuffix("</pre>")))
        except ValueError:
            return {}
        return stored if isinstance(stored, dict) else {}
    rows = TABLE_ROW.findall(text)
    return {name.strip(): _literal(value.strip()) for name, value in rows[2:]}  # after the head and its line


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, (bool, int, float, str, list, type(None))) else text
