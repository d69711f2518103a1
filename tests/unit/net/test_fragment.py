"""Packets are fragmented, and scapy reassembles them."""

import pytest
from scapy.layers.inet import (
    IP,
    UDP,
    IPOption_NOP,
    IPOption_Timestamp,
    IPOption_Traceroute,
    defragment,
)
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    defragment6,
)
from scapy.packet import Packet

from featherlb.net.fragment import cut, cut6, sum_up
from tests.builders import ip, parse, pseudo_sum, rebuilt, rfc1071, udp, with_checksum

A, B = "198.51.100.7:40000", "192.0.2.10:80"
TRACEROUTE = IPOption_Traceroute()  # not to be copied
HOPS = IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
ROUTE = IPv6ExtHdrRouting(addresses=["2001:db8::9"], segleft=0)
TIMESTAMP = IPOption_Timestamp(copy_flag=1)


@pytest.mark.parametrize("options", [[], [TRACEROUTE, IPOption_NOP(), TIMESTAMP]])
@pytest.mark.parametrize("size", [0, 8, 1372, 1373, 5000])
@pytest.mark.parametrize("mtu", [576, 1400, 1401])
def test_the_pieces_make_up_the_whole(size: int, mtu: int, options: list[object]) -> None:
    whole = udp(A, B, bytes(range(250)) * 20, header=ip(A, B, id=7, options=options))[: 28 + size]
    whole = bytes(parse(udp(A, B, whole, header=ip(A, B, id=7, options=options))))
    pieces = [IP(piece) for piece in cut(whole, mtu)]
    assert [len(piece) > mtu for piece in pieces] == [False] * len(pieces)
    assert [rfc1071(bytes(piece)[: piece.ihl * 4]) for piece in pieces] == [0xFFFF] * len(pieces)
    kinds = [{option.option for option in piece.options} for piece in pieces]
    for later in kinds[1:]:
        assert TRACEROUTE.option not in later
        assert not options or TIMESTAMP.option in later
    if len(pieces) == 1:
        assert bytes(pieces[0]) == whole
    else:
        (together,) = defragment(pieces)
        assert bytes(together.payload) == bytes(parse(whole).payload)


@pytest.mark.parametrize("header", [[], [HOPS], [HOPS, ROUTE], [ROUTE]])
@pytest.mark.parametrize("size", [1, 8, 1300, 5000])
@pytest.mark.parametrize("mtu", [1280, 1281, 1500])
def test_the_pieces_of_an_ipv6_packet_make_up_the_whole(
    size: int, mtu: int, header: list[Packet]
) -> None:
    datagram = UDP(sport=40000, dport=80) / bytes(n % 251 for n in range(size))
    whole = IPv6(src="2001:db8::7", dst="2001:db8::10", hlim=9, tc=4, fl=5)
    for one in header:
        whole = whole / one
    pieces = [IPv6(piece) for piece in cut6(bytes(whole / datagram), mtu, 0xDEADBEEF)]
    assert [len(piece) > mtu for piece in pieces] == [False] * len(pieces)
    assert {piece.plen + 40 - len(piece) for piece in pieces} == {0}
    assert bytes(defragment6(pieces)) == bytes(whole / datagram)


def test_a_fragment_is_fragmented_like_any_packet() -> None:
    whole = udp(A, B, bytes(5000), header=ip(A, B, id=7))
    pieces = [IP(piece) for large in cut(whole, 3000) for piece in cut(large, 1000)]
    (together,) = defragment(pieces)
    assert bytes(together.payload) == bytes(parse(whole).payload)


@pytest.mark.parametrize("payload", [b"", b"odd", b"x" * 3000])
def test_an_unfinished_checksum_is_completed(payload: bytes) -> None:
    whole = rebuilt(udp(A, B, payload))
    unfinished = bytearray(with_checksum(whole, pseudo_sum(whole)))
    sum_up(unfinished, 20, 26)
    assert unfinished == whole
