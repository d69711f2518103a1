"""Settings of the kernel and of interfaces that stop or slow the services' packets.

What `up` sets itself is looked at by `instance.check_host`. Checksum offloads are no concern:
a rewritten packet leaves with a complete checksum whatever the device can do.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from featherlb.datapaths.rules.vip_addresses import subnet_interface
from featherlb.doctor.finding import Finding, error, note, warning
from featherlb.doctor.subject import Subject
from featherlb.model import SOURCE_PORTS, NatMode, Service
from featherlb.system import ethtool, network, sysctl
from featherlb.system.network import LOOPBACK, Link

Read = Callable[[str], str | None]

NEARLY_FULL = 0.9
"""Of connection tracking's table."""


def check_conntrack(subject: Subject) -> Iterator[Finding]:
    """Whether connection tracking still takes new connections."""
    yield from judge_conntrack(subject.services, sysctl.read)


def judge_conntrack(services: Iterable[Service], read: Read) -> Iterator[Finding]:
    used, most = (read(f"net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if used is None or most is None or int(most) == 0:
        return
    command = f"sysctl -w net.netfilter.nf_conntrack_max={int(most) * 2}"
    if int(used) >= int(most):
        offloaded = any(service.datapath.kernel_forwards for service in services)
        flows = "those of the datapath offload among them" if offloaded else "but for balanced ones"
        yield error(
            f"connection tracking is full ({used} of {most}): health checks and all other new"
            f" connections of this host fail, {flows}; raise its limit",
            command,
        )
    elif int(used) > NEARLY_FULL * int(most):
        yield warning(
            f"connection tracking is nearly full ({used} of {most}); raise its limit", command
        )


def check_source_ports(subject: Subject) -> Iterator[Finding]:
    """Whether this host's own connections keep off the ports that `full` mode gives to flows."""
    yield from judge_source_ports(subject.services, sysctl.read)


def judge_source_ports(services: Iterable[Service], read: Read) -> Iterator[Finding]:
    text = read("net/ipv4/ip_local_port_range")
    if text is None or all(service.nat is not NatMode.FULL for service in services):
        return
    first, last = map(int, text.split())
    if first < SOURCE_PORTS.stop:
        yield warning(
            f"connections of this host use the ports from {first} to {last}, and in the NAT mode"
            f" full featherlb gives {SOURCE_PORTS.start} to {SOURCE_PORTS.stop - 1} to flows, so"
            " some of either fail; keep them apart",
            f'sysctl -w net.ipv4.ip_local_port_range="{SOURCE_PORTS.stop} {max(last, 60999)}"',
        )


def check_bridges(subject: Subject) -> Iterator[Finding]:
    """Whether frames that only pass a bridge of this host meet the rules."""
    yield from judge_bridges(network.links(), interfaces(subject), sysctl.read)


def judge_bridges(links: Iterable[Link], used: Mapping[str, str], read: Read) -> Iterator[Finding]:
    for link in links:
        if link.bridge and link.name in used and read("net/bridge/bridge-nf-call-iptables") == "1":
            yield note(
                f"frames that cross the bridge {link.name} without being routed meet iptables as"
                " well (bridge-nf-call-iptables=1), so VIPs answer on it even where this host is no"
                " gateway; switch it off unless Docker or Kubernetes needs it",
                "sysctl -w net.bridge.bridge-nf-call-iptables=0",
            )


def check_offloads(subject: Subject) -> Iterator[Finding]:
    """What devices join before the kernel sees it."""
    for name in interfaces(subject):
        # Virtual links deliver what was never cut.
        if Path(f"/sys/class/net/{name}/device").exists():
            yield from judge_offloads(name, ethtool.merges_in_hardware(name), ethtool.merges(name))


def judge_offloads(name: str, lro: bool, gro: bool | None) -> Iterator[Finding]:
    if lro:
        yield warning(
            f"{name} joins segments in hardware (LRO) in a way that can't be undone when they are"
            " forwarded; switch it off",
            f"ethtool -K {name} lro off",
        )
    if gro is False:
        yield note(
            f"{name} doesn't join segments (GRO is off), so that each passes featherlb alone;"
            " switch it on",
            f"ethtool -K {name} gro on",
        )


def check_links(subject: Subject) -> Iterator[Finding]:
    """Whether the interfaces are up, and take packets of one size."""
    yield from judge_links(
        {link.name: link for link in network.links()}, interfaces(subject), subject.services
    )


def judge_links(
    links: Mapping[str, Link], used: Mapping[str, str], services: Iterable[Service]
) -> Iterator[Finding]:
    """`used` says for each interface whether clients or backends are behind it."""
    for name in used:
        if name in links and not links[name].up:
            yield error(f"interface {name} is down; switch it on", f"ip link set dev {name} up")
    if all(service.mss is not None for service in services):
        return
    sizes = {
        side: {links[name].mtu for name, whose in used.items() if whose == side and name in links}
        for side in ("clients", "backends")
    }
    if sizes["clients"] and sizes["backends"] and min(sizes["backends"]) < max(sizes["clients"]):
        smallest = min(sizes["backends"])
        yield note(
            f"the way to backends takes packets of {smallest} bytes, that to clients"
            f" {max(sizes['clients'])}: where ICMP is filtered, long packets get lost; set"
            f" `mss: {smallest - 60}` for TCP services"
        )


def interfaces(subject: Subject) -> dict[str, str]:
    """Those that the services' packets pass, with whether clients or backends are behind."""
    if subject.facts is None:
        return {}
    found = dict.fromkeys(subject.facts.backend_interfaces, "backends")
    for service in subject.services:
        for vip in service.vips:
            name = subnet_interface(vip.address, subject.facts.addresses)
            if name is not None and name != LOOPBACK:
                found.setdefault(name, "clients")
    return found
