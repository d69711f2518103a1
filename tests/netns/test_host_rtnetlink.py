"""Links, addresses, routes and neighbours, as the kernel says them: `ip` is the oracle."""

import json
import resource
import select
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from featherlb import host
from featherlb.lab import Lab, Node
from featherlb.model import (
    Backend,
    Endpoint,
    HostAddress,
    Link,
    NatMode,
    Neighbour,
    NeighbourKey,
    Protocol,
    Route,
    Service,
    Vip,
)
from featherlb.model.errors import HostError
from featherlb.system import arp, netlink, rtnetlink
from featherlb.system.rtnetlink import Monitor

pytestmark = pytest.mark.no_packets("what the kernel says of links, while no worker runs")

VIP, VIP6 = ip_address("10.0.0.10"), ip_address("2001:db8::10")
GATEWAY, GATEWAY6 = ip_address("10.0.1.2"), ip_address("2001:db8:1::2")
ABSENT, ABSENT6 = ip_address("10.0.1.77"), ip_address("2001:db8:1::77")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backends=1) as lab:
        yield lab


@contextmanager
def full_neighbour_table(node: Node) -> Iterator[None]:
    """No room for another IPv6 neighbour. All namespaces share the table, so be quick."""
    # Its frames go nowhere, and take its neighbours along when it is removed.
    node.run(["ip", "link", "add", "crowd", "type", "veth", "peer", "name", "nowhere"])
    for name in ("crowd", "nowhere"):
        node.run(["ip", "link", "set", name, "up"])
    neighbours = "".join(
        f"neigh replace 2001:db8:ffff::{number:x} lladdr 02:00:00:00:00:01 dev crowd"
        " nud reachable\n"
        for number in range(1, 0xFFFF)
    )
    try:
        filled = node.run(["ip", "-batch", "-"], input=neighbours, check=False)
        assert "No buffer space available" in filled.stderr, "its limit (gc_thresh3) is too high"
        yield
    finally:
        node.run(["ip", "link", "delete", "crowd"])


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can't open anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ask(node: Node, command: str) -> Any:
    return json.loads(node.run(["ip", "-json", *command.split()]).stdout)


def index(lab: Lab, name: str) -> int:
    (link,) = ask(lab.balancer, f"link show dev {name}")
    return int(link["ifindex"])


def run(node: Node, *commands: str) -> None:
    node.run(["ip", "-batch", "-"], input="\n".join(commands))


def test_links(lab: Lab) -> None:
    balancer = lab.balancer
    run(
        balancer,
        "link add br0 type bridge",
        "link add pair type veth peer name other",
        "link set pair master br0 mtu 1400",
        "link set pair up",
        "tuntap add tun0 mode tun",
    )
    links = balancer.call(rtnetlink.links)
    shown = {link["ifindex"]: link for link in ask(balancer, "-details link show")}
    assert links.keys() == shown.keys()
    for number, link in links.items():
        one = shown[number]
        assert (link.index, link.name, link.mtu) == (number, one["ifname"], one["mtu"])
        assert link.mac == bytes.fromhex(one.get("address", "").replace(":", ""))
        assert link.ethernet == (one["link_type"] == "ether")
        assert link.up == ("UP" in one["flags"])
        assert link.running == (one["operstate"] in ("UP", "UNKNOWN"))
        assert link.member == ("master" in one)
        assert link.bridge == (one.get("linkinfo", {}).get("info_kind") == "bridge")
    assert {link.name for link in links.values() if link.carries_frames} == {"front", "back"}
    by_name = {link.name: link for link in links.values()}
    # The other end of the pair is down.
    assert (by_name["pair"].up, by_name["pair"].running) == (True, False)


def test_the_carrier_makes_no_other_link() -> None:
    link = Link(7, "eth0", bytes(6), 1500)
    without = Link(7, "eth0", bytes(6), 1500, running=False)
    assert link == without
    assert hash(link) == hash(without)


def test_addresses(lab: Lab) -> None:
    balancer = lab.balancer
    run(balancer, "address add 192.0.2.1 peer 192.0.2.2/32 dev back")
    expected = {
        HostAddress(link["ifname"], ip_interface(f"{one['local']}/{one['prefixlen']}"))
        for link in ask(balancer, "address show")
        for one in link["addr_info"]
    }
    found = balancer.call(rtnetlink.addresses)
    assert set(found) == expected
    assert len(found) == len(expected)


def test_addresses_come_and_go(lab: Lab) -> None:
    balancer = lab.balancer
    for address in (VIP, VIP6):
        own = HostAddress("front", ip_interface(address))
        assert balancer.call(rtnetlink.add_address, address, "front")
        assert own in balancer.call(rtnetlink.addresses)
        assert not balancer.call(rtnetlink.add_address, address, "front"), "it is there already"
        balancer.call(rtnetlink.remove_address, address, "front")
        assert own not in balancer.call(rtnetlink.addresses)
        for interface in ("front", "absent"):
            balancer.call(rtnetlink.remove_address, address, interface)
    # Nobody else on the link is asked for it first: packets need not wait for that.
    balancer.call(rtnetlink.add_address, VIP6, "front")
    (link,) = filter(None, ask(balancer, f"address show dev front to {VIP6}"))
    assert link["addr_info"][0]["nodad"]
    with pytest.raises(HostError, match=r"^cannot add 10\.0\.0\.10 to interface absent: No such"):
        balancer.call(rtnetlink.add_address, VIP, "absent")


