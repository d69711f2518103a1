"""Frames that wait until the MAC address of their next hop is known."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from featherlb.model import Address, NextHop

MAX_HELD = 64
"""Frames that wait at a time (RFC 1122 section 2.3.2.2: at least one)."""
HOLD_TIME = 1.0
"""Seconds that they wait."""


@dataclass(frozen=True, slots=True)
class HeldFrame:
    """A frame to this address, of IP version `family`, that waits until the time `until`."""

    destination: Address
    family: int
    frame: bytes
    until: float


class HeldFrames:
    """Sans-IO; times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._frames: deque[HeldFrame] = deque()
        self.given_up = 0
        """Frames whose next hop did not become known in time, or that found no room."""

    def __len__(self) -> int:
        return len(self._frames)

    def hold(self, destination: Address, family: int, frame: bytes, now: float) -> None:
        """Keep a frame, if there is room."""
        self.expire(now)
        if len(self._frames) >= MAX_HELD:
            self.given_up += 1
            return
        self._frames.append(HeldFrame(destination, family, frame, now + HOLD_TIME))

    def expire(self, now: float) -> None:
        """Give up the frames that have waited for too long."""
        while self._frames and self._frames[0].until <= now:
            self._frames.popleft()
            self.given_up += 1

    def release(
        self, next_hops: Mapping[Address, NextHop]
    ) -> list[tuple[HeldFrame, NextHop, bytes]]:
        """Take out the frames whose next hop is resolved, each with the hop and its address."""
        released = []
        waiting, self._frames = self._frames, deque()
        for held in waiting:
            hop = next_hops.get(held.destination)
            if hop is None or hop.mac is None:
                self._frames.append(held)
            else:
                released.append((held, hop, hop.mac))
        return released
