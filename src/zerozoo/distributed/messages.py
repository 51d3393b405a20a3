"""What workers send each other: nested dicts of numpy arrays, and how they lie in a piece of memory.

A message is {"obs": array, "extra": {"log_prob": array}, ...}. No name contains a slash: paths are joined with it.
Nothing is pickled: a `Layout` knows names, types and shapes, and a message of it is always the same number of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Message = dict[str, Any]  # name -> np.ndarray or Message
ALIGNMENT = 64  # bytes: every array starts in a cache line of its own


def map_arrays(function: Callable[..., np.ndarray], *messages: Message) -> Message:
    """`function` of the arrays at the same place of all messages. ValueError where they differ in their names."""
    first = messages[0]
    for message in messages[1:]:
        if message.keys() != first.keys():
            raise ValueError(f"messages have different names: {sorted(first)} and {sorted(message)}")
    result: Message = {}
    for name, value in first.items():
        values = [message[name] for message in messages]
        result[name] = map_arrays(function, *values) if isinstance(value, dict) else function(*values)
    return result


def stack(messages: Sequence[Message], axis: int = 0) -> Message:
    """One message with a new axis along the given ones."""
    return map_arrays(lambda *arrays: np.stack(arrays, axis), *messages)


def concatenate(messages: Sequence[Message], axis: int = 0) -> Message:
    """One message with the given ones behind one another along an axis."""
    return map_arrays(lambda *arrays: np.concatenate(arrays, axis), *messages)


def take(message: Message, index: Any) -> Message:
    """Every array at `index`: a number, a slice, or an array of numbers."""
    return map_arrays(lambda array: array[index], message)


def split(message: Message, sizes: Sequence[int]) -> list[Message]:
    """Consecutive parts of these sizes along axis 0, which they fill."""
    ends = np.cumsum(sizes).tolist()
    return [take(message, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def flatten(message: Message, prefix: str = "") -> dict[str, np.ndarray]:
    """Path such as a/b -> array, in the order of the message; empty parts leave nothing behind."""
    flat: dict[str, np.ndarray] = {}
    for name, value in message.items():
        if "/" in name:
            raise ValueError(f"the name {name!r} contains a slash")
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: dict[str, np.ndarray]) -> Message:
    """The message that `flatten` was given."""
    message: Message = {}
    for path, array in flat.items():
        *parts, name = path.split("/")
        inner = message
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[name] = array
    return message


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a message lie: (path, type, shape, offset in bytes) each, and the size of them all."""

    entries: tuple[tuple[str, str, tuple[int, ...], int], ...]
    size: int

    @classmethod
    def of(cls, example: Message) -> Layout:
        """The layout of messages like this one."""
        entries, offset = [], 0
        for path, value in flatten(example).items():
            array = np.asarray(value)
            entries.append((path, array.dtype.str, array.shape, offset))
            offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return cls(tuple(entries), offset)

    def write(self, message: Message, memory: memoryview) -> None:
        """Puts a message into `size` bytes. ValueError if names, types or shapes are not those of the layout."""
        flat = flatten(message)
        found = {path: (np.asarray(value).dtype.str, np.asarray(value).shape) for path, value in flat.items()}
        wanted = {path: (kind, shape) for path, kind, shape, _ in self.entries}
        if found != wanted:
            wrong = sorted(path for path in {**found, **wanted} if found.get(path) != wanted.get(path))
            raise ValueError(f"the message does not have this layout: {', '.join(wrong)}")
        for path, _, _, offset in self.entries:
            content = np.asarray(flat[path]).tobytes()
            memory[offset : offset + len(content)] = content

    def read(self, memory: bytearray) -> Message:
        """The message that lies in `memory`, whose arrays are parts of it."""
        flat = {}
        for path, kind, shape, offset in self.entries:
            array = np.frombuffer(memory, np.dtype(kind), math.prod(shape), offset)
            flat[path] = array.reshape(shape)
        return unflatten(flat)
