"""SYN cookies: connections whose client has proved its address before anything is kept of them
(RFC 4987 section 3.6).

A cookie is the sequence number of a SYN-ACK: a keyed hash of the client's SYN and of the time, and
what the SYN's options said, in 8 bits. The client's ACK brings it back, and `splice.py` opens the
connection to a backend then.

The SYN-ACK announces a window of 0, so the client sends nothing until the backend has answered, as
the kernel's SYNPROXY does (net/netfilter/nf_synproxy_core.c). It has no timestamps: the backend
will choose other ones, and what Linux keeps in them is in the cookie itself.

The program `bpf/shield.c` makes the same answers in the kernel, with the same key and clock.
"""

from array import array

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.table import FlowTable
from featherlb.core.path.context import Context
from featherlb.core.path.outbox import Outbox
from featherlb.core.pools.pool import Pool
from featherlb.model import Hook, Verdict
from featherlb.model.reason import Reason
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.packet import Packet
from featherlb.net.protocols import ACK, SYN, TCP
from featherlb.net.siphash import SipHash

if not cython.compiled:
    from featherlb.net.checksum import sum_bytes
    from featherlb.net.packet import MASK32
    from featherlb.net.tcp_options import permits_sack, segment_size, window_scale

SLOT = 64 * TICKS_PER_SECOND
"""Ticks for which cookies are made with the same time. They are valid until the next slot ends."""
SHARE = 64
LEAST = 256
"""Cookies are used once one in so many flows that the table could hold is half-open, or so many if
that is more. They are no longer used when there would be less than half as many without them."""
SEGMENT_SIZES = (536, 1220, 1300, 1400, 1440, 1460, 4312, 8960)
"""What a cookie can say of the client's MSS, in bytes: the defaults of IPv4 and IPv6, what is left
by tunnels, Ethernet with either, and what longer frames allow."""
SIZES = memoryview(array("I", SEGMENT_SIZES))
COUNT = len(SIZES)
DATA = 0xFF
"""The bits of a cookie that hold the number of a segment size << 5 | scale << 1 | SACK allowed."""
NOT_SCALED = 15
OFFERED_SCALE = 7
"""The window scale that answers announce unless `Cookies.set_shield` says otherwise: that of Linux
with its usual buffers, before Linux 6.16 made them larger. Windows of backends with another one are
converted (`splice.py`), but with `offload` they can't be."""
USUAL = (OFFERED_SCALE,)
OFFERED_SIZE = 1460
"""The MSS that answers announce at most, in bytes; 20 less over IPv6."""
LONGEST = 40 + 20 + 12
"""Bytes of the longest answer: IPv6, TCP, and its options."""
TTL = 64

SYN_COOKIE = int(Reason.SYN_COOKIE)
WIRE = int(Hook.WIRE)
ANSWERED = int(Verdict.ANSWERED)
DROP = int(Verdict.DROP)


