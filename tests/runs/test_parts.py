"""Tensors in parts: every cut of the rows reads back as it was; what one process cannot write, no process keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from zerozoo.runs.checkpoints import load_newest, save_checkpoint, save_together
from zerozoo.runs.errors import UserError
from zerozoo.runs.parts import PartedTensors, Rows, rows_of, under, write_index, write_part

WHOLE = torch.arange(21.0).view(7, 3)
SHORT = torch.tensor([1, 2])


class Alone:
    """A team of one; `others` are what the other processes would have said, one after the other."""

    rank = 0

    def __init__(self, others: list[Any] | None = None) -> None:
        self.others = others or []

    def gather(self, part: list[Any]) -> list[Any]:
        return [*part, *([self.others.pop(0)] if self.others else [])]


def parted(folder: Path) -> PartedTensors:
    """Rows 0-2, 3-5 and 6 of one tensor, 0, 1 and none of another."""
    cuts = [(0, 3), (3, 6), (6, 7)], [(0, 1), (1, 2), (2, 2)]
    held = []
    for rank in range(3):
        mine = {
            name: Rows(value[slice(*cut[rank])], cut[rank][0], tuple(value.shape))
            for name, value, cut in (("a/long", WHOLE, cuts[0]), ("a/short", SHORT, cuts[1]))
        }
        write_part(folder, rank, mine)
        held.append({name: (rows.start, rows.stop) for name, rows in mine.items()})
    write_index(folder, mine, held)
    return PartedTensors(folder, {"b/one": torch.tensor(5)}, ["a/short", "b/one", "a/long"])


@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize("length", range(8))
def test_any_rows_are_read(start: int, length: int, tmp_path: Path) -> None:
    tensors = parted(tmp_path)
    stop = min(7, start + length)
    assert torch.equal(rows_of(tensors, "a/long", start, stop), WHOLE[start:stop])
    assert torch.equal(rows_of(dict(tensors), "a/long", start, stop), WHOLE[start:stop])


def test_parts_are_a_mapping_of_whole_tensors(tmp_path: Path) -> None:
    tensors = parted(tmp_path)
    assert list(tensors) == ["a/short", "b/one", "a/long"]
    assert len(tensors) == 3
    assert torch.equal(tensors["a/long"], WHOLE)
    assert tensors["a/short"].tolist() == [1, 2]
    assert tensors["a/short"].dtype == torch.int64
    assert tensors["b/one"].item() == 5
    inner = under(tensors, "a/")
    assert list(inner) == ["short", "long"]
    assert torch.equal(rows_of(inner, "long", 2, 5), WHOLE[2:5])
    assert "b/one" not in inner
    assert list(under({"a/x": SHORT, "b": SHORT}, "a/")) == ["x"]
    with pytest.raises(KeyError, match="missing"):
        PartedTensors(tmp_path, {}, ["missing"])


def test_a_team_of_one_writes_what_it_was_given(tmp_path: Path) -> None:
    parts = {"w": Rows(WHOLE, 0, (7, 3))}
    for step in (1, 2, 3):
        save_together(tmp_path, step, {"n": SHORT}, parts, {"note": step}, Alone())
    found = load_newest(tmp_path)
    assert found is not None
    assert (found.step, found.state) == (3, {"note": 3})
    assert torch.equal(found.tensors["w"], WHOLE)
    assert found.tensors["n"].tolist() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    save_checkpoint(tmp_path, 4, {"n": SHORT}, {})  # the number of processes may change
    newest = load_newest(tmp_path)
    assert newest is not None
    assert list(newest.tensors) == ["n"]


def test_what_one_process_cannot_write_none_keeps(tmp_path: Path) -> None:
    parts = {"w": Rows(WHOLE, 0, (7, 3))}
    save_together(tmp_path, 1, {}, parts, {}, Alone())
    # The other process answers three times: its bytes, that it has begun, and that its disk is full.
    with pytest.raises(UserError, match="the other disk is full"):
        save_together(tmp_path, 2, {}, parts, {}, Alone([8, (None, None), (None, "the other disk is full")]))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_the_index_is_under_the_checksum(tmp_path: Path) -> None:
    for step in (1, 2):
        save_together(tmp_path, step, {}, {"w": Rows(WHOLE, 0, (7, 3))}, {}, Alone())
    index = tmp_path / "step-000002" / "parts.json"
    index.write_text(index.read_text(encoding="utf-8").replace("7", "6"), encoding="utf-8")
    found = load_newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "parts.json does not match its checksum" in found.warnings[0]
