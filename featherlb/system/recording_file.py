"""Files of flight recordings: what workers' flight recorders held at a moment.

A line of JSON, then each worker's memory, compressed. Who connects to whom is private: only the
file's owner may read it. The last ones of an instance are kept.
"""

import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from featherlb.model.errors import HostError
from featherlb.system import state_file

KEPT = 8
"""Files of an instance; older ones are deleted."""
_SUFFIX = ".recording"
_HEADER_LIMIT = 65536
"""Bytes of the first line, at most."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What was recorded. `epoch` added to the times in it makes seconds since the epoch; `memories`
    are by worker."""

    reason: str
    epoch: float
    memories: Mapping[int, bytes]


def epoch() -> float:
    """What has to be added to the workers' clock now (`Recording.epoch`)."""
    return time.time() - time.monotonic()


def find(directory: Path, instance: int) -> list[Path]:
    """The files of an instance, the oldest first."""
    return sorted(directory.glob(f"{instance}-*{_SUFFIX}"))


def save(directory: Path, instance: int, recording: Recording) -> Path:
    """Save a recording, and delete those that are too many; OSError if there is no room."""
    directory.mkdir(parents=True, exist_ok=True)
    parts = {worker: zlib.compress(one, 1) for worker, one in recording.memories.items()}
    header = {
        "reason": recording.reason,
        "epoch": recording.epoch,
        "workers": {worker: len(part) for worker, part in parts.items()},
    }
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    target = directory / f"{instance}-{now}{_SUFFIX}"
    fresh = target.with_suffix(".new")
    try:
        with state_file.open_to_write(fresh, 0o600) as file:
            file.write(json.dumps(header).encode() + b"\n")
            for part in parts.values():
                file.write(part)
        fresh.rename(target)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    for old in find(directory, instance)[:-KEPT]:
        old.unlink(missing_ok=True)
    return target


def load(source: Path) -> Recording:
    """A saved recording; HostError if it can't be read."""
    try:
        with source.open("rb") as file:
            header = json.loads(file.readline(_HEADER_LIMIT))
            memories = {
                int(worker): zlib.decompress(file.read(length))
                for worker, length in header["workers"].items()
            }
        return Recording(str(header["reason"]), float(header["epoch"]), memories)
    except OSError as error:
        raise HostError(f"cannot read {source}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        raise HostError(f"{source} is no recording of featherlb's") from None
