"""hash_on: which parts of a flow decide."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.pools.schedulers import NewFlow
from featherlb.core.pools.schedulers.hashing import CLIENT, FIVE_TUPLE, bytes_of
from featherlb.core.pools.schedulers.maglev import Maglev
from featherlb.core.pools.schedulers.rendezvous_hash import FiveTupleHash, SourceHash
from featherlb.model import TUPLE_FIELDS, HashField, HashPart
from tests.unit.core.pools.schedulers.pools import KEY, make_flow, make_pool

ATTRIBUTES = {
    HashField.SRC: "client",
    HashField.SPORT: "client_port",
    HashField.DST: "vip",
    HashField.DPORT: "vip_port",
    HashField.PROTOCOL: "protocol",
}
PORTS = st.integers(0, 65535)
PARTS = st.lists(st.sampled_from(TUPLE_FIELDS), min_size=1, unique=True)


@given(fields=PARTS, changed=st.sampled_from(TUPLE_FIELDS), version=st.sampled_from([4, 6]))
def test_exactly_the_named_parts_count(
    fields: list[HashField], changed: HashField, version: int
) -> None:
    flow, other = (NewFlow(6, version, 0x0A000001, 1024, 0x0A00000A, 80) for _ in range(2))
    setattr(other, ATTRIBUTES[changed], getattr(flow, ATTRIBUTES[changed]) + 1)
    _, function = bytes_of(tuple(map(HashPart, fields)))
    assert (function(flow) != function(other)) == (changed in fields)


@given(fields=PARTS)
def test_the_order_of_the_parts_does_not_matter(fields: list[HashField]) -> None:
    flow = make_flow(3)
    purpose, function = bytes_of(tuple(map(HashPart, fields)))
    again, reversed_function = bytes_of(tuple(map(HashPart, reversed(fields))))
    assert (purpose, function(flow)) == (again, reversed_function(flow))


def test_other_parts_are_another_hash() -> None:
    wanted: list[tuple[HashPart, ...]] = [(HashPart(field),) for field in TUPLE_FIELDS]
    wanted += [CLIENT, (HashPart(HashField.SRC, 24),), (HashPart(HashField.SRC, 16),), FIVE_TUPLE]
    assert len({bytes_of(parts)[0] for parts in wanted}) == len(set(wanted))


@pytest.mark.parametrize(("prefix", "size"), [(24, 256), (31, 2), (32, 1), (8, 1 << 24)])
def test_a_network_stays_together(prefix: int, size: int) -> None:
    scheduler = SourceHash(seed=1, key=KEY, hash_on=(HashPart(HashField.SRC, prefix),))
    pool = make_pool(*[1] * 50)
    scheduler.update(pool)
    base = 0x0A000000
    picked = {
        scheduler.pick(NewFlow(6, 4, base + offset, 1024 + offset % 7, 1, 80))
        for offset in {0, size // 2, size - 1}
    }
    assert len(picked) == 1
    neighbours = {scheduler.pick(NewFlow(6, 4, base + size * n, 1, 1, 80)) for n in range(20)}
    assert len(neighbours) > 5


def test_a_network_of_ipv6() -> None:
    _, function = bytes_of((HashPart(HashField.SRC, 64),))
    one, same, other = (NewFlow(6, 6, client, 1, 2, 80) for client in (1, 2, 1 << 64))
    assert function(one) == function(same) != function(other)


def test_schedulers_with_the_same_parts_agree() -> None:
    pool = make_pool(1, 1, 1)
    by_address = (HashPart(HashField.SRC),)
    one, other = SourceHash(seed=1, key=KEY), FiveTupleHash(seed=1, key=KEY, hash_on=by_address)
    one.update(pool)
    other.update(pool)
    flows = [make_flow(number) for number in range(200)]
    assert [one.pick(flow) for flow in flows] == [other.pick(flow) for flow in flows]


def test_the_reason_names_the_parts() -> None:
    scheduler = Maglev(
        seed=1, key=KEY, hash_on=(HashPart(HashField.SRC, 24), HashPart(HashField.DPORT))
    )
    scheduler.update(make_pool(1))
    reason = scheduler.explain(make_flow(1))
    assert reason.startswith("the client's network /24 and the VIP's port hash to slot ")
