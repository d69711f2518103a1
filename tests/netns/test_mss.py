"""The `mss` option: what each end is told that the other one takes, and so how much it sends."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import TCP

from netns import Lab
from netns.lab import VIP, VIP6
from tests.netns.conftest import SEEING, Up, all_pairs
from tests.netns.traffic import pair
from tests.netns.wire import Capture, with_right_checksums

LIMIT = 1200
BACKENDS = {VIP: "10.0.1.2", f"[{VIP6}]": "[2001:db8:1::2]"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=1) as lab:
        yield lab


def segment_size(connection: socket.socket) -> int:
    """What the kernel puts into a segment: the other end's limit, less its own options."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


@all_pairs(SEEING, nat=("dnat", "full"), vip=tuple(BACKENDS))
def test_both_ends_are_told_no_more(
    lab: Lab, featherlb: Up, tmp_path: Path, nat: str, vip: str
) -> None:
    backend = BACKENDS[vip]
    path = tmp_path / "lb.yaml"
    path.write_text(
        "services:\n"
        f'  - {{name: limited, vip: "{vip}:80", nat: {nat}, mss: {LIMIT},'
        f' backends: ["{backend}:8080"]}}\n'
        f'  - {{name: other, vip: "{vip}:81", nat: {nat}, backends: ["{backend}:8080"]}}\n'
    )
    with (
        featherlb(lab, "--config", str(path)),
        Capture(lab.backends[0], "eth0") as at_backend,
        Capture(lab.client, "eth0") as at_client,
    ):
        for port, low, high in ((80, LIMIT - 40, LIMIT), (81, LIMIT + 1, 1460)):
            with pair(lab, vip.strip("[]"), 8080, port) as ends:
                assert [low <= segment_size(end) <= high for end in ends] == [True, True]
        syn = next((p for p in at_backend.packets(backend) if p[TCP].flags == "S"), None)
        answer = next((p for p in at_client.packets(vip) if p[TCP].flags == "SA"), None)
    if vip == VIP:
        for packet in (syn, answer):
            assert packet is not None
            assert dict(packet[TCP].options)["MSS"] == LIMIT
            assert bytes(packet) == with_right_checksums(packet)
