"""Flow files: flows saved by an ending instance for the next one with the same number.

Each worker has a file next to the journal's records, in memory like all of /run: a line of JSON
that describes the owner, then the worker's memory as it was. Times count from boot, so a file is
useless after a reboot, and nothing depends on the host's clock, which may be set meanwhile.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from featherlb.core.flows.memory import FLOW_SIZE, LAYOUT, FlowMemory, size_of
from featherlb.model.shard import Shard
from featherlb.system import state_file

FRESH = 3600.0
"""Seconds after which the connections in a file count as ended."""
_HEADER_LIMIT = 4096
"""Bytes of the first line, at most."""
_SUFFIX = ".flows"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def path(directory: Path, instance: int, worker: int) -> Path:
    """Where a worker of an instance saves its flows."""
    return directory / f"{instance}-{worker}{_SUFFIX}"


def find(directory: Path, instance: int | None = None) -> list[Path]:
    """The files of this instance, or of all."""
    name = "*" if instance is None else f"{instance}-*"
    return sorted(directory.glob(name + _SUFFIX))


def find_all(directory: Path) -> list[Path]:
    """The files of all instances, also those that were set aside."""
    return sorted([*find(directory), *directory.glob("*" + _SUFFIX + state_file.SET_ASIDE)])


def save(target: Path, memory: FlowMemory, shard: Shard) -> None:
    """Save the flows and delete expired files; OSError if there is no room."""
    _sweep(target.parent.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    try:
        # Who connects to whom is private.
        with state_file.open_to_write(fresh, 0o600) as file:
            file.write(json.dumps(_header(shard)).encode() + b"\n")
            for part in memory.parts():
                file.write(part)
        fresh.rename(target)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def load(source: Path) -> FlowMemory | None:
    """The flows in a file; None if they can't be restored."""
    with _opened(source) as file:
        if file is not None and _read_shard(_first_line(file)) is not None:
            block = bytearray(file.read())
            flows = len(block) - size_of(0)
            if flows >= 0 and not flows % FLOW_SIZE:
                return FlowMemory(block)
    return None


def read_shard(source: Path) -> Shard | None:
    """The shard of the worker that saved the file; None if its flows can't be restored."""
    with _opened(source) as file:
        return None if file is None else _read_shard(_first_line(file))


def is_of_another_version(source: Path) -> bool:
    """Whether a featherlb with another layout of records saved these flows, since the last boot."""
    with _opened(source) as file, suppress(ValueError, KeyError, TypeError, RecursionError):
        if file is not None:
            header = json.loads(_first_line(file))
            if header["boot"] == _boot() and _is_fresh(header):
                return bool(header["layout"] != LAYOUT)
    return False


def fault(source: Path) -> str:
    """Why a file is damaged: no ending instance writes the like. Empty if it is whole, of another
    version or boot, or has expired."""
    try:
        with state_file.open_to_read(source) as file:
            header = json.loads(_first_line(file))
            size = os.fstat(file.fileno()).st_size - file.tell()
            if header["layout"] != LAYOUT or header["boot"] != _boot():
                return ""
            Shard(**header["shard"])
            if size < size_of(0) or (size - size_of(0)) % FLOW_SIZE:
                return "it is cut"
    except FileNotFoundError:
        pass
    except state_file.UnusableError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "it has no flows"
    return ""


@contextmanager
def _opened(source: Path) -> Iterator[BinaryIO | None]:
    """The file, None if it can't be used."""
    try:
        file = state_file.open_to_read(source)
    except (FileNotFoundError, state_file.UnusableError):
        yield None
        return
    with file, suppress(OSError):
        yield file


def _first_line(file: BinaryIO) -> bytes:
    return file.readline(_HEADER_LIMIT)


def _sweep(root: Path) -> None:
    """Delete expired files, whatever others change in the directories meanwhile."""
    with suppress(OSError):
        for directory in list(root.iterdir()):
            with suppress(OSError):
                stale = [file for file in find_all(directory) if _is_stale(file)]
                for file in stale:
                    file.unlink()
                if stale:
                    directory.rmdir()


def _is_stale(path: Path) -> bool:
    """Whether it may be deleted. Of one that says nothing of its age, the host's clock decides: it
    is of no use, but an operator may want to look at it."""
    with _opened(path) as file, suppress(ValueError, KeyError, TypeError, RecursionError):
        if file is not None:
            header = json.loads(_first_line(file))
            return header["boot"] != _boot() or not _is_fresh(header)
    return time.time() - path.lstat().st_mtime >= FRESH


def _header(shard: Shard) -> dict[str, Any]:
    return {
        "layout": LAYOUT,
        "boot": _boot(),
        "saved": time.clock_gettime(time.CLOCK_BOOTTIME),
        "shard": asdict(shard),
    }


def _read_shard(line: bytes) -> Shard | None:
    """None if it is another's: of a boot, a layout, or too old."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        header = json.loads(line)
        shard = Shard(**header["shard"])
        wanted = _header(shard) | {"saved": header["saved"]}
        if header == wanted and _is_fresh(header):
            return shard
    return None


def _boot() -> str:
    return _BOOT.read_text().strip()


def _is_fresh(header: dict[str, Any]) -> bool:
    """TypeError or KeyError if it doesn't say when it was written, in seconds since boot."""
    age: float = time.clock_gettime(time.CLOCK_BOOTTIME) - header["saved"]
    return 0 <= age < FRESH
