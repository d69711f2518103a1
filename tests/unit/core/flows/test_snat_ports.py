from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from featherlb import model
from featherlb.core.flows.snat_ports import PortAllocator

BACKEND = (6, 0x0A000102, 80)
SOURCE = 0x0A0001FE
OTHER = 0x0A0001FD


def take(
    allocator: PortAllocator, count: int, target: object = BACKEND, sources: tuple[int, ...] = (1,)
) -> list[tuple[int, int]]:
    pairs = []
    for _ in range(count):
        pair = allocator.allocate(target, sources)
        assert pair is not None
        pairs.append(pair)
    return pairs


def test_every_port_of_the_range_is_allocated_once_and_then_none() -> None:
    allocator = PortAllocator(1)
    pairs = take(allocator, len(model.SOURCE_PORTS), sources=(SOURCE,))
    assert sorted(pairs) == [(SOURCE, port) for port in model.SOURCE_PORTS]
    assert allocator.allocate(BACKEND, (SOURCE,)) is None
    allocator.release(BACKEND, *pairs[7])
    assert allocator.allocate(BACKEND, (SOURCE,)) == pairs[7]
    assert allocator.allocate(BACKEND, (SOURCE,)) is None


def test_no_sources_no_port() -> None:
    assert PortAllocator(1).allocate(BACKEND, ()) is None


def test_ports_are_reused_in_the_order_of_their_release() -> None:
    allocator = PortAllocator(1, range(2000, 2010))
    first = take(allocator, 10)
    for pair in reversed(first):
        allocator.release(BACKEND, *pair)
    assert take(allocator, 10) == first[::-1]


def test_a_released_port_is_allocated_after_all_others() -> None:
    allocator = PortAllocator(1, range(2000, 2010))
    (released,) = take(allocator, 1)
    allocator.release(BACKEND, *released)
    later = take(allocator, 10)
    assert later[-1] == released
    assert released not in later[:-1]


def test_the_first_round_is_shuffled_by_the_seed() -> None:
    rounds = [take(PortAllocator(seed), 1000) for seed in (1, 1, 2)]
    assert rounds[0] == rounds[1] != rounds[2]
    ports = [port for _, port in rounds[0]]
    # As many ups as downs, over the whole range, and no run of neighbours.
    assert 400 < sum(left < right for left, right in pairwise(ports)) < 600
    assert sum(abs(left - right) == 1 for left, right in pairwise(ports)) < 10
    assert min(ports) < 1500
    assert max(ports) > 32000


def test_every_port_is_as_likely_to_be_the_first() -> None:
    first = Counter(take(PortAllocator(seed, range(2000, 2004)), 1)[0] for seed in range(2000))
    assert all(430 < count < 570 for count in first.values())
    assert len(first) == 4


def test_each_backend_and_protocol_has_all_ports() -> None:
    allocator = PortAllocator(1, range(2000, 2003))
    for target in (BACKEND, (6, 0x0A000102, 81), (6, 0x0A000103, 80), (17, 0x0A000102, 80)):
        assert len(set(take(allocator, 3, target))) == 3
        assert allocator.allocate(target, (1,)) is None


def test_sources_take_turns() -> None:
    allocator = PortAllocator(1)
    pairs = take(allocator, 30, sources=(SOURCE, OTHER, 1))
    assert Counter(source for source, _ in pairs) == {SOURCE: 10, OTHER: 10, 1: 10}


def test_an_exhausted_source_is_passed_over() -> None:
    allocator = PortAllocator(1, range(2000, 2004))
    take(allocator, 4, sources=(SOURCE,))
    pairs = take(allocator, 4, sources=(SOURCE, OTHER))
    assert {source for source, _ in pairs} == {OTHER}
    assert allocator.allocate(BACKEND, (SOURCE, OTHER)) is None


def test_a_vips_own_port_is_never_allocated() -> None:
    allocator = PortAllocator(1, range(2000, 2010))
    allocator.exclude([(SOURCE, 2003), (SOURCE, 2007), (OTHER, 2001), (OTHER, 80)])
    for _ in range(3):
        pairs = take(allocator, 8, sources=(SOURCE,))
        assert {port for _, port in pairs} == {2000, 2001, 2002, 2004, 2005, 2006, 2008, 2009}
        assert allocator.allocate(BACKEND, (SOURCE,)) is None
        for pair in pairs:
            allocator.release(BACKEND, *pair)


def test_a_port_that_is_excluded_while_in_use_rests_afterwards() -> None:
    allocator = PortAllocator(1, range(2000, 2002))
    used = take(allocator, 2)
    allocator.exclude([(1, 2000)])
    for pair in used:
        allocator.release(BACKEND, *pair)
    assert take(allocator, 1) == [(1, 2001)]
    assert allocator.allocate(BACKEND, (1,)) is None
    allocator.exclude([])
    assert take(allocator, 1) == [(1, 2000)]