class Cookies:
    """Answers SYNs, and knows the ACKs that return a cookie.

    `flooded` says whether they are used now. `answered` and `returned` count SYNs and cookies.
    `size`, `scale` (-1 without one) and `sack` are what the SYN of the ACK that was accepted last
    said: the MSS in bytes, at most as large as the client's; the window scale; whether SACK is
    permitted. `first` is that SYN's sequence number, `cookie` is that of the answer, and `offered`
    the window scale that this has announced, -1 for none.
    """

    def __init__(
        self,
        packet: Packet,
        flows: FlowTable,
        lifecycle: Lifecycle,
        next_hops: NextHops,
        counters: Counters,
        outbox: Outbox,
        key: bytes,
        half_open: float,
    ) -> None:
        """`key` has 16 secret bytes, `half_open` is the timeout of flows that weren't answered, in
        seconds."""
        self._packet = packet
        self._flows = flows
        self._lifecycle = lifecycle
        self._next_hops = next_hops
        self._counters = counters
        self._outbox = outbox
        self._hash = SipHash(key)
        self._half_open = half_open
        self._threshold = threshold(flows.capacity)
        self.flooded = False
        self.shielded = False
        self._scales: dict[str, tuple[int, ...]] = {}
        self.answered = self.returned = 0
        self._unreturned = 0
        self._reviewed = 0
        self._until = 0
        self.size = self.scale = self.offered = self.first = self.cookie = 0
        self.sack = False

    def are_wanted(self, pool: Pool) -> bool:
        """Whether a SYN to this pool is answered with a cookie."""
        if pool.cookies_always:
            return True
        if not pool.cookies_allowed:
            return False
        if not self.flooded:
            half_open = self._flows.length[self._lifecycle.half_open_queue]
            self.flooded = half_open >= self._threshold
        return self.flooded

    def handle_timer(self, ticks: int) -> None:
        """Find out once a second whether the flood is over: whether there would be few half-open
        flows if each SYN whose cookie did not come back had opened one."""
        if not self.flooded or ticks < self._reviewed + TICKS_PER_SECOND:
            return
        self._reviewed = ticks
        unreturned = self.answered - self.returned
        more = unreturned - self._unreturned
        self._unreturned = unreturned
        half_open = self._flows.length[self._lifecycle.half_open_queue]
        if half_open + max(0, more) * self._half_open < self._threshold // 2:
            self.flooded = False

    def set_shield(self, up: bool, scales: dict[str, tuple[int, ...]], ticks: int) -> None:
        """Note whether the kernel answers SYNs: cookies are valid that were not made here. `scales`
        are the window scales to announce (-1: none), by the names of services, each before those
        that were announced earlier."""
        self._scales = scales
        self.shielded = up
        if not up:
            self._until = max(self._until, (ticks // SLOT + 2) * SLOT)

    def answer(self, ctx: Context) -> int:
        """Answer the SYN in hand; returns the verdict on it. A frame is replaced by the answer."""
        packet = self._packet
        self._counters.drop(SYN_COOKIE)
        if packet.ip + LONGEST > len(packet.data):
            return DROP
        if ctx.hook != WIRE and not self._outbox.may_answer():
            return DROP
        client_size = segment_size(packet) or (536 if packet.version == 4 else 1220)
        number = 0
        for i in range(1, COUNT):
            if SIZES[i] <= client_size:
                number = i
        scale = window_scale(packet)
        sack = permits_sack(packet)
        data = number << 5 | (NOT_SCALED if scale < 0 else scale) << 1 | sack
        offered = self._scales.get(ctx.pool.service.name, USUAL)[0]
        code = self.code(packet.sequence, ctx.ticks // SLOT, offered)
        self._until = (ctx.ticks // SLOT + 2) * SLOT
        self.answered += 1
        size = offered_size(ctx.pool.service.mss, packet.version)
        self.write(cookie_of(code, data), size, offered if scale >= 0 else -1, sack)
        if ctx.hook == WIRE:
            self._next_hops.egress = self._next_hops.ingress
            return ANSWERED
        self._outbox.add(packet.quote(packet.end - packet.ip))
        return DROP

    def accepts(self, ctx: Context, pool: Pool) -> bool:
        """Whether the segment in hand, to this pool and of no known flow, returns a cookie."""
        packet = self._packet
        if packet.flags != ACK or not (self.shielded or ctx.ticks < self._until):
            return False
        cookie = (packet.acknowledgement - 1) & MASK32
        scales = self._scales.get(pool.service.name, USUAL)
        slot = ctx.ticks // SLOT
        # A probe of the window comes one byte before the first (RFC 9293 section 3.8.6.1).
        for first in (packet.sequence - 1, packet.sequence):
            first &= MASK32
            for then in (slot, slot - 1):
                for offered in scales:
                    code = self.code(first, then, offered)
                    data = (code ^ cookie) & DATA
                    if cookie_of(code, data) == cookie:
                        self.size = SIZES[data >> 5]
                        self.scale = data >> 1 & 15
                        if self.scale == NOT_SCALED:
                            self.scale = -1
                        self.sack = data & 1 != 0
                        self.offered = offered
                        self.first = first
                        self.cookie = cookie
                        return True
        return False

    def code(self, first: int, slot: int, offered: int) -> int:
        """The hash of the packet's connection, whose client began with this sequence number, in
        this slot of time, and of the window scale that is announced to it."""
        packet = self._packet
        hashing = self._hash
        hashing.begin()
        if packet.version == 6:
            hashing.add(packet.src_high)
            hashing.add(packet.src_low)
            hashing.add(packet.dst_high)
            hashing.add(packet.dst_low)
        else:
            hashing.add((packet.src_low & MASK32) << 32 | packet.dst_low & MASK32)
        ports = packet.ports
        hashing.add(ports << 32 | first)
        hashing.add(slot << 4 | offered & 15)
        return hashing.end()

    def write(self, cookie: int, size: int, scale: int, sack: bool) -> None:
        """Write the SYN-ACK over the parsed SYN; `scale` is -1 for none. It is no longer than a SYN
        with as many options, and the packet's buffer has room behind a shorter one."""
        packet = self._packet
        length = 24 + 4 * sack + 4 * (scale >= 0)
        at = packet.ip
        data = packet.data
        if packet.version == 4:
            packet.transport = at + 20
            packet.write32(at, 0x45000000 | 20 + length)
            packet.write32(at + 4, 0x4000)  # don't fragment
            packet.write32(at + 8, TTL << 24 | TCP << 16)
            packet.write32(at + 12, packet.dst_low & MASK32)
            packet.write32(at + 16, packet.src_low & MASK32)
            packet.write16(at + 10, sum_bytes(data, at, 20) ^ 0xFFFF)
        else:
            packet.transport = at + 40
            packet.write32(at, 6 << 28)
            packet.write32(at + 4, length << 16 | TCP << 8 | TTL)
            packet.write_address(at + 8, packet.dst_high, packet.dst_low)
            packet.write_address(at + 24, packet.src_high, packet.src_low)
        at = packet.transport
        packet.end = at + length
        packet.write32(at, (packet.ports & 0xFFFF) << 16 | packet.ports >> 16)
        packet.write32(at + 4, cookie)
        packet.write32(at + 8, (packet.sequence + 1) & MASK32)
        packet.write32(at + 12, length << 26 | (SYN | ACK) << 16)  # and no window
        packet.write32(at + 16, 0)
        at += 20
        packet.write32(at, 2 << 24 | 4 << 16 | size)
        if sack:
            at += 4
            packet.write32(at, 0x01010402)  # padding, SACK permitted
        if scale >= 0:
            packet.write32(at + 4, 0x01030300 | scale)  # padding, window scale
        packet.write16(
            packet.transport + 16,
            packet.transport_checksum(
                packet.src_high, packet.src_low, packet.dst_high, packet.dst_low
            ),
        )


def cookie_of(code: int, data: int) -> int:
    """The cookie with this `data`, from the hash of its connection: they are hidden in the low
    byte, and what authenticates them stands in the others."""
    seal = (code >> 40) + (code >> 8 & 0xFFFFFF | 1) * data
    return (seal & 0xFFFFFF) << 8 | (code ^ data) & DATA


def offered_size(limit: int | None, version: int) -> int:
    """The MSS that answers announce over this version of IP, in bytes; `limit` is the service's."""
    size = OFFERED_SIZE if version == 4 else OFFERED_SIZE - 20
    return size if limit is None else min(size, limit)


def threshold(capacity: int) -> int:
    """The half-open flows from which on a table of this capacity is under a flood."""
    return max(LEAST, capacity // SHARE)
