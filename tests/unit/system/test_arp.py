"""The frames that announce and ask for addresses, with scapy as the oracle."""

from ipaddress import IPv4Address, IPv6Address

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from featherlb.system.arp import advertisement, arp_request, claimed_address, solicitation

MAC = bytes.fromhex("02000000000a")
VIP, VIP6 = IPv4Address("10.0.0.10"), IPv6Address("2001:db8::1:2345")


def test_gratuitous_arp() -> None:
    expected = Ether(src="02:00:00:00:00:0a", dst="ff:ff:ff:ff:ff:ff") / ARP(
        op="who-has",
        hwsrc="02:00:00:00:00:0a",
        psrc="10.0.0.10",
        hwdst="00:00:00:00:00:00",
        pdst="10.0.0.10",
    )
    assert arp_request(MAC, VIP, VIP) == bytes(expected)


def test_arp_probe_claims_nothing() -> None:
    probe = ARP(arp_request(MAC, IPv4Address(0), VIP)[14:])
    assert (probe.psrc, probe.pdst, probe.op) == ("0.0.0.0", "10.0.0.10", 1)


def test_neighbour_advertisement() -> None:
    expected = (
        Ether(src="02:00:00:00:00:0a", dst="33:33:00:00:00:01", type=0x86DD)
        / IPv6(src=str(VIP6), dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt=str(VIP6), R=0, S=0, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:0a")
    )
    assert advertisement(MAC, VIP6) == bytes(expected)


def test_duplicate_address_detection() -> None:
    expected = (
        Ether(src="02:00:00:00:00:0a", dst="33:33:ff:01:23:45", type=0x86DD)
        / IPv6(src="::", dst="ff02::1:ff01:2345", hlim=255)
        / ICMPv6ND_NS(tgt=str(VIP6))
    )
    assert solicitation(MAC, VIP6) == bytes(expected)


def test_answers_name_the_owner() -> None:
    owner = "02:00:00:00:00:0b"
    reply = Ether(src=owner, dst="02:00:00:00:00:0a") / ARP(
        op="is-at", hwsrc=owner, psrc="10.0.0.10", hwdst="02:00:00:00:00:0a", pdst="0.0.0.0"
    )
    assert claimed_address(bytes(reply)) == (VIP, bytes.fromhex("02000000000b"))
    advertised = advertisement(bytes.fromhex("02000000000b"), VIP6)
    assert claimed_address(advertised) == (VIP6, bytes.fromhex("02000000000b"))


def test_other_frames_name_nobody() -> None:
    for frame in (solicitation(MAC, VIP6), b"", b"\0" * 14, arp_request(MAC, VIP, VIP)[:30]):
        assert claimed_address(frame) is None
