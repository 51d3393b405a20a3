"""Runs Python that a model wrote: with limits, without network, in a folder of its own, and nothing of it stays behind.

What keeps a program in, tried in this order and reported in `Result.isolation`:

- "namespaces": no network interface; processes of its own, which the kernel kills with the first of them
- "root": a file system that holds the interpreter and the system's libraries (read-only) and an empty folder
- "user": for root only, a user id of its own, so that processes can be counted and files belong to others
- "landlock": where there is no such file system: nothing else may be read, nothing outside the folder written
- "seccomp": no sockets, no tracing, no mounts, no signals to others; as root without a user of its own, no processes

Containers often permit the last two only. A program that nothing keeps from the network (neither of "namespaces" and
"seccomp"), or from starting any number of processes, is not run. Other gaps are left to the caller: `describe` names
them, and `require` refuses to run with them. Linux only; the kernel itself is the wall, so this is no place for a
determined attacker.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from zerozoo.runs.errors import UserError

MIB = 1 << 20
MECHANISMS = ("namespaces", "root", "user", "landlock", "seccomp")
START_LIMIT = 120.0  # seconds for the start and the end of a supervisor on a busy machine
END_LIMIT = 10.0  # seconds in which a supervisor that is told to stop must have killed everything

_MAIN = "import sys; sys.path.append(sys.argv[1]); from zerozoo.rewards.sandbox_child import main; main()"
_SOURCE = str(Path(__file__).resolve().parents[2])


class Status(StrEnum):
    """How a program ended. Everything but OK and FAILED was the sandbox's doing, or a crash."""

    OK = "ok"  # exit code 0
    FAILED = "failed"  # any other exit code: an exception, for instance
    TIMEOUT = "timeout"  # of the clock or of the processor
    MEMORY = "memory"  # a MemoryError that nobody caught, or all its processes together had too much
    KILLED = "killed"  # by a signal: a crash in C code, for instance
    OUTPUT_LIMIT = "output-limit"  # it wrote more text, or more into files, than it may


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: by the clock, from its start to the end of its first process.
        cpu_seconds: of processor time, for each process. Unlike `seconds` it does not depend on what else the machine
            does, so it should be the limit that ends endless loops.
        memory: bytes, of address space for each process and resident for all together. Python itself needs 64 MiB.
        processes: processes and threads at one time, the first one included.
        file_size: bytes of one file.
        disk: bytes of all files.
        open_files: files open at one time, for each process.
        output: bytes on standard output and standard error together.
    """

    seconds: float = 30.0
    cpu_seconds: int = 5
    memory: int = 512 * MIB
    processes: int = 8
    file_size: int = 16 * MIB
    disk: int = 32 * MIB
    open_files: int = 64
    output: int = MIB

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"the limit {name} must be positive, but is {value}")


@dataclass(frozen=True)
class Program:
    """Python files by name, of which `main.py` is run; its arguments and its standard input.

    The files lie in the program's folder, which is its working directory and the only one it can write to.
    """

    files: Mapping[str, str]
    arguments: Sequence[str] = ()
    stdin: str = ""

    def __post_init__(self) -> None:
        if "main.py" not in self.files:
            raise ValueError("a program needs a file main.py")
        for name in self.files:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise ValueError(f"{name!r} is not a name of a file")


@dataclass(frozen=True)
class Result:
    """How a program ended. Texts are cut at the output limit; `exit_code` is None when the sandbox ended it, and minus
    the number of the signal that did. `isolation` names the mechanisms that kept it in."""

    status: Status
    stdout: str
    stderr: str
    seconds: float
    exit_code: int | None
    isolation: tuple[str, ...] = field(default=())


class Sandbox:
    """Runs programs, each in a sandbox of its own. May be used from any thread.

    `python` is the interpreter of the programs (None: the one that runs this; only its standard library is there).
    `require` are mechanisms without which nothing may run, `without` are some not to use (to see what the others do).
    """

    def __init__(
        self,
        limits: Limits | None = None,
        python: str | None = None,
        require: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> None:
        for name in (*require, *without):
            if name not in MECHANISMS:
                raise ValueError(f"unknown mechanism {name!r}, expected some of {', '.join(MECHANISMS)}")
        self.limits = Limits() if limits is None else limits
        self.python = os.path.realpath(sys.executable if python is None else python)
        self.require, self.without = tuple(require), tuple(without)

    def run(self, program: Program) -> Result:
        """Runs a program to its end. Raises UserError where it cannot be caged, or Python not be started."""
        if sys.platform != "linux":
            raise UserError("Programs can only be run in a sandbox on Linux.")
        answer = self._ask_supervisor(self._request(program))
        for problem, sentence in (("refused", "No program was run:"), ("broken", "The sandbox did not start:")):
            if problem in answer:
                raise UserError(f"{sentence} {answer[problem]}.")
        answer["isolation"] = tuple(answer["isolation"])
        return Result(**{**answer, "status": Status(answer["status"])})

    def map(self, programs: Sequence[Program], workers: int = 2) -> list[Result]:
        """The results of the programs, in order; `workers` run at a time."""
        with ThreadPoolExecutor(max_workers=workers) as pool:
            return list(pool.map(self.run, programs))

    def isolation(self) -> tuple[str, ...]:
        """The mechanisms that this machine permits, found by running an empty program."""
        return self.run(Program({"main.py": ""})).isolation

    def _request(self, program: Program) -> dict[str, Any]:
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        if "LD_LIBRARY_PATH" in os.environ:  # the interpreter may need it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        return {
            "limits": asdict(self.limits),
            "python": self.python,
            "arguments": ["-s", "-S", "-B", "-X", "utf8", "main.py", *program.arguments],
            "environment": environment,
            "files": dict(program.files),
            "stdin": program.stdin,
            "scratch": os.path.realpath(tempfile.gettempdir()),
            "require": self.require,
            "without": self.without,
        }

    def _ask_supervisor(self, request: dict[str, Any]) -> dict[str, Any]:
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _MAIN, _SOURCE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            data = json.dumps(request).encode()
            _write(supervisor, struct.pack("!I", len(data)) + data)
            text = _read(supervisor, time.monotonic() + self.limits.seconds + START_LIMIT)
        finally:
            _end(supervisor)
        try:
            return json.loads(text)
        except ValueError:
            message = text.decode("utf-8", "replace").strip() or "no answer"
            raise RuntimeError(f"the sandbox failed: {message}") from None


def describe(sandbox: Sandbox) -> tuple[bool, str]:
    """(whether nothing is lacking, a sentence for the user): what keeps programs in on this machine, what does not."""
    try:
        isolation = sandbox.isolation()
    except UserError as error:
        return False, str(error)
    lacking = weaknesses(isolation)
    return not lacking, "; ".join([f"programs are kept in by {', '.join(isolation)}", *lacking])


def weaknesses(isolation: Sequence[str]) -> list[str]:
    """What the mechanisms in force leave open, a clause each."""
    lacking = []
    if not {"root", "landlock"}.intersection(isolation):
        lacking.append(f"they can {'read' if 'user' in isolation else 'read and write'} what you can")
    if not {"root", "seccomp"}.intersection(isolation):
        lacking.append("they can reach local services through sockets in the file system")
    if "namespaces" not in isolation:
        lacking.append("their background processes would outlive a kill -9 of the sandbox's own process")
    return lacking


def _write(supervisor: subprocess.Popen[bytes], data: bytes) -> None:
    assert supervisor.stdin is not None
    with suppress(BrokenPipeError):  # what it printed before says why
        supervisor.stdin.write(data)
        supervisor.stdin.flush()


def _read(supervisor: subprocess.Popen[bytes], deadline: float) -> bytes:
    """All that the supervisor says; what there is when it is overdue."""
    assert supervisor.stdout is not None
    text = b""
    poll = select.poll()
    poll.register(supervisor.stdout, select.POLLIN)
    while poll.poll(1000 * max(0.0, deadline - time.monotonic())):
        part = os.read(supervisor.stdout.fileno(), 1 << 16)
        if not part:
            break
        text += part
    return text


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    """Closing its input tells a supervisor that is still there to kill everything and to go."""
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    with suppress(BrokenPipeError):
        supervisor.stdin.close()
    try:
        supervisor.wait(END_LIMIT)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()
    supervisor.stdout.close()
