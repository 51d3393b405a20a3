"""What a program gets, and where its use of time, memory, processes, output and disk ends."""

from __future__ import annotations

import ctypes
import platform
import signal
import sys

import pytest
from cages import COUNT_FORKS, PATIENT, SHARED_PYTHON, isolation_of, make, run

from zerozoo.rewards.sandbox import MECHANISMS, MIB, Limits, Program, Sandbox, Status, describe, weaknesses
from zerozoo.rewards.sandbox_cage import spare_user
from zerozoo.runs.errors import UserError

# --- what it gives ---


def test_output_arguments_input_and_files(cage):
    source = "import sys, other\nprint(sys.argv[1:], sys.stdin.read(), other.VALUE, __name__)\n"
    source += "print('no', file=sys.stderr)"
    result = run(cage(), source, "a b", "ü", stdin="ein\nzwei", files={"other.py": "VALUE = 'ß'"})
    assert result.stdout == "['a b', 'ü'] ein\nzwei ß __main__\n"
    assert (result.stderr, result.status, result.exit_code) == ("no\n", Status.OK, 0)
    assert result.seconds > 0


@pytest.mark.parametrize(
    ("source", "status", "code", "text"),
    [
        ("raise ValueError('seven')", Status.FAILED, 1, "ValueError: seven"),
        ("def f(:", Status.FAILED, 1, "SyntaxError"),
        ("import sys; sys.exit(3)", Status.FAILED, 3, ""),
        ("import os; os.kill(os.getpid(), 11)", Status.KILLED, -11, ""),
        ("import os; os.abort()", Status.KILLED, -6, ""),
        ("import numpy", Status.FAILED, 1, "ModuleNotFoundError"),
        ("import zerozoo", Status.FAILED, 1, "ModuleNotFoundError"),
        ("input()", Status.FAILED, 1, "EOFError"),
    ],
)
def test_how_programs_fail(source, status, code, text):
    result = run(make("all"), source)
    assert (result.status, result.exit_code) == (status, code)
    assert text in result.stderr


ORDINARY = """
import collections, concurrent.futures, dataclasses, decimal, json, math, os, random, re, sys, tempfile, threading
done = []
thread = threading.Thread(target=lambda: done.append(1))
try:
    thread.start()
    thread.join()
except RuntimeError:  # no processes and no threads for root without a user of its own
    done.append(1)
with tempfile.NamedTemporaryFile("w+") as file:
    file.write("text")
with open("own.txt", "w") as file:
    file.write("text")
os.mkdir("folder")
os.rename("own.txt", "folder/own.txt")
with open(os.devnull, "w") as file:
    file.write("x")
print(done, open("folder/own.txt").read(), len(os.urandom(4)), "HOME" in os.environ, "SECRET" in os.environ)
print(hash("a"))
"""


def test_ordinary_programs_work(any_cage, monkeypatch):
    """And the caller's environment does not reach them."""
    monkeypatch.setenv("SECRET", "hunter2")
    result = run(any_cage(), ORDINARY)
    assert result.status is Status.OK, result.stderr
    assert result.stdout.startswith("[1] text 4 True False\n")


def test_programs_are_repeatable_and_run_at_the_same_time_in_order():
    sandbox = Sandbox(Limits(**PATIENT))
    programs = [Program({"main.py": f"print({number}, hash('a'))"}) for number in (0, 1, 2, 0)]
    outputs = [result.stdout for result in sandbox.map(programs, workers=3)]
    assert [output.split()[0] for output in outputs] == ["0", "1", "2", "0"]
    assert outputs[0] == outputs[3]
    assert sandbox.map([]) == []


def test_large_input_arrives(cage):
    assert run(cage(), "import sys; print(len(sys.stdin.read()))", stdin="x" * 3_000_000).stdout == "3000000\n"


# --- time and memory ---


def test_an_endless_loop_ends_by_processor_time(cage, mark):
    result = run(cage(cpu_seconds=1), "while True: pass", mark)
    assert (result.status, result.exit_code) == (Status.TIMEOUT, -signal.SIGXCPU)


def test_a_loop_that_ignores_the_signal_ends_too(mark):
    source = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    result = run(make("all", cpu_seconds=1), source, mark)
    assert (result.status, result.exit_code) == (Status.TIMEOUT, -signal.SIGKILL)


