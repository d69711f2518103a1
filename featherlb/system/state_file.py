"""Files in /run/featherlb, read and written with care: root acts on what they say.

A file counts if it is a regular one that root or this process's user owns and nobody else may
write. What is damaged is set aside for the operator, with `.bad` at the end of its name.
"""

import logging
import os
import stat
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger("featherlb")

SET_ASIDE = ".bad"
_REFUSED = "it is not a regular file"


class UnusableError(Exception):
    """A file that must not be used; the text says why, in a few words."""


def open_to_read(path: Path) -> BinaryIO:
    """The file; FileNotFoundError if there is none, UnusableError if it must not be used."""
    try:
        # Neither through a link, nor waiting for who writes into a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = _REFUSED if path.is_symlink() else (error.strerror or str(error)).lower()
        raise UnusableError(reason) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnusableError(_REFUSED)
    if reason := fault_of_owner(status):
        os.close(descriptor)
        raise UnusableError(reason)
    return open(descriptor, "rb")


def open_to_write(path: Path, mode: int) -> BinaryIO:
    """A new file of this name, in place of any other; OSError."""
    path.unlink(missing_ok=True)
    # Not through a link that somebody makes now.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    return open(descriptor, "wb")


def fault_of_owner(status: os.stat_result) -> str:
    """Why others than root and this process's user may have written it; empty if they can't."""
    if status.st_uid not in (0, os.geteuid()):
        return f"user {status.st_uid} owns it"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write it (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def set_aside(path: Path, reason: str, consequence: str) -> None:
    """Give an unusable file another name, by which nobody takes it for one of state, and warn."""
    target = path.with_name(path.name + SET_ASIDE)
    try:
        path.rename(target)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s can't be used: %s; %s (%s)", path, reason, consequence, error.strerror)
        return
    log.warning("%s can't be used: %s; it is %s now, %s", path, reason, target.name, consequence)
