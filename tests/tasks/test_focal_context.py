"""What stands around a function in its prompt, shorter and shorter, and files as task sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerozoo.rewards.verifier import Verdict
from zerozoo.runs.errors import UserError
from zerozoo.tasks.focal_context import contexts, file_tests, focal_context, functions_of
from zerozoo.tasks.load import load_task_set
from zerozoo.tasks.task import make_verifier

FILE = '''\
"""A file."""
import math

LIMIT = 3  # of all


class Stack:
    """Last in, first out."""

    size = 0  # a field

    @property
    def top(self):
        """The last one."""
        return self.items[-1]

    def push(self, item, *, count=1):
        """Put it on top."""
        self.items += [item] * count  # at the end

    def _hidden(self):
        pass


def area(radius: float) -> float:
    # of a circle
    return math.pi * radius**2
'''
REDUCED = '''\
class Stack:
    """Last in, first out."""

    size = 0  # a field

    @property
    def top(self):
        ...

    def push(self, item, *, count=1):
        """Put it on top."""
        self.items += [item] * count  # at the end

    def _hidden(self):
        ...'''
BARE = """\
class Stack:

    @property
    def top(self):
        ...

    def push(self, item, *, count=1):
        self.items += [item] * count

    def _hidden(self):
        ..."""
ALONE = """\
class Stack:

    def push(self, item, *, count=1):
        self.items += [item] * count"""
MODULE = '''\
"""A file."""
import math

LIMIT = 3  # of all


class Stack:
    ...


def area(radius: float) -> float:
    # of a circle
    return math.pi * radius**2'''
FUNCTION = "def area(radius: float) -> float:\n    return math.pi * radius ** 2"


def test_public_functions_and_methods():
    assert functions_of(FILE) == ["Stack.top", "Stack.push", "area"]
    assert functions_of("x = 1\ndef test_it(): pass") == []


def test_contexts_get_shorter():
    assert list(contexts(FILE, "Stack.push")) == [FILE.strip(), REDUCED, BARE, ALONE]
    assert list(contexts(FILE, "area")) == [FILE.strip(), MODULE, FUNCTION, FUNCTION]
    with pytest.raises(KeyError):
        list(contexts(FILE, "Stack.pop"))


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(len(FILE), FILE.strip()), (len(REDUCED), REDUCED), (len(BARE), BARE), (len(BARE) - 1, ALONE), (20, None)],
)
def test_the_first_that_fits_is_taken(longest, expected):
    assert focal_context(FILE, "Stack.push", longest) == expected


def test_files_are_task_sets(tmp_path: Path):
    (tmp_path / "shapes.py").write_text(FILE)
    (tmp_path / "more.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "test_shapes.py").write_text("def helper():\n    pass\n")
    tasks = file_tests(tmp_path, heldout_size=1)
    every = [*tasks.train, *tasks.heldout]
    assert {task.metadata["focal"] for task in every} == {"top", "push", "area", "double"}
    assert len(tasks.heldout) == 1
    assert load_task_set(f"unit-tests:{tmp_path}", heldout_size=1) == tasks
    with make_verifier(tasks) as verifier:
        sound = [f"it():\n    assert x.{task.metadata['focal']}(1) == 2" for task in every]
        assert {one.verdict for one in verifier.verify(every, sound)} == {Verdict.RIGHT}


def test_places_without_functions(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1")
    with pytest.raises(UserError, match="no function in"):
        file_tests(tmp_path / "a.py")
    (tmp_path / "a.py").write_text("def f(:")
    with pytest.raises(UserError, match="cannot be read as Python"):
        file_tests(tmp_path / "a.py")
    with pytest.raises(UserError, match="cannot be read as Python"):
        file_tests(tmp_path / "none.py")
