"""A journal of what each instance changes on this host, written before the change. One JSON file
per instance is in /run/featherlb/<network namespace>/; /run is emptied by a reboot, as are the
changes. A record carries the owner's pid and its start time, so that a recycled pid isn't taken for
the owner. Readers and writers hold the journal's lock: changes to the host and their records are
made by one process at a time.

A record that can't be read is none. `damaged` finds it, for those who clean up to set it aside.
"""

import fcntl
import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from featherlb.model.errors import HostError
from featherlb.system import state_file

ROOT = Path("/run/featherlb")
LOCK_TIMEOUT = 120.0
"""Seconds to wait for the lock: a change of the host takes some, at most two runs of iptables that
hang (`iptables.RUN_TIMEOUT`)."""
LOCK_INTERVAL = 0.02
"""Seconds between two tries."""

_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
_EARLIER = {"tracked": "carried", "untracked": "untracked", "queued": "queued", "dropped": "raw"}
"""Claims, and their keys in records of an earlier version, whose changes have to be reverted,
too."""


VipRow = tuple[str, str, int, int]
"""Protocol, address, first and last port."""


@dataclass(frozen=True, slots=True)
class Record:
    """One instance: its owner, what it serves and what it has changed."""

    instance: int
    workers: int
    pid: int
    started: int
    """Clock ticks from boot to the owner's start (proc_pid_stat(5), field 22)."""
    vips: tuple[VipRow, ...]
    sources: tuple[str, ...]
    """Backends with the addresses that `full` mode sends to them from."""
    order: int
    """Greater than that of each instance that ran when this one started."""
    earlier: tuple[int, ...]
    """The orders of those instances."""
    changes: tuple[dict[str, Any], ...]
    """As `featherlb.host.resources` encodes them, in the order they were made."""
    claims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By how their replies are handled (`datapaths.host_side.Replies`), its backends."""
    offloads: bool = False
    """The kernel forwards its flows, which need these changes even after the owner has ended."""

    @property
    def alive(self) -> bool:
        """Whether the owner still runs."""
        return start_time(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that can't be read."""

    path: Path
    reason: str
    used: bool
    """Its owner runs: somebody listens to the API's socket beside it."""

    @property
    def instance(self) -> int | None:
        """The instance's number, by the file's name."""
        return int(self.path.stem) if re.fullmatch("[0-9]{1,5}", self.path.stem) else None


