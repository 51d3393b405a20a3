"""The child's side of the sandbox: cages a program, watches it, and leaves nothing of it behind.

Three processes. The supervisor (`main`) talks to the caller, keeps time, and counts memory and output. The keeper, its
child, is process 1 of a new process namespace where that is permitted; it prepares the files and reaps orphans. The
program, the keeper's child, locks itself in (`sandbox_cage`) and becomes the untrusted code by exec; nothing untrusted
runs before that. This module and the cage use the standard library only, so that a sandbox starts quickly.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time
from typing import Any

from zerozoo.rewards import sandbox_cage as cage

LOOK_EVERY = 0.1  # seconds between two looks at memory and disk
NO_NETWORK_LOCK = "neither a network namespace nor a seccomp filter is permitted, so the program could use the network"
NO_PROCESS_LIMIT = "as root and without a seccomp filter the program could start any number of processes"


def main() -> None:
    """Reads a request (4 bytes of length, JSON) from standard input and answers, in JSON, on standard output.

    Standard input stays open: when it is closed, the program is ended and there is no answer.
    """
    request = _read_request()
    request["number"] = os.getpid()
    request["directory"] = os.path.join(request["scratch"], f"zerozoo-sandbox-{os.urandom(8).hex()}")
    request["readable"] = cage.readable_paths(request["python"])
    os.umask(0o022)
    cage.adopt_orphans()
    os.mkdir(request["directory"], 0o700)
    try:
        answer = _supervise(request)
    finally:
        _remove(request["directory"])
    if answer is not None:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(answer))
            sys.stdout.flush()


def _read_request() -> dict[str, Any]:
    with open(0, "rb", buffering=0, closefd=False) as source:
        (size,) = struct.unpack("!I", source.read(4))
        data = b""
        while len(data) < size:
            part = source.read(size - len(data))
            if not part:
                sys.exit()
            data += part
    return json.loads(data)


# --- the supervisor ---


def _supervise(request: dict[str, Any]) -> dict[str, Any] | None:
    """Runs the program; None when the caller is gone."""
    request["isolation"] = []
    if "namespaces" not in request["without"]:
        with contextlib.suppress(OSError):
            cage.enter_namespaces()
            request["isolation"].append("namespaces")
    text = os.memfd_create("stdin")
    os.write(text, request["stdin"].encode("utf-8", "surrogatepass"))
    os.lseek(text, 0, os.SEEK_SET)
    (out, out_end), (err, err_end), (report, report_end) = (os.pipe() for _ in range(3))
    keeper = os.fork()
    if keeper == 0:
        try:
            for stream in (0, out, err, report):
                os.close(stream)
            _keep(request, report_end, (text, out_end, err_end))
        except Exception as error:
            _tell(report_end, broken=f"{type(error).__name__}: {error}")
        os._exit(1)
    for stream in (text, out_end, err_end, report_end):
        os.close(stream)
    watch = _Watch(request, keeper, out, err, report)
    try:
        broken_limit = watch.wait()
        seconds = time.monotonic() - watch.started
        if broken_limit is None:
            os.waitpid(keeper, 0)  # it is about to end, and with it a process namespace
    finally:
        _kill_all()
    while watch.read(out) or watch.read(err):
        pass
    return None if broken_limit == "abandoned" else watch.answer(broken_limit, seconds)


class _Watch:
    """Reads what the program writes and says when it has ended or gone beyond a limit."""

    def __init__(self, request: dict[str, Any], keeper: int, out: int, err: int, report: int) -> None:
        self.limits, self.directory = request["limits"], request["directory"]
        self.keeper, self.report = keeper, report
        self.texts = {out: bytearray(), err: bytearray()}
        self.messages = b""
        self.facts: dict[str, Any] = {}
        self.started = time.monotonic()
        self.poll = select.poll()
        for stream in (out, err, report):
            fcntl.fcntl(stream, fcntl.F_SETFL, fcntl.fcntl(stream, fcntl.F_GETFL) | os.O_NONBLOCK)
            self.poll.register(stream, select.POLLIN)
        self.poll.register(0, 0)  # hangs up when the caller is gone

    def wait(self) -> str | None:
        """Returns when the program has ended (None), or the limit that it broke, or "abandoned"."""
        deadline = self.started + self.limits["seconds"]
        next_look = self.started + LOOK_EVERY
        while True:
            pause = max(0.0, min(deadline, next_look) - time.monotonic())
            for stream, _ in self.poll.poll(1000 * pause):
                if stream == 0:
                    return "abandoned"
                self.read(stream)
            if self.facts.keys() & {"ended", "refused", "broken"}:
                return None
            if self.is_full():
                return "output-limit"
            if time.monotonic() >= deadline:
                return "timeout"
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LOOK_EVERY
                if broken_limit := self._look():
                    return broken_limit

    def _look(self) -> str | None:
        resident = _descendants()
        resident.pop(self.keeper, None)
        if sum(resident.values()) > self.limits["memory"]:
            return "memory"
        limited = "root" in self.facts.get("isolation", ["root"])  # a file system of its own has a size
        return None if limited or _disk_use(self.directory) <= self.limits["disk"] else "output-limit"

    def read(self, stream: int) -> bool:
        """Takes what has arrived; False when there is nothing now or will be nothing more."""
        try:
            part = os.read(stream, 1 << 16)
        except BlockingIOError:
            return False
        if not part:
            with contextlib.suppress(KeyError):
                self.poll.unregister(stream)
            if stream == self.report:
                self.facts.setdefault("ended", -signal.SIGKILL)  # the keeper died without a word
            return False
        if stream == self.report:
            *lines, self.messages = (self.messages + part).split(b"\n")
            for line in lines:
                self.facts |= json.loads(line)
        elif not self.is_full():
            self.texts[stream] += part
        return True

    def is_full(self) -> bool:
        return sum(map(len, self.texts.values())) > self.limits["output"]

    def answer(self, broken_limit: str | None, seconds: float) -> dict[str, Any]:
        """What the caller is told."""
        for problem in ("refused", "broken"):
            if problem in self.facts:
                return {problem: self.facts[problem]}
        out, err = (bytes(text[: self.limits["output"]]).decode("utf-8", "replace") for text in self.texts.values())
        return {
            "status": broken_limit or ("output-limit" if self.is_full() else self._status(err)),
            "stdout": out,
            "stderr": err,
            "seconds": seconds,
            "exit_code": None if broken_limit else self.facts["ended"],
            "isolation": self.facts.get("isolation", []),
        }

    def _status(self, err: str) -> str:
        code = self.facts["ended"]
        if code == 0:
            return "ok"
        spent = self.facts.get("cpu", 0.0) >= self.limits["cpu_seconds"]
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and spent):
            return "timeout"
        if code < 0:
            return "killed"
        last = err.rstrip().rpartition("\n")[2]
        return "memory" if last.startswith("MemoryError") else "failed"


def _descendants() -> dict[int, int]:
    """Resident bytes of every process below this one, by process id."""
    found: dict[int, tuple[int, int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name in parentheses may hold anything
            found[int(name)] = int(fields[1]), int(fields[21]) * resource.getpagesize()
    children: dict[int, list[int]] = {}
    for process, (parent, _) in found.items():
        children.setdefault(parent, []).append(process)
    below: dict[int, int] = {}
    waiting = children.get(os.getpid(), [])
    while waiting:
        process = waiting.pop()
        below[process] = found[process][1]
        waiting += children.get(process, [])
    return below


def _kill_all() -> None:
    """Ends every process below this one. All are stopped before the first is killed, so that none can fork on."""
    seen: set[int] = set()
    while _reap():
        alive = _descendants().keys()
        fresh = alive - seen
        for process in fresh or alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP if fresh else signal.SIGKILL)
        seen |= fresh
        if not fresh:
            time.sleep(0.001)


def _reap() -> bool:
    """Takes the status of ended children, orphans among them; whether any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _disk_use(directory: str) -> float:
    """Bytes of all files below the directory; infinite when they are too many, or too deep, to count."""
    total, entries = 0, 0
    try:
        for folder, folders, files in os.walk(directory):
            entries += len(folders) + len(files)
            if entries > cage.MOST_FILES:
                return float("inf")
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    except RecursionError:
        return float("inf")
    return total


