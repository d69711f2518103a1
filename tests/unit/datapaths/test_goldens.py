"""Everything that each datapath changes on the host, as text: rules, sets, settings, addresses.

`goldens/` has a file for each case. After a change that is meant, `pytest --write-goldens` rewrites
them; the difference is what to review.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network
from itertools import product
from pathlib import Path

import pytest

from featherlb import host
from featherlb.host import Facts, HostPlan, Options
from featherlb.model import (
    Address,
    Admission,
    Backend,
    Datapath,
    Endpoint,
    HostAddress,
    MaxNew,
    NatMode,
    NetworkSet,
    Protocol,
    Refusal,
    Service,
    Vip,
)
from featherlb.system import sysctl
from featherlb.system.iptables import COMMANDS
from featherlb.system.ruleset import Table

GOLDENS = Path(__file__).parent / "goldens"
HOST = Facts(
    addresses=(
        HostAddress("front", ip_interface("10.0.0.1/24")),
        HostAddress("back", ip_interface("10.0.1.1/24")),
        HostAddress("front", ip_interface("2001:db8::1/64")),
        HostAddress("back", ip_interface("2001:db8:1::1/64")),
    ),
    backend_interfaces=("back",),
)
ONE_WORKER = Options(hash_seed=0xCAFE)
NETWORKS = {4: ("10.0.0.", "10.0.1."), 6: ("2001:db8::", "2001:db8:1::")}
"""By address family, those of clients and VIPs, and of backends."""


@dataclass(frozen=True)
class Case:
    """A plan with a name, which is its file's."""

    name: str
    services: tuple[Service, ...]
    options: Options = ONE_WORKER
    facts: Facts = HOST
    handoff: bool = False

    def plan(self) -> HostPlan:
        return host.build(self.services, self.options, self.facts, handoff=self.handoff)


def web(
    datapath: Datapath,
    nat: NatMode = NatMode.DNAT,
    family: int = 4,
    *,
    vips: Sequence[Vip] = (),
    backends: Sequence[int] = (2, 3),
) -> Service:
    """A TCP service on 10.0.0.10:80 (2001:db8::10), whose backends have these last numbers."""
    front, back = NETWORKS[family]
    sources: tuple[Address, ...] = (ip_address(f"{back}1"),) if nat is NatMode.FULL else ()
    return Service(
        f"{datapath}-{nat}",
        Protocol.TCP,
        tuple(vips) or (Vip(ip_address(f"{front}10"), 80, 80),),
        tuple(
            Backend(Endpoint(ip_address(f"{back}{number}"), 8080), sources=sources)
            for number in backends
        ),
        nat=nat,
        datapath=datapath,
    )


def at(number: int, first: int = 80, last: int | None = None) -> Vip:
    """A VIP on 10.0.0.`number`; 0 is every address of the host."""
    address = ip_address(f"10.0.0.{number}" if number else "0.0.0.0")
    return Vip(address, first, last or first)


def both_modes(datapath: Datapath) -> tuple[Service, Service]:
    """A service in each NAT mode, with a VIP and backends of its own."""
    return (
        web(datapath, vips=[at(10)]),
        web(datapath, NatMode.FULL, vips=[at(11)], backends=(4, 5)),
    )


def limited(datapath: Datapath) -> tuple[Service, ...]:
    """Services with conditions for clients, one of them on all ports that the others leave."""
    networks = {
        text: NetworkSet.of([ip_network(text)])
        for text in ("10.0.0.0/8", "10.1.0.0/16", "fd00::/8")
    }
    listed = Admission(allow=networks["10.0.0.0/8"], deny=networks["10.1.0.0/16"])
    slow = MaxNew(0.5, 3, 32), MaxNew(1000.0, 1000, 0), MaxNew(7.0, 1, 24, Refusal.RESET)
    return (
        replace(web(datapath, vips=[at(10, 1, 65535)]), name="rest", admission=listed),
        replace(web(datapath, vips=[at(10)]), name="free"),
        replace(web(datapath, vips=[at(10, 81)]), name="slow", admission=Admission(max_new=slow)),
        replace(
            web(datapath, vips=[at(10, 82)]),
            name="told",
            admission=replace(listed, deny_action=Refusal.RESET),
        ),
        replace(
            web(datapath, family=6), name="six", admission=Admission(deny=networks["fd00::/8"])
        ),
    )


def mixed() -> tuple[Service, ...]:
    """All datapaths side by side. Those that leave replies to the queue share a backend."""
    return tuple(
        web(
            datapath,
            nat,
            vips=[at(10 + number)],
            backends=(2, 20 + number) if not datapath.kernel_forwards else (30 + number,),
        )
        for number, (datapath, nat) in enumerate(product(Datapath, NatMode))
    )


