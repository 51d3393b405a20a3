"""What a program must not reach: files of others, the network, other processes, and life after its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from cages import (
    CAGES,
    COUNT_FORKS,
    PATIENT,
    SHARED_PYTHON,
    is_readable_by_all,
    isolation_of,
    make,
    processes_with,
    run,
)

from zerozoo.rewards.sandbox import Limits, Program, Sandbox, Status
from zerozoo.runs.errors import UserError

SOURCE = str(Path(__file__).parents[3] / "src")

# --- files ---

ATTEMPTS = """
import json, os, shutil, sys
folder, done = sys.argv[1], []

def attempt(name, action):
    try:
        action()
        done.append(name)
    except OSError:
        pass

def write(path, mode="w"):
    with open(path, mode) as file:
        file.write("x")

attempt("create", lambda: write(folder + "/new"))
attempt("overwrite", lambda: write(folder + "/victim"))
attempt("append", lambda: write(folder + "/victim", "a"))
attempt("truncate", lambda: os.truncate(folder + "/victim", 0))
attempt("unlink", lambda: os.unlink(folder + "/victim"))
attempt("rename", lambda: os.rename(folder + "/victim", folder + "/elsewhere"))
attempt("steal", lambda: os.rename(folder + "/victim", "victim"))
attempt("link", lambda: os.link(folder + "/victim", "victim"))
attempt("symlink", lambda: os.symlink("main.py", folder + "/link"))
attempt("mkdir", lambda: os.mkdir(folder + "/folder"))
attempt("fifo", lambda: os.mkfifo(folder + "/fifo"))
attempt("through a link", lambda: (os.symlink(folder + "/victim", "way"), write("way")))
attempt("by descriptor", lambda: os.open("new2", os.O_CREAT | os.O_WRONLY, dir_fd=os.open(folder, os.O_RDONLY)))
attempt("chmod", lambda: os.chmod(folder + "/victim", 0o600))
attempt("utime", lambda: os.utime(folder + "/victim", (0, 0)))
for place in ("/tmp", "/var/tmp", "/dev/shm", "/", "/etc"):
    attempt(place, lambda: write(place + "/zerozoo-evil"))
attempt("own", lambda: write("own"))
print(json.dumps(done))
"""


def kept_files(cage):
    """Skips where nothing but permissions stands between a program and the files of others."""
    if not {"root", "landlock"}.intersection(cage.isolation):
        pytest.skip("no protection of files in this cage")
    return cage()


def test_nothing_is_written_outside(any_cage, open_folder):
    sandbox = kept_files(any_cage)
    victim = open_folder / "victim"
    victim.write_text("precious")
    victim.chmod(0o666)
    before = victim.stat()
    result = run(sandbox, ATTEMPTS, open_folder)
    evil = [Path(place, "zerozoo-evil") for place in ("/tmp", "/var/tmp", "/dev/shm", "/", "/etc")]
    written = [place for place in evil if place.exists()]
    for place in written:
        place.unlink()
    assert written == []
    assert result.status is Status.OK, result.stderr
    assert json.loads(result.stdout) == ["own"]
    assert os.listdir(open_folder) == ["victim"]
    assert victim.read_text() == "precious"
    assert (victim.stat().st_mode, victim.stat().st_mtime) == (before.st_mode, before.st_mtime)


def test_the_attempts_succeed_where_nothing_stops_them(open_folder):
    """The premise of the test above: it can fail."""
    (open_folder / "victim").write_text("precious")
    result = subprocess.run(
        [sys.executable, "-c", ATTEMPTS.replace("/zerozoo-evil", "/no/such/folder"), str(open_folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=open_folder,
    )
    assert {"create", "overwrite", "append", "truncate", "unlink", "mkdir", "own"} <= set(json.loads(result.stdout))


def test_files_of_others_cannot_be_read(any_cage, open_folder):
    sandbox = kept_files(any_cage)
    secret = open_folder / "secret"
    secret.write_text("the hidden tests")
    source = """
import os, sys
places = [*sys.argv[1:], "/proc/1/environ", "/proc/self/environ", "/etc/passwd", "/root", "/home", "/var/log"]
for place in places:
    try:
        print(place, os.listdir(place) if os.path.isdir(place) else open(place).read())
    except OSError:
        pass
"""
    places = secret, open_folder, __file__, os.path.expanduser("~"), f"/proc/{os.getpid()}/environ"
    result = run(sandbox, source, *places)
    assert result.status is Status.OK
    listed = [line for line in result.stdout.splitlines() if not line.startswith("/root ")]  # holds the interpreter
    assert listed == []
    assert "the hidden tests" not in result.stdout


def test_without_file_protection_a_user_of_its_own_cannot_touch_others_files(open_folder):
    if os.geteuid() != 0 or SHARED_PYTHON is None:
        pytest.skip("needs root and an interpreter for all users")
    sandbox = Sandbox(Limits(**PATIENT), without=("namespaces", "landlock"), python=SHARED_PYTHON)
    open_folder.chmod(0o755)
    (open_folder / "victim").write_text("precious")
    (open_folder / "victim").chmod(0o600)
    source = "import sys\ntry:\n    open(sys.argv[1], sys.argv[2])\nexcept OSError as error:\n    print(error.errno)"
    for mode in ("r", "w", "a"):
        result = run(sandbox, source, open_folder / "victim", mode)
        assert (result.stdout, result.isolation) == ("13\n", ("user", "seccomp"))


# --- network ---

CALLS_HOME = """
import ctypes, socket, sys
done = []

