"""The `mss` option: the MSS that each end sees, and the segments that it sends."""

import socket
from collections.abc import Iterator
from itertools import product

import pytest
from scapy.layers.inet import TCP

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP, VIP6
from tests.netns.conftest import SEEING, Up
from tests.netns.traffic import pair
from tests.netns.wire import Capture, with_right_checksums

LIMIT = 1200
BACKENDS = {VIP: "10.0.1.2", f"[{VIP6}]": "[2001:db8:1::2]"}
PORTS = {kind: 80 + 2 * number for number, kind in enumerate(product(("dnat", "full"), BACKENDS))}
"""Of the VIPs, for the limited service of each kind; the other has the next one."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=1) as lab:
        yield lab


def segment_size(connection: socket.socket) -> int:
    """What the kernel puts into a segment: the other end's limit, less its own options."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


@pytest.fixture(scope="module")
def balanced(lab: Lab, featherlb: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One instance with a service that limits and one that doesn't, of each kind."""
    lines = ["services:"]
    for (nat, vip), port in PORTS.items():
        for name, number, more in (("limited", port, f"mss: {LIMIT}, "), ("other", port + 1, "")):
            lines.append(
                f'  - {{name: {name}{port}, vip: "{vip}:{number}", nat: {nat}, {more}'
                f'backends: ["{BACKENDS[vip]}:8080"]}}'
            )
    path = tmp_path_factory.mktemp("mss") / "lb.yaml"
    path.write_text("\n".join(lines) + "\n")
    with featherlb(lab, "--config", str(path)):
        yield


@pytest.mark.usefixtures("balanced")
@pytest.mark.parametrize("driver", SEEING, indirect=True)
@pytest.mark.parametrize(("nat", "vip"), PORTS)
def test_both_ends_are_told_no_more(lab: Lab, nat: str, vip: str) -> None:
    port = PORTS[nat, vip]
    with Capture(lab.backends[0], "eth0") as at_backend, Capture(lab.client, "eth0") as at_client:
        for number, low, high in ((port, LIMIT - 40, LIMIT), (port + 1, LIMIT + 1, 1460)):
            with pair(lab, vip.strip("[]"), 8080, number) as ends:
                assert [low <= segment_size(end) <= high for end in ends] == [True, True]
        if vip == VIP:
            arrived, answered = at_backend.packets(BACKENDS[vip]), at_client.packets(vip)
            syn = next(p for p in arrived if p[TCP].flags == "S")
            answer = next(p for p in answered if p[TCP].flags == "SA")
            for packet in (syn, answer):
                assert dict(packet[TCP].options)["MSS"] == LIMIT
                assert bytes(packet) == with_right_checksums(packet)
