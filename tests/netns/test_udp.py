"""UDP through a VIP: whole flows and single datagrams, checksums, GSO packets, real programs."""

import json
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet, Raw

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import DnsServer, Iperf3
from tests.netns.command import Featherlb, api, flows
from tests.netns.conftest import ONE_DRIVER, QUEUEING, WATCHED_OR_ASKED, Up, in_turn
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.send_buffers import small_send_buffers
from tests.netns.traffic import forward, wait_for
from tests.netns.wire import Capture, send, with_right_checksums

BACKENDS = ("10.0.1.2", "10.0.1.3", "10.0.1.4")
DNS_PORT, PORT = 5353, 9000
# Ports of the VIP, by what is behind them.
DNS, POOL, ONE, NOBODY, ONE_PACKET, RESPONSES = range(53, 59)
# Of linux/udp.h and asm-generic/socket.h; Python has no names for them.
UDP_SEGMENT, SO_NO_CHECK = 103, 11


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=3) as lab:
        yield lab


@pytest.fixture(scope="module")
def balanced(
    lab: Lab, featherlb: Up, driver: str, nat: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """One instance for all tests that leave it as it is."""
    path = tmp_path_factory.mktemp("udp") / "lb.yaml"
    dns = tuple(f"{address}:{DNS_PORT}" for address in BACKENDS)
    text = "services:\n"
    text += service(DNS, f"nat: {nat}", backends=dns)
    text += service(DNS, f"nat: {nat}", protocol="tcp", backends=dns)
    text += service(POOL, f"nat: {nat}")
    text += service(ONE, f"nat: {nat}", backends=POOL_MEMBERS[:1])
    text += service(NOBODY, f"nat: {nat}", backends=())
    if driver in QUEUEING:
        text += service(ONE_PACKET, f"nat: {nat}", "one_packet: true")
        text += service(RESPONSES, f"nat: {nat}", "responses: 1")
    path.write_text(text)
    with featherlb(lab, "--config", str(path)):
        yield


@pytest.fixture
def receivers(lab: Lab) -> Iterator[Receivers]:
    with Receivers(lab.backends, PORT) as receivers:
        yield receivers


def connected(lab: Lab, port: int) -> socket.socket:
    """A socket of the client that is connected to a service."""
    return open_socket(lab.client, (lab.client.address, 0), (VIP, port))


POOL_MEMBERS = tuple(f"{address}:{PORT}" for address in BACKENDS)


def service(
    port: int, *settings: str, protocol: str = "udp", backends: tuple[str, ...] = POOL_MEMBERS
) -> str:
    """A service of a configuration, on this port of the VIP, with these further lines."""
    lines = [
        f"  - name: {protocol}{port}",
        f"    vip: {VIP}:{port}",
        f"    protocol: {protocol}",
        "    scheduler: rr",
        *(f"    {setting}" for setting in settings),
        f"    backends: [{', '.join(backends)}]",
    ]
    return "\n".join(lines) + "\n"


@ONE_DRIVER
@pytest.mark.usefixtures("balanced")
def test_dns_over_udp_and_tcp_at_one_address(lab: Lab) -> None:
    def dig(*flags: str) -> str:
        query = ["dig", "+short", "+tries=1", "+timeout=5", *flags, f"@{VIP}", "who.test", "TXT"]
        return lab.client.run(query).stdout.strip().strip('"')

    with ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(DnsServer(node, port=DNS_PORT))
        for protocol in ("+notcp", "+tcp"):
            answers = Counter(dig(protocol) for _ in range(6))
            assert answers == {"backend1": 2, "backend2": 2, "backend3": 2}, protocol


@pytest.mark.usefixtures("balanced")
def test_a_flow_stays_and_further_ones_take_turns(lab: Lab, receivers: Receivers, nat: str) -> None:
    seen = []
    for _ in range(6):
        with connected(lab, POOL) as client:
            first, *others = (receivers.exchange(client) for _ in range(3))
            assert others == [first, first]
            if nat == "dnat":
                assert first.peer == client.getsockname()
            else:
                assert first.peer[0] == lab.balancer.addresses["back"][0]
        seen.append(first.backend)
    assert Counter(seen) == {"backend1": 2, "backend2": 2, "backend3": 2}


@in_turn(nat=("dnat", "full"))
def test_iperf3_loses_nothing_on_the_way(featherlb: Up, nat: str) -> None:
    def lost(lab: Lab, address: str, port: int, *direction: str) -> int:
        # 150 datagrams, 1000 a second: no more than the buffer of a server holds that has to wait
        # for a processor, as a balancer that had to wait sends them all at once.
        command = ["iperf3", "--udp", "--json", "--client", address, "--port", str(port)]
        command += ["--bitrate=1600k", "--length=200", "--bytes=30000", "--connect-timeout=5000"]
        command += direction
        deadline = time.monotonic() + 20
        # The server takes one test at a time, and is a moment behind its client.
        while "sum" not in (said := json.loads(lab.client.run(command, check=False).stdout))["end"]:
            assert time.monotonic() < deadline, f"iperf3 gives no result: {said.get('error')}"
        total = said["end"]["sum"]
        assert total["packets"] >= 140
        return int(total["lost_packets"])

    vips = (f"--vip={VIP}:53/udp", f"--vip={VIP}:53/tcp")
    with Lab(backends=1) as lab, Iperf3(lab.backends[0], port=5201):
        forward(lab.balancer)
        with featherlb(lab, *vips, f"--backend={BACKENDS[0]}:5201", f"--nat={nat}"):
            for direction in ((), ("--reverse",)):
                # What goes to the backend's own address is forwarded, but not translated.
                assert lost(lab, VIP, 53, *direction) <= lost(lab, BACKENDS[0], 5201, *direction)


@ONE_DRIVER
@pytest.mark.usefixtures("balanced")
def test_one_packet_spreads_the_datagrams_of_one_socket(lab: Lab, receivers: Receivers) -> None:
    with connected(lab, ONE_PACKET) as client:
        seen = Counter(receivers.exchange(client).backend for _ in range(9))
        assert seen == {"backend1": 3, "backend2": 3, "backend3": 3}
        # Answers may also come after further queries.
        for _ in range(3):
            client.send(b"query")
        queries = [receivers.receive() for _ in range(3)]
        for query in reversed(queries):
            receivers.answer(query, query.backend.encode())
        assert {client.recv(100) for _ in range(3)} == {b"backend1", b"backend2", b"backend3"}


@ONE_DRIVER
@pytest.mark.usefixtures("balanced")
def test_a_flow_ends_with_the_last_expected_response(lab: Lab, receivers: Receivers) -> None:
    with connected(lab, RESPONSES) as client:
        seen = [receivers.exchange(client).backend for _ in range(6)]
        assert set(seen[:3]) == {"backend1", "backend2", "backend3"}
        assert seen == seen[:3] * 2
        # Two queries of one flow expect two answers.
        client.send(b"one")
        one = receivers.receive()
        client.send(b"two")
        two = receivers.receive()
        assert two.backend == one.backend
        receivers.answer(one, b"1")
        receivers.answer(two, b"2")
        assert (client.recv(100), client.recv(100)) == (b"1", b"2")
        assert receivers.exchange(client).backend != one.backend


def reload(running: Featherlb) -> None:
    start = len(running.log)
    running.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reload" in running.log[start:], "the end of the reload in the log")
    assert "reloaded" in running.log[start:]


@WATCHED_OR_ASKED
@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_the_flows_of_a_removed_backend_move_at_once(
    featherlb: Up, tmp_path: Path, nat: str
) -> None:
    path = tmp_path / "lb.yaml"

    def write(backends: Iterable[str]) -> None:
        path.write_text("services:\n" + service(POOL, f"nat: {nat}", backends=tuple(backends)))

    write(POOL_MEMBERS)
    with (
        Lab(backends=3) as lab,
        Receivers(lab.backends, PORT) as receivers,
        connected(lab, POOL) as client,
        featherlb(lab, "--config", str(path)) as running,
    ):
        first = receivers.exchange(client).backend
        write(f"{node.address}:{PORT}" for node in lab.backends if node.name != first)
        reload(running)
        second = receivers.exchange(client).backend
        assert second != first
        assert receivers.exchange(client).backend == second
        write(())
        reload(running)
        client.send(b"query")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


@ONE_DRIVER
@pytest.mark.usefixtures("balanced")
def test_without_a_backend_the_client_is_refused(lab: Lab) -> None:
    with connected(lab, NOBODY) as client:
        client.send(b"query")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
        # Each datagram is refused, not only the first one of a flow.
        client.send(b"query")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)


