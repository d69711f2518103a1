"""Gives up for good what a process no longer needs: capabilities, programs, files, system calls.

A worker parses what strangers send. Whoever takes it over shall be able to do with packets what the
worker does, and nothing else: run no program, change no file but those of featherlb's state, and
reach no part of the kernel that packets don't need.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from featherlb.system.ebpf import MAP_COMMANDS, maps_need_capability

CAP_NET_ADMIN, CAP_NET_RAW = 12, 13  # linux/capability.h
CAP_DAC_READ_SEARCH, CAP_KILL, CAP_SETGID, CAP_SETUID = 2, 5, 6, 7
CAP_NET_BIND_SERVICE, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_BPF = 10, 19, 21, 39
SUPERVISOR = frozenset(
    {
        CAP_NET_ADMIN,
        CAP_NET_RAW,
        CAP_NET_BIND_SERVICE,  # the API on a port below 1024
        CAP_DAC_READ_SEARCH,  # a configuration in somebody's home directory
        CAP_SYS_PTRACE,  # the names of programs that listen on a port
        CAP_SETUID,  # this and the next two: scripts of checks as another user
        CAP_SETGID,
        CAP_KILL,
        CAP_BPF,  # the programs that answer SYNs and that carry flows
    }
)
"""Of root's capabilities, what the supervisor has a use for; only the first two are necessary."""
WORKER = frozenset({CAP_NET_ADMIN, CAP_NET_RAW})

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38  # linux/prctl.h
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER = 47, 3
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522

_SECCOMP_SET_MODE_FILTER, _SECCOMP_SPEC_ALLOW = 1, 1 << 2  # linux/seccomp.h
"""The flag: before Linux 5.16 a filter also turns off speculation past stores, which makes the
packet path slower and protects only processes that run code of several owners."""
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
"""BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_JMP | BPF_JGE | BPF_K, BPF_RET | BPF_K
(linux/bpf_common.h)."""
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in `struct seccomp_data`; of the argument, the lower half, as these machines have it."""
_X32 = 0x40000000
"""Numbers of the x32 ABI, by which the same calls could be made past the filter."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* (linux/audit.h)."""
_COLUMNS = tuple(_ARCHITECTURES)
_SECCOMP = (317, 277)
"""Number of seccomp(2) on each."""
_REFUSED = {
    # Other programs, and other processes.
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    # Identity: it has none to change to.
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    # Mounts and namespaces.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "mknod": (133, None),
    "mknodat": (259, 33),
    # Parts of the kernel with a history of holes, or for its owner alone.
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "personality": (135, 92),
    "syslog": (103, 116),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
"""System calls and their numbers on each of the architectures (the kernel's
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h). A list of what is
refused, since what Python and the C library need changes with their versions."""

_BPF = (321, 280)
"""Number of bpf(2): workers may use the maps that the supervisor has made (`MAP_COMMANDS`)."""

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
_RIGHTS = (13, 14, 15)
"""Number of rights by ABI version (linux/landlock.h): the 13 of the first, REFER, TRUNCATE."""
_READING = 1 << 2 | 1 << 3
"""LANDLOCK_ACCESS_FS_READ_FILE and _READ_DIR."""

_libc = ctypes.CDLL(None, use_errno=True)


def confine(writable: Iterable[Path] = (), kept: Iterable[int] | None = None) -> list[str]:
    """Keep these capabilities, by default a worker's, and change files only beneath these
    directories. What this kernel has no means for is named, as a few words each. It holds for
    children as well.
    """
    missing = []
    if kept is None:
        kept = WORKER | {CAP_BPF} if maps_need_capability() else WORKER
    drop_capabilities(kept)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    try:
        _restrict_files(writable)
    except OSError as error:
        missing.append(f"Landlock ({os.strerror(error.errno or 0).lower()})")
    try:
        _filter_calls()
    except OSError as error:
        missing.append(f"a filter of system calls ({os.strerror(error.errno or 0).lower()})")
    return missing


def has_capability(number: int) -> bool:
    """Whether this process has a capability (capabilities(7)) in its effective set."""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> number & 1)


def drop_capabilities(kept: Iterable[int]) -> None:
    """Give up all capabilities but these, for good: also those that a program could give back. It
    holds for this thread and the threads and processes that it starts."""
    keep = set(kept)
    for number in range(_LAST_CAPABILITY + 1):
        if number not in keep:
            # Not without CAP_SETPCAP, and then none can be gained anyway (no_new_privs).
            with suppress(OSError):
                _prctl(_PR_CAPBSET_DROP, number)
            with suppress(OSError):
                _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_LOWER, number)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    found = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, found))
    mask = sum(1 << number for number in keep)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    sets = struct.unpack("=6I", found.raw)
    # Effective, permitted, inheritable; first the low words.
    less = (*(one & low for one in sets[:3]), *(one & high for one in sets[3:]))
    try:
        if less != sets:
            _check(_libc.capset(header, struct.pack("=6I", *less)))
    except OSError:
        # A service manager may have refused the call, but not without having dropped them itself.
        if (less[1], less[4]) != (sets[1], sets[4]):
            raise


def _restrict_files(writable: Iterable[Path]) -> None:
    """Refuse to write, make, remove and execute files elsewhere (Landlock); OSError if this kernel
    has none."""
    version = _syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    rights = (1 << _RIGHTS[min(version, len(_RIGHTS)) - 1]) - 1
    handled = struct.pack("=Q", rights & ~_READING)
    ruleset = _syscall(_LANDLOCK_CREATE, handled, len(handled), 0)
    try:
        for directory in writable:
            with suppress(FileNotFoundError):
                place = os.open(directory, os.O_PATH | os.O_DIRECTORY)
                # All but EXECUTE.
                rule = struct.pack("=Qi", rights & ~_READING & ~1, place)
                try:
                    _syscall(_LANDLOCK_ADD, ruleset, _LANDLOCK_PATH_BENEATH, rule, 0)
                finally:
                    os.close(place)
        _syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _filter_calls() -> None:
    """Refuse system calls with EPERM (seccomp, mode filter); OSError if this kernel can't."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, "")
    column = _COLUMNS.index(machine)
    numbers = [by_column[column] for by_column in _REFUSED.values()]
    refused = [number for number in numbers if number is not None]
    program = _program(_ARCHITECTURES[machine], refused, _BPF[column])
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _syscall(_SECCOMP[column], _SECCOMP_SET_MODE_FILTER, _SECCOMP_SPEC_ALLOW, fprog)


def _program(
    architecture: int, refused: Sequence[int], bpf: int
) -> list[tuple[int, int, int, int]]:
    """The filter in classic BPF: operation, jumps if true and if false, operand."""
    commands = sorted(MAP_COMMANDS)
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, len(commands) + 2, bpf),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        # Each jumps to the last line but one.
        *((_EQUAL, len(commands) - i + len(refused) + 1, 0, one) for i, one in enumerate(commands)),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        # Each jumps to the last line; the last comparison skips one.
        (_AT_LEAST, len(refused) + 1, 0, _X32),
        *((_EQUAL, len(refused) - i, 0, number) for i, number in enumerate(refused)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]


def _prctl(option: int, *arguments: object) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _check(_libc.prctl(option, *(_long(one) for one in padded)))


def _syscall(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *(_long(one) for one in arguments))
    return _check(result)


def _long(argument: object) -> object:
    # Variadic functions take what they get: an int of 32 bits would leave the rest undefined.
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
