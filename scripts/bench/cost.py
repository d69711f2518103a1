"""A balancer's CPU time and memory, read from /proc. Processes are charged for the system
calls they make and for the interrupts that hit them while they run; work that the kernel does
for packets outside of them is in `system_cpu` alone.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
"""Seconds of one clock tick, the unit of CPU times in /proc (proc(5))."""
TOOLS = {"conntrack", "ip", "ipset", "nft", "xtables-legacy-multi", "xtables-nft-multi"}
"""Programs that a balancer runs for a moment now and then, to look at the host's rules."""


def lasting(pids: Iterable[int], proc: Path = Path("/proc")) -> list[int]:
    """Those that do not run one of the `TOOLS`."""
    found = []
    for pid in pids:
        # A process may end while it is looked at.
        with suppress(OSError):
            if (proc / str(pid) / "exe").readlink().name not in TOOLS:
                found.append(pid)
    return found


def process_cpu(pids: Iterable[int], proc: Path = Path("/proc")) -> float:
    """Seconds in user and system mode of these processes, all threads, so far."""
    total = 0
    for pid in pids:
        # The name in parentheses may contain blanks; utime and stime are fields 14 and 15.
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total * TICK


def system_cpu(proc: Path = Path("/proc")) -> float:
    """Seconds in which the machine's CPUs were not idle, interrupts included, since boot."""
    user, nice, system, _idle, _iowait, irq, softirq = map(
        int, (proc / "stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) * TICK


def memory(pids: Iterable[int], proc: Path = Path("/proc")) -> tuple[int, int]:
    """Bytes held now, shared pages divided among their users (PSS), and the sum of each
    process's largest resident set so far (peak RSS; counts shared pages once a process)."""
    pss = rss = 0
    for pid in pids:
        pss += _kilobytes(proc / str(pid) / "smaps_rollup", "Pss:")
        rss += _kilobytes(proc / str(pid) / "status", "VmHWM:")
    return pss, rss


def _kilobytes(path: Path, key: str) -> int:
    with suppress(StopIteration):
        line = next(line for line in path.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024
    return 0
