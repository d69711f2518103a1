"""system/pcap.py: captures as scapy writes them, and the other way round."""

import gzip
import struct
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1Q, Ether, Loopback
from scapy.packet import Packet
from scapy.utils import PcapNgReader, PcapNgWriter, PcapWriter, wrpcap

from featherlb.model.errors import ConfigError, HostError
from featherlb.system.pcap import Captured, Writer, read

V4 = IP(src="10.0.0.7", dst="10.0.0.10") / UDP(sport=40000, dport=53) / b"question"
V6 = IPv6(src="fd00::7", dst="fd00::10") / UDP(sport=40000, dport=53) / b"question"
FRAMES = {
    "ethernet": (Ether() / V4, V4),
    "ethernet-v6": (Ether() / V6, V6),
    "vlan": (Ether() / Dot1Q(vlan=7) / V4, V4),
    "double-vlan": (Ether() / Dot1Q(vlan=7) / Dot1Q(vlan=8) / V6, V6),
    "any": (CookedLinux() / V4, V4),
    "any-v2": (CookedLinuxV2() / V6, V6),
    "raw": (V4, V4),
    "loopback": (Loopback() / V4, V4),
}


@pytest.mark.parametrize(("frame", "inner"), FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("writer", [PcapWriter, PcapNgWriter])
def test_ip_packets_of_every_kind_of_link(
    tmp_path: Path, writer: type, frame: Packet, inner: Packet
) -> None:
    path = tmp_path / "a.pcap"
    frame.time = 1234.25
    with writer(str(path)) as file:
        file.write(frame)
    (found,) = read(path)
    assert found == Captured(1234.25, bytes(inner), len(inner))


def test_frames_without_an_ip_packet_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.pcap"
    wrpcap(str(path), [Ether() / ARP(), Ether() / V4, Ether(type=0x88CC) / b"lldp" * 20])
    assert [one.data for one in read(path)] == [bytes(V4)]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "fraction"), [(0xA1B2C3D4, 250_000), (0xA1B23C4D, 250_000_000)])
def test_byte_orders_and_units_of_time(
    tmp_path: Path, order: str, magic: int, fraction: int
) -> None:
    path = tmp_path / "a.pcap"
    data = bytes(V4)
    path.write_bytes(
        struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, 101)
        + struct.pack(f"{order}4I", 7, fraction, len(data), 1400)
        + data
        + struct.pack(f"{order}4I", 8, 0, len(data), 1400)
        + data[:10]
    )
    # The last one is cut off.
    (found,) = read(path)
    assert found.time == pytest.approx(7.25)
    assert (found.data, found.length) == (data, 1400)


def test_nanoseconds_and_offsets_of_pcapng(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    data = bytes(V4) + bytes(-len(V4) % 4)

    def block(kind: int, body: bytes) -> bytes:
        size = struct.pack(">I", len(body) + 12)
        return struct.pack(">I", kind) + size + body + size

    options = struct.pack(">HHB3xHHqHH", 9, 1, 9, 14, 8, 1000, 0, 0)
    ticks = 2_500_000_000
    path.write_bytes(
        block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
        + block(1, struct.pack(">HHI", 101, 0, 0) + options)
        + block(6, struct.pack(">5I", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(V4), len(V4)) + data)
        + block(3, struct.pack(">I", len(V4)) + data)
        + block(99, b"unknown!")
    )
    assert list(read(path)) == [Captured(1002.5, bytes(V4), len(V4))] * 2


@pytest.mark.parametrize("content", [b"", b"text", b"x" * 100, gzip.compress(b"y" * 500, mtime=0)])
def test_what_is_no_capture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pcap"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="this is no capture"):
        read(path)
    with pytest.raises(ConfigError, match="cannot read the capture: no such file"):
        read(tmp_path / "none")


def test_scapy_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    writer = Writer(path)
    writer.write(Captured(1234.5, bytes(V4), 1400), "opens a flow")
    writer.write(Captured(1235.5, bytes(V6), len(V6)), "dropped: no-flow")
    writer.close()
    with PcapNgReader(str(path)) as reader:
        first, second = reader
    assert (bytes(first), float(first.time), first.comment) == (bytes(V4), 1234.5, b"opens a flow")
    assert (bytes(second), second.comment) == (bytes(V6), b"dropped: no-flow")
    assert [one.length for one in read(path)] == [1400, len(V6)]
    with pytest.raises(HostError, match="cannot write"):
        Writer(tmp_path / "none" / "a.pcapng")


def test_only_its_owner_may_read_what_is_written_where_no_link_leads(tmp_path: Path) -> None:
    path, link = tmp_path / "a.pcapng", tmp_path / "link"
    path.write_text("of before")
    path.chmod(0o666)
    Writer(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    link.symlink_to(path)
    for one in (link, Path("/dev/null")):
        with pytest.raises(HostError, match="it is not a regular file"):
            Writer(one)