def _remove(directory: str) -> None:
    """Removes the directory, however deep and however closed to its owner it was left. No path grows with the depth."""
    os.chmod(directory, 0o700)
    os.chdir(directory)
    path: list[str] = []
    left = [_remove_files()]  # of each folder on the way down, the folders still in it
    while left:
        if left[-1]:
            path.append(left[-1].pop())
            os.chmod(path[-1], 0o700)
            os.chdir(path[-1])
            left.append(_remove_files())
        else:
            left.pop()
            os.chdir("..")
            if path:
                os.rmdir(path.pop())
    os.rmdir(directory)


def _remove_files() -> list[str]:
    """Removes all but the folders of the working directory and returns those."""
    folders = []
    for name in os.listdir():
        if stat.S_ISDIR(os.lstat(name).st_mode):
            folders.append(name)
        else:
            os.unlink(name)
    return folders


# --- the keeper and the program ---


def _keep(request: dict[str, Any], report: int, streams: tuple[int, int, int]) -> None:
    """Prepares the files, starts the program, reaps orphans, and reports how the program ended."""
    cage.die_with_parent()
    cage.adopt_orphans()
    isolation, without, directory = request["isolation"], request["without"], request["directory"]
    owner = None if "user" in without else cage.spare_user(request["number"])
    if "namespaces" in isolation and "root" not in without:
        with contextlib.suppress(OSError):
            disk = request["limits"]["disk"]
            cage.new_root(request["readable"], directory, disk, os.getuid() if owner is None else owner)
            isolation.append("root")
    if "root" not in isolation and not cage.is_open_to_all(request["python"]):
        owner = None
    os.chdir(directory)
    for name, text in request["files"].items():
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    if owner is not None and "root" not in isolation:
        os.chown(directory, owner, owner)
    program = os.fork()
    if program == 0:
        try:
            _become(request, owner, report, streams)
        except Exception as error:
            _tell(report, broken=f"{type(error).__name__}: {error}")
        os._exit(1)
    for stream in streams:
        os.close(stream)
    while True:
        process, status, usage = os.wait4(-1, 0)
        if process == program:
            _tell(report, ended=os.waitstatus_to_exitcode(status), cpu=usage.ru_utime + usage.ru_stime)
            os._exit(0)


