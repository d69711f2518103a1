"""The BPF file system, where maps, programs and links have names: what is pinned there outlives the
process that made it.

featherlb mounts one of its own: /sys/fs/bpf may not be mounted, and `ip netns exec` mounts another
/sys over it.
"""

import ctypes
import errno
import os
from pathlib import Path

MAGIC = 0xCAFE4A11
"""BPF_FS_MAGIC (include/uapi/linux/magic.h)."""
OURS = "featherlb"
"""The source of our mounts in the list of mounts."""
_MNT_DETACH = 2
_MOUNTS = Path("/proc/thread-self/mountinfo")

_libc = ctypes.CDLL(None, use_errno=True)


def mount(directory: Path) -> None:
    """Mount one in this directory, which is created if need be, readable by root only. OSError
    without CAP_SYS_ADMIN. One that is mounted there already stays."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if is_mounted(directory):
        return
    target = os.fsencode(directory)
    _check(_libc.mount(OURS.encode(), target, b"bpf", ctypes.c_ulong(0), b"mode=0700"))


def unmount(directory: Path) -> None:
    """Unmount one that `mount` has mounted, with which all pins in it are gone; any other stays."""
    if source(directory) == OURS:
        _check(_libc.umount2(os.fsencode(directory), _MNT_DETACH))


def is_mounted(directory: Path) -> bool:
    """Whether a BPF file system is mounted in this very directory."""
    return source(directory) is not None


def source(directory: Path) -> str | None:
    """What a BPF file system that is mounted in this very directory was mounted as: `OURS`, or what
    somebody else has said; None if there is none."""
    wanted = str(directory.resolve())
    found = None
    for line in _MOUNTS.read_text().splitlines():
        # Number, parent, device, root, mount point, options …, "-", type (proc_pid_mountinfo(5)).
        fields = line.split()
        point = fields[4].encode().decode("unicode_escape")
        kind = fields.index("-") + 1
        if point == wanted:
            found = fields[kind + 1] if fields[kind] == "bpf" else None
        elif wanted.startswith(f"{point.rstrip('/')}/"):
            found = None  # a later mount above hides it
    return found


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number or errno.EIO, os.strerror(number))
