"""The machine and the versions that a result belongs to."""

import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

VERSIONS = {
    "featherlb": ["featherlb", "--version"],
    "haproxy": ["haproxy", "-v"],
    "nginx": ["nginx", "-v"],
    "nftables": ["nft", "--version"],
    "wrk": ["wrk", "-v"],
    "iperf3": ["iperf3", "--version"],
}


def gather(command: list[str]) -> dict[str, object]:
    """Facts by name; `command` is the command line that makes the result."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(command),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "Linux"),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "commit": _output(["git", "describe", "--always", "--dirty"]),
        "versions": {
            name: version
            for name, command in VERSIONS.items()
            if (version := parse_version(_output(command)))
        },
    }


def parse_version(output: str) -> str:
    """The version number in the first line of a program's version output."""
    found = re.search(r"\d+(\.\d+)+\S*", output.partition("\n")[0])
    return found[0].rstrip(",") if found else ""


def _output(command: list[str]) -> str:
    beside = Path(sys.executable).with_name(command[0])
    program = str(beside) if beside.exists() else shutil.which(command[0])
    if program is None:
        return ""
    ended = subprocess.run(
        [program, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=10,
    )
    return ended.stdout.strip()


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
