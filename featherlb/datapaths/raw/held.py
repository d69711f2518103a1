"""Frames that wait for the MAC address of their next hop."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from featherlb.model import Address, NextHop

MAX_HELD = 64
"""Frames to hold at a time (RFC 1122 section 2.3.2.2: at least one)."""
HOLD_TIME = 1.0
"""Seconds to hold each of them."""


@dataclass(frozen=True, slots=True)
class HeldFrame:
    """A frame to this address, of IP version `family`, which is held until the time `until`."""

    destination: Address
    family: int
    frame: bytes
    until: float


class HeldFrames:
    """Sans-IO; times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._frames: deque[HeldFrame] = deque()
        self.given_up = 0
        """Frames dropped because their next hop was not resolved in time, or for lack of room."""

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
        """Drop the frames that have waited for too long."""
        while self._frames and self._frames[0].until <= now:
            self._frames.popleft()
            self.given_up += 1

    def release(
        self, next_hops: Mapping[Address, NextHop]
    ) -> list[tuple[HeldFrame, NextHop, bytes]]:
        """Remove and return the frames whose next hop is resolved, each with hop and MAC
        address."""
        released = []
        waiting, self._frames = self._frames, deque()
        for held in waiting:
            hop = next_hops.get(held.destination)
            if hop is None or hop.mac is None:
                self._frames.append(held)
            else:
                released.append((held, hop, hop.mac))
        return released
