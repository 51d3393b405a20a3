"""Nested dicts of arrays: slicing, stacking, and how they lie in memory."""

from __future__ import annotations

import numpy as np
import pytest

from zerozoo.distributed.messages import ALIGNMENT, Layout, concatenate, flatten, split, stack, take, unflatten

MESSAGE = {"obs": np.arange(6.0).reshape(3, 2), "extra": {"flag": np.array([True, False, True])}}


def test_stack_concatenate_take_and_split_reach_every_array() -> None:
    both = stack([MESSAGE, MESSAGE])
    assert (both["obs"].shape, both["extra"]["flag"].shape) == ((2, 3, 2), (2, 3))
    long = concatenate([MESSAGE, take(MESSAGE, slice(0, 1))])
    assert long["obs"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert long["extra"]["flag"].tolist() == [True, False, True, True]
    first, second = split(long, [3, 1])
    assert first["obs"].tolist() == MESSAGE["obs"].tolist()
    assert second["extra"]["flag"].tolist() == [True]


def test_messages_with_other_names_do_not_mix() -> None:
    with pytest.raises(ValueError, match="different names"):
        stack([MESSAGE, {"obs": MESSAGE["obs"]}])


def test_flat_names_are_paths_and_come_back() -> None:
    flat = flatten(MESSAGE)
    assert list(flat) == ["obs", "extra/flag"]
    again = unflatten(flat)
    assert again["extra"]["flag"] is MESSAGE["extra"]["flag"]  # type: ignore[index]
    with pytest.raises(ValueError, match="slash"):
        flatten({"a/b": np.zeros(1)})


def test_a_message_in_memory_is_the_same_message() -> None:
    message = {**MESSAGE, "number": np.array(7), "small": np.array([-1], dtype=np.int8)}
    layout = Layout.of(message)
    assert layout.size == 4 * ALIGNMENT  # each of the four fits one piece
    assert all(offset % ALIGNMENT == 0 for *_, offset in layout.entries)
    memory = bytearray(layout.size)
    layout.write(message, memoryview(memory))
    again = layout.read(memory)
    for name, array in flatten(again).items():
        assert array.dtype == flatten(message)[name].dtype
        assert array.tobytes() == flatten(message)[name].tobytes()
        assert array.shape == flatten(message)[name].shape
    again["obs"][0, 0] = 9.0  # it may be changed, as any array


def test_a_message_of_another_layout_is_refused() -> None:
    layout = Layout.of(MESSAGE)
    memory = memoryview(bytearray(layout.size))
    for wrong in (
        {**MESSAGE, "obs": np.zeros((2, 2))},
        {**MESSAGE, "obs": MESSAGE["obs"].astype(np.float32)},
        {"obs": MESSAGE["obs"]},
    ):
        with pytest.raises(ValueError, match=r"does not have this layout: (obs|extra/flag)"):
            layout.write(wrong, memory)
