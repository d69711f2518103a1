"""What `featherlb up` or a reload would refuse, and the stale state of dead instances."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from featherlb import host
from featherlb.api.client import death
from featherlb.doctor.finding import Finding, error, note, refusal, warning
from featherlb.doctor.subject import Subject
from featherlb.model import Datapath
from featherlb.model.errors import HostError
from featherlb.system.journal import Record


def check_kernel(subject: Subject) -> Iterator[Finding]:
    """Tables and extensions of iptables, if no service says which are required."""
    if subject.facts is not None and subject.services:
        return
    try:
        host.check_kernel([4], workers=1, full=False)
    except HostError as problem:
        yield refusal(problem)


def check_preflight(subject: Subject) -> Iterator[Finding]:
    """Everything that keeps the services from running on this host."""
    if subject.facts is None:
        return
    found = host.problems(subject.services, subject.options, subject.facts, owner=subject.owner)
    yield from map(refusal, found)
    yield from map(warning, host.advice(subject.services))
    yield from map(warning, host.advise(subject.services, subject.options, subject.facts))


def check_datapaths(subject: Subject) -> Iterator[Finding]:
    """Which datapaths are unavailable on this host, and why."""
    used = {service.datapath for service in subject.services}
    yield from judge_datapaths(host.usable(), host.usable(subject.services), used)


def judge_datapaths(
    on_host: Mapping[Datapath, str | None],
    for_services: Mapping[Datapath, str | None],
    used: Collection[Datapath],
) -> Iterator[Finding]:
    """`check_preflight` covers the datapaths in use. Reasons for the host alone, and for both."""
    for datapath, reason in for_services.items():
        if datapath in used:
            continue
        if alone := on_host[datapath]:
            yield note(f"the {datapath} datapath is unavailable on this host: {alone}")
        elif reason is not None:
            yield note(f"the {datapath} datapath can't be used for all services: {reason}")


def check_stale_state(subject: Subject) -> Iterator[Finding]:
    """Records, chains and sets of dead instances."""
    yield from judge_stale_state(subject.records, subject.standing)


def judge_stale_state(records: Sequence[Record], standing: Collection[int]) -> Iterator[Finding]:
    """`standing` are the instances with chains or sets on this host."""
    for record in records:
        if record.alive:
            continue
        yield error(death(record), "featherlb down")
    for instance in sorted(set(standing) - {record.instance for record in records}):
        yield error(
            f"instance {instance} has rules or sets but no record, so packets to its VIPs are"
            " dropped; clean up",
            "featherlb down",
        )
