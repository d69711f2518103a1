"""The source ports of connections whose clients keep their address.

A reply in `dnat` mode names the backend, the client and the client's port, but no VIP. So a flow
needs a tuple that no other one has: no other flow, and no connection (of UDP: exchange of
datagrams) that the client has with the backend itself, through this host as its router. Only the
kernel's connection tracking knows the latter, so an engine asks it about each new flow: it sees
the verdict FIND_OWNER, looks the tuple up, answers, and hands the packet in again. Where the tuple
has an owner, the flow gets another source port, as from the kernel's own NAT
(net/netfilter/nf_nat_core.c, `get_unique_tuple`).
"""

import random

from featherlb.core.flows.members import PoolMember
from featherlb.core.flows.table import FlowTable
from featherlb.model import FIRST_UNPRIVILEGED_PORT, Verdict
from featherlb.model.shard import Shard
from featherlb.net.packet import Packet
from featherlb.net.protocols import SYN, TCP

MAX_PORTS = 8
"""Other ports to try, before the connection is refused."""
MAX_DRAWS = 16
"""Draws for each worker before one of them should have had a port that is this worker's."""
FIND_OWNER = int(Verdict.FIND_OWNER)
UNPRIVILEGED = FIRST_UNPRIVILEGED_PORT
PENDING = -1
NONE = -2
PRIVILEGED = range(512, FIRST_UNPRIVILEGED_PORT)
OTHERS = range(FIRST_UNPRIVILEGED_PORT, 1 << 16)


class Claims:
    """Finds source ports. `active` says that an engine can ask connection tracking.

    The open question, for the engine: `version` is that of IP, `protocol` TCP or UDP; `client_*`
    and `backend_*` are addresses in two words, `ports` are client << 16 | backend. `member` is the
    one that the packet in hand is to go to, None if there is no question. `tries` counts the other
    ports that were tried for the packet.
    """

    def __init__(self, flows: FlowTable, packet: Packet, shard: Shard, seed: int) -> None:
        """`packet` is the one that is parsed. Replies to the ports of a `shard` meet its worker."""
        self.active = False
        self.member: PoolMember | None = None
        self.version = 0
        self.protocol = 0
        self.client_high = self.client_low = 0
        self.backend_high = self.backend_low = 0
        self.ports = 0
        self._flows = flows
        self._packet = packet
        self._shard = shard
        self._random = random.Random(seed)
        self.owned = False
        self.tries = 0

    # For the packet path. A port is PENDING while the engine asks, NONE if there is none.

    def answered_port(self) -> int:
        """The port that the engine has answered for, or another one."""
        member = self.member
        assert member is not None
        return self.other_port(member) if self.take_answer() else self.ports >> 16

    def other_port(self, member: PoolMember) -> int:
        """Another source port, since the last one has an owner. A connection that is open already
        has its port."""
        packet = self._packet
        if packet.protocol == TCP and packet.flags != SYN:
            return NONE
        backend_port = member.port_for(packet.ports & 0xFFFF)
        while self.tries < MAX_PORTS:
            self.tries += 1
            port = self.draw_port()
            free = port and not self._flows.find(
                member.high,
                member.low,
                packet.src_high,
                packet.src_low,
                backend_port << 16 | port,
                packet.protocol,
            )
            if free:
                return self.ask(member, port)
        return NONE

    def draw_port(self) -> int:
        """A random port of the same kind as the client's, whose replies meet this worker; 0 if it
        isn't found."""
        packet = self._packet
        privileged = packet.ports >> 16 < UNPRIVILEGED
        ports = PRIVILEGED if privileged else OTHERS
        for _ in range(MAX_DRAWS * self._shard.workers):
            port = self._random.choice(ports)
            if self._shard.has(packet.src_high, packet.src_low, port):
                return port
        return 0

    def ask(self, member: PoolMember, port: int) -> int:
        """Ask about this port of the packet's client, if anybody can answer."""
        packet = self._packet
        backend_port = member.port_for(packet.ports & 0xFFFF)
        return self.ask_for(member, backend_port, packet.src_high, packet.src_low, port)

    def ask_for(self, member: PoolMember, backend_port: int, high: int, low: int, port: int) -> int:
        """Ask whether this client has a connection of its own from this port to one of the
        member's."""
        if not self.active:
            return port
        self.member = member
        self.version = self._packet.version
        self.protocol = self._packet.protocol
        self.client_high, self.client_low = high, low
        self.backend_high, self.backend_low = member.high, member.low
        self.ports = port << 16 | backend_port
        return PENDING

    def take_answer(self) -> bool:
        """Whether a connection has the tuple."""
        self.member = None
        return self.owned

    # For the engine

    def answer(self, owned: bool) -> None:
        """Whether a connection has the tuple that was asked about."""
        self.owned = owned
