"""Faults that operators inject, to see how clients and services bear them."""

from dataclasses import dataclass
from enum import StrEnum

from featherlb.model.address import Endpoint


class FaultKind(StrEnum):
    """What happens to the packets of a flow that a fault has chosen."""

    DELAY = "delay"
    """The backend's packets arrive later."""
    DROP = "drop"
    """Packets are lost between featherlb and the backend, in both directions."""
    RESET = "reset"
    """A connection is reset with its first data; a datagram is refused."""
    REORDER = "reorder"
    """Some of the backend's packets are overtaken by those behind them."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of some of the flows that open while it is in force, until `until` on the monotonic
    clock.

    The `seed` decides which flows, by their addresses and ports: the same ones again with the same
    seed.
    """

    number: int
    service: str
    kind: FaultKind
    until: float
    backends: tuple[Endpoint, ...] = ()
    """Of flows to these alone; to all of the service if empty."""
    share: float = 100
    """Of the flows, in per cent."""
    delay: float = 0
    """DELAY: in seconds."""
    loss: float = 100
    """DROP: of the packets of a chosen flow, in per cent."""
    seed: int = 0

    def __str__(self) -> str:
        what = {
            FaultKind.DELAY: f"delay of {self.delay * 1000:g} ms",
            FaultKind.DROP: f"loss of {self.loss:g} % of the packets",
            FaultKind.RESET: "reset with the first data",
            FaultKind.REORDER: "packets out of order",
        }[self.kind]
        to = f" to {', '.join(map(str, self.backends))}" if self.backends else ""
        return f"{what} for {self.share:g} % of the new flows of {self.service}{to}"