def test_a_sleeper_ends_by_the_clock_and_its_output_is_kept(cage, mark):
    source = "import time\nprint('before', flush=True)\ntime.sleep(3600)"
    result = run(cage(seconds=0.7), source, mark)
    assert (result.status, result.exit_code) == (Status.TIMEOUT, None)
    assert result.stdout in ("before\n", "")  # empty when the machine needed longer to start Python


@pytest.mark.parametrize("source", ["x = bytearray(8 << 30)", "x = []\nwhile True: x.append(bytearray(1 << 20))"])
def test_a_memory_bomb(cage, mark, source):
    result = run(cage(memory=128 * MIB), source, mark)
    assert (result.status, result.exit_code) == (Status.MEMORY, 1)


def test_memory_of_many_processes_together(mark):
    """Each stays below the limit of one process."""
    source = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        x = bytearray(os.urandom(1 << 20) * 40)
        time.sleep(3600)
time.sleep(3600)
"""
    result = run(make("all", memory=160 * MIB), source, mark)
    if "PermissionError" in result.stderr or "BlockingIOError" in result.stderr:
        pytest.skip("no processes in this cage")
    assert (result.status, result.exit_code) == (Status.MEMORY, None)


# --- processes ---

FORK_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"


def test_the_number_of_processes_is_limited(any_cage, mark):
    result = run(any_cage(processes=5), COUNT_FORKS, mark)
    assert result.status is Status.OK, result
    assert int(result.stdout) <= 4


def test_a_fork_bomb(cage, mark):
    """Every process forks as fast as it can. One that would not be stopped is not started."""
    assert int(run(cage(processes=5), COUNT_FORKS, mark).stdout) <= 4
    result = run(cage(processes=5, seconds=0.7, cpu_seconds=1), FORK_BOMB, mark)
    assert result.status is Status.TIMEOUT


def test_a_thread_bomb(cage, mark):
    source = """
import threading, time
count = 0
try:
    while count < 40:
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        count += 1
except RuntimeError:
    pass
print(count, flush=True)
"""
    result = run(cage(processes=5), source, mark)
    assert result.status is Status.OK
    assert int(result.stdout) <= 4


# --- output and disk ---


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_hundred_megabytes_of_output(cage, mark, stream):
    source = f"import sys\nfor _ in range(100): sys.{stream}.write('x' * (1 << 20))"
    result = run(cage(output=1000), source, mark)
    assert (result.status, result.exit_code) == (Status.OUTPUT_LIMIT, None)
    assert getattr(result, stream) == "x" * 1000


def test_output_up_to_the_limit_is_fine():
    result = run(make("all", output=1000), "print('x' * 999)")
    assert (result.status, len(result.stdout)) == (Status.OK, 1000)
    assert run(make("all", output=1000), "print('x' * 1000)").status is Status.OUTPUT_LIMIT


def test_a_large_file(cage):
    source = "with open('big', 'wb') as file:\n    for _ in range(24): file.write(bytes(1 << 20))"
    result = run(cage(file_size=4 * MIB), source)
    assert result.status is Status.KILLED or "File too large" in result.stderr
    assert run(cage(file_size=30 * MIB, disk=40 * MIB), source).status is Status.OK


def test_many_files(cage, mark):
    source = """
import time
try:
    for number in range(100):
        with open(f"file{number}", "wb") as file:
            file.write(bytes(1 << 20))
except OSError as error:
    print(error)
    raise
time.sleep(3600)
"""
    result = run(cage(disk=20 * MIB), source, mark)
    assert result.status in (Status.FAILED, Status.OUTPUT_LIMIT)
    assert result.status is Status.OUTPUT_LIMIT or "No space left" in result.stdout


def test_many_empty_files(cage, mark):
    source = "import time\nfor number in range(10_000): open(str(number), 'w').close()\ntime.sleep(3600)"
    result = run(cage(), source, mark)
    assert result.status is Status.OUTPUT_LIMIT or "No space left" in result.stderr


def test_many_open_files(cage):
    result = run(cage(open_files=32), "x = [open('main.py') for _ in range(100)]")
    assert "Too many open files" in result.stderr


def test_a_stubborn_folder_is_removed(cage):
    """Deeper than Python can recurse, and closed to its owner. The fixture looks whether anything is left."""
    deep = """
