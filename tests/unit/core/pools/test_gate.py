"""What is remembered of clients: those that are refused most often, and when they opened flows."""

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.pools.gate import (
    INSISTENT,
    MAX_CLIENTS,
    MAX_OFFENDERS,
    PERIOD,
    FlowCounts,
    Gate,
    Offenders,
    Pace,
    key_of,
)
from featherlb.model import Admission, MaxNew, NetworkSet
from featherlb.model.reason import Reason


@given(st.lists(st.integers(0, 600), max_size=3000))
def test_no_one_with_a_great_part_of_the_refusals_is_missed(clients: list[int]) -> None:
    offenders = Offenders()
    for client in clients:
        offenders.add(client, 5.0)
    lost = len(clients) / (MAX_OFFENDERS + 1)
    found = dict(offenders.top(MAX_OFFENDERS, 5.0))
    for client in set(clients):
        count = clients.count(client)
        assert count - lost <= found.get(client, 0) <= count


def test_a_flood_of_addresses_hides_no_offender() -> None:
    offenders = Offenders()
    for number in range(20_000):
        offenders.add(number if number % 10 else -1, 5.0)
    ((client, count),) = offenders.top(1, 5.0)
    assert client == -1
    assert 1900 <= count <= 2000


def test_who_has_stopped_is_forgotten() -> None:
    offenders = Offenders()
    offenders.add(1, 100.0)
    offenders.add(2, 100.0 + PERIOD)
    assert dict(offenders.top(9, 100.0 + PERIOD)) == {1: 1, 2: 1}
    assert dict(offenders.top(9, 100.0 + 2 * PERIOD)) == {2: 1}
    assert offenders.top(9, 100.0 + 4 * PERIOD) == []


def test_a_rate_limit_remembers_a_bounded_number_of_clients() -> None:
    pace = Pace(MaxNew(0.01, 1, 32), 0)
    for client in range(MAX_CLIENTS + 10):
        pace.open(client, 0.0)
    assert pace.wait(MAX_CLIENTS + 9, 0.0) > 0
    # The one that has opened nothing for longest may open again.
    assert pace.wait(0, 0.0) <= 0
    assert pace.wait(10, 0.0) > 0


def test_clients_can_not_choose_addresses_that_are_found_slowly() -> None:
    """Numbers that differ by a multiple of this prime have the same hash in CPython."""
    addresses = [0x20010DB8 << 96 | number * (2**61 - 1) for number in range(5000)]
    assert len(set(map(hash, addresses))) == 1
    assert len(set(map(hash, map(key_of, addresses)))) > 4900
    counts = FlowCounts(0)
    for client in addresses:
        counts.change(client, 1)
    assert all(counts.of(client) == 1 for client in addresses)


def test_clients_that_are_refused_again_and_again_are_told_once() -> None:
    gate = Gate()
    gate.update(Admission(deny=NetworkSet.of([ip_network("::/0"), ip_network("0.0.0.0/0")])), 6)
    insistent, other = 0x20010DB8 << 96, 0x20010DB9 << 96
    for number in range(INSISTENT):
        # A host has a whole network of 64 bits to choose from.
        gate.refusal(insistent >> 64, number, 0.0)
    gate.refusal(other >> 64, 1, 0.0)
    assert gate.take_insistent() == [(insistent, int(Reason.NOT_ALLOWED))]
    assert gate.take_insistent() == []
