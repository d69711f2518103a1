"""Clients that also talk to the backends themselves, through this host as their router."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import TCP

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP, VIP6
from tests.netns.command import flows
from tests.netns.conftest import Up, in_turn
from tests.netns.datagrams import open_socket
from tests.netns.traffic import forward, reset, wait_for
from tests.netns.wire import Capture

PORT = 9000


def shared(
    node: Node, local: tuple[str, int], family: socket.AddressFamily = socket.AF_INET
) -> socket.socket:
    """A socket bound to a port that others may have as well."""
    new = node.new_socket(family)
    new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    new.bind(local)
    return new


@contextmanager
def connection(
    node: Node, listener: socket.socket, remote: tuple[str, int], local: tuple[str, int]
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection from a local port that the client may use for others, too."""
    client = shared(node, local, socket.AF_INET6 if ":" in remote[0] else socket.AF_INET)
    client.connect(remote)
    server, _ = listener.accept()
    server.settimeout(30)
    with client, server:
        yield client, server


def exchange(*ends: socket.socket) -> None:
    for sender, receiver in (ends, ends[::-1]):
        sender.sendall(b"x")
        assert receiver.recv(1) == b"x"


@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_through_the_vip_takes_no_port_from_one_to_the_backend(
    lab: Lab, featherlb: Up, family: int
) -> None:
    """Both from one port of the client's, and with two workers its replies still find theirs."""
    forward(lab.balancer)
    backend = lab.backends[0]
    vip, client, address = (
        (VIP, lab.client.address, backend.address)
        if family == 4
        else (VIP6, lab.client.address6, backend.address6)
    )
    at, to = (f"{vip}:80", f"{address}:{PORT}")
    if family == 6:
        at, to = f"[{vip}]:80", f"[{address}]:{PORT}"
    with (
        featherlb(lab, "--vip", at, "--backend", to, "--workers", "2"),
        backend.listen("::" if family == 6 else "0.0.0.0", PORT) as listener,
    ):
        for port in (40001, 40002, 700):
            local = (client, port)
            with (
                connection(lab.client, listener, (address, PORT), local) as direct,
                connection(lab.client, listener, (vip, 80), local) as balanced,
            ):
                assert direct[1].getpeername()[:2] == local
                peer = balanced[1].getpeername()
                assert peer[0] == client
                assert peer[1] != port
                assert (peer[1] < 1024) == (port < 1024)
                for _ in range(3):
                    exchange(*balanced)
                    exchange(*direct)
        # Who has no other connection keeps its port.
        with connection(lab.client, listener, (vip, 80), (client, 40003)) as balanced:
            assert balanced[1].getpeername()[:2] == (client, 40003)
            exchange(*balanced)


@pytest.mark.parametrize("driver", ["netlink", "raw"], indirect=True)
def test_a_later_connection_to_the_backend_does_not_break_the_balanced_one(
    lab: Lab, featherlb: Up
) -> None:
    """The backend answers its SYN for the older connection."""
    forward(lab.balancer)
    backend = lab.backends[0]
    local = (lab.client.address, 40001)
    options = ("--vip", f"{VIP}:80", "--backend", f"{backend.address}:{PORT}")
    with (
        featherlb(lab, *options),
        backend.listen("0.0.0.0", PORT) as listener,
        connection(lab.client, listener, (VIP, 80), local) as balanced,
        Capture(lab.client, "eth0") as capture,
        shared(lab.client, local) as late,
    ):
        exchange(*balanced)
        late.setblocking(False)
        assert late.connect_ex((backend.address, PORT)) == errno.EINPROGRESS

        def challenged() -> bool:
            """The backend's answer has come as one of the balanced connection."""
            seen = [one for one in capture.packets(VIP) if one[TCP].dport == 40001]
            return any(one[TCP].flags == "A" for one in seen[answered:])

        answered = len(capture.packets(VIP))
        wait_for(challenged, "the backend's answer to the SYN")
        for _ in range(10):
            exchange(*balanced)
        assert late.connect_ex((backend.address, PORT)) == errno.EALREADY


@in_turn(("netlink", "raw"), how=["close", "reset"])
def test_a_closed_connection_leaves_its_port_to_one_to_the_backend(
    lab: Lab, featherlb: Up, how: str
) -> None:
    """Its flow waits for late packets then. Two sockets: the second takes the port over."""
    forward(lab.balancer)
    backend = lab.backends[0]
    local = (lab.client.address, 40001)
    options = ("--vip", f"{VIP}:80", "--backend", f"{backend.address}:{PORT}")
    with featherlb(lab, *options), backend.listen("0.0.0.0", PORT) as listener:
        with connection(lab.client, listener, (VIP, 80), local) as balanced:
            exchange(*balanced)
            if how == "reset":
                reset(balanced[0])
            else:
                balanced[0].close()
                assert balanced[1].recv(1) == b""
        wait_for(lambda: flows(lab.balancer, state="established") == [], "the end of the flow")
        with connection(lab.client, listener, (backend.address, PORT), local) as direct:
            for _ in range(3):
                exchange(*direct)
        assert flows(lab.balancer) == []


@in_turn(("netlink", "raw", "offload"), family=[4, 6])
def test_datagrams_through_the_vip_and_to_the_backend_from_one_port(
    lab: Lab, featherlb: Up, family: int
) -> None:
    """And to another VIP with the same backend: each answer comes from where its question went."""
    forward(lab.balancer)
    backend = lab.backends[0]
    vip, client, address, every = (
        (VIP, lab.client.address, backend.address, "0.0.0.0")
        if family == 4
        else (VIP6, lab.client.address6, backend.address6, "::")
    )
    at = vip if family == 4 else f"[{vip}]"
    to = f"{address}:{PORT}" if family == 4 else f"[{address}]:{PORT}"
    vips = ("--vip", f"{at}:80/udp", "--vip", f"{at}:81/udp")
    with (
        featherlb(lab, *vips, "--backend", to),
        open_socket(backend, (every, PORT)) as server,
        open_socket(lab.client, (client, 40001)) as socket_,
    ):
        for remote in [(address, PORT), (vip, 80), (vip, 81)] * 3:
            socket_.sendto(b"?", remote)
            _, peer = server.recvfrom(1)
            server.sendto(b"!", peer)
            assert socket_.recvfrom(1)[1][:2] == remote
            assert (peer[1] == 40001) == (remote[0] == address), "the older one keeps its port"
        assert len(flows(lab.balancer)) == 2