def attempt(name, action):
    try:
        action()
        done.append(name)
    except OSError:
        pass

def connect(address, family, kind):
    with socket.socket(family, kind) as client:
        client.settimeout(5)
        client.connect(address)
        client.send(b"hello")

attempt("tcp", lambda: connect(("127.0.0.1", int(sys.argv[1])), socket.AF_INET, socket.SOCK_STREAM))
attempt("udp", lambda: connect(("127.0.0.1", int(sys.argv[2])), socket.AF_INET, socket.SOCK_DGRAM))
attempt("unix", lambda: connect(sys.argv[3], socket.AF_UNIX, socket.SOCK_STREAM))
attempt("abstract", lambda: connect("\\0" + sys.argv[4], socket.AF_UNIX, socket.SOCK_STREAM))
attempt("dns", lambda: socket.getaddrinfo("example.com", 80))
print(done, flush=True)
libc = ctypes.CDLL(None)
handle = libc.socket(2, 1, 0)
port = int(sys.argv[1])
address = ctypes.create_string_buffer(bytes([2, 0, port >> 8, port & 255, 127, 0, 0, 1]) + bytes(8))
print(handle >= 0 and libc.connect(handle, address, 16) == 0)
"""


@pytest.fixture
def listeners(open_folder):
    """Listening sockets that everybody could reach, and the arguments for CALLS_HOME."""
    tcp, udp = socket.socket(socket.AF_INET, socket.SOCK_STREAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    unix, abstract = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
    name = f"zerozoo-{uuid.uuid4().hex}"
    with tcp, udp, unix, abstract:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        unix.bind(str(open_folder / "socket"))
        (open_folder / "socket").chmod(0o777)
        abstract.bind("\0" + name)
        for listener in (tcp, unix, abstract):
            listener.listen()
        for listener in (tcp, udp, unix, abstract):
            listener.setblocking(False)
        yield (
            (tcp, udp, unix, abstract),
            (
                tcp.getsockname()[1],
                udp.getsockname()[1],
                str(open_folder / "socket"),
                name,
            ),
        )


def arrived(listeners):
    count = 0
    for listener in listeners:
        try:
            if listener.type == socket.SOCK_DGRAM:
                listener.recv(10)
            else:
                listener.accept()[0].close()
            count += 1
        except BlockingIOError:
            pass
    return count


def test_no_network(any_cage, listeners):
    sockets, arguments = listeners
    if "seccomp" not in any_cage.isolation and "root" not in any_cage.isolation:
        pytest.skip("sockets in the file system are open in this cage")
    result = run(any_cage(), CALLS_HOME, *arguments)
    assert result.status is Status.OK, result.stderr
    assert result.stdout == "[]\nFalse\n"
    assert arrived(sockets) == 0


def test_the_calls_arrive_where_nothing_stops_them(listeners):
    """The premise of the test above: it can fail."""
    sockets, arguments = listeners
    source = CALLS_HOME.replace('"example.com"', '"127.0.0.1"')
    command = [sys.executable, "-c", source, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "['tcp', 'udp', 'unix', 'abstract', 'dns']\nTrue\n"
    assert arrived(sockets) == 4


# --- other processes ---


def test_others_cannot_be_signalled_or_limited(any_cage, mark):
    """Neither the tests, nor the supervisor, nor another program of the same user."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    source = """
