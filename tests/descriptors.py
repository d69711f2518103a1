"""A process that has no descriptors left."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open so many files more, and no others. What is open stays open."""
    free: list[int] = []
    try:
        for _ in range(count + 1):
            free.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for descriptor in free:
            os.close(descriptor)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))
