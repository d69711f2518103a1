"""A packet on its way through the stages, with what they have found.

A stage is a function that takes a `Context` and returns GO_ON or the packet's `model.Verdict`.
"""

from featherlb.core.pools.pool import Pool
from featherlb.net.packet import Packet

GO_ON = 0
"""Continue with the next stage. No `model.Verdict` is 0, so `or` chains stages."""

# Values of `Context.kind`.
WHOLE = 0
"""A TCP segment or a UDP datagram."""
FIRST_FRAGMENT = 1
"""The first fragment of one, with the ports."""
LATER_FRAGMENT = 2
"""Another fragment, without ports."""
ICMP_MESSAGE = 3


class Context:
    """One object serves all packets: `begin` resets it for the next one.

    `packet` has the headers once they are parsed. `flow` is the packet's flow, 0 for none; `reply`
    is 1 if the packet goes from the backend to the client. For a packet that opens a flow, `pool`
    is the service's, and `offloaded` says whether the kernel is to translate the flow.
    """

    pool: Pool

    def __init__(self, packet: Packet) -> None:
        self.packet = packet
        self.begin(0, 0, 0, 0, 0.0)

    def begin(self, offset: int, length: int, hook: int, info: int, now: float) -> None:
        """Start with another packet; arguments as for `handle_packet`."""
        self.offset = offset
        self.length = length
        self.hook = hook
        self.info = info
        self.now = now
        self.ticks = int(now * 10)
        self.kind = WHOLE
        self.flow = 0
        self.reply = 0
        self.offloaded = False
