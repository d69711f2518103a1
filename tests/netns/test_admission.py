"""Who may open connections, on the wire: lists of networks and limits for clients, on every
datapath. tests/unit/core/path/test_admission.py has each condition by itself."""

import errno
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP, VIP6
from featherlb.lab.servers import HttpServer
from tests.netns.command import api, flows, reload, run
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.test_operate_flows import LISTEN, TOKEN, get, metrics
from tests.netns.traffic import Session, ask, wait_for
from tests.netns.wire import send

PORT = 9000
DATAPATHS = pytest.mark.parametrize("driver", ["netlink", "raw", "offload"], indirect=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two clients, and two backends with HTTP servers, one of them for IPv6 as well."""
    with Lab(clients=2, backends=2) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        servers.enter_context(HttpServer(lab.backends[0], lab.backends[0].address6, 8081))
        yield lab


def refused(node: Node, address: str = VIP, port: int = 80) -> bool:
    try:
        Session(node, address, port).close()
    except ConnectionRefusedError:
        return True
    return False


def write(directory: Path, lab: Lab, *, denied: tuple[str, ...]) -> Path:
    others = (f"172.16.{number >> 7}.{2 * number % 256}" for number in range(500))
    (directory / "denied.txt").write_text("".join(f"{one}\n" for one in (*others, *denied)))
    v6 = lab.clients[0].address6
    path = directory / "lb.yaml"
    path.write_text(
        f"""
workers: 2
api: {{listen: '{LISTEN}', token: {TOKEN}}}
services:
- name: web
  vip: {VIP}:80
  allow: 10.0.0.0/24
  deny: [{{file: denied.txt}}, 192.0.2.0/24]
  deny_action: reset
  max_flows: {{limit: 3, action: reset}}
  backends: [10.0.1.2:8080, 10.0.1.3:8080]
- name: slow
  vip: {VIP}:81
  max_new: {{rate: 1/h, burst: 2, action: reset}}
  backends: [10.0.1.2:8080, 10.0.1.3:8080]
- name: silent
  vip: {VIP}:82
  deny: {{file: denied.txt}}
  max_new: {{rate: 1/h, burst: 2}}
  backends: [10.0.1.2:8080]
- name: datagrams
  vip: {VIP}:83
  protocol: udp
  deny: {{file: denied.txt}}
  deny_action: reset
  max_flows: {{limit: 2, action: reset}}
  backends: [10.0.1.2:{PORT}, 10.0.1.3:{PORT}]
- name: queries
  vip: {VIP}:84
  protocol: udp
  max_new: {{rate: 1/h, burst: 2}}
  backends: [10.0.1.2:{PORT}, 10.0.1.3:{PORT}]
- name: six
  vip: '[{VIP6}]:80'
  allow: {v6}
  deny_action: reset
  backends: ['[{lab.backends[0].address6}]:8081']
"""
    )
    return path


def refusals(lab: Lab, who: str, reason: str, service: str = "silent") -> float:
    """Packets to a service that the kernel, or the workers, have refused."""
    labels = f'reason="{reason}",service="{service}",worker="'
    return sum(
        count
        for name, count in metrics(get(lab, "/metrics")[1]).items()
        if labels in name and ('"kernel"' in name) is (who == "kernel")
    )


def try_to_connect(sockets: ExitStack, node: Node, port: int) -> None:
    """Send a SYN, and don't wait for an answer."""
    client = sockets.enter_context(node.new_socket())
    client.setblocking(False)
    assert client.connect_ex((VIP, port)) == errno.EINPROGRESS


@DATAPATHS
def test_clients_connect_as_their_service_allows(
    lab: Lab, featherlb: Up, tmp_path: Path, driver: str
) -> None:
    one, two = lab.clients
    path = write(tmp_path, lab, denied=(two.address,))
    with featherlb(lab, "--config", str(path)), ExitStack() as sockets:
        assert refused(two)
        # Whichever worker the ports select: one knows all connections of a client.
        kept = [sockets.enter_context(Session(one)) for _ in range(3)]
        assert refused(one)
        assert {session.ask().peer for session in kept} == {one.address}
        kept.pop().close()
        wait_for(lambda: not refused(one), "room for another connection")
        assert [refused(one, port=81) for _ in range(4)] == [False, False, True, True]
        assert ask(one, VIP6).backend == "backend1"
        assert refused(two, VIP6)
        told = api(lab.balancer, f"explain?client={two.address}&vip=web")
        assert (told["outcome"], told["backend"]) == ("not-allowed", None)
        assert told["reasons"] == ["deny: the client is on the list: new flows are refused"]

        # Those that are not to be told are dropped before a worker has them, where the kernel does
        # it; where workers get frames, they do.
        by = "workers" if driver == "raw" else "kernel"
        try_to_connect(sockets, two, 82)
        wait_for(lambda: refusals(lab, by, "not-allowed") > 0, "a refusal")
        for _ in range(30):
            try_to_connect(sockets, one, 82)
        wait_for(lambda: refusals(lab, "workers", "max-new") > 0, "refusals by workers")
        wait_for(lambda: refusals(lab, by, "max-new") > 0, "refusals far beyond the rate")
        assert len(flows(lab.balancer, service="silent")) == 2
        if by == "kernel":
            assert refusals(lab, "workers", "not-allowed") == 0

        counts = api(lab.balancer, "status")["refused"]
        assert counts["six"] == {"not-allowed": 1, "max-flows": 0, "max-new": 0}
        assert counts["slow"]["max-new"] == 2
        assert counts["web"]["max-flows"] >= 1
        offenders = api(lab.balancer, "clients")["refused"]
        assert {one["client"] for one in offenders if one["service"] == "slow"} == {one.address}

        datagrams_are_limited(lab, sockets)
        if not api(lab.balancer, "status")["syn_cookies"]["missing"]:  # programs of ours can run

            def joins() -> bool:
                with suppress(ConnectionRefusedError):
                    kept.append(sockets.enter_context(Session(one)))
                return len(kept) == 3

            wait_for(joins, "the last connection that it may have")
            the_insistent_are_dropped_by_the_kernel(lab)
            assert refused(one)
            kept.pop().close()
            wait_for(lambda: not refused(one), "room for another connection, in spite of it")

        # The other way round: what is open stays open, and what was counted stays counted.
        write(tmp_path, lab, denied=(one.address,))
        assert reload(lab.balancer) == [
            f"{name}: list of denied clients changed" for name in ("web", "silent", "datagrams")
        ]
        assert reload(lab.balancer) == []  # the sets have what they should have
        assert refused(one)
        assert ask(two).backend
        assert all(session.ask() for session in kept)
        after = api(lab.balancer, "status")["refused"]["silent"]
        assert all(after[reason] >= count for reason, count in counts["silent"].items())


def the_insistent_are_dropped_by_the_kernel(lab: Lab) -> None:
    """A client that is over `max_flows` sends SYNs from ever other ports."""
    syn = bytearray(bytes(IP(src=lab.clients[0].address, dst=VIP) / TCP(dport=80, flags="S")))
    rest = 0xFFFF - int.from_bytes(syn[36:38], "big") - 20
    packets = []
    for port in range(20, 520):
        total = rest + port
        syn[20:22] = port.to_bytes(2, "big")
        syn[36:38] = (0xFFFF - (total & 0xFFFF) - (total >> 16)).to_bytes(2, "big")
        packets.append(bytes(syn))

    def dropped() -> bool:
        send(lab, packets)
        return refusals(lab, "kernel", "max-flows", "web") > 0

    wait_for(dropped, "the kernel refuses, too")
    assert refusals(lab, "workers", "max-flows", "web") > 0


def datagrams_are_limited(lab: Lab, sockets: ExitStack) -> None:
    """As connections are, and open flows continue."""
    one, two = lab.clients
    receivers = sockets.enter_context(Receivers(lab.backends, PORT))

    def client(node: Node, port: int) -> socket.socket:
        return sockets.enter_context(open_socket(node, (node.address, 0), (VIP, port)))

    def is_told(node: Node) -> bool:
        with client(node, 83) as asking, suppress(ConnectionRefusedError):
            asking.send(b"query")
            asking.recv(100)
            return False
        return True

    assert is_told(two)
    opened = [client(one, 83) for _ in range(2)]
    for asking in opened:
        receivers.exchange(asking)
    assert is_told(one)
    opened += [client(one, 84) for _ in range(2)]
    for asking in opened:
        receivers.exchange(asking)
    client(one, 84).send(b"beyond the rate")
    wait_for(
        lambda: api(lab.balancer, "status")["refused"].get("queries", {}).get("max-new") == 1,
        "a refusal",
    )
    for asking in opened:
        receivers.exchange(asking)  # and so nothing else has arrived
    counts = api(lab.balancer, "status")["refused"]["datagrams"]
    assert counts == {"not-allowed": 1, "max-flows": 1, "max-new": 0}


@ONE_DRIVER
def test_operators_change_at_run_time_who_may_connect(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    one = lab.client
    path = write(tmp_path, lab, denied=(one.address,))
    with featherlb(lab, "--config", str(path)):
        assert refused(one)
        assert "1 not-allowed" in run(lab.balancer, "status").stdout
        assert "refused of late" in run(lab.balancer, "flows", "--clients").stdout
        assert [refused(one, port=81) for _ in range(3)] == [False, False, True]

        limit = ("limit", "deny", "silent", "198.51.100.0/24", "--for", "1h")
        text = run(lab.balancer, *limit).stdout
        assert re.fullmatch(
            r"done: deny silent 198\.51\.100\.0/24, reverts in .* \(change 1\)\n", text
        )
        assert run(lab.balancer, "limit", "max-new", "slow", "off").stdout == (
            "done: max-new slow off (change 2)\n"
        )
        assert not refused(one, port=81)
        shown = run(lab.balancer, "limit", "show").stdout
        assert "deny" in shown
        assert "198.51.100.0/24" in shown
        assert "reverted: max-new slow off" in run(lab.balancer, "backend", "revert", "2").stdout
        wait_for(lambda: refused(one, port=81), "the limit again")
