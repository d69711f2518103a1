"""Sets of networks as sorted ranges, against the standard library; the parts of limits."""

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from featherlb.model import Admission, MaxFlows, MaxNew, NetworkSet, network_text
from featherlb.model.shard import Shard, remembered_prefix
from tests.world import service


def network(family: int, number: int, prefix: int) -> object:
    bits = 32 if family == 4 else 128
    number = number % (1 << bits) >> bits - prefix << bits - prefix
    return (IPv4Network if family == 4 else IPv6Network)((number, prefix))


networks4 = st.builds(network, st.just(4), st.integers(0, 2**32 - 1), st.integers(0, 32))
networks6 = st.builds(network, st.just(6), st.integers(0, 2**128 - 1), st.integers(0, 128))
MAPPED = ip_network("::ffff:0:0/96")


@given(st.lists(networks4, max_size=8), st.lists(networks6, max_size=8))
def test_a_set_has_the_addresses_of_its_networks_and_no_other(four: list, six: list) -> None:  # type: ignore[type-arg]
    found = NetworkSet.of([*four, *six])
    assert [IPv4Network(one) for one in found.networks(4)] == list(collapse_addresses(four))
    # Addresses that stand for IPv4 are no clients' of IPv6.
    expected: list = []  # type: ignore[type-arg]
    for one in six:
        if one.overlaps(MAPPED):
            expected += [] if one.subnet_of(MAPPED) else one.address_exclude(MAPPED)
        else:
            expected.append(one)
    assert [IPv6Network(one) for one in found.networks(6)] == list(collapse_addresses(expected))
    assert found.has(4) == bool(four)
    assert NetworkSet.of(four) | NetworkSet.of(six) == found


@given(st.lists(networks4, max_size=8), st.lists(networks4, max_size=8))
def test_differences_of_sets_turn_one_into_the_other(old: list, new: list) -> None:  # type: ignore[type-arg]
    before, after = NetworkSet.of(old), NetworkSet.of(new)
    entries = set(before.networks(4)) - set(before.without(after).networks(4))
    entries |= set(after.without(before).networks(4))
    assert entries == set(after.networks(4))


def test_neither_family_is_the_other() -> None:
    everybody = NetworkSet.of([ip_network("::/0")])
    assert not everybody.has(4)
    assert everybody.networks(4) == []
    assert NetworkSet.of([ip_network("0.0.0.0/0")]).networks(4) == [(0, 0)]


def test_networks_as_text() -> None:
    client = 0xFFFF << 32 | 10 << 24 | 7
    assert network_text(client, 32) == "10.0.0.7"
    assert network_text(client, 8) == "10.0.0.0/8"
    assert network_text(0x20010DB8 << 96 | 7, 64) == "2001:db8::/64"


LIMITS = Admission(
    max_flows=(MaxFlows(100, 24), MaxFlows(7, 0)), max_new=(MaxNew(10, 4, 32), MaxNew(8, 6, 0))
)


def test_workers_share_what_the_clients_of_several_workers_have_together() -> None:
    """A client's network selects its worker, so that one has all of it."""
    parts = [Shard(n, 4, 1, prefix4=24).admission(LIMITS, 4) for n in range(4)]
    assert all(part.max_flows[0] == MaxFlows(100, 24) for part in parts)
    assert [part.max_flows[1].limit for part in parts] == [2, 2, 2, 1]
    assert all(part.max_new[0] == MaxNew(10, 4, 32) for part in parts)
    assert [part.max_new[1] for part in parts] == [
        MaxNew(2, 2, 0), MaxNew(2, 2, 0), MaxNew(2, 1, 0), MaxNew(2, 1, 0)
    ]  # fmt: skip
    # An instance that has started without limits selects by address and port.
    part = Shard(3, 4, 1).admission(LIMITS, 4)
    assert part.max_flows[0] == MaxFlows(25, 24)
    assert part.max_new[0] == MaxNew(2.5, 1, 32)
    assert Shard(0, 1, 1).admission(LIMITS, 4) == LIMITS


def test_the_widest_network_that_is_told_apart_selects_the_worker() -> None:
    limited = replace(service("10.0.1.2:80"), admission=LIMITS)
    assert remembered_prefix([service("10.0.1.2:80", name="other"), limited], 4) == 24
    assert remembered_prefix([limited], 6) == 0


def test_the_lists_let_in_who_is_allowed_and_not_denied() -> None:
    ours, others = NetworkSet.of([ip_network("10.0.0.0/8")]), ip_network("10.1.0.0/16")
    listed = Admission(allow=ours, deny=NetworkSet.of([others]))
    found = [listed.admits(ip_address(one)) for one in ("10.0.0.1", "10.1.0.1", "192.0.2.1", "::1")]
    assert found == [True, False, False, False]
    assert Admission().admits(ip_address("::1"))
