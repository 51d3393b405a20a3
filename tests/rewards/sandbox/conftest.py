from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from functools import partial
from pathlib import Path

import pytest
from cages import CAGES, MAIN_CAGES, isolation_of, make, processes_with


def pytest_collection_modifyitems(items):
    for item in items:
        if sys.platform != "linux" and item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason="Linux only"))


def permitted(name):
    isolation, reason = isolation_of(name)
    if reason:
        pytest.skip(reason)
    sandbox = partial(make, name)
    sandbox.isolation = isolation
    return sandbox


@pytest.fixture(params=list(MAIN_CAGES))
def cage(request):
    """cage(limits) -> Sandbox, of the two kinds that most machines use."""
    return permitted(request.param)


@pytest.fixture(params=list(CAGES))
def any_cage(request):
    """As `cage`, and also with single mechanisms left out."""
    return permitted(request.param)


@pytest.fixture
def mark():
    """A text to put among a program's arguments; nothing that has it may be left after the test."""
    text = f"mark-{uuid.uuid4().hex}"
    yield text
    assert processes_with(text) == []


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory, monkeypatch):
    """A folder for the sandboxes' own folders; none may be left after the test."""
    tmp_path_factory.getbasetemp()  # before the patch: it looks where temporary folders are, once
    folder = tempfile.mkdtemp(prefix="sandboxes-")
    os.chmod(folder, 0o755)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield folder
    left = os.listdir(folder)
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture
def open_folder():
    """A folder outside of the sandbox that all users may write to; permissions alone protect nothing in it."""
    folder = Path(tempfile.mkdtemp(prefix="outside-", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)