@in_turn(["raw", "offload"], nat=("full", "dnat"))
def test_known_flows_go_first_in_a_flood(featherlb: Up, nat: str, tmp_path: Path) -> None:
    """Of a table of 4,096 flows; only 3 more may open in a tenth of a second while 256 have no
    answer."""
    path = tmp_path / "lb.yaml"
    deaf = tuple(f"{address}:{PORT + 1}" for address in BACKENDS)
    path.write_text(
        "max_flows: 4096\nservices:\n"
        + service(POOL, f"nat: {nat}")
        + service(NOBODY, f"nat: {nat}", backends=deaf)
    )
    one = bytearray(bytes(IP(src="10.0.0.200", dst=VIP) / UDP(dport=NOBODY, chksum=0) / b"flood"))
    flood = []
    for port in range(1024, 2524):
        one[20:22] = port.to_bytes(2, "big")
        flood.append(bytes(one))

    with (
        Lab(backends=3) as lab,
        featherlb(lab, "--config", str(path)),
        Receivers(lab.backends, PORT) as receivers,
        Receivers(lab.backends, PORT + 1),  # of which nobody reads
        connected(lab, POOL) as client,
    ):
        known = receivers.exchange(client)
        send(lab, flood)
        wait_for(
            lambda: api(lab.balancer, "stats")["reasons"]["udp-flood"] > 0, "the budget is spent"
        )
        assert [receivers.exchange(client) for _ in range(3)] == [known] * 3
        assert len(flows(lab.balancer)) < 1000


