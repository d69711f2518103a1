"""Flow files: flows saved by an ending instance for the next one with the same number.

Each worker has a file next to the journal's records, in memory like all of /run: a line of JSON
that describes the owner, then the worker's memory as it was. Times count from boot, so a file is
useless after a reboot.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featherlb.core.flows.memory import HOP_SIZE, LAYOUT, FlowMemory, size_of
from featherlb.core.flows.record import RECORD_SIZE
from featherlb.model.shard import Shard

FRESH = 3600.0
"""Seconds after which the connections in a file count as ended."""
_SUFFIX = ".flows"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def path(directory: Path, instance: int, worker: int) -> Path:
    """Where a worker of an instance saves its flows."""
    return directory / f"{instance}-{worker}{_SUFFIX}"


def find(directory: Path, instance: int | None = None) -> list[Path]:
    """The files of this instance, or of all."""
    name = "*" if instance is None else f"{instance}-*"
    return sorted(directory.glob(name + _SUFFIX))


def save(target: Path, memory: FlowMemory, shard: Shard) -> None:
    """Save the flows and delete expired files; OSError if there is no room."""
    _sweep(target.parent.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    try:
        # Who connects to whom is private.
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(json.dumps(_header(shard)).encode() + b"\n")
            for part in memory.parts():
                file.write(part)
        fresh.rename(target)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def load(source: Path) -> FlowMemory | None:
    """The flows in a file; None if they can't be restored."""
    with suppress(OSError), source.open("rb") as file:
        if _read_shard(file.readline()) is not None and _is_fresh(source):
            block = bytearray(file.read())
            flows = len(block) - size_of(0)
            if flows >= 0 and not flows % (RECORD_SIZE + HOP_SIZE):
                return FlowMemory(block)
    return None


def read_shard(source: Path) -> Shard | None:
    """The shard of the worker that saved the file; None if its flows can't be restored."""
    with suppress(OSError), source.open("rb") as file:
        return _read_shard(file.readline())
    return None


def is_of_another_version(source: Path) -> bool:
    """Whether a featherlb with another layout of records saved these flows, since the last boot."""
    with suppress(OSError, ValueError, KeyError, TypeError), source.open("rb") as file:
        header = json.loads(file.readline())
        if header["boot"] == _BOOT.read_text().strip() and _is_fresh(source):
            return bool(header["layout"] != LAYOUT)
    return False


def _sweep(root: Path) -> None:
    """Delete expired files, whatever others change in the directories meanwhile."""
    with suppress(OSError):
        for directory in list(root.iterdir()):
            with suppress(OSError):
                stale = [file for file in find(directory) if not _is_fresh(file)]
                for file in stale:
                    file.unlink()
                if stale:
                    directory.rmdir()


def _header(shard: Shard) -> dict[str, Any]:
    return {"layout": LAYOUT, "boot": _BOOT.read_text().strip(), "shard": asdict(shard)}


def _read_shard(line: bytes) -> Shard | None:
    with suppress(ValueError, KeyError, TypeError):
        shard = Shard(**json.loads(line)["shard"])
        if json.loads(line) == _header(shard):
            return shard
    return None


def _is_fresh(file: Path) -> bool:
    return time.time() - file.stat().st_mtime < FRESH
