"""More flows at once than conntrack's socket takes in one message: a start with many saved flows.

87,000 of them once had a worker die. Whatever the buffer, each flow must get its entry, so here the
buffers are small and the flows few.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP

from featherlb.datapaths.offload import ctnetlink
from featherlb.datapaths.offload.ctnetlink import Conntrack
from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from featherlb.model import Datapath, Hook, SynCookies
from featherlb.system.journal import Journal
from featherlb.system.nfnetlink import open_socket
from tests.builders import tcp
from tests.netns.command import api
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.traffic import Session, wait_for
from tests.netns.wire import send
from tests.world import ONE, World, client, service
from tests.world import VIP as WORLDS_VIP

COUNT = 3 * 256 + 1
"""Flows: some batches of the engine, and one more."""
WEB = ("--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=1) as lab, ExitStack() as servers:
        servers.enter_context(HttpServer(lab.backends[0]))
        yield lab


def entries(lab: Lab) -> int:
    """Conntrack's entries on the balancer."""
    count = lab.balancer.run(["sysctl", "-n", "net.netfilter.nf_conntrack_count"]).stdout
    return int(count)


@pytest.mark.no_packets("conntrack's messages alone")
@pytest.mark.parametrize("room", [128 << 10, 4608], ids=["a batch", "a few"])
def test_every_flow_gets_its_entry_whatever_the_buffer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    opened: list[socket.socket] = []

    def small(*sizes: int) -> socket.socket:
        opened.append(open_socket(*sizes))
        opened[-1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room // 2)  # it is doubled
        return opened[-1]

    monkeypatch.setattr(ctnetlink, "open_socket", small)
    plain = replace(service(ONE, datapath=Datapath.OFFLOAD), syn_cookies=SynCookies.OFF)
    world = World(plain, capacity=2 * COUNT)
    balancer = world.balancer
    port = 1024 + room // 128
    for number in range(COUNT):
        syn = bytearray(tcp(client(number % 200, port + number // 200), WORLDS_VIP, "S"))
        balancer.attach(syn)
        balancer.handle_packet(0, len(syn), int(Hook.PREROUTING), 0, world.now)
    before = entries(lab)

    def insert() -> None:
        conntrack = Conntrack(balancer.offload)
        conntrack.execute(world.now)

    lab.balancer.call(insert)
    assert entries(lab) - before == COUNT
    assert balancer.offload.take_refused() == []
    requests = opened[0]
    with pytest.raises(OSError, match="Message too long"):
        requests.send(bytes(room))
    for one in opened:
        one.close()


@ONE_DRIVER
def test_a_start_with_many_saved_flows(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *WEB) as running:
        running.forgets = False
        session = Session(lab.client)
        backend = session.ask().backend
        syns = [
            bytes(IP(src="10.0.0.200", dst=VIP) / TCP(sport=2000 + number, dport=80, flags="S"))
            for number in range(COUNT)
        ]
        send(lab, syns)
        wait_for(lambda: int(api(lab.balancer, "stats")["flows"]) > COUNT, "flows")
    directory = lab.balancer.call(lambda: Journal().directory)
    assert list(directory.glob("*.flows"))
    with session, featherlb(lab, *WEB, "--datapath", "offload") as running:
        assert f"restored {COUNT + 1} flows" in running.log
        assert not list(directory.glob("*.flows"))  # the workers have them
        assert session.ask().backend == backend
        assert int(api(lab.balancer, "stats")["flows"]) >= COUNT
