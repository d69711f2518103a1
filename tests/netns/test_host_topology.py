"""Links, routes and neighbours for the datapath raw, while they change."""

import asyncio
import logging
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from featherlb.control import topology
from featherlb.control.events import Events
from featherlb.control.tasks import Tasks
from featherlb.control.topology import TopologyWatcher
from featherlb.lab import Lab, Node
from featherlb.model import (
    Address,
    Backend,
    Datapath,
    Endpoint,
    Link,
    NextHop,
    Protocol,
    Service,
    Topology,
    Vip,
)
from featherlb.system import netlink
from tests.netns.test_host_rtnetlink import full_neighbour_table, no_descriptors
from tests.netns.traffic import plug_again

pytestmark = pytest.mark.no_packets("what the supervisor knows of links, while no worker runs")

NEAR, NEAR6 = ip_address("10.0.1.2"), ip_address("2001:db8:1::2")
OTHER_MAC = "02:00:00:00:00:99"
TIMEOUT = 60


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab whose balancer finds out soon that a neighbour has gone."""
    monkeypatch.setattr(topology, "PROBE_INTERVAL", 0.2)
    with Lab(backends=2) as lab:
        hasten(lab.balancer)
        yield lab


def hasten(node: Node) -> None:
    for version in ("ipv4", "ipv6"):
        node.sysctl(f"net.{version}.neigh.back.retrans_time_ms", 50)


def service(*backends: Address) -> Service:
    return Service(
        "web",
        Protocol.TCP,
        (Vip(ip_address("10.0.0.10"), 80, 80),),
        tuple(Backend(Endpoint(address, 8080)) for address in backends),
        datapath=Datapath.RAW,
    )


class Watch:
    """A watcher in the balancer's namespace."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.events = Events()
        self.watcher = TopologyWatcher(self.events, Tasks(self.events))

    async def until(self, condition: Callable[[Topology], bool], what: str) -> Topology:
        """The first topology with which the condition holds; each is waited for as an instance
        does it."""
        async with asyncio.timeout(TIMEOUT):
            while not condition(self.watcher.current):
                self.watcher.changed.clear()
                try:
                    await self.watcher.changed.wait()
                except asyncio.CancelledError:
                    raise AssertionError(f"not {what}: {self.watcher.current}") from None
        return self.watcher.current

    async def resolved(self, address: Address, mac: str) -> NextHop:
        wanted = bytes.fromhex(mac.replace(":", ""))

        def found(topology: Topology) -> bool:
            hop = topology.next_hops.get(address)
            return hop is not None and hop.mac == wanted

        return (await self.until(found, f"{address} at {mac}")).next_hops[address]

    def link(self, name: str) -> Link:
        return next(link for link in self.watcher.current.links if link.name == name)


def watching(lab: Lab, story: Callable[[Watch], Awaitable[None]], *backends: Address) -> None:
    """Run a story with a watcher of these backends."""

    async def run() -> None:
        watch = Watch(lab)
        await watch.watcher.follow([service(*backends)])
        try:
            await story(watch)
        finally:
            await watch.watcher.stop()
            assert not watch.watcher.active

    lab.balancer.call(asyncio.run, run())


async def run(node: Node, command: str) -> None:
    await asyncio.to_thread(node.run, command.split())


def mac(node: Node, name: str = "eth0") -> str:
    return node.run(["cat", f"/sys/class/net/{name}/address"]).stdout.strip()


def test_backends_are_found_and_followed_when_they_move(lab: Lab) -> None:
    backend = lab.backends[0]
    before = mac(backend)

    async def story(watch: Watch) -> None:
        back = watch.link("back")
        assert back.mac == bytes.fromhex(mac(lab.balancer, "back").replace(":", ""))
        assert [link.name for link in watch.watcher.current.links] == ["front", "back"]
        assert ip_address("10.0.0.1") in watch.watcher.current.addresses
        for address in (NEAR, NEAR6):
            assert (await watch.resolved(address, before)).link == back.index
        # It doesn't tell anybody, and sends nothing.
        await run(backend, f"ip link set eth0 address {OTHER_MAC}")
        for address in (NEAR, NEAR6):
            await watch.resolved(address, OTHER_MAC)

    watching(lab, story, NEAR, NEAR6)


