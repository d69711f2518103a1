"""The program that drops SYNs of refused clients in the kernel."""

import shutil
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from featherlb.model import Vip
from featherlb.system.turnstile import Turnstile
from tests.builders import tcp
from tests.netns.test_shield import CLIENTS, OTHERS, PASSED, V4, V6, at, frame

pytestmark = [
    pytest.mark.no_packets("the program alone, without a worker"),
    pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang"),
]

DROPPED = 2
FAMILIES = {V4: "198.51.100.7", V6: "2001:db8:1::"}
"""The VIPs, and the client as the program knows it."""
AN_HOUR = 1 / 3600


@pytest.fixture
def turnstile() -> Iterator[Turnstile]:
    one = Turnstile()
    one.serve({Vip(ip_address(V4), 80, 80): 1, Vip(ip_address(V6), 80, 80): 1})
    yield one
    one.close()


@pytest.mark.parametrize("address", FAMILIES)
def test_all_but_one_in_an_interval_are_dropped(turnstile: Turnstile, address: str) -> None:
    client = ip_address(FAMILIES[address])
    syn = frame(tcp(CLIENTS[address], at(address), "S"), address)
    assert turnstile.program.run(syn).result == PASSED
    assert turnstile.add(1, client, AN_HOUR)
    results = [turnstile.program.run(syn).result for _ in range(4)]
    assert results == [PASSED, DROPPED, DROPPED, DROPPED]
    assert turnstile.dropped(1, client) == 3
    for flags in ("A", "SA", "R", "FA"):
        other = frame(tcp(CLIENTS[address], at(address), flags), address)
        assert turnstile.program.run(other).result == PASSED
    turnstile.remove(1, client)
    assert turnstile.program.run(syn).result == PASSED


def test_others_and_other_services_pass(turnstile: Turnstile) -> None:
    turnstile.add(1, ip_address(FAMILIES[V4]), AN_HOUR)
    turnstile.serve({Vip(ip_address(V4), 80, 80): 1, Vip(ip_address(V4), 81, 81): 2})
    others = [
        frame(tcp("198.51.100.8:40000", at(V4), "S"), V4),
        frame(tcp(CLIENTS[V4], at(V4, 81), "S"), V4),
        frame(tcp(CLIENTS[V4], at(V4, 82), "S"), V4),
        *OTHERS.values(),
    ]
    for packet in others:
        for _ in range(2):
            assert turnstile.program.run(packet).packet == packet
    assert [turnstile.program.run(others[1]).result for _ in range(2)] == [PASSED] * 2
