"""The key of the hashes that place flows, where the configuration has none. It is generated at the
first start and kept, so that flows have the same backends after a restart or a reboot; a known key,
such as none at all, would let clients choose their backend.
"""

import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from featherlb.system import state_file

log = logging.getLogger("featherlb")

ROOT = Path("/var/lib/featherlb")
"""For state that survives a reboot, unless systemd says another place (systemd.exec(5),
StateDirectory)."""
NAME = "hash-key"
DIGITS = 32
"""Hexadecimal digits of a generated key."""
CONFIGURED = "configuration"
THIS_RUN = "this run"


@dataclass(frozen=True, slots=True)
class HashKey:
    """A key, and its place: `CONFIGURED`, a file, or `THIS_RUN` if it could not be kept."""

    key: bytes
    place: str


def choose(configured: str) -> HashKey:
    """The configured key, or the one of this host, which is made if there is none. Blocks."""
    if configured:
        return HashKey(configured.encode(), CONFIGURED)
    path = directory() / NAME
    try:
        return HashKey(_read_or_make(path), str(path))
    except (OSError, state_file.UnusableError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        log.warning(
            "hash_key is empty, and a generated one can't be kept in %s (%s): hash schedulers place"
            " flows by a key that ends with this process; set hash_key, or make %s writable",
            path.parent,
            reason.lower(),
            path.parent,
        )
        return HashKey(_new(), THIS_RUN)


def find(configured: str) -> bytes:
    """The key by which this host's instance places flows, if it can be known here; else none."""
    if configured:
        return configured.encode()
    try:
        return _read(directory() / NAME)
    except (OSError, state_file.UnusableError):
        return b""


def directory() -> Path:
    """The directory for state that survives a reboot."""
    return Path(os.environ.get("STATE_DIRECTORY", "").partition(":")[0] or ROOT)


def _read_or_make(path: Path) -> bytes:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if fault := state_file.fault_of_owner(path.parent.stat()):
        raise state_file.UnusableError(fault)
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except state_file.UnusableError as error:
        state_file.set_aside(path, str(error), "and a new key is made")
    return _make(path)


def _read(path: Path) -> bytes:
    """The key in a file; FileNotFoundError, UnusableError."""
    with state_file.open_to_read(path) as file:
        key = file.read(DIGITS + 2).strip()
        if os.fstat(file.fileno()).st_mode & 0o077:
            log.warning("others may read %s, and choose their backend by it: chmod 600 it", path)
    if len(key) != DIGITS or set(key) - set(b"0123456789abcdef"):
        raise state_file.UnusableError("it doesn't hold a key")
    return key


def _make(path: Path) -> bytes:
    """A new key in a file, unless another process makes one at the same time."""
    key = _new()
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with state_file.open_to_write(draft, 0o600) as file:
            file.write(key + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return _read(path)
    finally:
        draft.unlink(missing_ok=True)
    log.info(
        "the hash schedulers' key is in %s; balancers that share clients need it as hash_key",
        path,
    )
    return key


def _new() -> bytes:
    return secrets.token_hex(DIGITS // 2).encode()