def test_a_backend_that_comes_later(lab: Lab) -> None:
    backend = lab.backends[0]
    backend.run(["ip", "link", "set", "eth0", "down"])

    async def story(watch: Watch) -> None:
        assert watch.watcher.current.next_hops[NEAR].mac is None
        await run(backend, "ip link set eth0 up")
        await watch.resolved(NEAR, mac(backend))
        # Others of a pool join and leave while it runs.
        await watch.watcher.follow([service(ip_address("10.0.1.3"))])
        assert watch.watcher.current.next_hops.keys() == {ip_address("10.0.1.3")}
        await watch.resolved(ip_address("10.0.1.3"), mac(lab.backends[1]))
        await watch.watcher.follow([])
        assert watch.watcher.current == Topology()

    watching(lab, story, NEAR)


def test_a_link_goes_down_and_up_and_changes(lab: Lab) -> None:
    balancer, backend = lab.balancer, lab.backends[0]

    async def story(watch: Watch) -> None:
        await watch.resolved(NEAR, mac(backend))
        await run(balancer, "ip link set back down")
        down = await watch.until(lambda it: not it.next_hops, "without next hops")
        assert [link.name for link in down.links] == ["front"]
        await run(balancer, "ip link set back mtu 1400 up")
        await watch.resolved(NEAR, mac(backend))
        index = watch.link("back").index
        assert watch.link("back").mtu == 1400
        await run(balancer, "ip link set back mtu 1300")
        await watch.until(lambda it: it.links[-1].mtu == 1300, "MTU 1300")
        await run(balancer, f"ip link set back address {OTHER_MAC}")
        await watch.until(lambda it: it.links[-1].mac[-1] == 0x99, "another MAC address")
        await run(balancer, "ip link set back name rear")
        await watch.until(lambda it: it.links[-1].name == "rear", "renamed")
        assert watch.link("rear").index == index
        await watch.resolved(NEAR, mac(backend))

    watching(lab, story, NEAR)


def test_an_interface_is_removed_and_added_again(lab: Lab) -> None:
    balancer, backend = lab.balancer, lab.backends[0]

    async def story(watch: Watch) -> None:
        await watch.resolved(NEAR, mac(backend))
        before = watch.link("back").index
        await run(balancer, "ip link delete back")
        await watch.until(lambda it: len(it.links) == 1 and not it.next_hops, "without the link")
        await asyncio.to_thread(plug_again, lab, "back", "10.0.1.1/24")
        hasten(balancer)
        hop = await watch.resolved(NEAR, mac(backend))
        assert hop.link == watch.link("back").index != before

    watching(lab, story, NEAR)


def test_routes_change(lab: Lab) -> None:
    balancer = lab.balancer
    far, gateway, other = ip_address("192.168.7.7"), lab.backends[0], lab.backends[1]

    async def story(watch: Watch) -> None:
        assert far not in watch.watcher.current.next_hops
        await run(balancer, f"ip route add 192.168.0.0/16 via {gateway.address}")
        back = (await watch.resolved(far, mac(gateway))).link
        hop = NextHop(back, bytes.fromhex(mac(gateway).replace(":", "")))
        assert (ip_network("192.168.0.0/16"), hop) in watch.watcher.current.routes
        # A rule counts as well, and the way of an IPv4 route may be an IPv6 one.
        await run(balancer, f"ip route add 192.168.7.0/24 via inet6 {other.address6} table 7")
        await run(balancer, "ip rule add to 192.168.7.0/24 lookup 7")
        await watch.resolved(far, mac(other))
        await run(balancer, "ip rule delete to 192.168.7.0/24 lookup 7")
        await watch.resolved(far, mac(gateway))
        await run(balancer, "ip route delete 192.168.0.0/16")
        await watch.until(lambda it: far not in it.next_hops, "without a route")

    watching(lab, story, far)


def test_what_cannot_be_reached_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "REPORT_DELAY", 0.3)
    absent = ip_address("10.0.1.77")

    async def story(watch: Watch) -> None:
        with watch.events.listen() as listener:
            async with asyncio.timeout(TIMEOUT):
                event = await listener.get()
                assert event.message == (
                    "no packet gets to backend 10.0.1.77: 10.0.1.77 does not answer on back"
                )
                assert (event.kind, event.details) == ("path-lost", {"backend": "10.0.1.77"})
                await run(lab.backends[0], "ip address add 10.0.1.77/32 dev eth0")
                assert (await listener.get()).kind == "path-found"

    watching(lab, story, absent)


