"""Processes of checks: started with less than this one has, and ended with all that they started.

A program can leave its group and its session (daemonize). With this process as the *subreaper*
(PR_SET_CHILD_SUBREAPER, prctl(2)) whoever loses its parent becomes a child of this process, however
far it got, and is found here: processes of featherlb's own stay in its session.
"""

import asyncio
import ctypes
import os
import pwd
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h"""
_DESCRIPTORS = 1024
"""That a program may have open: the usual limit, which this process raises for itself."""
_SHELL = "/bin/sh"
_LIMITED = 'ulimit -c 0 && ulimit -n {descriptors} && ulimit -t {seconds} && exec "$0" "$@"'
_ROUNDS = 50
"""Of looking for processes whose parent was killed a moment ago; one is enough as a rule."""
_REST = 0.02
"""Seconds between two of these rounds."""
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ")
"""Of the environment, what a program of another user gets."""
_PRIVATE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What is for this process alone."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Sessions:
    """The sessions of the programs that run now."""

    def __init__(self) -> None:
        self.leaders: set[int] = set()
        self.begun = 0
        """Programs that have perhaps been started, and are no leaders here yet."""

    @contextmanager
    def starting(self) -> Iterator[None]:
        self.begun += 1
        try:
            yield
        finally:
            self.begun -= 1

    def is_orphan(self, pid: int) -> bool:
        """Whether a child is what an ended program has left."""
        if self.begun:
            return False
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[3]) not in {os.getsid(0), *self.leaders}
        return False


_sessions = _Sessions()


@dataclass(frozen=True, slots=True)
class User:
    """Whom to run a program as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def find_user(name: str) -> User:
    """The user of this name; KeyError if there is none."""
    found = pwd.getpwnam(name)
    groups = tuple(os.getgrouplist(name, found.pw_gid))
    return User(name, found.pw_uid, found.pw_gid, groups, found.pw_dir)


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own has ended."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


async def run(
    command: Sequence[str], variables: Mapping[str, str], user: User | None, seconds: int
) -> int:
    """Run a program to its end, and return its exit code, or the signal that killed it as a
    negative number. OSError if it can't be started.

    It may use `seconds` of CPU time. When this returns, or is cancelled, nothing is left of what it
    has started.
    """
    _require(command[0])
    limited = _LIMITED.format(descriptors=_DESCRIPTORS, seconds=seconds)
    identity = {}
    if user is not None:
        identity = {"user": user.uid, "group": user.gid, "extra_groups": user.groups}
    with _sessions.starting():
        # A session of its own, so that it can be killed with all that it has started.
        process = await asyncio.create_subprocess_exec(
            _SHELL,
            "-c",
            limited,
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**_environment(user), **variables},
            cwd="/",
            start_new_session=True,
            **identity,  # type: ignore[arg-type]
        )
        _sessions.leaders.add(process.pid)
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        _sessions.leaders.discard(process.pid)
        await end_orphans()


async def end_orphans() -> None:
    """Kill and reap what ended programs have left."""
    for _ in range(_ROUNDS):
        orphans = [pid for pid in _children() if _sessions.is_orphan(pid)]
        if not orphans and not _sessions.begun:
            return
        for pid in orphans:
            # It is a child that nobody else waits for, so the number is still its own.
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in orphans:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        await asyncio.sleep(_REST)


def _children() -> list[int]:
    """This process's, of all threads."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def _require(program: str) -> None:
    """OSError if it can't be executed: the shell would tell nobody."""
    if "/" not in program:
        for directory in os.get_exec_path():
            if os.access(os.path.join(directory, program), os.X_OK):
                return
        raise FileNotFoundError(2, os.strerror(2))
    os.stat(program)
    if not os.access(program, os.X_OK):
        raise PermissionError(13, os.strerror(13))


def _environment(user: User | None) -> dict[str, str]:
    if user is None:
        return {key: value for key, value in os.environ.items() if key not in _PRIVATE}
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    return kept | {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": _SHELL}