import os
for _ in range(1100):
    os.mkdir("d")
    os.chdir("d")
open("file", "w").close()
os.chdir("/")
"""
    assert run(cage(), deep).status in (Status.OK, Status.FAILED, Status.OUTPUT_LIMIT)
    closing = "import os\nos.makedirs('a/b/c')\nopen('a/b/c/file', 'w').close()\n"
    closing += "for path in ('a/b/c', 'a/b', 'a', '.'):\n    try: os.chmod(path, 0)\n    except OSError: pass"
    assert run(cage(), closing).status is Status.OK


# --- what is not permitted here, and what is asked for ---


def test_without_a_lock_on_the_network_nothing_is_run():
    with pytest.raises(UserError, match="neither a network namespace nor a seccomp filter"):
        Sandbox(without=("namespaces", "seccomp")).run(Program({"main.py": "print('ran')"}))


def test_requirements_are_met_or_nothing_is_run():
    permitted = Sandbox().isolation()
    assert {"namespaces", "seccomp"}.intersection(permitted)
    assert Sandbox(require=permitted).run(Program({"main.py": ""})).isolation == permitted
    with pytest.raises(UserError, match="does not permit what is required: root"):
        Sandbox(require=("root",), without=("root",)).run(Program({"main.py": ""}))


def test_what_the_kernel_has_is_used():
    """Otherwise a mechanism that is broken here would look like one that is not permitted, and its tests be skipped."""
    libc = ctypes.CDLL(None)
    if libc.syscall(444, None, 0, 1) >= 1:  # landlock_create_ruleset, asked for its version
        assert "landlock" in isolation_of("same user")[0]
    if platform.machine() in ("x86_64", "aarch64"):
        assert "seccomp" in isolation_of("all")[0]
    if SHARED_PYTHON is not None and spare_user(1) is not None:
        assert "user" in isolation_of("no namespaces")[0]


def test_what_is_lacking_is_said():
    assert weaknesses(("namespaces", "root", "user", "seccomp")) == []
    assert weaknesses(("user", "landlock", "seccomp")) == weaknesses(("landlock", "seccomp"))
    (said,) = weaknesses(("landlock", "seccomp"))
    assert "outlive" in said
    assert any("read and write" in said for said in weaknesses(("seccomp",)))
    assert any("read what" in said for said in weaknesses(("user", "seccomp")))
    assert any("sockets" in said for said in weaknesses(("namespaces", "landlock")))
    assert not any("sockets" in said for said in weaknesses(("namespaces", "root")))


def test_the_sandbox_describes_itself(any_cage):
    good, sentence = describe(any_cage())
    assert all(name in sentence for name in any_cage.isolation)
    assert good == (not weaknesses(any_cage.isolation))


def test_a_sandbox_that_runs_nothing_says_why(monkeypatch):
    good, sentence = describe(Sandbox(without=("namespaces", "seccomp")))
    assert not good
    assert "neither a network namespace nor a seccomp filter" in sentence
    monkeypatch.setattr(sys, "platform", "darwin")
    assert describe(Sandbox()) == (False, "Programs can only be run in a sandbox on Linux.")


def test_a_missing_interpreter_is_a_user_error():
    with pytest.raises(UserError, match="The sandbox did not start: FileNotFoundError"):
        Sandbox(python="/no/such/python").run(Program({"main.py": ""}))


def test_a_failing_supervisor_is_an_error_with_its_words(monkeypatch):
    monkeypatch.setattr("zerozoo.rewards.sandbox._MAIN", "raise SystemExit('broken on purpose')")
    with pytest.raises(RuntimeError, match="broken on purpose"):
        Sandbox().run(Program({"main.py": ""}))


def test_wrong_arguments_are_refused():
    for limit in ("seconds", "memory", "processes", "output"):
        with pytest.raises(ValueError, match=limit):
            Limits(**{limit: 0})
    with pytest.raises(ValueError, match=r"main\.py"):
        Program({"other.py": ""})
    for name in ("../evil.py", "/etc/evil", "", "..", "a\0b"):
        with pytest.raises(ValueError, match="name of a file"):
            Program({"main.py": "", name: ""})
    for options in ({"without": ("walls",)}, {"require": ("walls",)}):
        with pytest.raises(ValueError, match=f"expected some of {MECHANISMS[0]}"):
            Sandbox(**options)
