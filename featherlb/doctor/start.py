"""What `featherlb up` or a reload would refuse, and what instances have left behind."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from featherlb import host
from featherlb.doctor.finding import Finding, error, note, refusal
from featherlb.doctor.subject import Subject
from featherlb.model import Datapath
from featherlb.model.errors import HostError
from featherlb.system import ipset, iptables
from featherlb.system.journal import Record


def check_kernel(subject: Subject) -> Iterator[Finding]:
    """Tables and extensions of iptables, where no service says which are needed."""
    if subject.facts is not None and subject.services:
        return
    try:
        host.check_kernel([4], workers=1, full=False)
    except HostError as problem:
        yield refusal(problem)


def check_refusals(subject: Subject) -> Iterator[Finding]:
    """Everything that keeps the services from running here."""
    if subject.facts is None:
        return
    found = host.problems(subject.services, subject.options, subject.facts, owner=subject.owner)
    yield from map(refusal, found)


def check_datapaths(subject: Subject) -> Iterator[Finding]:
    """Which datapaths can't be had here, and why."""
    used = {service.datapath for service in subject.services}
    yield from judge_datapaths(host.usable(subject.services), used)


def judge_datapaths(
    obstacles: Mapping[Datapath, str | None], used: Collection[Datapath]
) -> Iterator[Finding]:
    """A service that asks for one that it can't have is for the refusals."""
    for datapath, reason in obstacles.items():
        if reason is not None and datapath not in used:
            yield note(f"the datapath {datapath} can't be had here: {reason}")


def check_leftovers(subject: Subject) -> Iterator[Finding]:
    """Records, chains and sets of instances that are dead."""
    standing = set(ipset.instances())
    for family in iptables.COMMANDS:
        standing |= iptables.instances(family)
    yield from judge_leftovers(subject.records, standing)


def judge_leftovers(records: Sequence[Record], standing: Collection[int]) -> Iterator[Finding]:
    """`standing` are the instances that have chains or sets."""
    for record in records:
        if record.alive:
            continue
        if record.offloads:
            yield error(
                f"instance {record.instance} (pid {record.pid}) is dead; the kernel goes on"
                " carrying its open connections, but there are no new ones: start it again, or end"
                " them and remove what it has left",
                "featherlb down",
            )
        else:
            yield error(
                f"instance {record.instance} (pid {record.pid}) is dead and has left"
                f" {len(record.changes)} changes on this host, and no packet of its VIPs gets past"
                " its rules; remove them",
                "featherlb down",
            )
    for stray in sorted(set(standing) - {record.instance for record in records}):
        yield error(
            f"there are rules or sets of an instance {stray} that no record knows, and no packet"
            " gets past them; remove them",
            "featherlb down",
        )
