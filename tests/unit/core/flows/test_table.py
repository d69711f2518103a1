"""The flow table against a plain dict and lists, and its limits."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from featherlb.core.flows.memory import anonymous
from featherlb.core.flows.table import FlowTable

SECRET = bytes(range(16))
MAPPED = 0xFFFF << 32

Key = tuple[int, int, int, int, int, int]
"""As `FlowTable.find` takes it: source, destination (high, low each), ports, protocol."""


def forward_key(number: int) -> Key:
    """What a client sends; each number has its own, IPv4 and IPv6, TCP and UDP by turns."""
    protocol = 6 if number % 3 else 17
    if number % 2:
        return 0, MAPPED | 0xC6336400 + number, 0, MAPPED | 0xC000020A, 40000 << 16 | 80, protocol
    return 0x20010DB8 << 32, number, 0x20010DB8 << 32 | 1, 10, 40000 << 16 | 80, protocol


def reply_key(number: int, port: int = 40000) -> Key:
    """What the backend answers with, to this port."""
    src_high, src_low, dst_high, dst_low, ports, protocol = forward_key(number)
    return dst_high, dst_low + 1, src_high, src_low, (ports & 0xFFFF) << 16 | port, protocol


def insert(table: FlowTable, forward: Key, reply: Key, queue: int = 0, ticks: int = 0) -> int:
    return table.insert(forward[5], *forward[:5], *reply[:5], queue, ticks)


def make_table(capacity: int, *timeouts: float, secret: bytes = SECRET) -> FlowTable:
    """With a queue per timeout; ranks count up."""
    table = FlowTable(anonymous(capacity), secret)
    for rank, timeout in enumerate(timeouts or (30.0,)):
        assert table.add_queue(rank, timeout) == rank
    return table


@dataclass
class Model:
    number: int
    queue: int
    seen: int
    port: int = 40000


class FlowTableMachine(RuleBasedStateMachine):
    """Tiny tables, so that entries cluster, wrap around and shift back all the time."""

    NUMBERS = st.integers(0, 40)
    RANKS = (2, 0, 1, 0)
    TIMEOUTS = (0.5, 1.0, 2.0, 0.1)

    @initialize(capacity=st.integers(1, 12), secret=st.binary(min_size=16, max_size=80))
    def start(self, capacity: int, secret: bytes) -> None:
        self.table = FlowTable(anonymous(capacity), secret)
        for rank, timeout in zip(self.RANKS, self.TIMEOUTS, strict=True):
            self.table.add_queue(rank, timeout)
        self.flows: dict[int, Model] = {}
        self.queues: list[list[int]] = [[] for _ in self.RANKS]
        self.now = 1
        self.most = 0

    def forget(self, flow: int) -> None:
        self.table.remove(flow)
        self.queues[self.flows.pop(flow).queue].remove(flow)

    @rule(number=NUMBERS, queue=st.integers(0, 3))
    def insert(self, number: int, queue: int) -> None:
        if any(model.number == number for model in self.flows.values()):
            return
        flow = insert(self.table, forward_key(number), reply_key(number), queue, self.now)
        if len(self.flows) == self.table.capacity:
            assert flow == 0
            return
        assert 1 <= flow <= self.table.capacity
        assert flow not in self.flows
        self.flows[flow] = Model(number, queue, self.now)
        self.queues[queue].append(flow)
        self.most = max(self.most, len(self.flows))

    @precondition(lambda self: self.flows)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.forget(data.draw(st.sampled_from(sorted(self.flows))))

    @precondition(lambda self: self.flows)
    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(sorted(self.flows)))
        model = self.flows[flow]
        self.table.touch(flow, self.now)
        if model.seen != self.now:
            model.seen = self.now
            self.queues[model.queue].remove(flow)
            self.queues[model.queue].append(flow)

    @precondition(lambda self: self.flows)
    @rule(data=st.data(), queue=st.integers(0, 3))
    def move(self, data: st.DataObject, queue: int) -> None:
        flow = data.draw(st.sampled_from(sorted(self.flows)))
        model = self.flows[flow]
        self.table.move(flow, queue, self.now)
        self.queues[model.queue].remove(flow)
        self.queues[queue].append(flow)
        model.queue, model.seen = queue, self.now

    @precondition(lambda self: self.flows)
    @rule(data=st.data(), port=st.sampled_from((40000, 40001)))
    def set_source_port(self, data: st.DataObject, port: int) -> None:
        flow = data.draw(st.sampled_from(sorted(self.flows)))
        assert self.table.set_source_port(flow, port)
        self.flows[flow].port = port

    @rule(ticks=st.integers(1, 15))
    def advance(self, ticks: int) -> None:
        self.now += ticks

    @rule()
    def expire(self) -> None:
        due = {
            flow
            for flow, model in self.flows.items()
            if self.now - model.seen >= round(self.TIMEOUTS[model.queue] * 10)
        }
        while flow := self.table.expired(self.now):
            assert flow in due
            due.remove(flow)
            self.forget(flow)
        assert not due

    @rule()
    def evict(self) -> None:
        victim = self.table.victim()
        if not self.flows:
            assert victim == 0
            return
        model = self.flows[victim]
        rank = self.RANKS[model.queue]
        assert rank == min(self.RANKS[other.queue] for other in self.flows.values())
        assert model.seen == min(
            other.seen for other in self.flows.values() if self.RANKS[other.queue] == rank
        )
        assert victim == self.queues[model.queue][0]
        self.forget(victim)

    @invariant()
    def every_key_is_found_and_no_other(self) -> None:
        refs = {model.number: (flow << 1, model.port) for flow, model in self.flows.items()}
        for number in range(41):
            ref, own = refs.get(number, (0, 0))
            assert self.table.find(*forward_key(number)) == ref
            for port in (40000, 40001):
                found = self.table.find(*reply_key(number, port))
                assert found == (ref | 1 if port == own else 0)
        assert self.table.count == len(self.flows)
        assert self.table.last_record() == self.most  # freed records are used first


FlowTableMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestFlowTableMachine = FlowTableMachine.TestCase


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 8, 100])
def test_capacity_is_the_limit_and_no_flow_less(capacity: int) -> None:
    table = make_table(capacity)
    flows = [insert(table, forward_key(n), reply_key(n)) for n in range(capacity)]
    assert sorted(flows) == list(range(1, capacity + 1))
    assert insert(table, forward_key(capacity), reply_key(capacity)) == 0
    assert table.find(*forward_key(capacity)) == table.find(*reply_key(capacity)) == 0
    assert table.count == table.capacity == capacity
    for n in range(capacity):
        assert table.find(*forward_key(n)) >> 1 == flows[n]
    table.remove(flows[0])
    assert insert(table, forward_key(capacity), reply_key(capacity)) == flows[0]


def test_a_table_emptied_and_filled_again_and_again() -> None:
    table = make_table(50)
    chance = random.Random(7)
    for _ in range(20):
        flows = {n: insert(table, forward_key(n), reply_key(n)) for n in range(50)}
        order = list(flows)
        chance.shuffle(order)
        for n in order:
            table.remove(flows.pop(n))
            assert table.find(*forward_key(n)) == 0
            assert all(table.find(*reply_key(m)) == flow << 1 | 1 for m, flow in flows.items())
    assert table.count == 0
    assert table.victim() == table.expired(1000) == 0


def test_every_part_of_the_key_counts() -> None:
    table = make_table(4)
    for key in (forward_key(2), forward_key(1)):
        flow = insert(table, key, reply_key(40))
        assert table.find(*key) == flow << 1
        for part in range(6):
            for bit in (1, 1 << 7) if part == 5 else (1, 1 << 15, 1 << 16, 1 << 31):
                other = list(key)
                other[part] ^= bit
                assert table.find(*other) == 0, (part, bit)
        table.remove(flow)


@pytest.mark.parametrize("part", range(4), ids=["src high", "src low", "dst high", "dst low"])
def test_flows_whose_32_bit_tags_collide_are_distinct(part: int) -> None:
    """As someone who knew the secret would forge them: all but one word is the same."""
    table = make_table(8)
    chance = random.Random(part)
    seen: dict[int, Key] = {}
    pair: tuple[Key, Key] | None = None
    while pair is None:  # a birthday search: about 80,000 tries
        words = list(forward_key(2))
        words[part] = chance.getrandbits(64)
        key: Key = tuple(words)  # type: ignore[assignment]
        other = seen.setdefault(table.tag(*key), key)
        if other != key:
            pair = other, key
    first = insert(table, pair[0], reply_key(1))
    assert table.find(*pair[1]) == 0
    second = insert(table, pair[1], reply_key(3))
    assert [table.find(*key) for key in pair] == [first << 1, second << 1]
    table.remove(first)
    assert [table.find(*key) for key in pair] == [0, second << 1]


def test_the_tag_depends_on_the_secret() -> None:
    keys = [forward_key(n) for n in range(20)]
    tags = [[make_table(1, secret=bytes([s] * 16)).tag(*key) for key in keys] for s in (1, 2)]
    assert all(0 <= tag <= 0xFFFFFFFF for row in tags for tag in row)
    assert not set(tags[0]) & set(tags[1])
    assert len(set(tags[0])) == 20


def test_timeouts_are_kept_to_a_tenth_of_a_second() -> None:
    table = make_table(4, 2.0, 0.5, 0.04)
    slow, quick, least = (insert(table, forward_key(n), reply_key(n), n, 100) for n in range(3))
    assert table.expired(100) == 0
    assert table.expired(101) == least  # never less than a tick
    table.remove(least)
    assert table.expired(104) == 0
    assert table.expired(105) == quick
    table.remove(quick)
    table.touch(slow, 110)
    assert table.expired(129) == 0
    assert table.expired(130) == slow
    assert table.count == 1  # it stays until it is removed


def test_a_busy_flow_is_moved_once_a_second_or_a_16th_of_its_timeout() -> None:
    table = make_table(2, 900.0, 4.8)
    slow, quick = (insert(table, forward_key(n), reply_key(n), n, 0) for n in range(2))
    for ticks in range(1, 20):
        table.touch(slow, ticks)
    assert table.expired(47) == 0
    assert table.expired(48) == quick
    table.touch(quick, 2)
    assert table.expired(48) == quick
    table.touch(quick, 3)
    assert table.expired(48) == 0
    assert table.expired(51) == quick
    table.remove(quick)
    assert table.expired(9009) == 0
    assert table.expired(9010) == slow


def test_replies_of_another_flow_stay_its_own() -> None:
    table = make_table(2)
    one = insert(table, forward_key(1), reply_key(1))
    other = insert(table, forward_key(2), reply_key(1, 40001))
    assert not table.set_source_port(one, 40001)
    assert table.set_source_port(one, 40000)  # its own
    assert table.find(*reply_key(1)) == one << 1 | 1
    assert table.find(*reply_key(1, 40001)) == other << 1 | 1
    table.remove(other)
    assert table.set_source_port(one, 40001)
    assert table.find(*reply_key(1)) == 0
    assert table.find(*reply_key(1, 40001)) == one << 1 | 1


def test_moving_to_another_queue_changes_the_timeout() -> None:
    table = make_table(2, 1.0, 100.0)
    flow = insert(table, forward_key(1), reply_key(1), 0, 0)
    table.move(flow, 1, 5)
    assert table.expired(1004) == 0
    assert table.expired(1005) == flow


def test_eviction_takes_the_lowest_rank_then_the_longest_idle() -> None:
    table = make_table(6, 30.0, 10.0, 900.0)
    order = [
        insert(table, forward_key(n), reply_key(n), queue, ticks)
        for n, (queue, ticks) in enumerate([(2, 0), (2, 1), (1, 2), (0, 3), (0, 4), (1, 5)])
    ]
    table.touch(order[0], 10)
    given_up = []
    while flow := table.victim():
        given_up.append(order.index(flow))
        table.remove(flow)
    assert given_up == [3, 4, 2, 5, 1, 0]


def test_queues_of_the_same_rank_are_compared_by_idleness() -> None:
    table = FlowTable(anonymous(2), SECRET)
    for timeout in (10.0, 20.0):
        table.add_queue(1, timeout)
    insert(table, forward_key(1), reply_key(1), 0, 9)
    older = insert(table, forward_key(2), reply_key(2), 1, 3)
    assert table.victim() == older


def test_more_than_255_timeouts_are_refused() -> None:
    table = make_table(1, *[float(n) for n in range(1, 256)])
    assert table.queues == 255
    with pytest.raises(ValueError, match="more than 255 different timeouts"):
        table.add_queue(0, 1000.0)


def test_a_limit_of_millions_costs_no_memory_until_it_is_used() -> None:
    table = make_table(4_000_000)
    flow = insert(table, forward_key(1), reply_key(1))
    assert table.find(*forward_key(1)) == flow << 1
