"""Each judgement, on facts made up for it."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from featherlb import doctor
from featherlb.api import schema
from featherlb.control.log_level import LogLevel
from featherlb.doctor import backends, instance, process, settings, start, vips
from featherlb.doctor.finding import Finding, Severity, note, refusal
from featherlb.doctor.subject import Subject
from featherlb.model import (
    Backend,
    Datapath,
    Endpoint,
    Link,
    NatMode,
    Protocol,
    Route,
    RoutingRule,
    Service,
    Vip,
)
from featherlb.model.errors import ConfigError, HostError
from featherlb.system.journal import Record
from featherlb.system.kernel_state import Descriptors

E, W, N = Severity.ERROR, Severity.WARNING, Severity.NOTE
ONE, TWO = Endpoint.parse("10.0.1.2:8080"), Endpoint.parse("10.0.1.3:8080")
WEB = Service(
    "web",
    Protocol.TCP,
    (Vip(ip_address("10.0.0.10"), 80, 80),),
    (Backend(ONE), Backend(TWO)),
)


def brief(findings: Iterable[Finding]) -> list[tuple[Severity, str]]:
    """Severity and command of each; the sentences are for people."""
    found = list(findings)
    assert all(one.message and "\n" not in one.message for one in found)
    return [(one.severity, one.command) for one in found]


def test_privileges() -> None:
    assert brief(process.judge_privileges([])) == []
    assert brief(process.judge_privileges(["CAP_NET_RAW"])) == [(E, "sudo featherlb doctor")]


def test_descriptors() -> None:
    def judged(found: Descriptors | None, checked: int, running: bool) -> object:
        return brief(process.judge_descriptors(found, checked, running))

    assert judged(None, 0, False) == []
    assert judged(Descriptors(5, 1024), 100, False) == []
    assert judged(Descriptors(5, 1024), 1000, False) == [(W, "ulimit -n 1128")]
    assert judged(Descriptors(1000, 1024), 0, True) == [(W, "ulimit -n 4096")]
    assert judged(Descriptors(1000, 1024), 0, False) == []


def test_clock() -> None:
    path = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert brief(process.judge_clock("tsc", ["tsc", "hpet"])) == []
    assert brief(process.judge_clock("hpet", ["hpet", "tsc"])) == [(W, f"echo tsc > {path}")]
    assert brief(process.judge_clock("hpet", ["hpet", "acpi_pm"])) == [(N, "")]
    assert brief(process.judge_clock("", [])) == []


def test_stale_state() -> None:
    gone = Record(3, 1, 1 << 30, 1, (), (), 0, (), ({"kind": "Sets", "instance": 3},))
    assert brief(start.judge_stale_state([gone], [3])) == [(E, "featherlb down")]
    (finding,) = start.judge_stale_state([replace(gone, offloads=True)], [3])
    assert (finding.severity, "kernel still forwards" in finding.message) == (E, True)
    assert "`featherlb up` or `featherlb down`" in finding.message
    assert brief(start.judge_stale_state([], [4, 5])) == [(E, "featherlb down")] * 2
    assert brief(start.judge_stale_state([], [])) == []


def test_datapaths() -> None:
    on_host = {Datapath.OFFLOAD: "no conntrack", Datapath.RAW: "no link", Datapath.NFQUEUE: None}
    (finding,) = start.judge_datapaths(on_host, on_host, {Datapath.RAW})
    assert finding.severity == N
    assert finding.message == "the offload datapath is unavailable on this host: no conntrack"
    fine = dict.fromkeys(on_host)
    for_services = {**fine, Datapath.OFFLOAD: "it does not support `responses`"}
    (finding,) = start.judge_datapaths(fine, for_services, {Datapath.NFQUEUE})
    assert finding.severity == N
    assert finding.message == (
        "the offload datapath can't be used for all services: it does not support `responses`"
    )
    assert brief(start.judge_datapaths(fine, fine, {Datapath.NFQUEUE})) == []


STATUS = schema.Status(
    instance=2,
    version="1",
    pid=1,
    started="",
    uptime=1,
    services=1,
    datapaths={"nfqueue": 1},
    opened_by={},
    backends=1,
    labels={},
    absent=0,
    flows=10,
    capacity=100,
    hash_key="configuration",
    log_level=LogLevel.INFO,
    log_level_remaining=None,
    refused={},
    changes=0,
    trials=[],
    faults=[],
    code_off=[],
    reloads=0,
    reloads_refused=0,
    last_reload="",
    reload_error="",
    panic=[],
    worker_restarts=0,
    workers=[],
    tasks=[],
    host=schema.HostState(
        restoring=True, deviations=[], restored={"rules": 0}, last_restored="", repairs=""
    ),
    cluster=None,
    syn_cookies=schema.SynCookies(flooded=False, answering="nobody", answered=0, missing=""),
    watchdog_fed=True,
)


def test_a_flushed_table_is_one_finding() -> None:
    changes = [f"rule {number} is gone" for number in range(30)]
    for count in (0, 1, 4):
        assert len(list(instance.judge_host(changes[:count], "fix"))) == count
    found = list(instance.judge_host(changes, "fix"))
    assert brief(found) == [(E, "fix")] * 4
    assert "27 more differences" in found[3].message


def task(*, failing: bool, restarts: int = 5) -> schema.Task:
    return schema.Task(
        name="names", restarts=restarts, failing=failing, last_error="OSError", last_failure=""
    )


def test_state_of_the_instance() -> None:
    def judged(**changes: object) -> list[tuple[Severity, str]]:
        return brief(instance.judge_state(STATUS.model_copy(update=changes), "1"))

    assert judged() == []
    assert judged(reload_error="a fault\nanother") == [(W, "featherlb reload --instance 2")]
    assert judged(version="0") == [(W, "systemctl restart featherlb")]
    assert judged(flows=91) == [(W, "systemctl restart featherlb")]
    assert len(judged(worker_restarts=1)) == 1
    restored = STATUS.host.model_copy(update={"restored": {"rules": 2}, "last_restored": "now"})
    (finding,) = instance.judge_state(STATUS.model_copy(update={"host": restored}), "1")
    assert (finding.severity, "restored it 2 times" in finding.message) == (W, True)
    assert judged(tasks=[task(failing=False, restarts=0)]) == []
    assert judged(tasks=[task(failing=False)]) == [(W, "journalctl -u featherlb -g task")]
    assert judged(tasks=[task(failing=True)]) == [(E, "systemctl restart featherlb")]


def test_the_key_of_the_hash_schedulers() -> None:
    def judged(place: str) -> list[tuple[Severity, str]]:
        return brief(instance.judge_hash_key(STATUS.model_copy(update={"hash_key": place})))

    assert judged("configuration") == []
    assert judged("/var/lib/featherlb/hash-key") == [(N, "")]
    assert judged("this run") == [(W, "")]


def counted_services(**counts: int) -> schema.Services:
    """A service with a backend that has these counts."""
    names = ("active", "flows", "packets_forward", "bytes_forward", "packets_reply")
    moved = ("doubtful", "moved_refused", "moved_silent")
    ports = ("ports", "ports_in_use", "ports_reclaimed")
    more = ("bytes_reply", "resets", "refused", "syn_timeouts", "syn_retries", *moved, *ports)
    data: dict[str, Any] = {**dict.fromkeys((*names, *more), 0), **counts}
    data |= {"backend": "b", "address": str(ONE), "state": "up", "failure": "", "weight": 1}
    data |= {"labels": {}, "role": "primary", "effective_weight": 1, "max_connections": None}
    service = schema.Service.model_construct(
        name="web", backends=[schema.Backend.model_construct(**data)]
    )
    return schema.Services.model_construct(services=[service])


def test_injected_faults() -> None:
    fault = schema.Injected.model_construct(number=7, description="loss of 5 % of the packets")
    status = STATUS.model_copy(update={"faults": [fault]})
    (finding,) = instance.judge_state(status, "1")
    assert finding.severity is W
    assert finding.command == "featherlb chaos remove 7 --instance 2"


def test_answers_that_never_came() -> None:
    def judged(**counts: int) -> list[tuple[Severity, str]]:
        return brief(instance.judge_answers(counted_services(**counts)))

    assert judged() == []
    assert judged(packets_forward=9) == []
    assert judged(packets_forward=9, syn_timeouts=3) == [(E, "")]
    assert judged(packets_forward=9, syn_timeouts=3, packets_reply=1) == []


def test_source_ports_in_use() -> None:
    def judged(**counts: int) -> list[tuple[Severity, str]]:
        return brief(instance.judge_ports(counted_services(**counts)))

    assert judged() == []
    assert judged(ports=100, ports_in_use=80) == []
    assert judged(ports=100, ports_in_use=81) == [(W, "")]


def test_losses() -> None:
    stats = schema.Stats.model_construct(queues=[], reasons={}, evicted=0)
    none = instance.count(stats, {})
    assert brief(instance.judge_losses(none, none)) == []
    for name in none:
        some, more = {**none, name: 5}, {**none, name: 6}
        ((severity, command),) = brief(instance.judge_losses(some, some))
        assert severity is N
        assert brief(instance.judge_losses(some, more)) == [(W, command)]


def test_conntrack() -> None:
    def judged(used: int, most: int) -> list[tuple[Severity, str]]:
        values = {"count": str(used), "max": str(most)}
        return brief(settings.judge_conntrack((), lambda key: values[key.rpartition("_")[2]]))

    fix = "sysctl -w net.netfilter.nf_conntrack_max=200"
    assert judged(90, 100) == []
    assert judged(91, 100) == [(W, fix)]
    assert judged(100, 100) == [(E, fix)]
    # 0 is no limit; no such file is a kernel without connection tracking.
    assert judged(5, 0) == []
    assert brief(settings.judge_conntrack((), lambda key: None)) == []


@pytest.mark.parametrize("datapath", Datapath)
def test_conntrack_that_checks_no_sequence_numbers(datapath: Datapath) -> None:
    services = (replace(WEB, datapath=datapath),)
    liberal = brief(settings.judge_windows(services, lambda key: "1"))
    fix = (W, "sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=0")
    assert liberal == ([fix] if datapath is Datapath.OFFLOAD else [])
    assert brief(settings.judge_windows(services, lambda key: "0")) == []
    assert brief(settings.judge_windows(services, lambda key: None)) == []


def test_source_ports() -> None:
    full = replace(WEB, nat=NatMode.FULL)
    fix = 'sysctl -w net.ipv4.ip_local_port_range="32768 60999"'
    privileged = "sysctl -w sunrpc.min_resvport=665"

    def judged(service: Service, local: str, mounts: str | None) -> list[tuple[Severity, str]]:
        read = {"net/ipv4/ip_local_port_range": local, "sunrpc/min_resvport": mounts}
        return brief(settings.judge_source_ports([service], read.get))

    assert judged(full, "1024\t60999", None) == [(W, fix)]
    assert judged(full, "32768\t60999", None) == []
    assert judged(full, "32768\t60999", "665") == []
    assert judged(full, "32768\t60999", "600") == [(W, privileged)]
    assert judged(WEB, "1024\t60999", "1") == []


def test_marks() -> None:
    marked, other = RoutingRule(4, marked=True), RoutingRule(4, marked=False)
    for datapath, nat, found in (
        (Datapath.NFQUEUE, NatMode.DNAT, [(N, "")]),
        (Datapath.NFQUEUE, NatMode.FULL, [(N, "")]),
        (Datapath.RAW, NatMode.DNAT, []),
        (Datapath.OFFLOAD, NatMode.FULL, []),
    ):
        service = replace(WEB, datapath=datapath, nat=nat)
        assert brief(settings.judge_marks([service, service], [other, marked])) == found
        assert brief(settings.judge_marks([service], [other, RoutingRule(6, marked=True)])) == []


def test_bridges() -> None:
    bridge = Link(2, "br0", b"", 1500, bridge=True)
    fix = "sysctl -w net.bridge.bridge-nf-call-iptables=0"
    used = {"br0": "clients"}
    assert brief(settings.judge_bridges([bridge], used, lambda key: "1")) == [(N, fix)]
    assert brief(settings.judge_bridges([bridge], {}, lambda key: "1")) == []
    assert brief(settings.judge_bridges([bridge], used, lambda key: None)) == []


def test_offloads() -> None:
    assert brief(settings.judge_offloads("e", lro=False, gro=True)) == []
    assert brief(settings.judge_offloads("e", lro=True, gro=None)) == [(W, "ethtool -K e lro off")]
    assert brief(settings.judge_offloads("e", lro=False, gro=False)) == [(N, "ethtool -K e gro on")]


def test_links() -> None:
    links = {
        "a": Link(2, "a", b"", 9000),
        "b": Link(3, "b", b"", 1500, up=False, running=False),
    }
    used = {"a": "clients", "b": "backends"}
    down = (E, "ip link set dev b up")
    assert brief(settings.judge_links(links, used, [WEB])) == [down, (N, "")]
    assert brief(settings.judge_links(links, used, [replace(WEB, mss=1400)])) == [down]
    assert brief(settings.judge_links(links, {"a": "clients"}, [WEB])) == []
    unplugged = {"a": replace(links["a"], running=False)}
    (finding,) = settings.judge_links(unplugged, {"a": "clients"}, [WEB])
    assert (finding.severity, finding.command) == (E, "")
    assert "a has no carrier" in finding.message


def test_vips() -> None:
    vip = ip_address("10.0.0.10")
    assert brief(vips.judge_vips({vip: "eth0"}, {}, {4: "10.0.0.1"})) == []
    (finding,) = vips.judge_vips({vip: "eth0"}, {vip: "02:00:00:00:00:01"}, {})
    assert (finding.severity, finding.place) == (E, "02:00:00:00:00:01")
    routed = [(N, "ip route add 10.0.0.10 via 10.0.0.1")]
    assert brief(vips.judge_vips({vip: None}, {}, {4: "10.0.0.1"})) == routed


def test_backends() -> None:
    well = backends.Answer(WEB, WEB.backends[0], None, None, checked=False, drained=False)
    other = replace(well, backend=WEB.backends[1])
    dead = replace(well, failure="connection refused")
    ill = replace(well, check_failure="status 500", checked=True)

    def judged(*answers: backends.Answer, running: bool = True) -> list[tuple[Severity, str]]:
        return brief(backends.judge_backends(answers, running))

    assert judged(well, other) == []
    assert judged(dead, other) == [(E, f"featherlb backend drain web {ONE}")]
    assert judged(dead, other, running=False) == [(E, "")]
    assert judged(replace(dead, checked=True), other) == [(W, "")]
    assert judged(replace(dead, drained=True), other) == [(N, "")]
    assert judged(ill, other) == [(W, "")]
    assert judged(ill) == [(E, "")]
    assert judged(ill, replace(other, drained=True)) == [(E, "")]


def test_the_way_back() -> None:
    route = Route(3, source=ip_address("10.0.1.1"))
    silent = {ONE: (WEB, ip_address("192.0.2.1"), route)}
    for named, severity in ((True, E), (False, W)):
        (finding,) = backends.judge_return(silent, named)
        assert finding.severity is severity
        assert finding.command == "ip route replace default via 10.0.1.1"
        assert finding.place == "10.0.1.2"


def test_traffic() -> None:
    vip = Endpoint.parse("10.0.0.10:80")
    assert brief(backends.judge_traffic([(WEB, vip, None)])) == [(N, "")]
    assert brief(backends.judge_traffic([(WEB, vip, "connection refused")])) == [(E, "")]
    assert brief(backends.judge_traffic([(WEB, vip, "network is unreachable")])) == [(N, "")]
    empty = replace(WEB, backends=())
    fix = "featherlb backend add web IP:PORT"
    assert brief(backends.judge_traffic([(empty, vip, "connection refused")])) == [(E, fix)]


def test_a_refusals_command_is_found() -> None:
    assert refusal(HostError("it is so; run `sysctl -w a=1`")).command == "sysctl -w a=1"
    assert refusal(HostError("set `nat: full`, or `--sysctl a=1` or `b -w c`")).command == "b -w c"
    assert refusal(ConfigError(["lb.yaml:1: wrong; set `nat: full`"])).command == ""


def test_checks_have_names_of_their_own() -> None:
    assert len({check.name for check in doctor.CHECKS}) == len(doctor.CHECKS)


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject) -> Iterator[Finding]:
        yield note("seen")
        raise ZeroDivisionError("by zero")

    def refusing(subject: Subject) -> Iterator[Finding]:
        raise HostError("no; run `this`")
        yield

    checks = (
        doctor.Check("broken", broken, privileges=False),
        doctor.Check("refusing", refusing, privileges=False),
        doctor.Check("root", broken),
        doctor.Check("running", broken, privileges=False, instance=True),
        doctor.Check("configured", broken, privileges=False, services=True),
    )
    monkeypatch.setattr(doctor, "CHECKS", checks)
    report = doctor.examine(Subject(privileged=False))
    assert [(name, one.severity, one.command) for name, one in report.findings] == [
        ("broken", N, ""),
        ("broken", W, ""),
        ("refusing", E, "this"),
    ]
    assert dict(report.skipped).keys() == {"root", "running", "configured"}
    assert report.count(E) == 1


def test_the_rules_of_a_dead_instance_stop_the_checks_of_backends() -> None:
    gone = Record(3, 1, 1 << 30, 1, (), (), 0, (), ())
    well = Subject(services=(WEB,))
    checks = [one for one in doctor.CHECKS if one.name in ("backends", "return-path")]
    assert len(checks) == 2
    for check in checks:
        assert check.obstacle(well) == ""
        assert "dead instance" in check.obstacle(replace(well, records=(gone,)))
        # Its record is lost.
        assert "dead instance" in check.obstacle(replace(well, standing=frozenset([3])))


@pytest.mark.parametrize(
    ("datapath", "expected"),
    [
        (Datapath.NFQUEUE, []),
        (Datapath.RAW, ["an XDP program at eth0"]),
        (Datapath.EBPF, ["an XDP program at eth0", "at eth1, cil_from_netdev (tcx) runs before"]),
    ],
)
def test_programs_that_have_packets_before_featherlb(
    datapath: Datapath, expected: list[str]
) -> None:
    names = ["cil_from_netdev", "ingress", "other"]
    ahead = {"eth0": [], "eth1": settings.others_ahead(names)}
    found = list(settings.judge_programs([replace(WEB, datapath=datapath)], ["eth0"], ahead))
    assert len(found) == len(expected)
    assert all(map(str.startswith, (one.message for one in found), expected))
    assert settings.others_ahead(["other"]) == []
