"""Forged packets on the real kernel, by one who knows the addresses and ports of a connection."""

import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Packet

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import Featherlb, api, flows
from tests.netns.conftest import Up, in_turn
from tests.netns.traffic import Session, ask, wait_for
from tests.netns.wire import send

WEB = {"dnat": 80, "full": 81}
LIMITED = {"dnat": 82, "full": 83}
"""Ports of the VIP, by NAT mode."""
SMALL = 84
"""That of a service with a single backend and `full` NAT."""
WATCHED = 85
"""That of a service with passive health, whose backends see the client."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=2) as lab, HttpServer(lab.backends[0]), HttpServer(lab.backends[1]):
        yield lab


@pytest.fixture(scope="module")
def running(
    lab: Lab, featherlb: Up, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Featherlb]:
    """One instance for all tests."""
    path = tmp_path_factory.mktemp("forged") / "lb.yaml"
    # A flood of one test must not have cookies answer for the backends in others.
    path.write_text(
        "services:\n"
        + "".join(
            f"  - {{name: web-{nat}, vip: '{VIP}:{WEB[nat]}', nat: {nat}, syn_cookies: 'off',"
            " backends: ['10.0.1.2:8080', '10.0.1.3:8080']}\n"
            f"  - {{name: limited-{nat}, vip: '{VIP}:{LIMITED[nat]}', nat: {nat},"
            " syn_cookies: 'off', backends: [{address: '10.0.1.2:8080', max_connections: 1}]}\n"
            for nat in WEB
        )
        + f"  - {{name: small, vip: '{VIP}:{SMALL}', nat: full, syn_cookies: 'off',"
        " backends: ['10.0.1.2:8080']}\n"
        + f"  - {{name: watched, vip: '{VIP}:{WATCHED}', passive_health: {{failures: 3}},"
        " syn_cookies: 'off', redispatch: {refused: false, silent: false},"
        " backends: ['10.0.1.2:8080', '10.0.1.3:8080']}\n"
    )
    with featherlb(lab, "--config", str(path)) as running:
        yield running


def blind(session: Session, flags: str, **fields: int) -> bytes:
    """A segment in the client's name; no number of the connection is known."""
    (source, port), (address, vip_port) = session.socket.getsockname(), session.socket.getpeername()
    segment: Packet = IP(src=source, dst=address) / TCP(
        sport=port, dport=vip_port, flags=flags, **({"seq": 77, "ack": 77} | fields)
    )
    return bytes(segment)


@in_turn(nat=["dnat", "full"])
def test_a_blind_close_and_a_syn_leave_the_connection(
    lab: Lab, running: Featherlb, nat: str
) -> None:
    with Session(lab.client, port=WEB[nat]) as session:
        backend = session.ask().backend
        for flags in ("R", "RA", "FA", "S"):
            send(lab, [blind(session, flags)] * 3)
        # What came before this connection has been looked at when it is answered.
        ask(lab.client, port=WEB[nat])
        ask(lab.client, port=WEB[nat])
        assert session.ask().backend == backend
        send(lab, [blind(session, flags) for flags in ("R", "FA")])
        assert [session.ask().backend for _ in range(3)] == [backend] * 3


@in_turn(nat=["dnat", "full"])
def test_a_blind_close_makes_no_room_at_a_full_backend(
    lab: Lab, running: Featherlb, nat: str
) -> None:
    with Session(lab.client, port=LIMITED[nat]) as session:
        session.ask()
        for flags in ("R", "RA", "FA"):
            send(lab, [blind(session, flags)])
            ask(lab.client, port=WEB[nat])
            with pytest.raises(ConnectionError):
                lab.client.connect(VIP, LIMITED[nat])
        session.ask()
        session.reset()
    # A real RST does.
    wait_for(lambda: not is_refused(lab, nat), "room for another connection")


def is_refused(lab: Lab, nat: str) -> bool:
    try:
        with Session(lab.client, port=LIMITED[nat]) as session:
            session.ask()
            session.reset()
    except ConnectionError:
        return True
    return False


@in_turn(["netlink", "raw"], nat=["dnat", "full"])
def test_a_doubtful_segment_is_counted(lab: Lab, running: Featherlb, nat: str) -> None:
    def doubtful() -> int:
        services = api(lab.balancer, "services")["services"]
        return sum(one["doubtful"] for service in services for one in service["backends"])

    before = doubtful()
    with Session(lab.client, port=WEB[nat]) as session:
        session.ask()
        send(lab, [blind(session, flags) for flags in ("R", "RA", "FA", "S")])
        wait_for(lambda: doubtful() == before + 4, "four doubtful segments")
        (flow,) = [one for one in flows(lab.balancer) if one["vip"] == f"{VIP}:{WEB[nat]}"]
        assert flow["state"] == "established"


MARTIANS = ("127.0.0.1", "224.0.0.5", "240.0.0.1", "0.0.0.1", VIP)
UNANSWERABLE = ("10.0.0.1", "10.0.0.255", "203.0.113.9")
"""This host's own, a broadcast address, and one to which it has no route."""


