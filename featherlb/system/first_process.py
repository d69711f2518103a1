"""Process 1 of a container: starts the process that does the work, passes signals on to it, and
reaps what loses its parent.

What `docker exec` starts and leaves running becomes a child of process 1, as do orphans everywhere.
Featherlb's own supervisor ends orphans, as those of its checks' scripts must not stay
(`processes.py`), so it must not be process 1.
"""

import os
import signal

PASSED_ON = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
)


def leave_it() -> None:
    """If this is process 1, return in a child of it. Process 1 ends with that child, with the same
    exit code; after a signal 128 and its number, as shells have it."""
    if os.getpid() != 1:
        return
    awaited = PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = os.fork()
    if child == 0:
        # What a terminal sends would reach it twice.
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        received = signal.sigwait(awaited)
        if received != signal.SIGCHLD:
            os.kill(child, received)
            continue
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                os._exit(code if code >= 0 else 128 - code)