def test_links_that_are_not_used(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.balancer.run(["ip", "tuntap", "add", "tun0", "mode", "tun"])
    lab.balancer.run(["ip", "link", "set", "tun0", "up"])

    async def story(watch: Watch) -> None:
        await run(lab.balancer, "ip link add br0 type bridge")
        await run(lab.balancer, "ip link set br0 up")
        await watch.until(lambda it: len(it.links) == 3, "with a bridge")
        await run(lab.balancer, "ip link set back master br0")
        left = await watch.until(lambda it: len(it.links) == 2, "without the bridge's member")
        assert [link.name for link in left.links] == ["front", "br0"]

    watching(lab, story)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "tun0 has no Ethernet frames"
    ]


def test_a_full_neighbour_table_is_reported_and_survived(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "REPORT_DELAY", 0.1)
    monkeypatch.setattr(topology, "SOLICIT_INTERVALS", (0.1, 0.1))
    backend = lab.backends[0]
    lost = (
        f"no packet gets to backend {NEAR6}: the kernel's neighbour table is full, so {NEAR6} can't"
        " be resolved on back; raise net.ipv6.neigh.default.gc_thresh3"
    )

    async def story(watch: Watch) -> None:
        # Whether the table is full at the start, or while featherlb runs.
        for backends in ([NEAR6], [NEAR, NEAR6]):
            with watch.events.listen() as listener, full_neighbour_table(lab.balancer):
                await watch.watcher.follow([service(*backends)])
                async with asyncio.timeout(TIMEOUT):
                    assert (await listener.get()).message == lost
            with watch.events.listen() as listener:
                await watch.resolved(NEAR6, mac(backend))
                async with asyncio.timeout(TIMEOUT):
                    assert (await listener.get()).kind == "path-found"
            await watch.watcher.follow([service(NEAR)])
            await watch.resolved(NEAR, mac(backend))
            await run(lab.balancer, f"ip neighbour delete {NEAR6} dev back")
        # It is still watched.
        await run(backend, f"ip link set eth0 address {OTHER_MAC}")
        await watch.resolved(NEAR, OTHER_MAC)

    async def main() -> None:
        watch = Watch(lab)
        try:
            await story(watch)
        finally:
            await watch.watcher.stop()

    lab.balancer.call(asyncio.run, main())


def test_lost_changes_are_read_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(netlink, "MONITOR_BUFFER", 4096)
    balancer, backend = lab.balancer, lab.backends[0]
    routes = [f"192.168.{number}.0/24" for number in range(200)]
    flood = "".join(f"route replace {route} via {backend.address}\n" for route in routes)

    async def story(watch: Watch) -> None:
        await watch.resolved(NEAR, mac(backend))
        # Nothing is read meanwhile.
        balancer.run(["ip", "-batch", "-"], input=flood)
        balancer.run(["ip", "link", "set", "back", "mtu", "1400"])
        await watch.until(
            lambda it: (
                it.links[-1].mtu == 1400
                and {ip_network(route) for route in routes} <= {network for network, _ in it.routes}
            ),
            "read again",
        )
        await run(backend, f"ip link set eth0 address {OTHER_MAC}")
        await watch.resolved(NEAR, OTHER_MAC)

    watching(lab, story, NEAR)
    assert [record.message for record in caplog.records if "faster" in record.message] == [
        "links, routes or neighbours changed faster than featherlb could read it: reading all of"
        " them again"
    ]


def test_a_kernel_that_does_not_answer_is_asked_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(topology, "RETRY_INTERVAL", 0.05)
    balancer, backend = lab.balancer, lab.backends[0]

    async def story(watch: Watch) -> None:
        await watch.resolved(NEAR, mac(backend))
        before = watch.watcher.current
        # The change comes when nothing can be opened any more, so nothing can be asked.
        change = balancer.popen(
            ["sh", "-c", "read _; ip link set back mtu 1400"], stdin=subprocess.PIPE
        )
        assert change.stdin is not None
        with no_descriptors():
            change.stdin.write("now\n")
            change.stdin.flush()
            async with asyncio.timeout(TIMEOUT):
                while not any("Too many open files" in one.message for one in caplog.records):
                    await asyncio.sleep(0.01)
            # More than one attempt.
            await asyncio.sleep(3 * topology.RETRY_INTERVAL)
            assert watch.watcher.current == before
        change.stdin.close()
        change.wait()
        await watch.until(lambda it: it.links[-1].mtu == 1400, "MTU 1400")

    with caplog.at_level(logging.INFO):
        watching(lab, story, NEAR)
    messages = [one.message for one in caplog.records if one.levelno != logging.DEBUG]
    first, last = [one for one in messages if "again" in one]
    assert first.endswith("Too many open files; trying again every 0.05 s")
    assert last == "links, routes and neighbours are being watched again"
