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
    _check(_libc.mount(b"bpf", target, b"bpf", ctypes.c_ulong(0), b"mode=0700"))


def unmount(directory: Path) -> None:
    """Unmount it, with which all pins in it are gone. Where none is mounted, nothing happens."""
    if is_mounted(directory):
        _check(_libc.umount2(os.fsencode(directory), _MNT_DETACH))


def is_mounted(directory: Path) -> bool:
    """Whether a BPF file system is mounted in this very directory."""
    wanted = str(directory.resolve())
    for line in _MOUNTS.read_text().splitlines():
        # Number, parent, device, root, mount point, options …, "-", type (proc_pid_mountinfo(5)).
        fields = line.split()
        point = fields[4].encode().decode("unicode_escape")
        if point == wanted and fields[fields.index("-") + 1] == "bpf":
            return True
    return False


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number or errno.EIO, os.strerror(number))
