"""The process environment: privileges, packet path, queue driver, limits, clock."""

import os
from collections.abc import Iterator, Sequence

from featherlb import compiled, host
from featherlb.datapaths.base import QueueOptions
from featherlb.datapaths.nfqueue.engine import open_driver
from featherlb.doctor.finding import Finding, error, note, refusal, warning
from featherlb.doctor.subject import Subject
from featherlb.model import Driver
from featherlb.model.errors import HostError
from featherlb.system import journal, kernel_state, sysctl

SPARE_DESCRIPTORS = 128
"""Files open besides health checks: sockets of workers and of the API, logs."""
SLOW_CLOCKS = ("hpet", "acpi_pm")
"""Clock sources that are devices: reading one takes a microsecond or more."""


def check_privileges(subject: Subject) -> Iterator[Finding]:
    """Whether this process may do what `up` does."""
    yield from judge_privileges(host.missing_capabilities())


def judge_privileges(missing: Sequence[str]) -> Iterator[Finding]:
    if missing:
        yield error(
            f"this process lacks {' and '.join(missing)}, which featherlb requires, as do most of"
            " the doctor's checks",
            "sudo featherlb doctor",
        )


def check_writable(subject: Subject) -> Iterator[Finding]:
    """Whether sysctls can be changed and their old values recorded."""
    if not os.access(sysctl.ROOT / "net/ipv4/ip_forward", os.W_OK):
        yield error(
            "/proc/sys is read-only, so featherlb can't set the sysctls it needs; make it writable"
            " in the container, or set them from outside"
        )
    place = journal.ROOT if journal.ROOT.exists() else journal.ROOT.parent
    if not os.access(place, os.W_OK):
        yield error(
            f"{place} is not writable, and featherlb records there what it has to undo; mount it",
            f"mount -t tmpfs tmpfs {place}",
        )


def check_packet_path(subject: Subject) -> Iterator[Finding]:
    """Whether the packet path runs compiled."""
    reason = compiled.why_interpreted()
    if reason is not None:
        message, command = reason
        yield warning(f"the packet path runs interpreted, many times slower: {message}", command)


def check_queue_driver(subject: Subject) -> Iterator[Finding]:
    """Binds a free queue briefly."""
    driver = subject.config.driver if subject.config else Driver.NETLINK
    try:
        queue = open_driver(QueueOptions(host.free_queue(1), driver, length=1, fail_open=False))
    except HostError as problem:
        yield refusal(problem)
        return
    queue.close()


def check_descriptors(subject: Subject) -> Iterator[Finding]:
    """Whether health checks can open as many sockets as they need."""
    checked = sum(
        len(service.backends) for service in subject.services if subject.check_of(service)
    )
    yield from judge_descriptors(
        kernel_state.descriptors(subject.owner), checked, subject.running is not None
    )


def judge_descriptors(
    found: kernel_state.Descriptors | None, checked: int, running: bool
) -> Iterator[Finding]:
    """`checked` is the number of backends with health checks."""
    if found is None:
        return
    needed = checked + SPARE_DESCRIPTORS
    if found.limit < needed:
        yield warning(
            f"the limit of {found.limit} open files is too low: health checks of {checked} backends"
            f" may need {needed}; raise it before `featherlb up`",
            f"ulimit -n {needed}",
        )
    elif running and found.open > found.limit * 0.9:
        yield warning(
            f"the supervisor has {found.open} of {found.limit} files open; raise the limit and"
            " restart it",
            f"ulimit -n {found.limit * 4}",
        )


def check_clock(subject: Subject) -> Iterator[Finding]:
    """Whether reading the clock is cheap."""
    yield from judge_clock(*kernel_state.clock_source())


def judge_clock(current: str, available: Sequence[str]) -> Iterator[Finding]:
    if current in SLOW_CLOCKS:
        fast = next((one for one in available if one not in SLOW_CLOCKS), None)
        path = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
        yield (warning if fast else note)(
            f"the clock source is {current}, which makes every clock reading slow",
            f"echo {fast} > {path}" if fast else "",
        )
