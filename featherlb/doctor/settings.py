"""Settings of the kernel and of interfaces that stop or slow the services' packets.

`instance.check_host` covers what `up` sets itself. Checksum offloads don't matter: a rewritten
packet leaves with a complete checksum whatever the device supports.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from featherlb.datapaths.host_side import Replies, rules_of
from featherlb.datapaths.rules.vip_addresses import subnet_interface
from featherlb.doctor.finding import Finding, error, note, warning
from featherlb.doctor.subject import Subject
from featherlb.model import (
    LOOPBACK,
    PRIVILEGED_SOURCE_PORTS,
    SOURCE_PORTS,
    Link,
    NatMode,
    RoutingRule,
    Service,
)
from featherlb.system import ethtool, programs, rtnetlink, sysctl, tc

Read = Callable[[str], str | None]

NEARLY_FULL = 0.9
"""Share of the conntrack table in use."""


def check_conntrack(subject: Subject) -> Iterator[Finding]:
    """Whether the conntrack table has room for new connections."""
    yield from judge_conntrack(subject.services, sysctl.read)


def judge_conntrack(services: Iterable[Service], read: Read) -> Iterator[Finding]:
    used, most = (read(f"net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if used is None or most is None or int(most) == 0:
        return
    command = f"sysctl -w net.netfilter.nf_conntrack_max={int(most) * 2}"
    if int(used) >= int(most):
        offloaded = any(service.datapath.kernel_forwards for service in services)
        flows = "including those of the offload datapath" if offloaded else "except balanced ones"
        yield error(
            f"the conntrack table is full ({used} of {most}): health checks and all other new"
            f" connections of this host fail, {flows}; raise the limit",
            command,
        )
    elif int(used) > NEARLY_FULL * int(most):
        yield warning(
            f"the conntrack table is nearly full ({used} of {most}); raise the limit", command
        )


def check_windows(subject: Subject) -> Iterator[Finding]:
    """Whether conntrack tells the segments of offloaded connections from forged ones."""
    yield from judge_windows(subject.services, sysctl.read)


def judge_windows(services: Iterable[Service], read: Read) -> Iterator[Finding]:
    if not any(service.datapath.kernel_forwards for service in services):
        return
    if (read("net/netfilter/nf_conntrack_tcp_be_liberal") or "0") != "0":
        yield warning(
            "conntrack doesn't check sequence numbers, so forged segments can change the state of"
            " connections of the offload datapath",
            "sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=0",
        )


def check_source_ports(subject: Subject) -> Iterator[Finding]:
    """Whether local connections avoid the source ports that `full` mode allocates."""
    yield from judge_source_ports(subject.services, sysctl.read)


def judge_source_ports(services: Iterable[Service], read: Read) -> Iterator[Finding]:
    if all(service.nat is not NatMode.FULL for service in services):
        return
    first, last = map(int, (read("net/ipv4/ip_local_port_range") or "32768 60999").split())
    if first < SOURCE_PORTS.stop:
        yield warning(
            f"local connections use the ports {first} to {last}, and `full` mode allocates"
            f" {SOURCE_PORTS.start} to {SOURCE_PORTS.stop - 1}, so some of either fail; separate"
            " the ranges",
            f'sysctl -w net.ipv4.ip_local_port_range="{SOURCE_PORTS.stop} {max(last, 60999)}"',
        )
    mounts = int(read("sunrpc/min_resvport") or PRIVILEGED_SOURCE_PORTS.stop)
    if mounts < PRIVILEGED_SOURCE_PORTS.stop:
        yield warning(
            f"NFS mounts of this host use ports from {mounts} on, and `full` mode allocates"
            f" {PRIVILEGED_SOURCE_PORTS.start} to {PRIVILEGED_SOURCE_PORTS.stop - 1} to clients"
            " with a port below 1024, so some of either fail; separate the ranges",
            f"sysctl -w sunrpc.min_resvport={PRIVILEGED_SOURCE_PORTS.stop}",
        )


def check_marks(subject: Subject) -> Iterator[Finding]:
    """Whether routing rules ask for marks that replies don't have."""
    yield from judge_marks(subject.services, rtnetlink.rules())


def judge_marks(services: Iterable[Service], rules: Iterable[RoutingRule]) -> Iterator[Finding]:
    versions = {rule.version for rule in rules if rule.marked}
    for service in services:
        if service.datapath.takes_frames or not any(
            vip.address.version in versions for vip in service.vips
        ):
            continue
        if Replies.TRACKED not in rules_of(service.datapath).replies(service.nat):
            yield note(
                "this host has routing rules for marked packets; packets of service"
                f" '{service.name}' stay out of connection tracking, so CONNMARK restores no marks"
                " for them: if replies should leave by the uplink that the client came in on, see"
                " docs/operations.md (several uplinks)"
            )
            return