def test_all_ports_excluded() -> None:
    allocator = PortAllocator(1, range(2000, 2003))
    allocator.exclude([(1, port) for port in range(2000, 2003)])
    assert allocator.allocate(BACKEND, (1,)) is None


def test_privileged_ports_are_a_range_of_their_own() -> None:
    allocator = PortAllocator(1, range(2000, 2002), range(600, 603))
    allocator.exclude([(1, 601)])
    pairs = [allocator.allocate(BACKEND, (1,), True) for _ in range(3)]
    assert sorted(filter(None, pairs)) == [(1, 600), (1, 602)]
    assert {port for _, port in take(allocator, 2)} == {2000, 2001}
    allocator.forget(BACKEND)
    for port in (2000, 2001, 600):
        allocator.release(BACKEND, 1, port)
    assert allocator._targets
    assert not allocator.claim(BACKEND, 1, 602)
    assert allocator.claim(BACKEND, 1, 600)
    for port in (600, 602):
        allocator.release(BACKEND, 1, port)


@pytest.mark.parametrize("returns_first", [True, False])
def test_a_backend_that_left_is_forgotten_with_its_last_port(returns_first: bool) -> None:
    allocator = PortAllocator(1, range(2000, 2003))
    pairs = take(allocator, 2)
    if returns_first:
        for pair in pairs:
            allocator.release(BACKEND, *pair)
        allocator.forget(BACKEND)
    else:
        allocator.forget(BACKEND)
        allocator.release(BACKEND, *pairs[0])
        assert allocator._targets
        allocator.release(BACKEND, *pairs[1])
    assert not allocator._targets


def test_a_backend_that_comes_back_finds_its_ports_in_use() -> None:
    allocator = PortAllocator(1, range(2000, 2003))
    (used,) = take(allocator, 1)
    allocator.forget(BACKEND)
    pairs = take(allocator, 2)
    assert used not in pairs
    for pair in [used, *pairs]:
        allocator.release(BACKEND, *pair)
    assert allocator._targets


def test_forgetting_an_unknown_backend_does_nothing() -> None:
    allocator = PortAllocator(1)
    allocator.forget(BACKEND)
    assert not allocator._targets


class PortUse(RuleBasedStateMachine):
    """Against the obvious model: a list of what is free, for each target and source."""

    PORTS = range(3000, 3006)
    used = Bundle("used")
    targets = st.sampled_from([(6, 1, 80), (17, 1, 80), (6, 2, 80)])
    pairs = st.tuples(st.integers(1, 2), st.sampled_from(PORTS))

    def __init__(self) -> None:
        super().__init__()
        self.allocator = PortAllocator(1, self.PORTS)
        self.in_use: set[tuple[object, int, int]] = set()
        self.excluded: set[tuple[int, int]] = set()
        self.forgotten: set[object] = set()

    @rule(target=used, backend=targets, sources=st.sampled_from([(1,), (2,), (1, 2), (2, 1)]))
    def allocate(self, backend: object, sources: tuple[int, ...]) -> object:
        free = {
            (source, port)
            for source in sources
            for port in self.PORTS
            if (backend, source, port) not in self.in_use and (source, port) not in self.excluded
        }
        self.forgotten.discard(backend)
        pair = self.allocator.allocate(backend, sources)
        if pair is None:
            assert not free
            return multiple()
        assert pair in free
        use = (backend, *pair)
        self.in_use.add(use)
        return use

    @rule(target=used, backend=targets, pair=pairs)
    def claim(self, backend: object, pair: tuple[int, int]) -> object:
        """For a flow of a predecessor: even if nobody may have the port from now on."""
        self.forgotten.discard(backend)
        use = (backend, *pair)
        free = use not in self.in_use
        assert self.allocator.claim(*use) is free
        if not free:
            return multiple()
        self.in_use.add(use)
        return use

    @rule(use=consumes(used))
    def release(self, use: tuple[object, int, int]) -> None:
        self.in_use.remove(use)
        self.allocator.release(*use)

    @rule(pairs=st.sets(pairs, max_size=4))
    def exclude(self, pairs: set[tuple[int, int]]) -> None:
        self.excluded = pairs
        self.allocator.exclude(pairs)

    @rule(backend=targets)
    def forget(self, backend: object) -> None:
        self.forgotten.add(backend)
        self.allocator.forget(backend)

    @invariant()
    def what_is_forgotten_and_unused_holds_no_memory(self) -> None:
        busy = {backend for backend, _, _ in self.in_use}
        assert not (self.forgotten - busy) & set(self.allocator._targets)


TestPortUse = PortUse.TestCase
TestPortUse.settings = settings(max_examples=100, stateful_step_count=60)
