"""Sequence numbers of a TCP connection, followed as far as needed to tell its segments from forged
ones. A forger who doesn't see the connection knows neither side's numbers, so no guess of his may
change a flow (RFC 5961).

For each end, a record holds what the end expects next (`expected`: its highest acknowledgement),
and where what it has sent ends (`ends`). Between the other end's `expected` and its own `ends` lies
what it has in flight. Both only move forward:

- An acknowledgement moves `expected`, up to what the other end has sent.
- A segment moves `ends` if it lies in the receiver's window, with an acknowledgement as above. The
  window is the largest that the handshake's scale allows (RFC 7323 section 2): a guess that lies in
  it must also hit the acknowledgement (RFC 5961 section 5).
- A RST is real if its number lies in the flight: an end resets at the end of what it has sent, or
  where the other end's acknowledgement stands (RFC 9293 section 3.10.7). If the connection is idle,
  that is one number.

net/netfilter/nf_conntrack_proto_tcp.c (`tcp_in_window`) does the same with more memory.

The numbers of a connection that featherlb joins midway, or that it takes over, are UNSURE: each end
is believed about itself until both agree.
"""

import cython

from featherlb.net.packet import Packet
from featherlb.net.protocols import ACK, FIN

if not cython.compiled:
    from featherlb.core.flows.record import UNSURE, Direction, Record, direction_of
    from featherlb.net.packet import MASK32
    from featherlb.net.tcp_options import window_scale

MAX_WINDOW = 0xFFFF
"""Bytes of a window that isn't scaled; what an acknowledgement may lag behind the latest one."""
MAX_DISTANCE = 1 << 20
"""Bytes between the numbers of two ends that agree: that a forger's do is a matter of 1 in 4
million."""
LARGEST_SCALES = 14 << 4 | 14
"""Of a connection whose handshake was not seen (RFC 7323 section 2.3)."""
ADMITTED = 1
REPEATED = 2
"""Admitted, but its data were sent before, or were overtaken by later ones."""


def begin(record: Record, packet: Packet) -> None:
    """Note the client's SYN."""
    following = (packet.sequence + 1) & MASK32
    record.flags &= ~UNSURE
    record.backend_expects = following
    record.client_expects = 0
    record.ends[0] = (following + packet.end - packet.payload) & MASK32
    record.ends[1] = 0
    scale = window_scale(packet)
    # Until the backend answers, 1 in its place says that the client has offered to scale.
    record.scales = scale << 4 | 1 if scale >= 0 else 0


def answer(record: Record, packet: Packet) -> None:
    """Note the backend's SYN-ACK to the SYN that was noted last."""
    if not acknowledges_syn(record, packet):
        record.flags |= UNSURE
        record.ends[0] = packet.acknowledgement
    following = (packet.sequence + 1) & MASK32
    record.backend_expects = packet.acknowledgement
    record.client_expects = following
    record.ends[1] = (following + packet.end - packet.payload) & MASK32
    scale = window_scale(packet)
    scaled = record.scales and scale >= 0
    record.scales = record.scales & 0xF0 | scale if scaled else 0


def renew(record: Record, packet: Packet) -> None:
    """Note a SYN-ACK to a SYN that was sent in the middle of a connection: it opens another one."""
    record.flags &= ~UNSURE
    record.backend_expects = packet.acknowledgement
    record.ends[0] = packet.acknowledgement
    record.scales = LARGEST_SCALES
    answer(record, packet)


def acknowledges_syn(record: Record, packet: Packet) -> bool:
    """Whether the backend's answer acknowledges the client's SYN, or that and its data."""
    if not packet.flags & ACK:
        return False
    distance = (packet.acknowledgement - record.backend_expects) & MASK32
    return distance <= (record.ends[0] - record.backend_expects) & MASK32


def start_unsure(record: Record) -> None:
    """Let both ends tell their numbers: nothing of the connection is known."""
    record.flags |= UNSURE
    record.client_expects = 0
    record.backend_expects = 0
    record.ends[0] = 0
    record.ends[1] = 0
    record.scales = LARGEST_SCALES


def admits(record: Record, reply: int, packet: Packet, more: int) -> int:
    """Whether a segment without SYN and RST can be real: ADMITTED or REPEATED if so, and its
    numbers are noted; 0 otherwise. `more` is the number of bytes that may follow in other fragments
    of it."""
    sender = direction_of(record, reply)
    receiver = direction_of(record, 1 - reply)
    end = packet.sequence + (packet.end - packet.payload) + more
    if packet.flags & FIN:
        end += 1
    end &= MASK32
    if record.flags & UNSURE:
        learn(record, reply, sender, receiver, end, packet.acknowledgement)
        return ADMITTED
    # Distances, as unsigned numbers: what lies behind the origin is far ahead of it.
    acknowledged = (packet.acknowledgement - sender.expected) & MASK32
    window = MAX_WINDOW << (record.scales >> 4 * reply & 15)
    reached = (end - receiver.expected) & MASK32
    if acknowledged <= (record.ends[1 - reply] - sender.expected) & MASK32:
        admitted = ADMITTED
        if reached <= window and reached > (record.ends[reply] - receiver.expected) & MASK32:
            record.ends[reply] = end
        elif reached > window and -reached & MASK32 > window:
            return 0
        elif packet.end != packet.payload:
            admitted = REPEATED
        sender.expected = packet.acknowledgement
        return admitted
    # It was overtaken, or its numbers are wrong.
    if -acknowledged & MASK32 > MAX_WINDOW:
        return 0
    return ADMITTED if reached <= window or -reached & MASK32 <= window else 0


def learn(
    record: Record, reply: int, sender: Direction, receiver: Direction, end: int, expected: int
) -> None:
    """Believe an end about its own numbers. The ends agree if each acknowledges about what the
    other one has sent."""
    if record.ends[1 - reply]:
        ahead = (expected - record.ends[1 - reply] + MAX_DISTANCE) & MASK32
        reached = (end - receiver.expected + MAX_DISTANCE) & MASK32
        if ahead <= 2 * MAX_DISTANCE and reached <= 2 * MAX_DISTANCE:
            record.flags &= ~UNSURE
            if ahead > MAX_DISTANCE:
                record.ends[1 - reply] = expected
            if reached < MAX_DISTANCE:
                end = receiver.expected
    sender.expected = expected
    record.ends[reply] = end


def admits_reset(record: Record, reply: int, packet: Packet) -> bool:
    """Whether a RST in an open connection can be real."""
    expected = direction_of(record, 1 - reply).expected
    if record.flags & UNSURE:  # the receiver may not have told yet
        return not record.ends[1 - reply] or packet.sequence == expected
    distance = (packet.sequence - expected) & MASK32
    return distance <= (record.ends[reply] - expected) & MASK32


def is_in_flight(record: Record, reply: int, sequence: int) -> bool:
    """Whether an ICMP error can be about a segment of this direction and number: one between what
    its receiver has acknowledged and what was sent (RFC 5927 section 4.1). One before that are a
    SYN that isn't answered yet, and a keep-alive."""
    if record.flags & UNSURE:
        return True
    first = direction_of(record, 1 - reply).expected - 1
    distance = (sequence - first) & MASK32
    return distance <= (record.ends[reply] - first) & MASK32


def are_acknowledged(record: Record) -> bool:
    """Whether both ends have acknowledged all that the other one has sent."""
    return bool(
        record.backend_expects == record.ends[0] and record.client_expects == record.ends[1]
    )