def check_bridges(subject: Subject) -> Iterator[Finding]:
    """Whether frames that only cross a bridge of this host meet the rules."""
    yield from judge_bridges(rtnetlink.links().values(), interfaces(subject), sysctl.read)


def judge_bridges(links: Iterable[Link], used: Mapping[str, str], read: Read) -> Iterator[Finding]:
    for link in links:
        if link.bridge and link.name in used and read("net/bridge/bridge-nf-call-iptables") == "1":
            yield note(
                f"frames that cross the bridge {link.name} unrouted also pass iptables"
                " (bridge-nf-call-iptables=1), so VIPs answer on it even if this host is not the"
                " gateway; turn it off unless Docker or Kubernetes needs it",
                "sysctl -w net.bridge.bridge-nf-call-iptables=0",
            )


def check_programs(subject: Subject) -> Iterator[Finding]:
    """Whether programs of others have packets before featherlb."""
    links = rtnetlink.links().values()
    used = [link for link in links if link.name in interfaces(subject)]
    xdp = {link.name for link in used if tc.has_xdp(link.index)}
    ahead = {link.name: others_ahead(tc.programs_at(link.index)) for link in used}
    yield from judge_programs(subject.services, xdp, ahead)


def others_ahead(names: Sequence[str]) -> list[str]:
    """Those that run before featherlb's, of the programs at a link."""
    own = {programs.INGRESS, programs.BARE}.intersection(names)
    return list(names[: min(map(names.index, own), default=0)])


def judge_programs(
    services: Iterable[Service], xdp: Iterable[str], ahead: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    """`xdp` are the links with an XDP program, `ahead` the programs at a link that run before
    featherlb's."""
    datapaths = [service.datapath for service in services]
    if any(datapath.carries or datapath.takes_frames for datapath in datapaths):
        for name in xdp:
            yield note(
                f"an XDP program at {name} has its packets before featherlb; what it drops or"
                " redirects isn't balanced",
                f"ip link show dev {name}",
            )
    if any(datapath.carries for datapath in datapaths):
        for name, others in ahead.items():
            if others:
                yield note(
                    f"at {name}, {', '.join(others)} (tcx) {'run' if len(others) > 1 else 'runs'}"
                    " before featherlb's program, which gets only the packets that"
                    f" {'they pass' if len(others) > 1 else 'it passes'} on",
                    f"bpftool net show dev {name}",
                )


def check_offloads(subject: Subject) -> Iterator[Finding]:
    """Whether devices merge segments."""
    for name in interfaces(subject):
        # On virtual links, super-packets were never segmented.
        if Path(f"/sys/class/net/{name}/device").exists():
            yield from judge_offloads(name, ethtool.merges_in_hardware(name), ethtool.merges(name))


def judge_offloads(name: str, lro: bool, gro: bool | None) -> Iterator[Finding]:
    if lro:
        yield warning(
            f"{name} merges segments in hardware (LRO), which can't be undone when they are"
            " forwarded; turn it off",
            f"ethtool -K {name} lro off",
        )
    if gro is False:
        yield note(
            f"{name} doesn't merge segments (GRO is off), so featherlb handles each of them alone;"
            " turn it on",
            f"ethtool -K {name} gro on",
        )


def check_links(subject: Subject) -> Iterator[Finding]:
    """Whether the interfaces are up and have the same MTU."""
    yield from judge_links(
        {link.name: link for link in rtnetlink.links().values()},
        interfaces(subject),
        subject.services,
    )


def judge_links(
    links: Mapping[str, Link], used: Mapping[str, str], services: Iterable[Service]
) -> Iterator[Finding]:
    """`used` says for each interface whether clients or backends are behind it."""
    for name in used:
        if name in links and not links[name].up:
            yield error(f"interface {name} is down; bring it up", f"ip link set dev {name} up")
        elif name in links and not links[name].running:
            yield error(
                f"interface {name} has no carrier; check its cable, or the interface at the other"
                " end"
            )
    if all(service.mss is not None for service in services):
        return
    sizes = {
        side: {links[name].mtu for name, whose in used.items() if whose == side and name in links}
        for side in ("clients", "backends")
    }
    if sizes["clients"] and sizes["backends"] and min(sizes["backends"]) < max(sizes["clients"]):
        smallest = min(sizes["backends"])
        yield note(
            f"the MTU towards backends is {smallest}, towards clients {max(sizes['clients'])}: if"
            f" ICMP is filtered, long packets get lost; set `mss: {smallest - 60}` for TCP services"
        )


def interfaces(subject: Subject) -> dict[str, str]:
    """The interfaces that the services' packets pass, each for "clients" or "backends"."""
    if subject.facts is None:
        return {}
    found = dict.fromkeys(subject.facts.backend_interfaces, "backends")
    for service in subject.services:
        for vip in service.vips:
            name = subnet_interface(vip.address, subject.facts.addresses)
            if name is not None and name != LOOPBACK:
                found.setdefault(name, "clients")
    return found
