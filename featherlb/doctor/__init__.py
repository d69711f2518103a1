"""Examines this host: what would stop or slow the packets of the services.

    subject, findings = find_subject(None, None, None)
    report = examine(subject)

Each check is a function that inspects the host and yields findings; pure functions (`judge_...`)
turn observations into findings and can be tested with any input. A check that fails is itself a
finding. Nothing on the host is changed. Must not be called inside a running asyncio loop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from featherlb.doctor import backends, firewall, instance, process, settings, start, vips
from featherlb.doctor.finding import Finding, Severity, refusal, warning
from featherlb.doctor.subject import Subject, find_subject
from featherlb.model.errors import FeatherlbError

__all__ = ["CHECKS", "Check", "Finding", "Report", "Severity", "Subject", "examine", "find_subject"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check, and what it requires."""

    name: str
    find: Callable[[Subject], Iterator[Finding]]
    privileges: bool = True
    services: bool = False
    instance: bool = False
    undisturbed: bool = False
    """The rules of a dead instance would take its packets."""

    def obstacle(self, subject: Subject) -> str:
        """Why the check can't run; empty if it can."""
        if self.privileges and not subject.privileged:
            return "needs root"
        if self.instance and subject.running is None:
            return "needs a running instance"
        if self.services and not subject.services:
            return "needs a configuration with services"
        if self.undisturbed and subject.disturbed:
            return "the rules of a dead instance take its packets"
        return ""


CHECKS = (
    Check("privileges", process.check_privileges, privileges=False),
    Check("stale-state", start.check_stale_state),
    Check("writable", process.check_writable),
    Check("packet-path", process.check_packet_path, privileges=False),
    Check("queue-driver", process.check_queue_driver),
    Check("kernel", start.check_kernel),
    Check("preflight", start.check_preflight, services=True),
    Check("datapaths", start.check_datapaths),
    Check("host", instance.check_host, instance=True),
    Check("state", instance.check_state, instance=True),
    Check("firewall", firewall.check),
    Check("conntrack", settings.check_conntrack, privileges=False),
    Check("windows", settings.check_windows, privileges=False),
    Check("source-ports", settings.check_source_ports, privileges=False, services=True),
    Check("marks", settings.check_marks, privileges=False, services=True),
    Check("bridges", settings.check_bridges, privileges=False, services=True),
    Check("programs", settings.check_programs, services=True),
    Check("offloads", settings.check_offloads, privileges=False, services=True),
    Check("links", settings.check_links, privileges=False, services=True),
    Check("descriptors", process.check_descriptors, privileges=False),
    Check("clock", process.check_clock, privileges=False),
    Check("vips", vips.check_vips, services=True),
    Check("routes", backends.check_routes, privileges=False, services=True),
    Check("backends", backends.check_backends, privileges=False, services=True, undisturbed=True),
    Check("return-path", backends.check_return, services=True, undisturbed=True),
    Check("answers", instance.check_answers, instance=True),
    Check("hash-key", instance.check_hash_key, instance=True),
    Check("port-use", instance.check_ports, instance=True),
    Check("traffic", backends.check_traffic, services=True, instance=True),
    Check("losses", instance.check_losses, instance=True),
)
"""In the order in which to fix findings: the first ones often explain later ones."""


@dataclass(frozen=True, slots=True)
class Report:
    """The findings, with the names of their checks, and the checks that were skipped."""

    findings: tuple[tuple[str, Finding], ...]
    skipped: tuple[tuple[str, str], ...]
    """Name and reason."""

    def count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for _, finding in self.findings)


def examine(subject: Subject) -> Report:
    """Run every check that can run."""
    findings: list[tuple[str, Finding]] = []
    skipped = []
    for check in CHECKS:
        if obstacle := check.obstacle(subject):
            skipped.append((check.name, obstacle))
            continue
        try:
            for finding in check.find(subject):
                findings.append((check.name, finding))
        except FeatherlbError as problem:
            findings.append((check.name, refusal(problem)))
        except Exception as fault:
            text = f"the check '{check.name}' failed ({type(fault).__name__}: {fault})"
            findings.append((check.name, warning(f"{text}; this is a bug in featherlb")))
    return Report(tuple(findings), tuple(skipped))