class Journal:
    """The records of this network namespace; HostError if /run cannot be written."""

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self.directory = root / _namespace()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock that all instances of this host share; not reentrant. HostError if another
        process doesn't release it."""
        try:
            self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise HostError(
                f"cannot use {self._root}: {error.strerror}; featherlb keeps its record of what"
                " to revert there and needs to write it"
            ) from None
        try:
            self._check_owner(self._root, os.fstat(descriptor))
            with suppress(FileNotFoundError):
                self._check_owner(self.directory, self.directory.lstat())
            self._lock(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        # flock(2) itself waits for good.
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HostError(
                        f"another featherlb has kept {self._root} locked for {LOCK_TIMEOUT:g} s;"
                        f" continue or end that process (`fuser {self._root}` names it)"
                    ) from None
            time.sleep(LOCK_INTERVAL)

    def records(self) -> list[Record]:
        """All records that can be read, by instance, of owners alive and dead."""
        found = [one for _, one in self._read() if isinstance(one, Record)]
        return sorted(found, key=lambda record: record.instance)

    def damaged(self) -> list[Damaged]:
        """What should be records, and can't be read."""
        return [
            Damaged(path, reason, _listened_to(path.with_suffix(".sock")))
            for path, reason in self._read()
            if isinstance(reason, str)
        ]

    def _read(self) -> Iterator[tuple[Path, Record | str]]:
        """Each record, or why it is none."""
        for path in sorted(self.directory.glob("*.json")):
            # Complete whenever it exists (renamed into place); it may just have been removed.
            with suppress(FileNotFoundError):
                try:
                    with state_file.open_to_read(path) as file:
                        record = _decode(file.read())
                    if path.stem != str(record.instance):
                        raise ValueError("it is of another instance")
                except state_file.UnusableError as error:
                    yield path, str(error)
                except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                    yield path, f"it is no record of this version ({_shown(error)})"
                else:
                    yield path, record

    @staticmethod
    def _check_owner(path: Path, status: os.stat_result) -> None:
        """HostError if others could have put files there."""
        reason = state_file.fault_of_owner(status)
        if not stat.S_ISDIR(status.st_mode):
            reason = "it is no directory"
        if reason:
            raise HostError(
                f"cannot trust {path}: {reason}; remove it, or give it to root with mode 0755"
            )

    def write(self, record: Record) -> None:
        """Put the record on disk, in place of the instance's previous one.

        HostError if that can't be done; the previous one stays then.
        """
        path = self._path(record.instance)
        fresh = path.with_suffix(".new")
        try:
            self.directory.mkdir(exist_ok=True)
            with state_file.open_to_write(fresh, 0o644) as file:
                file.write(json.dumps(asdict(record)).encode())
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise HostError(
                f"cannot write {path}: {error.strerror}; featherlb changes nothing on this host"
                " without a record of how to revert it: make room there"
            ) from None

    def remove(self, instance: int) -> None:
        """Forget the instance, and remove its API's socket; no error if there is no record."""
        self._path(instance).unlink(missing_ok=True)
        self._path(instance).with_suffix(".sock").unlink(missing_ok=True)
        with suppress(OSError):
            self.directory.rmdir()  # only when it is empty

    def set_aside(self, instance: int, reason: str, consequence: str) -> None:
        """Put the instance's record out of the way, and remove its API's socket."""
        state_file.set_aside(self._path(instance), reason, consequence)
        self._path(instance).with_suffix(".sock").unlink(missing_ok=True)

    def sweep(self) -> list[str]:
        """Remove sockets on which nobody listens and empty directories, of this and other network
        namespaces, which may be gone; a line for each."""
        removed = []
        with self.locked():
            for directory in sorted(self._root.glob("*-*/")):
                for path in sorted(directory.glob("*.sock")):
                    if not path.with_suffix(".json").exists() and not _listened_to(path):
                        path.unlink(missing_ok=True)
                        removed.append(f"socket {path}")
                with suppress(OSError):
                    directory.rmdir()
                    removed.append(f"empty directory {directory}")
        return removed

    def _path(self, instance: int) -> Path:
        return self.directory / f"{instance}.json"


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, field 2, is in parentheses and may hold anything, even parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _listened_to(path: Path) -> bool:
    """Whether a Unix socket has a listener, in whatever network namespace."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _decode(text: bytes) -> Record:
    """The record in a file; ValueError, KeyError, TypeError, IndexError or RecursionError if it is
    none."""
    data = json.loads(text)
    vips = tuple((vip[0], vip[1], vip[2], vip[3]) for vip in data.pop("vips"))
    claims = data.pop("claims", None)
    if claims is None:
        claims = {name: data.pop(key) for name, key in _EARLIER.items()}
        data["offloads"] = data.pop("carries")
    claims = {name: tuple(backends) for name, backends in claims.items()}
    lists: dict[str, Any] = {
        name: tuple(data.pop(name)) for name in ("sources", "earlier", "changes")
    }
    record = Record(vips=vips, claims=claims, **lists, **data)
    for name, address, first, last in vips:
        if name not in ("tcp", "udp"):
            raise ValueError(f"{name!r:.40} is no protocol")
        ip_address(address)
        _require(int, first, last)
    _require(int, record.instance, record.workers, record.pid, record.started, record.order)
    _require(int, *record.earlier)
    _require(str, *record.sources, *(one for some in claims.values() for one in some))
    _require(dict, *record.changes)
    _require(bool, record.offloads)
    return record


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _require(kind: type, *values: object) -> None:
    """TypeError if one of these isn't of this type."""
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r:.40} is no {kind.__name__}")


def _namespace() -> str:
    """A name for this network namespace: its cookie, or on old kernels its inode."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            cookie = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        return f"net-{int.from_bytes(cookie, sys.byteorder)}"
    except OSError:
        return f"inode-{os.stat('/proc/self/ns/net').st_ino}"
