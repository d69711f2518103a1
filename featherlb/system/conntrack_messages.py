"""Conntrack's netlink messages: writes requests from flow records, parses entries.

No I/O: callers send the buffer of `Requests` and have `Entry` parse what they receive. Formats and
numbers are those of nfnetlink.h and nfnetlink_conntrack.h in include/uapi/linux/netfilter. Netlink
and attribute headers are in host order, attribute payloads in network order.
"""

import struct
import sys

import cython

from featherlb.core.flows.kernel import Commands, KernelFlow
from featherlb.core.flows.tcp_state import State
from featherlb.net.netlink import (
    NFNL_HEADER,
    NFNL_SUBSYS_CTNETLINK,
    NLA_F_NESTED,
    NLA_TYPE_MASK,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    NLMSG_HEADER,
    nfnl_message,
)
from featherlb.net.protocols import ADDRESS_FAMILIES, MAPPED, TCP, UDP

if not cython.compiled:
    from featherlb.core.flows.kernel import INSERT, LOOK_UP
    from featherlb.core.flows.record import FULL, IPV6, SPLICED, Record

NEW_MESSAGE, GET_MESSAGE, DELETE_MESSAGE = (NFNL_SUBSYS_CTNETLINK << 8 | n for n in range(3))
AF_INET, AF_INET6 = ADDRESS_FAMILIES[4], ADDRESS_FAMILIES[6]

TUPLE_ORIG, TUPLE_REPLY, STATUS, PROTOINFO, NAT_SRC, TIMEOUT = 1, 2, 3, 4, 6, 7
COUNTERS_ORIG, COUNTERS_REPLY, ID, NAT_DST, SEQ_ADJ_REPLY, ZONE = 9, 10, 12, 13, 16, 18
TUPLE_IP, TUPLE_PROTO = 1, 2
V4_SRC, V4_DST, V6_SRC, V6_DST = 1, 2, 3, 4
PROTO_NUM, PROTO_SRC_PORT, PROTO_DST_PORT = 1, 2, 3
NAT_V4_MIN, NAT_V4_MAX, NAT_PROTO, NAT_V6_MIN, NAT_V6_MAX = 1, 2, 3, 4, 5
NAT_PORT_MIN, NAT_PORT_MAX = 1, 2
PROTOINFO_TCP, TCP_STATE = 1, 1
TCP_SCALE_ORIGINAL, TCP_SCALE_REPLY, TCP_FLAGS_ORIGINAL, TCP_FLAGS_REPLY = 2, 3, 4, 5
# Of nf_conntrack_tcp.h: states, then flags.
TCP_SYN_SENT, TCP_ESTABLISHED, TCP_FIN_WAIT, TCP_SYN_SENT2 = 1, 3, 4, 9
SCALED, SACK_PERMITTED, LIBERAL = 1 << 0, 1 << 1, 1 << 3
CORRECTION_POSITION, OFFSET_BEFORE, OFFSET_AFTER = 1, 2, 3
COUNTERS_PACKETS, COUNTERS_BYTES = 1, 2
SEEN_REPLY, DESTINATION_NAT = 1 << 1, 1 << 5  # bits of an entry's status

STATES = memoryview(
    bytearray(
        (
            State.SYN_SENT,  # TCP_CONNTRACK_NONE: created, no packet yet
            State.SYN_SENT,
            State.SYN_RECEIVED,
            State.ESTABLISHED,
            State.FIN_WAIT,
            State.CLOSE_WAIT,
            State.CLOSING,  # LAST_ACK
            State.CLOSING,  # TIME_WAIT
            State.CLOSED,
            State.SYN_SENT,  # SYN_SENT2: both ends opened it
        )
    )
)
"""By enum tcp_conntrack (include/uapi/linux/netfilter/nf_conntrack_tcp.h)."""
KERNEL_STATES = len(STATES)

