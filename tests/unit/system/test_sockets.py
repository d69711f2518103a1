"""Listening sockets, found where the kernel lists them."""

import os
import socket
from ipaddress import ip_address

import pytest

from featherlb.model import Endpoint, Protocol
from featherlb.system.sockets import Listener, listeners


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_listening_socket_is_found_with_its_owner(family: int, address: str) -> None:
    with socket.create_server((address, 0), family=family) as server:
        endpoint = Endpoint(ip_address(address), server.getsockname()[1])
        (found,) = (one for one in listeners([Protocol.TCP]) if one.endpoint == endpoint)
        assert found.owner().endswith(f" (pid {os.getpid()})")
        with socket.create_connection(server.getsockname()[:2]) as client:
            own = client.getsockname()[1]
            assert own not in {one.endpoint.port for one in listeners([Protocol.TCP])}
    assert endpoint not in {one.endpoint for one in listeners([Protocol.TCP])}


def test_a_udp_socket_is_found_but_not_a_connected_one() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", 0))
        client.connect(server.getsockname())
        ports = {one.endpoint.port for one in listeners([Protocol.UDP])}
        assert server.getsockname()[1] in ports
        assert client.getsockname()[1] not in ports


@pytest.mark.parametrize(
    ("bound", "address", "accepts"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("0.0.0.0", "10.0.0.1", True),
        ("0.0.0.0", "2001:db8::1", False),
        ("::", "2001:db8::1", True),
        ("::", "10.0.0.1", True),
    ],
)
def test_what_reaches_a_listener(bound: str, address: str, accepts: bool) -> None:
    listener = Listener(Protocol.TCP, Endpoint(ip_address(bound), 80), 1)
    assert listener.accepts(ip_address(address)) is accepts