def cases() -> Iterator[Case]:
    for datapath, nat, family in product(Datapath, NatMode, NETWORKS):
        yield Case(f"{datapath}-{nat}-ipv{family}", (web(datapath, nat, family),))
    for datapath in Datapath:
        services = both_modes(datapath)
        yield Case(f"{datapath}-workers", services, replace(ONE_WORKER, workers=3))
        yield Case(f"{datapath}-fail-open", services, replace(ONE_WORKER, fail_open=True))
        if datapath.kernel_forwards:
            yield Case(f"{datapath}-handoff", services, handoff=True)
        many = range(2, 9)
        yield Case(
            f"{datapath}-many-endpoints",
            (
                web(datapath, vips=[at(number) for number in range(10, 15)], backends=many),
                web(datapath, NatMode.FULL, vips=[at(20)], backends=range(20, 25)),
            ),
        )
        yield Case(f"{datapath}-clients", limited(datapath))
        yield Case(
            f"{datapath}-wildcard-and-range", (web(datapath, vips=[at(0), at(10, 8000, 8010)]),)
        )
        kept = Backend(Endpoint.of_backend("10.0.1.2"))
        shifted = Backend(Endpoint.of_backend("10.0.1.3:9000-9010"))
        crowd = web(datapath, vips=[at(10, 8000, 8010)], backends=many)
        ranges = replace(crowd, backends=(*crowd.backends, kept, shifted))
        every = replace(web(datapath, vips=[at(11, 1, 65535)]), name="all", backends=(kept,))
        yield Case(
            f"{datapath}-ports-of-their-own",
            (ranges, every),
            replace(ONE_WORKER, fail_open=datapath.kernel_forwards),
        )
        dns = replace(web(datapath), name="dns", protocol=Protocol.UDP)
        yield Case(f"{datapath}-udp", (dns,))
        yield Case(f"{datapath}-no-assign", services, replace(ONE_WORKER, assign=False))
        yield Case(
            f"{datapath}-bare-kernel",
            (web(datapath, backends=many),),
            facts=replace(HOST, sets=False, conntrack=False, reverse_path=frozenset()),
        )
        router = replace(HOST, routers=frozenset({4}), strict=("front",))
        yield Case(f"{datapath}-router", services, facts=router)
        third = replace(HOST, order=2, earlier=(0, 1))
        yield Case(f"{datapath}-third-instance", services, facts=third)
    bridges = replace(HOST, bridge_filter=frozenset({4}))
    raw = both_modes(Datapath.RAW)
    yield Case("raw-bridges", raw, facts=bridges)
    yield Case("raw-bridges-router", raw, facts=replace(bridges, routers=frozenset({4})))
    no_assign = replace(ONE_WORKER, assign=False)
    yield Case("raw-bridges-no-assign", raw, no_assign, facts=bridges)
    yield Case("mixed-datapaths", mixed())
    yield Case("mixed-datapaths-workers", mixed(), replace(ONE_WORKER, workers=2))
    local = Backend(Endpoint.parse("127.0.0.1:8080"), local=True)
    yield Case("nfqueue-loopback-backend", (replace(web(Datapath.NFQUEUE), backends=(local,)),))


CASES = {case.name: case for case in cases()}


def text(case: Case) -> str:
    """A plan to read: what it is for, then what it puts on the host, rules as iptables-save prints
    them."""
    plan = case.plan()
    lines = [f"# {service_line(service)}" for service in case.services]
    lines += [f"# {name}: {value}" for name, value in circumstances(case)]
    lines.append("")
    lines += [f"sysctl {sysctl.dotted(key)} = {value}" for key, value in plan.settings]
    lines += [f"address {address} on {interface}" for address, interface in plan.addresses]
    lines.append("")
    for wanted in plan.sets:
        entries = (command.rpartition(" ")[2] for command in wanted.commands()[1:])
        lines += [f"ipset {wanted.name} {wanted.type}", *(f"  {one}" for one in entries), ""]
    for family, ruleset in plan.rules.items():
        for name, table in ruleset.items():
            if table.chains:
                lines += [f"# {COMMANDS[family]}", f"*{name}", *table_lines(table), ""]
    return "\n".join(lines)


def service_line(service: Service) -> str:
    vips = ", ".join(map(str, service.vips))
    backends = ", ".join(map(str, service.backends))
    return f"{service.datapath}, {service.nat}: {service.protocol} {vips} -> {backends}"


def circumstances(case: Case) -> Iterator[tuple[str, object]]:
    """Where the case differs from one worker on a common host."""
    for value, usual in ((case.options, ONE_WORKER), (case.facts, HOST)):
        for name in value.__dataclass_fields__:
            if getattr(value, name) != getattr(usual, name):
                found = getattr(value, name)
                yield name, set(found) if isinstance(found, frozenset) else found
    if case.handoff:
        yield "handoff", True


def table_lines(table: Table) -> Iterator[str]:
    """Jumps in the order in which packets meet them, then each chain."""
    hooks = dict.fromkeys(jump.hook for jump in table.jumps)
    for hook in hooks:
        jumps = [jump for jump in table.jumps if jump.hook == hook]
        # Each of those that stand first is put in front of the ones before it.
        for jump in reversed([jump for jump in jumps if jump.first]):
            yield f"-I {hook} {jump}"
        for jump in jumps:
            if not jump.first:
                yield f"-A {hook} {jump}"
    for chain, rules in table.chains.items():
        yield f":{chain}"
        yield from (f"-A {chain} {rule}" for rule in rules)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_plan_is_as_written(case: Case, pytestconfig: pytest.Config) -> None:
    path = GOLDENS / f"{case.name}.txt"
    found = text(case)
    if pytestconfig.getoption("--write-goldens"):
        path.write_text(found)
    assert path.exists(), f"write it: pytest --write-goldens {Path(__file__).name}"
    assert found == path.read_text()


def test_each_golden_has_a_case(pytestconfig: pytest.Config) -> None:
    superfluous = [path for path in GOLDENS.glob("*.txt") if path.stem not in CASES]
    if pytestconfig.getoption("--write-goldens"):
        for path in superfluous:
            path.unlink()
    else:
        assert superfluous == []