import os, resource, signal, sys
for process in (*map(int, sys.argv[2:]), os.getppid()):
    if process <= 1:
        continue  # the keeper as process 1 of a namespace; see the next test
    for number in (0, signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
        try:
            os.kill(process, number)
            print("sent", number, "to", process)
        except OSError:
            pass
    try:
        resource.prlimit(process, resource.RLIMIT_NOFILE, (1, 1))
        print("limited", process)
    except OSError:
        pass
    try:
        os.setpriority(os.PRIO_PROCESS, process, 19)
        print("niced", process)
    except OSError:
        pass
"""
    try:
        result = run(any_cage(), source, mark, os.getpid(), other.pid)
        assert (result.status, result.stdout) == (Status.OK, "")
        assert other.poll() is None
        assert Path(f"/proc/{other.pid}/stat").read_text().split()[2] != "T"
    finally:
        other.kill()
        other.wait()


def test_the_keeper_cannot_be_killed(any_cage, mark):
    source = """
import os, signal
for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
    try:
        os.kill(os.getppid(), number)
    except OSError:
        pass
print("done")
"""
    result = run(any_cage(), source, mark)
    assert (result.status, result.stdout, result.exit_code) == (Status.OK, "done\n", 0)


DAEMON = """
import os, sys, time
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            open("ready", "w").close()
            time.sleep(3600)
        os._exit(0)
except OSError:
    print("no processes")
    sys.exit()
while not os.path.exists("ready"):
    time.sleep(0.01)
print("daemon is up")
"""


def test_a_daemon_dies_with_the_program(any_cage, mark):
    """It has left its parents, its session and its pipes. The fixture looks for it."""
    result = run(any_cage(), DAEMON, mark)
    assert result.status is Status.OK
    assert result.stdout in ("daemon is up\n", "no processes\n")


def test_a_daemon_is_really_up_somewhere(mark):
    """The premise of the test above: at least one cage lets it come up, and the marks of the fixture find it."""
    outputs = [run(make(name), DAEMON, mark).stdout for name in CAGES if not isolation_of(name)[1]]
    assert "daemon is up\n" in outputs


def test_a_background_process_that_holds_the_output_does_not_delay_the_result(cage, mark):
    source = "import os, time\nprint('first', flush=True)\nif os.fork() == 0:\n    time.sleep(3600)"
    result = run(cage(), source, mark)
    assert result.stdout == "first\n"
    assert result.status is Status.OK or "PermissionError" in result.stderr


def test_marks_find_a_running_program(mark):
    """The premise of all tests with a mark."""
    sandbox = make("all", seconds=1.0)
    thread = threading.Thread(target=run, args=(sandbox, "import time; time.sleep(3600)", mark))
    thread.start()
    found = False
    while thread.is_alive():
        found = found or bool(processes_with(mark))
        time.sleep(0.02)
    thread.join()
    assert found


@pytest.mark.parametrize("options", [{}, {"without": ("namespaces",)}], ids=["all", "no namespaces"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_programs_die_with_the_caller(options, how, mark, scratch):
    # A shell starts jobs in the background with SIGINT ignored, which this process may have inherited.
    code = f"""if True:
        import signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.path.append({SOURCE!r})
        from zerozoo.rewards.sandbox import *
        source = "import os, time\\ntry: os.fork()\\nexcept OSError: pass\\ntime.sleep(3600)"
        Sandbox(Limits(seconds=600.0), **{options!r}).run(Program({{"main.py": source}}, ({mark[5:]!r},)))
    """
    environment = {**os.environ, "TMPDIR": scratch}
    caller = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if len(processes_with(mark[5:])) > 1:  # the caller has the mark in its text, too
            break
        time.sleep(0.05)
    else:
        pytest.fail("the program did not start within a minute")
    caller.send_signal(how)
    caller.wait(timeout=60)
    for _ in range(1200):
        if not processes_with(mark[5:]) and not os.listdir(scratch):
            return
        time.sleep(0.05)
    pytest.fail("the program outlived its caller by a minute")


# --- callers ---


def test_root_without_a_limit_on_processes_is_refused():
    if os.geteuid() != 0:
        pytest.skip("only root's processes are not counted")
    with pytest.raises(UserError, match="any number of processes"):
        Sandbox(without=("seccomp", "user")).run(Program({"main.py": ""}))


UNPRIVILEGED = """
import json, sys
sys.path.append(sys.argv[1])
from zerozoo.rewards.sandbox import *
attempts, forks = json.load(sys.stdin)
for without in ((), ("root",), ("namespaces",)):
    sandbox = Sandbox(Limits(seconds=120.0, cpu_seconds=60, processes=5), without=without)
    wrote = sandbox.run(Program({"main.py": attempts}, (sys.argv[2],)))
    forked = sandbox.run(Program({"main.py": forks}, (sys.argv[3],)))
    print(json.dumps([wrote.isolation, json.loads(wrote.stdout), int(forked.stdout)]))
"""


def test_an_unprivileged_caller(open_folder, mark):
    """Everything above ran as the user of the tests; when that is root, this is how it is for others."""
    if os.geteuid() != 0 or SHARED_PYTHON is None or not is_readable_by_all(SOURCE):
        pytest.skip("needs root, an interpreter for all users and a source folder for all users")
    probe = subprocess.run([SHARED_PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
    if probe.stdout != b"True\n":
        pytest.skip("the shared interpreter is too old")
    user = 1_234_567
    victim = open_folder / "victim"
    victim.write_text("precious")
    os.chown(victim, user, user)
    result = subprocess.run(
        [SHARED_PYTHON, "-B", "-c", UNPRIVILEGED, SOURCE, str(open_folder), mark],
        input=json.dumps([ATTEMPTS, COUNT_FORKS]),
        capture_output=True,
        text=True,
        user=user,
        group=user,
        extra_groups=[],
        env={"TMPDIR": "/tmp"},
        cwd="/",
    )
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 3
    for isolation, written, forked in lines:
        assert "user" not in isolation
        if {"root", "landlock"}.intersection(isolation):
            assert written == ["own"]
        assert forked <= 4
    assert victim.read_text() == "precious"
    assert os.listdir(open_folder) == ["victim"]