FIRST_TIMEOUT = 30
"""Seconds that an entry lives before its first packet; then the kernel's timeouts apply."""
SYN_SENT = int(State.SYN_SENT)
SYN_RECEIVED = int(State.SYN_RECEIVED)
FIN_WAIT = int(State.FIN_WAIT)
CLOSE_WAIT = int(State.CLOSE_WAIT)
UDP_ONE_WAY = int(State.UDP_ONE_WAY)
UDP_TWO_WAY = int(State.UDP_TWO_WAY)
LARGEST = 512
"""Upper bound of the bytes of a request."""


class Requests:
    """Requests to conntrack in order: `length` bytes of `buffer`."""

    def __init__(self) -> None:
        self.length = 0
        self.use(bytearray(64 * LARGEST))

    def use(self, buffer: bytearray) -> None:
        """Write requests to this buffer."""
        self.buffer = buffer
        self.size = len(buffer)
        view = memoryview(buffer)
        self.u8 = view
        self.u16 = view.cast("H")
        self.u32 = view.cast("I")

    def take(self) -> memoryview:
        """All requests, valid until the next one is written."""
        length, self.length = self.length, 0
        return memoryview(self.buffer)[:length]

    def create(self, record: Record, offset: int, sequence: int) -> None:
        """Create a flow's entry with its translation; `offset` is added to the sequence numbers of
        its replies, an error has this sequence.

        With one NAT manipulation given, the kernel sets up a null binding for the other one: no
        rule changes the source of a flow in `dnat` mode.
        """
        spliced = record.protocol == TCP and record.flags & SPLICED != 0
        family = AF_INET6 if record.flags & IPV6 else AF_INET
        start = self.begin(NEW_MESSAGE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL, family, sequence)
        at = self.forward_tuple(start + NFNL_HEADER, record, family)
        # The plain inverse: the kernel translates it.
        at = self.tuple_attribute(
            at,
            TUPLE_REPLY,
            family,
            record.vip_high,
            record.vip_low,
            record.client_high,
            record.client_low,
            record.vip_port,
            record.client_port,
            record.protocol,
        )
        self.attribute(at, TIMEOUT, 8)
        self.put32(at + 4, FIRST_TIMEOUT)
        at = self.translation(
            at + 8, NAT_DST, family, record.backend_high, record.backend_low, record.backend_port
        )
        # A spliced flow's backend has seen its port: the kernel may not pick another one.
        if record.flags & FULL or record.source_port != record.client_port or spliced:
            at = self.translation(
                at, NAT_SRC, family, record.source_high, record.source_low, record.source_port
            )
        if spliced and record.state == SYN_RECEIVED:
            at = self.opened_attribute(at, record.scales)
        elif record.protocol == TCP and record.state != SYN_SENT:
            at = self.tcp_state_attribute(at, record.state)
        if spliced:
            at = self.offset_attribute(at, offset)
        self.finish(start, at)

    def delete(self, record: Record, sequence: int) -> None:
        """Delete a flow's entry; an error has this sequence."""
        self.name(record, DELETE_MESSAGE, sequence)

    def get(self, record: Record, sequence: int) -> None:
        """Get a flow's entry; the response, or an error, has this sequence."""
        self.name(record, GET_MESSAGE, sequence)

    def get_tuple(
        self,
        version: int,
        protocol: int,
        src_high: int,
        src_low: int,
        dst_high: int,
        dst_low: int,
        ports: int,
    ) -> None:
        """Get the entry of the connection with this forward tuple; `version` is that of IP, `ports`
        are source << 16 | destination."""
        family = AF_INET6 if version == 6 else AF_INET
        start = self.begin(GET_MESSAGE, NLM_F_REQUEST, family, 0)
        end = self.tuple_attribute(
            start + NFNL_HEADER,
            TUPLE_ORIG,
            family,
            src_high,
            src_low,
            dst_high,
            dst_low,
            ports >> 16,
            ports & 0xFFFF,
            protocol,
        )
        self.finish(start, end)

    def write(self, commands: Commands, first: int, end: int) -> None:
        """Write the commands from number `first` up to `end`. A request has its command's number
        plus 1 as its sequence."""
        for at in range(first, end):
            kind = commands.kind(at)
            if kind == INSERT:
                self.create(commands.records.at(at), commands.offset(at), at + 1)
            elif kind == LOOK_UP:
                self.get(commands.records.at(at), at + 1)
            else:
                self.delete(commands.records.at(at), at + 1)

    def ask(self, commands: Commands, at: int) -> None:
        """Get the entry with the forward tuple of a command's flow."""
        self.get(commands.records.at(at), 0)

    def dump(self, family: int) -> None:
        """Dump all entries of an address family (2 or 10)."""
        start = self.begin(GET_MESSAGE, NLM_F_REQUEST | NLM_F_DUMP, family, 0)
        self.finish(start, start + NFNL_HEADER)

    # Encoding

    def name(self, record: Record, kind: int, sequence: int) -> None:
        """Write a request for the entry with the flow's forward tuple."""
        family = AF_INET6 if record.flags & IPV6 else AF_INET
        start = self.begin(kind, NLM_F_REQUEST, family, sequence)
        self.finish(start, self.forward_tuple(start + NFNL_HEADER, record, family))

    def begin(self, kind: int, flags: int, family: int, sequence: int) -> int:
        """Start a message, with headers except for its length; returns its offset."""
        if self.length + LARGEST > self.size:
            larger = bytearray(2 * self.size)
            larger[: self.length] = self.buffer[: self.length]
            self.use(larger)
        start = self.length
        self.u16[(start + 4) >> 1] = kind
        self.u16[(start + 6) >> 1] = flags
        self.u32[(start + 8) >> 2] = sequence
        self.u32[(start + 12) >> 2] = 0
        self.u32[(start + 16) >> 2] = 0
        self.u8[start + 16] = family
        return start

    def finish(self, start: int, end: int) -> None:
        """End the message at this offset."""
        self.u32[start >> 2] = end - start
        self.length = end

    def forward_tuple(self, at: int, record: Record, family: int) -> int:
        """Write a flow's forward tuple; returns the offset after it."""
        return self.tuple_attribute(
            at,
            TUPLE_ORIG,
            family,
            record.client_high,
            record.client_low,
            record.vip_high,
            record.vip_low,
            record.client_port,
            record.vip_port,
            record.protocol,
        )

    def tuple_attribute(
        self,
        at: int,
        kind: int,
        family: int,
        src_high: int,
        src_low: int,
        dst_high: int,
        dst_low: int,
        src_port: int,
        dst_port: int,
        protocol: int,
    ) -> int:
        """Write the tuple of one direction; returns the offset after it."""
        size = 44 if family == AF_INET6 else 20
        self.attribute(at, NLA_F_NESTED | kind, 4 + size + 28)
        at += 4
        self.attribute(at, NLA_F_NESTED | TUPLE_IP, size)
        if family == AF_INET6:
            self.attribute(at + 4, V6_SRC, 20)
            self.put128(at + 8, src_high, src_low)
            self.attribute(at + 24, V6_DST, 20)
            self.put128(at + 28, dst_high, dst_low)
        else:
            self.attribute(at + 4, V4_SRC, 8)
            self.put32(at + 8, src_low)
            self.attribute(at + 12, V4_DST, 8)
            self.put32(at + 16, dst_low)
        at += size
        self.attribute(at, NLA_F_NESTED | TUPLE_PROTO, 28)
        self.attribute(at + 4, PROTO_NUM, 5)
        self.put32(at + 8, protocol << 24)
        self.attribute(at + 12, PROTO_SRC_PORT, 6)
        self.put32(at + 16, src_port << 16)
        self.attribute(at + 20, PROTO_DST_PORT, 6)
        self.put32(at + 24, dst_port << 16)
        return at + 28

    def translation(self, at: int, kind: int, family: int, high: int, low: int, port: int) -> int:
        """Write a NAT attribute with one address and one port; returns the offset after it."""
        if family == AF_INET6:
            self.attribute(at, NLA_F_NESTED | kind, 64)
            self.attribute(at + 4, NAT_V6_MIN, 20)
            self.put128(at + 8, high, low)
            self.attribute(at + 24, NAT_V6_MAX, 20)
            self.put128(at + 28, high, low)
            at += 44
        else:
            self.attribute(at, NLA_F_NESTED | kind, 40)
            self.attribute(at + 4, NAT_V4_MIN, 8)
            self.put32(at + 8, low)
            self.attribute(at + 12, NAT_V4_MAX, 8)
            self.put32(at + 16, low)
            at += 20
        self.attribute(at, NLA_F_NESTED | NAT_PROTO, 20)
        self.attribute(at + 4, NAT_PORT_MIN, 6)
        self.put32(at + 8, port << 16)
        self.attribute(at + 12, NAT_PORT_MAX, 6)
        self.put32(at + 16, port << 16)
        return at + 20

    def tcp_state_attribute(self, at: int, state: int) -> int:
        """Write the TCP state, established or half-closed, with window tracking off (liberal);
        returns the offset after it."""
        self.attribute(at, NLA_F_NESTED | PROTOINFO, 32)
        self.attribute(at + 4, NLA_F_NESTED | PROTOINFO_TCP, 28)
        self.attribute(at + 8, TCP_STATE, 5)
        closes = state in (FIN_WAIT, CLOSE_WAIT)
        self.put32(at + 12, (TCP_FIN_WAIT if closes else TCP_ESTABLISHED) << 24)
        for kind in (TCP_FLAGS_ORIGINAL, TCP_FLAGS_REPLY):
            self.attribute(at + 8 * (kind - 2), kind, 6)
            # Flags and mask.
            self.put32(at + 8 * (kind - 2) + 4, LIBERAL << 24 | LIBERAL << 16)
        return at + 32

    def opened_attribute(self, at: int, scales: int) -> int:
        """Write the TCP state of a connection of which the kernel has seen nothing, but whose next
        segments complete the handshake: it takes the windows from those, if it knows the scales
        (client << 4 | backend, 0 if they don't scale). Returns the offset after it."""
        self.attribute(at, NLA_F_NESTED | PROTOINFO, 48)
        self.attribute(at + 4, NLA_F_NESTED | PROTOINFO_TCP, 44)
        self.attribute(at + 8, TCP_STATE, 5)
        self.put32(at + 12, TCP_ESTABLISHED << 24)
        self.attribute(at + 16, TCP_SCALE_ORIGINAL, 5)
        self.put32(at + 20, (scales >> 4) << 24)
        self.attribute(at + 24, TCP_SCALE_REPLY, 5)
        self.put32(at + 28, (scales & 15) << 24)
        flags = SACK_PERMITTED | (SCALED if scales else 0)
        for kind in (TCP_FLAGS_ORIGINAL, TCP_FLAGS_REPLY):
            self.attribute(at + 8 * kind, kind, 6)
            self.put32(at + 8 * kind + 4, flags << 24 | flags << 16)
        return at + 48

    def offset_attribute(self, at: int, offset: int) -> int:
        """Write what is added to the sequence numbers of replies, wherever they are, and subtracted
        where the client acknowledges them (net/netfilter/nf_conntrack_seqadj.c); returns the offset
        after it."""
        self.attribute(at, NLA_F_NESTED | SEQ_ADJ_REPLY, 28)
        for kind in (CORRECTION_POSITION, OFFSET_BEFORE, OFFSET_AFTER):
            self.attribute(at + 8 * kind - 4, kind, 8)
            self.put32(at + 8 * kind, 0 if kind == CORRECTION_POSITION else offset)
        return at + 28

    def attribute(self, at: int, kind: int, length: int) -> None:
        """Write an attribute's header; `length` includes it."""
        self.u16[at >> 1] = length
        self.u16[(at + 2) >> 1] = kind

    def put32(self, at: int, value: int) -> None:
        """Write the lower four bytes of a number, big-endian."""
        self.u8[at] = value >> 24 & 0xFF
        self.u8[at + 1] = value >> 16 & 0xFF
        self.u8[at + 2] = value >> 8 & 0xFF
        self.u8[at + 3] = value & 0xFF

    def put128(self, at: int, high: int, low: int) -> None:
        """Write sixteen bytes, big-endian."""
        self.put32(at, high >> 32)
        self.put32(at + 4, high)
        self.put32(at + 8, low >> 32)
        self.put32(at + 12, low)


