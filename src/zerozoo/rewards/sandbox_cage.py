"""What Linux offers to lock a program in: a seccomp filter, Landlock, namespaces, a user of its own, resource limits.

Everything is done to the calling process and cannot be undone. Used by `sandbox_child` only, in processes without
threads; standard library only. A mechanism that the system does not have, or does not permit, raises OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import stat
import struct
from collections.abc import Callable, Mapping, Sequence

MOST_FILES = 4096  # files and folders in the program's directory
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache")

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _syscall(number: int, *arguments: int) -> int:
    return _checked(_LIBC.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))


def _prctl(option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _checked(_LIBC.prctl(option, *(ctypes.c_ulong(argument) for argument in padded)))


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process."""
    _prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def die_with_parent() -> None:
    """This process is killed when its parent ends."""
    _prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def give_up_privileges() -> None:
    """No capability and no set-user-id file can raise what this process may do, from its next exec on."""
    for capability in range(64):
        with contextlib.suppress(OSError):  # there are fewer, and only root has them to drop
            _prctl(24, capability)  # PR_CAPBSET_DROP
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS


# --- seccomp: which system calls are refused ---

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables below, AUDIT_ARCH

_Call = tuple[int | None, int | None]  # its number on x86_64 and on aarch64; None where it does not exist
_DENIED: dict[str, _Call] = {
    # network; io_uring could make sockets, too
    **{"socket": (41, 198), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426)},
    # other processes, their memory and their scheduling
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272)},
    **{"pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424)},
    **{"process_madvise": (440, 440), "migrate_pages": (256, 238), "move_pages": (279, 239), "ioprio_set": (251, 30)},
    **{"setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119)},
    **{"sched_setaffinity": (203, 122), "sched_setattr": (314, 274)},
    # namespaces, mounts and the kernel itself
    **{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41)},
    **{"chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430)},
    **{"fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "bpf": (321, 280), "acct": (163, 89)},
    **{"perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217)},
    **{"request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224)},
    **{"swapoff": (168, 225), "quotactl": (179, 60)},
    # memory that no limit counts or that outlives its process; truncate escapes the first versions of Landlock
    **{"shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180)},
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "truncate": (76, 45)},
}
# Landlock does not watch these; they matter where the program runs as the caller and sees the caller's files.
_METADATA: dict[str, _Call] = {
    **{"chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None)},
    **{"fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None)},
    **{"futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6)},
    **{"fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16)},
    **{"setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469)},
}
_CLONE, _CLONE3, _PRLIMIT64 = (56, 220), (435, 435), (302, 261)
_FORKS: tuple[_Call, ...] = (_CLONE, (57, None), (58, None))  # clone, fork, vfork
# Their first argument is a process: kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo.
_SIGNALS = ((62, 129), (200, 130), (234, 131), (129, 138), (297, 240))
_NEW_NAMESPACES = 0x7E020000  # the CLONE_NEW* bits of clone's flags

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the argument's low half


def filter_program(
    machine: str, own_pid: int, forks: bool, signals: bool, metadata: bool
) -> list[tuple[int, int, int, int]]:
    """The BPF program, as (code, jump if true, jump if false, operand). Raises OSError for an unknown machine.

    `forks`, `signals` and `metadata` say whether new processes, signals to other processes and changes of file
    permissions are allowed; `own_pid` is the program's.
    """
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    column, architecture = _ARCHITECTURES[machine]
    refuse, allow = (_RETURN, 0, 0, _FAIL | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    program.append((_LOAD, 0, 0, _NUMBER))
    if machine == "x86_64":  # the x32 interface has numbers of its own
        program += [(_AT_LEAST, 0, 1, 0x40000000), refuse]
    denied = [*_DENIED.values(), *(() if metadata else _METADATA.values()), *(() if forks else _FORKS)]
    for number in (call[column] for call in denied):
        if number is not None:
            program += [(_EQUAL, 0, 1, number), refuse]
    # glibc falls back to clone, whose flags a filter can read
    program += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    program += [(_EQUAL, 0, 4, _CLONE[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    program += [(_ANY_BIT, 0, 1, _NEW_NAMESPACES), refuse, allow]
    for call in (_PRLIMIT64, *(() if signals else _SIGNALS)):
        program += [(_EQUAL, 0, 5, call[column]), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
        program += [(_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, own_pid), refuse, allow]  # 0: itself, or its process group
    return [*program, allow]


def install_filter(program: Sequence[tuple[int, int, int, int]]) -> None:
    """Applies a filter program to this process and all that it will start."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(buffer)))
    _prctl(22, 2, ctypes.addressof(header))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


# --- files: Landlock, or a file system of its own ---


def readable_paths(python: str) -> list[str]:
    """What a program needs to read: the system's libraries and the folder of the interpreter."""
    prefix = os.path.dirname(os.path.dirname(python))
    inside = any(prefix == path or prefix.startswith(path + "/") for path in SYSTEM)
    return [*SYSTEM, *([] if inside else [prefix])]


def landlock(readable: Sequence[str], directory: str) -> None:
    """From now on nothing can be read but `readable`, and nothing written but what is below `directory`."""
    version = _syscall(444, 0, 0, 1)  # landlock_create_ruleset
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    # version 4: no TCP; version 6: no abstract sockets of others and no signals to others
    attribute = struct.pack("QQQ", handled, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    ruleset = _syscall(444, ctypes.addressof(buffer), len(attribute), 0)
    execute, write, read, list_folder, make_device = 1, 2, 4, 8, (1 << 6) | (1 << 11)
    wanted = dict.fromkeys(readable, execute | read | list_folder)
    wanted |= dict.fromkeys(DEVICES, read | write) | {directory: handled & ~make_device}
    for path, access in wanted.items():
        with contextlib.suppress(FileNotFoundError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                access &= execute | write | read
            rule = ctypes.create_string_buffer(struct.pack("=Qi", access, place), 12)
            _syscall(445, ruleset, 1, ctypes.addressof(rule), 0)  # landlock_add_rule, path beneath
            os.close(place)
    _syscall(446, ruleset, 0)  # landlock_restrict_self
    os.close(ruleset)


_NOSUID, _NODEV, _BIND, _DETACH, _REC, _PRIVATE = 2, 4, 4096, 2, 16384, 1 << 18
_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000


def new_root(readable: Sequence[str], directory: str, disk: int, owner: int) -> None:
    """A file system with `readable` (read-only), some devices, and an empty `directory` of `disk` bytes for `owner`.

    Needs the rights of `enter_namespaces`. After an error the files are as before.
    """
    _checked(_LIBC.unshare(_NEWNS))
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", directory, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    try:
        _fill_root(readable, directory)
        identity = "" if owner == os.getuid() else f",uid={owner},gid={owner}"
        options = f"size={disk},nr_inodes={MOST_FILES},mode=700{identity}"
        _mount("tmpfs", directory + directory, "tmpfs", _NOSUID | _NODEV, options)
        os.chdir(directory)
        here = ctypes.create_string_buffer(b".")
        _checked(_LIBC.pivot_root(here, here))  # the old root now lies on top of the new one, and goes
        _checked(_LIBC.umount2(here, _DETACH))
    except OSError:
        _LIBC.umount2(ctypes.create_string_buffer(os.fsencode(directory)), _DETACH)
        raise


def _fill_root(readable: Sequence[str], root: str) -> None:
    for path in filter(os.path.lexists, readable):
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        else:
            _bind(path, root)
    devices = list(filter(os.path.exists, DEVICES))
    os.makedirs(root + "/dev")
    for device in devices:
        _touch(root + device)
    os.makedirs(root + root)
    read_only = ctypes.create_string_buffer(struct.pack("QQQQ", 1 | _NOSUID | _NODEV, 0, 0, 0), 32)
    top = ctypes.create_string_buffer(os.fsencode(root))
    _syscall(442, -100, ctypes.addressof(top), 0x8000, ctypes.addressof(read_only), 32)  # mount_setattr, recursive
    for device in devices:
        _mount(device, root + device, None, _BIND)


def _bind(path: str, root: str) -> None:
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    else:
        _touch(root + path)
    _mount(path, root + path, None, _BIND | _REC)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    _checked(_LIBC.mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]))


# --- namespaces and users ---


def enter_namespaces() -> None:
    """Network and System V memory of its own; the next child is process 1 of a process namespace of its own."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            _checked(_LIBC.unshare(_NEWPID | _NEWNET | _NEWIPC))
            return
    if not _succeeds(_enter_user_namespace):  # half a success cannot be taken back: try it elsewhere first
        raise PermissionError(errno.EPERM, "user namespaces are not permitted")
    _enter_user_namespace()


def _enter_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    _checked(_LIBC.unshare(_NEWUSER | _NEWPID | _NEWNET | _NEWIPC))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _succeeds(action: Callable[[], None]) -> bool:
    process = os.fork()
    if process == 0:
        try:
            action()
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def spare_user(number: int) -> int | None:
    """For root: a user id that nobody else has, chosen by `number`; None where there is none to spare."""
    if os.geteuid() != 0:
        return None
    with open("/proc/self/uid_map") as file:
        extents = [tuple(map(int, line.split())) for line in file]
    first, _, count = max(extents, key=lambda extent: extent[2])
    count = min(count, (1 << 31) - 1 - first)
    return first + count - 1 - number % (count // 2) if count >= 1 << 16 else None


def is_open_to_all(path: str) -> bool:
    """Whether any user can execute the file: its own bits and those of the folders above."""
    if os.stat(path).st_mode & 0o005 != 0o005:
        return False
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


# --- resource limits ---


def set_limits(limits: Mapping[str, int], other_tasks: int) -> None:
    """`other_tasks` are those of the same user, which the kernel counts along with the program's."""
    _limit(resource.RLIMIT_CPU, limits["cpu_seconds"], limits["cpu_seconds"] + 1)  # SIGXCPU, then SIGKILL
    _limit(resource.RLIMIT_AS, limits["memory"])
    _limit(resource.RLIMIT_FSIZE, limits["file_size"])
    _limit(resource.RLIMIT_NOFILE, limits["open_files"])
    _limit(resource.RLIMIT_STACK, 8 << 20)
    _limit(resource.RLIMIT_NPROC, limits["processes"] + other_tasks)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        _limit(kind, 0)


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    allowed = resource.getrlimit(kind)[1]
    wanted = soft if hard is None else hard
    highest = wanted if allowed == resource.RLIM_INFINITY else min(wanted, allowed)
    resource.setrlimit(kind, (min(soft, highest), highest))


def counts_by_namespace() -> bool:
    """Whether the kernel counts the processes of a user apart in every user namespace (since Linux 5.14)."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)))) >= (5, 14)


def tasks_of(user: int) -> int:
    """Processes and threads that a user has now."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
    return count
