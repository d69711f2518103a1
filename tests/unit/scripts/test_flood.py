"""scripts/bench: the SYNs of a flood, and its table."""

from ipaddress import IPv4Address, IPv4Network

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from scripts.bench.flood import Flood, describe
from scripts.bench.spoof import frame
from tests.builders import rebuilt

VIP = IPv4Address("10.0.0.10")
BENCHMARKS = IPv4Network("198.18.0.0/15")


def test_a_frame_is_a_syn_with_right_checksums_from_a_random_address() -> None:
    frames = [frame(bytes(6), bytes([2] * 6), VIP, 80) for _ in range(50)]
    for one in frames:
        packet = Ether(one)
        assert packet.dst == "02:02:02:02:02:02"
        assert (packet[IP].dst, packet[TCP].dport, packet[TCP].flags) == (str(VIP), 80, "S")
        assert IPv4Address(packet[IP].src) in BENCHMARKS
        assert one[14:] == rebuilt(one[14:])
    assert len({Ether(one)[IP].src for one in frames}) > 40


def test_the_table_has_a_row_for_each_flood() -> None:
    flood = Flood("haproxy", 30_000, 29_990.4, 0.83, 39, 38, 0.24, 100, 1 << 20, 1.1)
    row = describe([flood]).splitlines()[-1]
    assert row == (
        "| haproxy | 29,990 (of 30,000) | 83% | 38 of 39 | 0.2 ms | 100 of 100 | +1.0 MiB | 1 ms |"
    )