@in_turn(nat=["dnat", "full"])
def test_packets_that_no_host_can_have_sent_open_no_flow(
    lab: Lab, running: Featherlb, nat: str, driver: str
) -> None:
    # On raw, which answers by the link on which a packet came, routes don't matter.
    sources = MARTIANS if driver == "raw" else MARTIANS + UNANSWERABLE

    def counted() -> tuple[int, int]:
        """Martians that rules or workers have dropped, and frames with wrong checksums."""
        found = api(lab.balancer, "stats")
        reasons = found["reasons"]
        return found["martians"] + reasons["martian"], reasons["bad-checksum"]

    before = counted()
    martians = [
        bytes(IP(src=source, dst=VIP) / TCP(sport=4000, dport=WEB[nat], flags="S"))
        for source in sources
    ]
    send(lab, martians)
    damaged = IP(src="10.0.0.201", dst=VIP, chksum=0xDEAD) / TCP(dport=WEB[nat], flags="S")
    send(lab, [bytes(damaged)])
    ask(lab.client, port=WEB[nat])
    # How many of them the kernel drops itself, before any rule, is its business.
    wait_for(
        lambda: counted()[0] >= before[0] + (1 if driver == "raw" else len(UNANSWERABLE)),
        "martians are counted",
    )
    clients = {one["client"].partition(":")[0] for one in flows(lab.balancer)}
    assert clients.isdisjoint({*sources, "10.0.0.201"})
    # At its hooks the kernel checks it before.
    assert counted()[1] - before[1] == (driver == "raw")


def spoofed_syns(turn: int) -> list[bytes]:
    """SYNs to the small service from 2,000 ports, others in each turn, of a host that is not."""
    address = f"10.0.0.{200 + turn // 25}"
    first = 1024 + turn % 25 * 2000
    syn = bytearray(bytes(IP(src=address, dst=VIP) / TCP(sport=0, dport=SMALL, flags="S")))
    rest = 0xFFFF - int.from_bytes(syn[36:38], "big")
    packets = []
    for port in range(first, first + 2000):
        total = rest + port
        syn[20:22] = port.to_bytes(2, "big")
        syn[36:38] = (0xFFFF - (total & 0xFFFF) - (total >> 16)).to_bytes(2, "big")
        packets.append(bytes(syn))
    return packets


@in_turn(["netlink", "raw", "offload"])
def test_spoofed_syns_leave_source_ports_for_clients(lab: Lab, running: Featherlb) -> None:
    """31,744 half-open flows would have them all, and 1,100 SYNs a second keep them."""

    def refused() -> int:
        count: int = api(lab.balancer, "stats")["reasons"]["no-source-port"]
        return count

    def reclaimed() -> int:
        (small,) = [
            one for one in api(lab.balancer, "services")["services"] if one["name"] == "small"
        ]
        count: int = small["backends"][0]["ports_reclaimed"]
        return count

    with Session(lab.client, port=SMALL) as session:
        session.ask()
        for turn in range(100):
            send(lab, spoofed_syns(turn))
            if refused() or reclaimed():
                break
        for _ in range(3):
            ask(lab.client, port=SMALL)
        session.ask()
        assert (refused(), reclaimed() > 0) == (0, True)


LISTENING = ("10.0.1.2", "10.0.1.3")


def syn_of(source: str, port: int) -> Packet:
    """A SYN to the watched service, in the name of a host in the backends' network: they answer it
    there, and the balancer doesn't see that."""
    return IP(src=source, dst=VIP) / TCP(sport=port, dport=WATCHED, flags="S", seq=7)


@in_turn(["netlink", "raw", "offload"])
def test_forged_packets_eject_no_backend(lab: Lab, running: Featherlb, driver: str) -> None:
    def is_acquitted() -> bool:
        # Other ports every second, and the same again in between: they seem to have no answer.
        port = 4000 + int(time.monotonic()) % 20_000
        send(lab, [bytes(syn_of(f"10.0.1.{100 + number}", port)) for number in range(10)])
        return all(f"{one}:8080 is not ejected: " in running.log for one in LISTENING)

    wait_for(is_acquitted, "acquittals")

    # SYNs that seem to be refused.
    def refused() -> int:
        services = api(lab.balancer, "services")["services"]
        (watched,) = [one for one in services if one["name"] == "watched"]
        return sum(one["refused"] for one in watched["backends"])

    for port in range(30_000, 30_010):
        refusals = [
            IP(src=backend, dst="10.0.1.99") / TCP(sport=8080, dport=port, flags="RA", ack=8)
            for backend in LISTENING
        ]
        send(lab, [bytes(syn_of("10.0.1.99", port)), *map(bytes, refusals)])
    assert {ask(lab.client, port=WATCHED).backend for _ in range(4)} == {"backend1", "backend2"}
    if driver == "raw":  # they did not come from where the backends are
        assert refused() == 0
    assert " is ejected" not in running.log


@in_turn(["netlink", "raw", "netfilterqueue"], nat=["dnat", "full"])
def test_forged_errors_do_not_get_through(lab: Lab, running: Featherlb, nat: str) -> None:
    """They would have the client send tiny packets; it is what a router says to the balancer."""

    def forged() -> int:
        count: int = api(lab.balancer, "stats")["reasons"]["forged-error"]
        return count

    before = forged()
    with Session(lab.client, port=WEB[nat]) as session:
        session.ask()
        (flow,) = [one for one in flows(lab.balancer) if one["vip"] == f"{VIP}:{WEB[nat]}"]
        (source, port), (server, server_port) = (
            (host, int(number))
            for host, _, number in (flow[end].rpartition(":") for end in ("source", "backend"))
        )
        about = IP(src=source, dst=server, flags="DF") / TCP(
            sport=port, dport=server_port, flags="A", seq=77
        )
        for mtu in (68, 600):
            error = IP(src="10.0.0.254", dst=source) / ICMP(type=3, code=4, nexthopmtu=mtu) / about
            send(lab, [bytes(error)])
        wait_for(lambda: forged() == before + 2, "two forged errors")
        session.ask()