def datagram(packets: list[Packet], source: str) -> Packet | None:
    """The first UDP datagram from this address."""
    return next((packet for packet in packets if UDP in packet and packet.src == source), None)


@pytest.mark.usefixtures("balanced")
def test_a_datagram_without_a_checksum_stays_so(lab: Lab, receivers: Receivers) -> None:
    client = lab.client.address
    query = IP(src=client, dst=VIP) / UDP(sport=4000, dport=ONE, chksum=0) / Raw(b"unsummed")
    with (
        open_socket(lab.client, (client, 4000), (VIP, ONE)) as own,
        Capture(lab.backends[0], "eth0") as at_backend,
        Capture(lab.client, "eth0") as at_client,
    ):
        send(lab, [bytes(query)])
        arrival = receivers.receive()
        assert arrival.data == b"unsummed"
        receivers.sockets["backend1"].setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        receivers.answer(arrival, b"unsummed as well")
        assert own.recv(100) == b"unsummed as well"
        there = datagram(at_backend.packets(BACKENDS[0]), arrival.peer[0])
        back = datagram(at_client.packets(client), VIP)
    assert there is not None
    assert back is not None
    assert (there[UDP].chksum, back[UDP].chksum) == (0, 0)


@pytest.mark.usefixtures("balanced")
def test_udp_segmentation_offload(lab: Lab, receivers: Receivers) -> None:
    """A sender leaves it to the kernel to cut its buffer into datagrams; the balancer may see it
    uncut, and its devices may leave cutting and summing to the receiver."""

    def offload(state: str) -> None:
        for device in ("front", "back"):
            lab.balancer.run(["ethtool", "--offload", device, "tx", state])

    def send_buffers() -> None:
        for size in (1, 7, 512, 1001, 1400, 1472):
            data = bytes(n % 251 for n in range(9 * size + (size + 1) // 2))
            parts = [data[at : at + size] for at in range(0, len(data), size)]
            for sender, receiver in ((client, server), (server, client)):
                sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
                sender.send(data)
                assert [receiver.recv(1 << 16) for _ in parts] == parts

    with connected(lab, ONE) as client:
        query = receivers.exchange(client)
        server = receivers.sockets[query.backend]
        server.connect(query.peer)
        send_buffers()
        with (
            Capture(lab.backends[0], "eth0") as at_backend,
            Capture(lab.client, "eth0") as at_client,
        ):
            # Now the balancer's own kernel has to cut and to sum.
            offload("off")
            send_buffers()
            offload("on")
            seen = at_backend.packets(BACKENDS[0]) + at_client.packets(lab.client.address)
    translated = [p for p in seen if UDP in p and p.src in (query.peer[0], VIP) and p.dst != VIP]
    # Six buffers of ten datagrams in each direction.
    assert len(translated) == 2 * 6 * 10
    assert [p for p in translated if bytes(p) != with_right_checksums(p)] == []


@pytest.mark.usefixtures("balanced")
@ONE_DRIVER
def test_a_verdict_that_the_kernel_refuses_does_not_block_the_queue(
    lab: Lab, receivers: Receivers
) -> None:
    """Its packet is dropped and counted, and leaves the queue; the others go on."""

    def queues() -> dict[str, int]:
        (queue,) = api(lab.balancer, "stats")["queues"]
        return {key: queue[key] for key in ("verdict_refused", "waiting")}

    with connected(lab, ONE) as client:
        receivers.exchange(client)
        with small_send_buffers(lab.balancer):
            for data in (b"small", bytes(8000), b"small, too"):
                client.send(data)
            assert [receivers.receive().data for _ in range(2)] == [b"small", b"small, too"]
            assert queues() == {"verdict_refused": 1, "waiting": 0}
        receivers.exchange(client, bytes(8000))
        assert queues() == {"verdict_refused": 1, "waiting": 0}
