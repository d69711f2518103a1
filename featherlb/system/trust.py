"""Whether others than root may change what root runs.

As keepalived's `enable_script_security` judges it (keepalived.conf(5)): who may write a file, or
replace one of the directories above it, decides what it says.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path


def fault(path: Path) -> str:
    """Who else may change this file, in a few words; empty if nobody, or if there is no file."""
    try:
        places = {path.absolute(), path.resolve(strict=True)}
    except OSError:
        return ""
    for place in sorted(places):
        for part in (place, *place.parents):
            try:
                status = part.lstat()
            except OSError:
                continue
            if reason := _fault(part, status):
                return reason
    return ""


def search_path(path: str) -> str:
    """The directories of a PATH that root may run programs of: absolute ones that only root may
    change."""
    entries = [Path(one) for one in path.split(":") if one.startswith("/")]
    # Others can put programs into a directory such as /tmp, though replace none.
    return ":".join(str(one) for one in entries if not fault(one) and not _is_open(one))


def _is_open(directory: Path) -> bool:
    with suppress(OSError):
        return bool(directory.stat().st_mode & stat.S_IWOTH)
    return False


def _fault(part: Path, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        # Its mode means nothing, and what it leads to is looked at as well.
        return "" if status.st_uid == 0 else f"{part} belongs to user {status.st_uid}"
    if status.st_uid != 0:
        return f"{part} belongs to user {status.st_uid}"
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return ""  # others can't replace what is not their own there
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != 0):
        return f"{part} may be written by others (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""
