"""The memory of connections that were ended on purpose."""

from featherlb.core.flows.tombstones import MAX_ENDED, MEMORY, EndedConnections, Key


def key(number: int) -> Key:
    return (0, number, 0, 2, 40000 << 16 | 80)


def test_it_remembers_for_a_while() -> None:
    ended = EndedConnections()
    ended.remember(key(1), 100)
    assert ended.holds(key(1), 100 + MEMORY - 1)
    assert not ended.holds(key(1), 100 + MEMORY)
    assert not ended.holds(key(2), 100)


def test_a_connection_that_ends_twice_is_remembered_from_the_second_time_on() -> None:
    ended = EndedConnections()
    ended.remember(key(1), 0)
    ended.remember(key(2), 1)
    ended.remember(key(1), MEMORY)
    assert ended.holds(key(1), MEMORY + 1)
    assert len(ended) == 2


def test_what_was_opened_anew_is_forgotten() -> None:
    ended = EndedConnections()
    ended.remember(key(1), 0)
    ended.forget(key(1))
    ended.forget(key(2))
    assert not ended.holds(key(1), 0)


def test_old_ones_make_room() -> None:
    ended = EndedConnections()
    for number in range(10):
        ended.remember(key(number), 0)
    for number in range(10, 20):
        ended.remember(key(number), MEMORY)
    assert len(ended) == 10
    assert not ended.holds(key(9), 1)


def test_it_is_bounded() -> None:
    ended = EndedConnections()
    for number in range(MAX_ENDED + 5):
        ended.remember(key(number), 0)
    assert len(ended) == MAX_ENDED
    assert not ended.holds(key(4), 0)
    assert ended.holds(key(5), 0)