def _become(request: dict[str, Any], owner: int | None, report: int, streams: tuple[int, int, int]) -> None:
    """Turns this process into the untrusted program; does not return."""
    isolation, directory = request["isolation"], request["directory"]
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    cage.set_limits(request["limits"], _other_tasks(isolation, owner))
    if owner is not None:
        os.setgroups([])
        os.setresgid(owner, owner, owner)
        os.setresuid(owner, owner, owner)
        isolation.append("user")
    cage.give_up_privileges()
    cage.die_with_parent()
    if "root" not in isolation and "landlock" not in request["without"]:
        with contextlib.suppress(OSError):
            cage.landlock(request["readable"], directory)
            isolation.append("landlock")
    uncounted = os.geteuid() == 0  # the kernel does not limit the processes of root
    if "seccomp" not in request["without"]:
        with contextlib.suppress(OSError):
            own_processes = "namespaces" in isolation or owner is not None
            own_files = "root" in isolation or owner is not None
            machine = os.uname().machine
            cage.install_filter(
                cage.filter_program(machine, os.getpid(), not uncounted, signals=own_processes, metadata=own_files)
            )
            isolation.append("seccomp")
    missing = [name for name in request["require"] if name not in isolation]
    if not {"namespaces", "seccomp"}.intersection(isolation):
        _tell(report, refused=NO_NETWORK_LOCK)
    elif uncounted and "seccomp" not in isolation:
        _tell(report, refused=NO_PROCESS_LIMIT)
    elif missing:
        _tell(report, refused=f"this machine does not permit what is required: {', '.join(missing)}")
    else:
        _tell(report, isolation=isolation)
        environment = {**request["environment"], "HOME": directory, "TMPDIR": directory}
        os.execve(request["python"], [request["python"], *request["arguments"]], environment)
    os._exit(0)


def _other_tasks(isolation: list[str], owner: int | None) -> int:
    """How many processes and threads of the program's user the kernel counts besides the program's own."""
    if owner is not None:
        return 0
    if "namespaces" in isolation and cage.counts_by_namespace():
        return 2  # supervisor and keeper
    return cage.tasks_of(os.getuid()) - 1  # this process is among them


def _tell(report: int, **message: object) -> None:
    os.write(report, json.dumps(message).encode() + b"\n")
