"""The filter program, run by a small interpreter of BPF: so both processor types are tested on either."""

from __future__ import annotations

import errno
import os
import platform
import stat
import sys

import pytest

from zerozoo.rewards import sandbox_cage as cage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED, KILLED, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
# The numbers that the kernel's own headers give (asm/unistd_64.h, asm-generic/unistd.h).
NUMBERS = {
    "x86_64": {
        **{"read": 0, "socketpair": 53, "socket": 41, "clone": 56, "fork": 57, "execve": 59, "kill": 62, "tgkill": 234},
        **{"ptrace": 101, "mount": 165, "prlimit64": 302, "clone3": 435, "memfd_create": 319, "chmod": 90},
        **{"fchmodat": 268, "unshare": 272, "io_uring_setup": 425, "openat": 257, "utimensat": 280},
    },
    "aarch64": {
        **{"read": 63, "socketpair": 199, "socket": 198, "clone": 220, "execve": 221, "kill": 129, "tgkill": 131},
        **{"ptrace": 117, "mount": 40, "prlimit64": 261, "clone3": 435, "memfd_create": 279, "fchmodat": 53},
        **{"unshare": 97, "io_uring_setup": 425, "openat": 56, "utimensat": 88},
    },
}


def verdict(program, machine, number, argument=0, architecture=None):
    """What the kernel would do with a system call."""
    data = {0: number, 4: ARCHITECTURES[machine] if architecture is None else architecture, 16: argument & 0xFFFFFFFF}
    place, register = 0, 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            register = data[operand]
            continue
        jump = {0x15: register == operand, 0x35: register >= operand, 0x45: register & operand != 0}[code]
        place += if_true if jump else if_false


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request):
    return request.param


def asks(machine, own_pid=77, **allowed):
    program = cage.filter_program(machine, own_pid, **{"forks": True, "signals": True, "metadata": True, **allowed})

    def ask(name, argument=0):
        return verdict(program, machine, NUMBERS[machine][name], argument)

    return ask


def test_the_program_is_well_formed(machine):
    for flags in [(True, True, True), (False, False, False)]:
        program = cage.filter_program(machine, 77, *flags)
        assert len(program) < 4096
        assert program[-1] == (0x06, 0, 0, ALLOWED)
        for place, (code, if_true, if_false, _) in enumerate(program):
            if code not in (0x06, 0x20):
                assert place + 1 + max(if_true, if_false) < len(program)


def test_what_is_always_refused_and_always_allowed(machine):
    ask = asks(machine)
    for name in ("socket", "ptrace", "mount", "unshare", "io_uring_setup", "memfd_create"):
        assert ask(name) == EPERM
    for name in ("read", "socketpair", "execve", "openat", "kill", "fchmodat", "utimensat"):
        assert ask(name, 1234) == ALLOWED
    assert ask("clone3") == ENOSYS


def test_new_processes_but_no_new_namespaces(machine):
    ask = asks(machine)
    thread = 0x3D0F00  # the flags of a new thread in glibc
    assert ask("clone", 17) == ask("clone", thread) == ALLOWED
    for flag in (0x20000, 0x10000000, 0x20000000, 0x40000000):
        assert ask("clone", 17 | flag) == EPERM
    ask = asks(machine, forks=False)
    assert ask("clone", 17) == ask("clone", thread) == EPERM
    assert machine != "x86_64" or ask("fork") == EPERM


def test_signals_to_itself_only(machine):
    ask = asks(machine, signals=False)
    for name in ("kill", "tgkill"):
        assert ask(name, 77) == ask(name, 0) == ALLOWED
        assert ask(name, 78) == ask(name, 1) == ask(name, -1) == EPERM
    for one in (ask, asks(machine)):
        assert one("prlimit64", 0) == one("prlimit64", 77) == ALLOWED
        assert one("prlimit64", 78) == EPERM


def test_permissions_of_files(machine):
    ask = asks(machine, metadata=False)
    assert ask("fchmodat") == ask("utimensat") == EPERM
    assert ask("read") == ALLOWED


def test_other_interfaces_to_the_kernel_are_closed(machine):
    program = cage.filter_program(machine, 77, True, True, True)
    assert verdict(program, machine, 0, architecture=0x40000003) == KILLED  # i386 system calls
    x32 = 0x40000000 + 41
    assert verdict(program, machine, x32) == (EPERM if machine == "x86_64" else ALLOWED)  # arm has no such number


def test_an_unknown_machine_has_no_filter():
    with pytest.raises(OSError, match="riscv64"):
        cage.filter_program("riscv64", 1, True, True, True)


def test_this_machine_is_one_of_the_tables():
    if platform.machine() not in ARCHITECTURES:
        pytest.skip("no filter here")
    assert cage.filter_program(platform.machine(), os.getpid(), True, True, True)


def test_what_is_readable():
    assert cage.readable_paths("/usr/bin/python3.11") == list(cage.SYSTEM)
    assert cage.readable_paths("/usr/local/bin/python3.11") == list(cage.SYSTEM)
    assert cage.readable_paths("/opt/py/bin/python3") == [*cage.SYSTEM, "/opt/py"]
    assert cage.readable_paths("/usr2/bin/python3") == [*cage.SYSTEM, "/usr2"]


def test_open_to_all(tmp_path):
    program = tmp_path / "program"
    program.write_text("")
    program.chmod(0o755)
    closed = [folder for folder in program.parents if not folder.stat().st_mode & stat.S_IXOTH]
    assert cage.is_open_to_all(str(program)) == (not closed)
    program.chmod(0o750)
    assert not cage.is_open_to_all(str(program))
    assert cage.is_open_to_all("/bin/sh")


def test_tasks_of_counts_this_process():
    assert cage.tasks_of(os.getuid()) >= 1
    assert cage.tasks_of(2_000_000_123) == 0


def test_spare_users_are_for_root_and_differ():
    users = [cage.spare_user(number) for number in (1000, 1001)]
    if users[0] is None:
        pytest.skip("there is no user to spare here")
    assert os.geteuid() == 0
    assert users[0] != users[1]
    assert cage.tasks_of(users[0]) == 0
