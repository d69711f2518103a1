"""Frames that wait for the MAC address of their next hop."""

from ipaddress import ip_address

from featherlb.datapaths.raw.held import HOLD_TIME, MAX_HELD, HeldFrames
from featherlb.model import NextHop

ONE, TWO = ip_address("10.1.0.1"), ip_address("2001:db8::2")
MAC = b"\x02\0\0\0\0\1"


def test_they_leave_when_their_next_hop_is_known() -> None:
    held = HeldFrames()
    held.hold(ONE, 4, b"first", 1.0)
    held.hold(TWO, 6, b"second", 1.1)
    held.hold(ONE, 4, b"third", 1.2)
    assert held.release({TWO: NextHop(7, None)}) == []
    hop = NextHop(7, MAC)
    released = held.release({ONE: hop})
    assert [(one.frame, one.family, *rest) for one, *rest in released] == [
        (b"first", 4, hop, MAC),
        (b"third", 4, hop, MAC),
    ]
    assert (len(held), held.given_up) == (1, 0)


def test_they_are_dropped_in_time() -> None:
    held = HeldFrames()
    held.hold(ONE, 4, b"first", 1.0)
    held.hold(ONE, 4, b"second", 1.5)
    held.expire(1.0 + HOLD_TIME - 0.01)
    assert (len(held), held.given_up) == (2, 0)
    held.expire(1.0 + HOLD_TIME)
    assert (len(held), held.given_up) == (1, 1)


def test_frames_without_room_are_dropped() -> None:
    held = HeldFrames()
    for number in range(MAX_HELD + 2):
        held.hold(ONE, 4, bytes([number]), 1.0)
    assert (len(held), held.given_up) == (MAX_HELD, 2)
    # Room comes back by time alone.
    held.hold(ONE, 4, b"late", 1.0 + HOLD_TIME)
    assert (len(held), held.given_up) == (1, MAX_HELD + 2)