def test_routes(lab: Lab) -> None:
    balancer = lab.balancer
    front, back = index(lab, "front"), index(lab, "back")
    run(
        balancer,
        "route add default via 10.0.0.254",
        f"route add 192.168.0.0/16 via {GATEWAY} metric 20",
        "route add 192.168.0.0/16 via 10.0.0.254 metric 10",
        "route add 192.168.1.0/24 nexthop via 10.0.0.254 nexthop via 10.0.1.254",
        f"route add 192.168.2.0/24 via inet6 {GATEWAY6} dev back",
        "route add 192.168.3.0/24 dev back src 10.0.0.1",
        "route add unreachable 192.168.4.0/24",
        "route add blackhole 192.168.5.0/24",
        "route add 192.168.6.0/24 via 10.0.0.254 table 7",
        f"route add 2001:db8:2::/64 via {GATEWAY6}",
        "route add 2001:db8:3::/64 nexthop via 2001:db8:1::2 nexthop via 2001:db8:1::3",
    )
    router = ip_address("10.0.0.254")
    expected = {
        "0.0.0.0/0": Route(front, router),
        "192.168.0.0/16": Route(front, router),
        "192.168.1.0/24": Route(front, router),
        "192.168.2.0/24": Route(back, GATEWAY6),
        "192.168.3.0/24": Route(back, None, ip_address("10.0.0.1")),
        "10.0.1.0/24": Route(back, None, ip_address("10.0.1.1")),
        "2001:db8:2::/64": Route(back, GATEWAY6),
        "2001:db8:3::/64": Route(back, GATEWAY6),
    }
    routes = balancer.call(rtnetlink.routes)
    for prefix, route in expected.items():
        assert routes[ip_network(prefix)] == route, prefix
    for prefix in ("192.168.4.0/24", "192.168.5.0/24", "192.168.6.0/24"):
        assert ip_network(prefix) not in routes
    # Without its link the first of the next hops is dead.
    run(balancer, "link set front down")
    routes = balancer.call(rtnetlink.routes)
    assert routes[ip_network("192.168.1.0/24")] == Route(back, ip_address("10.0.1.254"))
    assert ip_network("0.0.0.0/0") not in routes


def test_the_kernels_choice_of_a_route(lab: Lab) -> None:
    balancer = lab.balancer
    back, loopback = index(lab, "back"), index(lab, "lo")
    run(
        balancer,
        f"route add 192.168.1.0/24 via {GATEWAY}",
        "route add unreachable 192.168.4.0/24",
        "route add blackhole 192.168.5.0/24",
        "route add prohibit 2001:db8:4::/64",
        f"route add 192.168.6.0/24 via {GATEWAY} table 7",
        "rule add to 192.168.6.0/24 lookup 7",
    )
    own, own6 = ip_address("10.0.1.1"), ip_address("2001:db8:1::1")
    expected: dict[str, Route | None] = {
        "10.0.1.2": Route(back, None, own),
        "2001:db8:1::2": Route(back, None, own6),
        "192.168.1.9": Route(back, GATEWAY, own),
        "192.168.6.9": Route(back, GATEWAY, own),
        "10.0.1.1": Route(loopback, None, own, local=True),
        "2001:db8:1::1": Route(loopback, None, own6, local=True),
        "203.0.113.9": None,
        "2001:db8:ff::9": None,
        "192.168.4.9": None,
        "192.168.5.9": None,
        "2001:db8:4::9": None,
        "10.0.1.255": None,
    }
    for destination, route in expected.items():
        assert balancer.call(rtnetlink.route, ip_address(destination)) == route, destination


def test_neighbours(lab: Lab) -> None:
    balancer, back = lab.balancer, index(lab, "back")
    mac = bytes.fromhex("020000000001")
    for address, state in ((GATEWAY, "permanent"), (GATEWAY6, "stale"), (ABSENT, "failed")):
        run(balancer, f"neighbour add {address} lladdr 02:00:00:00:00:01 dev back nud {state}")
    run(balancer, f"neighbour add proxy {VIP} dev front")
    assert balancer.call(rtnetlink.has_proxy, VIP, "front")
    for address, interface in ((VIP, "back"), (VIP6, "front"), (VIP, "absent")):
        assert not balancer.call(rtnetlink.has_proxy, address, interface)
    found = balancer.call(rtnetlink.neighbours)
    expected = (
        Neighbour(back, GATEWAY, mac, fixed=True),
        Neighbour(back, GATEWAY6, mac),
        Neighbour(back, ABSENT, None),
    )
    for one in expected:
        assert found[one.key] == one
    assert all(address != VIP for _, address in found)


