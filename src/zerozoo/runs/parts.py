"""Tensors of which each process has some rows, in files of a checkpoint: one file for each process, `part-00000...`.

They are read one at a time, whole or some rows, so any number of processes can go on with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "parts.json"


class Team(Protocol):
    """The processes that write a checkpoint together; `language.parallel.Ranks` is one.

    Attributes:
        rank: this process among them, from 0.
        gather: the items of all processes, in the order of their ranks.
    """

    @property
    def rank(self) -> int: ...

    def gather(self, part: list[Any]) -> list[Any]: ...


@dataclass(frozen=True)
class Rows:
    """Rows `start`, `start + 1` ... of a tensor of that shape."""

    values: Tensor
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + len(self.values)


def part_name(rank: int) -> str:
    """File of a process."""
    return f"part-{rank:05d}.safetensors"


def write_part(folder: Path, rank: int, parts: Mapping[str, Rows]) -> Path:
    """Write this process's rows; the file."""
    path = folder / part_name(rank)
    save_file({name: rows.values.detach().to("cpu").contiguous() for name, rows in parts.items()}, path)
    return path


def write_index(folder: Path, parts: Mapping[str, Rows], held: list[dict[str, tuple[int, int]]]) -> None:
    """Write which process holds which rows.

    Args:
        held: for each process, by name, its first row and that behind its last.
    """
    index = {name: {"shape": list(rows.shape), "rows": [one[name] for one in held]} for name, rows in parts.items()}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


class PartedTensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint that several processes have written; what is asked for is read.

    Args:
        folder: the checkpoint.
        whole: those that are there in one piece.
        names: all of them, in the caller's order.
    """

    def __init__(self, folder: Path, whole: Mapping[str, Tensor], names: list[str]) -> None:
        self.folder, self.whole = folder, whole
        self.index: dict[str, Any] = json.loads((folder / INDEX).read_bytes())
        self.names = {name: name for name in names}  # as they are called here: as in the files
        if missing := [name for name in names if name not in whole and name not in self.index]:
            raise KeyError(missing[0])
        self.files: dict[int, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        stored = self.names[name]
        return self.whole[stored] if stored in self.whole else self.rows(name, 0, self.index[stored]["shape"][0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` - 1 of a tensor, on the CPU."""
        stored = self.names[name]
        if stored in self.whole:
            return self.whole[stored][start:stop]
        found = []
        for rank, (first, end) in enumerate(self.index[stored]["rows"]):
            low, high = max(first, start), min(end, stop)
            if low < high:
                found.append(self._file(rank).get_slice(stored)[low - first : high - first])
        # A copy: what safetensors gives may be a window into the file. The first process has at least one row.
        return torch.cat(found) if found else self._file(0).get_slice(stored)[0:1][:0].clone()

    def under(self, prefix: str) -> PartedTensors:
        """Those whose names begin so, without that beginning."""
        result = PartedTensors(self.folder, self.whole, [])
        result.names = {
            name.removeprefix(prefix): stored for name, stored in self.names.items() if name.startswith(prefix)
        }
        return result

    def _file(self, rank: int) -> Any:
        if rank not in self.files:
            self.files[rank] = safe_open(str(self.folder / part_name(rank)), framework="pt")
        return self.files[rank]


def under(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """The tensors whose names begin so, without that beginning; nothing is read."""
    if isinstance(tensors, PartedTensors):
        return tensors.under(prefix)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def rows_of(tensors: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` - 1 of a tensor; of parts, only those are read."""
    return tensors.rows(name, start, stop) if isinstance(tensors, PartedTensors) else tensors[name][start:stop]
