"""Limits and counters of the kernel that explain packet loss."""

import os
import resource
from dataclasses import dataclass
from pathlib import Path

MAX_DESCRIPTORS = 1 << 16
"""As many as the supervisor may ever want. Children that walk through all possible descriptors have
a reason to dislike more."""
_NET = Path("/proc/thread-self/net")
_CLOCK = Path("/sys/devices/system/clocksource/clocksource0")


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Open files of a process, and their limit."""

    open: int
    limit: int


def memory() -> int:
    """Bytes of this host's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def network_counters() -> dict[str, int]:
    """`TcpExt` and `IpExt` of this namespace, by the names of /proc/net/netstat."""
    found: dict[str, int] = {}
    lines = [line.split() for line in (_NET / "netstat").read_text().splitlines()]
    # Lines of names and of values alternate; each starts with the group's name.
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        found.update(zip(names[1:], map(int, values[1:]), strict=True))
    return found


def clock_source() -> tuple[str, list[str]]:
    """The current clock source and the available ones; empty if unknown."""
    try:
        current = (_CLOCK / "current_clocksource").read_text().strip()
        available = (_CLOCK / "available_clocksource").read_text().split()
    except OSError:
        return "", []
    return current, available


def raise_descriptor_limit() -> None:
    """Let this process and its children open as many descriptors as they may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptors(pid: int | None = None) -> Descriptors | None:
    """The descriptors of a process, by default this one; None if inaccessible."""
    directory = Path(f"/proc/{pid or 'self'}")
    try:
        limits = (directory / "limits").read_text().splitlines()
        count = len(os.listdir(directory / "fd"))
    except OSError:
        return None
    words = next(line.split() for line in limits if line.startswith("Max open files"))
    unlimited = words[3] == "unlimited"
    return Descriptors(count, resource.RLIM_INFINITY if unlimited else int(words[3]))
