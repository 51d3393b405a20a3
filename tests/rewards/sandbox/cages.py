"""The ways of caging a program that the sandbox's tests attack, and what they share."""

from __future__ import annotations

import os
import stat
from functools import cache
from pathlib import Path

from zerozoo.rewards.sandbox import Limits, Program, Sandbox
from zerozoo.rewards.sandbox_cage import is_open_to_all
from zerozoo.runs.errors import UserError

# An interpreter that every user can start: without namespaces, root gives a program a user of its own with it only.
SHARED_PYTHON = next(
    (path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path) and is_open_to_all(path)),
    None,
)
MAIN_CAGES = {
    "all": {},
    "no namespaces": {"without": ("namespaces",), "python": SHARED_PYTHON},
}
CAGES = {
    **MAIN_CAGES,
    "landlock": {"without": ("root",)},
    "same user": {"without": ("namespaces", "user")},
    "no seccomp": {"without": ("seccomp",)},
    "seccomp": {"without": ("namespaces", "user", "landlock")},
}
# Long limits: on a busy machine even the start takes seconds. What must break a limit has one of its own.
PATIENT = {"seconds": 120.0, "cpu_seconds": 60}

# At most 40 processes whatever happens: this one shows that the limit bites, before any real bomb is thrown.
COUNT_FORKS = """
import os, time
children = 0
try:
    while children < 40:
        if os.fork() == 0:
            time.sleep(3600)
        children += 1
except OSError:
    pass
print(children, flush=True)
"""


@cache
def isolation_of(name):
    """(mechanisms in force, "") or ((), why nothing is run)."""
    try:
        return Sandbox(**CAGES[name]).isolation(), ""
    except UserError as error:
        return (), str(error)


def make(name, **limits):
    return Sandbox(Limits(**{**PATIENT, **limits}), **CAGES[name])


def run(sandbox, source, *arguments, stdin="", files=None):
    return sandbox.run(Program({"main.py": source, **(files or {})}, tuple(map(str, arguments)), stdin))


def processes_with(mark):
    """Ids of all processes with this text among their arguments; ended ones that nobody has waited for as well."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path(f"/proc/{name}/cmdline").read_bytes() and int(name) != os.getpid():
                found.append(int(name))
        except OSError:
            continue
    return found


def is_readable_by_all(path):
    """Whether other users can read a folder: its own bits, and the way to it."""
    path = Path(path)
    return all(os.stat(one).st_mode & stat.S_IXOTH for one in (path, *path.parents))