def test_neighbours_are_solicited(lab: Lab) -> None:
    balancer, back = lab.balancer, index(lab, "back")
    (eth0,) = ask(lab.backends[0], "link show dev eth0")
    mac = bytes.fromhex(eth0["address"].replace(":", ""))

    def story() -> None:
        monitor = Monitor()
        wanted: dict[NeighbourKey, bytes] = {(back, GATEWAY): mac, (back, GATEWAY6): mac}
        assert rtnetlink.solicit(wanted, ()) == frozenset()
        while wanted:
            # Readable as soon as there is something to read.
            wait_for(monitor)
            for key, one in monitor.read()[1].items():
                if one.mac is not None and key in wanted:
                    assert one.mac == wanted.pop(key)
        assert rtnetlink.solicit((), rtnetlink.neighbours()) == frozenset()
        monitor.close()

    balancer.call(story)


def wait_for(monitor: Monitor) -> None:
    assert select.select([monitor], [], [], 20)[0], "nothing changed"


def test_what_cannot_be_solicited_is_left_out(lab: Lab) -> None:
    balancer, back = lab.balancer, index(lab, "back")
    nowhere: list[NeighbourKey] = [(999, ABSENT), (999, ABSENT6), (back, ABSENT), (back, ABSENT6)]
    run(balancer, "link set back down")
    assert balancer.call(rtnetlink.solicit, nowhere, nowhere) == frozenset()


def test_a_full_neighbour_table(lab: Lab) -> None:
    """Only neighbours that there is no room for are affected."""
    balancer, back = lab.balancer, index(lab, "back")
    keys: dict[str, NeighbourKey] = {"IPv4": (back, ABSENT), "IPv6": (back, ABSENT6)}
    with full_neighbour_table(balancer):
        refused = balancer.call(rtnetlink.solicit, keys.values(), keys.values())
        assert refused == {keys["IPv6"]}
        assert balancer.call(rtnetlink.route, ABSENT6) is not None
    assert balancer.call(rtnetlink.solicit, keys.values(), ()) == frozenset()


def test_lost_changes_are_noticed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "MONITOR_BUFFER", 4096)
    monitor = lab.balancer.call(Monitor)
    run(lab.balancer, *(f"route add 192.168.{number}.0/24 via {GATEWAY}" for number in range(100)))
    with pytest.raises(OverflowError):
        monitor.read()
    # What is left in the buffer, and what happens from now on, can be read.
    assert monitor.read() == (True, {})
    run(lab.balancer, "link set back mtu 1400")
    assert monitor.read()[0]
    monitor.close()


@pytest.mark.parametrize(
    "function",
    [
        rtnetlink.links,
        rtnetlink.addresses,
        rtnetlink.routes,
        rtnetlink.neighbours,
        rtnetlink.Monitor,
        lambda: rtnetlink.route(GATEWAY),
        lambda: rtnetlink.solicit([(1, GATEWAY)], []),
        lambda: rtnetlink.add_address(VIP, "lo"),
        lambda: rtnetlink.remove_address(VIP, "lo"),
        lambda: arp.announce("lo", [VIP]),
        lambda: arp.owners("lo", [VIP]),
    ],
)
def test_a_host_that_refuses_is_an_error_for_operators(function: Any) -> None:
    with no_descriptors(), pytest.raises(HostError, match=r"^cannot .*: Too many open files$"):
        function()


def test_a_change_asks_once_for_each_address_over_one_socket(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many services there are, and stages that ask."""
    sockets: list[int] = []
    asked: list[tuple[int, bytes]] = []

    class Counting(rtnetlink.Connection):
        def __init__(self) -> None:
            super().__init__()
            sockets.append(1)

        def _exchange(self, kind: int, flags: int, body: bytes) -> tuple[list[bytes], bool]:
            asked.append((kind, body))
            return super()._exchange(kind, flags, body)

    monkeypatch.setattr(rtnetlink, "Connection", Counting)
    services = [
        Service(
            name=f"s{number}",
            protocol=Protocol.TCP,
            vips=(Vip(VIP, 1000 + number, 1000 + number),),
            backends=tuple(
                Backend(Endpoint(ip_address(f"10.0.1.{member}"), 2000 + number))
                for member in (2, 3, 4)
            ),
            nat=NatMode.FULL,
        )
        for number in range(50)
    ]

    def change() -> None:
        prepared = host.prepare(services)
        for _ in range(3):
            facts = host.survey(prepared)
            host.check(prepared, host.Options(), facts)
            host.build(prepared, host.Options(), facts)

    def once() -> None:
        with rtnetlink.asked_once():
            change()

    lab.balancer.call(once)
    assert len(sockets) == 1
    assert len(asked) == len(set(asked)), "some question was asked again"
    # The VIP, three backends, and the source address towards them.
    assert sum(kind == rtnetlink.RTM_GETROUTE for kind, _ in asked) == 5
    sockets.clear()

    def anew() -> tuple[list[HostAddress], list[HostAddress]]:
        with rtnetlink.asked_once():
            before = rtnetlink.addresses()
            rtnetlink.add_address(ip_address("10.99.0.1"), "lo")
            return before, rtnetlink.addresses()

    before, after = lab.balancer.call(anew)
    assert {str(own.address) for own in after} - {str(own.address) for own in before} == {
        "10.99.0.1/32"
    }
