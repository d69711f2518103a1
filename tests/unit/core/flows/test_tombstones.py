"""Recently closed connections, which are not adopted."""

from featherlb.core.flows.tombstones import MAX_TOMBSTONES, MEMORY, Key, Tombstones


def key(number: int) -> Key:
    return (0, number, 0, 2, 40000 << 16 | 80)


def test_it_remembers_for_a_while() -> None:
    tombstones = Tombstones()
    tombstones.remember(key(1), 100)
    assert tombstones.holds(key(1), 100 + MEMORY - 1)
    assert not tombstones.holds(key(1), 100 + MEMORY)
    assert not tombstones.holds(key(2), 100)


def test_a_connection_that_ends_twice_is_remembered_from_the_second_time_on() -> None:
    tombstones = Tombstones()
    tombstones.remember(key(1), 0)
    tombstones.remember(key(2), 1)
    tombstones.remember(key(1), MEMORY)
    assert tombstones.holds(key(1), MEMORY + 1)
    assert len(tombstones) == 2


def test_a_reopened_connection_is_forgotten() -> None:
    tombstones = Tombstones()
    tombstones.remember(key(1), 0)
    tombstones.forget(key(1))
    tombstones.forget(key(2))
    assert not tombstones.holds(key(1), 0)


def test_old_ones_make_room() -> None:
    tombstones = Tombstones()
    for number in range(10):
        tombstones.remember(key(number), 0)
    for number in range(10, 20):
        tombstones.remember(key(number), MEMORY)
    assert len(tombstones) == 10
    assert not tombstones.holds(key(9), 1)


def test_it_is_bounded() -> None:
    tombstones = Tombstones()
    for number in range(MAX_TOMBSTONES + 5):
        tombstones.remember(key(number), 0)
    assert len(tombstones) == MAX_TOMBSTONES
    assert not tombstones.holds(key(4), 0)
    assert tombstones.holds(key(5), 0)