class Entry(KernelFlow):
    """A message from conntrack: an entry, its deletion, or an error.

    Addresses are 128 bits in two words, IPv4 in its mapped form, like those of packets.
    `kind` is the message type, `sequence` that of the request, `sender` the netlink port id of the
    process whose request caused it (0 for none). `error` is a positive errno.
    """

    def __init__(self) -> None:
        self.clear()

    def attach(self, buffer: bytearray) -> None:
        """Use this buffer from now on."""
        view = memoryview(buffer)
        self.u8 = view
        self.u16 = view.cast("H")
        self.u32 = view.cast("I")

    def clear(self) -> None:
        """Reset all fields."""
        self.forget()
        self.kind = 0
        self.sequence = 0
        self.sender = 0
        self.error = 0

    def read(self, at: int, end: int) -> int:
        """Parse the message at an offset of the buffer; returns the offset after it, or 0 if there
        is no complete message before `end`."""
        self.clear()
        if at + NLMSG_HEADER > end:
            return 0
        length = self.u32[at >> 2]
        if length < NLMSG_HEADER or at + length > end:
            return 0
        self.kind = self.u16[(at + 4) >> 1]
        self.sequence = self.u32[(at + 8) >> 2]
        self.sender = self.u32[(at + 12) >> 2]
        if self.kind == NLMSG_ERROR:
            if length >= 20:
                self.error = -self.u32[(at + 16) >> 2] & 0xFFFFFFFF
        elif self.kind in (NEW_MESSAGE, DELETE_MESSAGE) and length >= NFNL_HEADER:
            self.version = 6 if self.u8[at + 16] == AF_INET6 else 4
            self.read_attributes(at + NFNL_HEADER, at + length)
            if self.protocol == UDP:
                self.state = UDP_TWO_WAY if self.answered else UDP_ONE_WAY
        return at + ((length + 3) & ~3)

    def read_attributes(self, at: int, end: int) -> None:
        """Parse the attributes of an entry."""
        while at + 4 <= end:
            length = self.u16[at >> 1]
            kind = self.u16[(at + 2) >> 1] & NLA_TYPE_MASK
            if length < 4 or at + length > end:
                return
            if kind in (TUPLE_ORIG, TUPLE_REPLY):
                self.read_tuple(at + 4, at + length, kind == TUPLE_REPLY)
            elif kind == STATUS and length >= 8:
                status = self.get32(at + 4)
                self.answered = status & SEEN_REPLY != 0
                self.translated = status & DESTINATION_NAT != 0
            elif kind == PROTOINFO:
                inner = self.find(at + 4, at + length, PROTOINFO_TCP)
                if inner:
                    self.read_tcp(inner + 4, inner + self.u16[inner >> 1])
            elif kind == SEQ_ADJ_REPLY:
                after = self.find(at + 4, at + length, OFFSET_AFTER)
                if after:
                    self.offset = self.get32(after + 4)
            elif kind in (COUNTERS_ORIG, COUNTERS_REPLY):
                packets = self.find(at + 4, at + length, COUNTERS_PACKETS)
                size = self.find(at + 4, at + length, COUNTERS_BYTES)
                if packets and size:
                    if kind == COUNTERS_ORIG:
                        self.packets = self.get64(packets + 4)
                        self.bytes = self.get64(size + 4)
                    else:
                        self.reply_packets = self.get64(packets + 4)
                        self.reply_bytes = self.get64(size + 4)
            at += (length + 3) & ~3

    def read_tcp(self, at: int, end: int) -> None:
        """Parse the state of a TCP connection, and the scale of the backend's window, if the kernel
        has seen the client offer to scale, and the backend's answer."""
        found = self.find(at, end, TCP_STATE)
        if not found or self.u8[found + 4] >= KERNEL_STATES:
            return
        state = self.u8[found + 4]
        self.state = STATES[state]
        client = self.find(at, end, TCP_FLAGS_ORIGINAL)
        backend = self.find(at, end, TCP_FLAGS_REPLY)
        scale = self.find(at, end, TCP_SCALE_REPLY)
        answered = state > TCP_SYN_SENT and state != TCP_SYN_SENT2
        if answered and client and backend and scale and self.u8[client + 4] & SCALED:
            self.scale = self.u8[scale + 4] if self.u8[backend + 4] & SCALED else -1

    def read_tuple(self, at: int, end: int, reply: bool) -> None:
        """Parse a tuple, of the reply direction if `reply`."""
        src_high = src_low = dst_high = dst_low = 0
        protocol = source = destination = 0
        while at + 4 <= end:
            length = self.u16[at >> 1]
            kind = self.u16[(at + 2) >> 1] & NLA_TYPE_MASK
            if length < 4 or at + length > end:
                return
            if kind == TUPLE_IP:
                four = self.find(at + 4, at + length, V4_SRC)
                if four:
                    src_low = MAPPED | self.get32(four + 4)
                    dst_low = MAPPED | self.get32(self.find(at + 4, at + length, V4_DST) + 4)
                else:
                    six = self.find(at + 4, at + length, V6_SRC)
                    src_high, src_low = self.get64(six + 4), self.get64(six + 12)
                    six = self.find(at + 4, at + length, V6_DST)
                    dst_high, dst_low = self.get64(six + 4), self.get64(six + 12)
            elif kind == TUPLE_PROTO:
                protocol = self.u8[self.find(at + 4, at + length, PROTO_NUM) + 4]
                number = self.find(at + 4, at + length, PROTO_SRC_PORT)
                if number:  # ICMP has none
                    source = self.u8[number + 4] << 8 | self.u8[number + 5]
                    number = self.find(at + 4, at + length, PROTO_DST_PORT)
                    destination = self.u8[number + 4] << 8 | self.u8[number + 5]
            at += (length + 3) & ~3
        if reply:
            self.reply_src_high, self.reply_src_low = src_high, src_low
            self.reply_dst_high, self.reply_dst_low = dst_high, dst_low
            self.reply_ports = source << 16 | destination
        else:
            self.protocol = protocol
            self.src_high, self.src_low = src_high, src_low
            self.dst_high, self.dst_low = dst_high, dst_low
            self.ports = source << 16 | destination

    def find(self, at: int, end: int, wanted: int) -> int:
        """The offset of an attribute, 0 if it is missing."""
        while at + 4 <= end:
            length = self.u16[at >> 1]
            if length < 4 or at + length > end:
                return 0
            if self.u16[(at + 2) >> 1] & NLA_TYPE_MASK == wanted:
                return at
            at += (length + 3) & ~3
        return 0

    def get32(self, at: int) -> int:
        """Four bytes, big-endian."""
        value = self.u8[at]
        value = value << 8 | self.u8[at + 1]
        value = value << 8 | self.u8[at + 2]
        return value << 8 | self.u8[at + 3]

    def get64(self, at: int) -> int:
        """Eight bytes, big-endian."""
        value = self.get32(at)
        return value << 32 | self.get32(at + 4)


def deletion(message: memoryview) -> bytes:
    """A request to delete exactly the entry of this message, to be acknowledged."""
    chosen = b""
    length = int.from_bytes(message[:4], sys.byteorder)
    at = NFNL_HEADER
    while at + 4 <= length:
        size, kind = struct.unpack_from("=HH", message, at)
        end = at + ((size + 3) & ~3)
        if kind & NLA_TYPE_MASK in (TUPLE_ORIG, ID, ZONE):
            chosen += message[at:end]
        at = end
    flags = NLM_F_REQUEST | NLM_F_ACK
    return nfnl_message(DELETE_MESSAGE, flags, message[NLMSG_HEADER], 0, chosen)
