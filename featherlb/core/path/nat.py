"""Translation: the packet of a flow gets the addresses and ports of the other side.

Both NAT modes are one operation: a forward packet gets the flow's source and backend (in `dnat`
mode the source is the client itself), a reply gets VIP and client. What happens to the transport
checksum depends on what the kernel said of the packet:

| the kernel says | leaves through a device | goes to a socket of this host |
| --- | --- | --- |
| complete | incremental update | the same |
| not ready | full sum | full sum |
| not ready, TCP super-packet | untouched: the kernel sums each segment | full sum |
| not ready, UDP super-packet | address delta into the pseudo-header sum | the same |
| not ready, completed later | address delta into the pseudo-header sum | |

The last row is of frames (the raw datapath), which leave with what the kernel said of them. After a
rewriting in a queue the kernel treats the packet as CHECKSUM_NONE (nfqnl_mangle in
net/netfilter/nfnetlink_queue.c), so nobody downstream completes a half-done field.
"""

import cython

from featherlb.core.flows.table import FlowTable
from featherlb.net.packet import Packet

if not cython.compiled:
    from featherlb.core.flows.table import (
        ADDRESS_DELTA,
        FLAGS,
        LOCAL_BACKEND,
        LOCAL_CLIENT,
        PORTS,
        TRANSPORT_DELTA,
    )
    from featherlb.net.checksum import negate, update, update_partial
    from featherlb.net.packet import TCP

NOT_READY = 1  # model.PacketInfo, as C integers
GSO = 2
COMPLETED_LATER = 512


def translate_addresses(packet: Packet, flows: FlowTable, flow: int, reply: int) -> None:
    """Rewrite the parsed fragment of a packet of `flow`, which has no transport header."""
    at = flow * 16
    delta = flows.u16[flow * 64 + ADDRESS_DELTA]
    if reply:
        packet.write_source(flows.u64[at + 2], flows.u64[at + 3])
        packet.write_destination(flows.u64[at], flows.u64[at + 1])
        delta = negate(delta)
    else:
        packet.write_source(flows.u64[at + 6], flows.u64[at + 7])
        packet.write_destination(flows.u64[at + 4], flows.u64[at + 5])
    if packet.version == 4:
        packet.write16(packet.ip + 10, update(packet.read16(packet.ip + 10), delta))


def translate(packet: Packet, flows: FlowTable, flow: int, reply: int, info: int) -> None:
    """Rewrite the parsed packet of `flow` in place; `reply` is 1 for backend to client.

    `info` are bits of `model.PacketInfo`.
    """
    at = flow * 16
    address_delta = flows.u16[flow * 64 + ADDRESS_DELTA]
    delta = flows.u16[flow * 64 + TRANSPORT_DELTA]
    if reply:
        src_high, src_low = flows.u64[at + 2], flows.u64[at + 3]
        dst_high, dst_low = flows.u64[at], flows.u64[at + 1]
        ports = flows.u32[flow * 32 + PORTS]
        address_delta, delta = negate(address_delta), negate(delta)
        local = flows.u8[flow * 128 + FLAGS] & LOCAL_CLIENT
    else:
        src_high, src_low = flows.u64[at + 6], flows.u64[at + 7]
        dst_high, dst_low = flows.u64[at + 4], flows.u64[at + 5]
        ports = flows.u32[flow * 32 + PORTS + 1]
        local = flows.u8[flow * 128 + FLAGS] & LOCAL_BACKEND

    packet.write_source(src_high, src_low)
    packet.write_destination(dst_high, dst_low)
    # The table has them as the other side's packets carry them: source and destination swapped.
    packet.write16(packet.transport, ports & 0xFFFF)
    packet.write16(packet.transport + 2, ports >> 16)
    if packet.version == 4:
        packet.write16(packet.ip + 10, update(packet.read16(packet.ip + 10), address_delta))

    tcp = packet.protocol == TCP
    field = packet.transport + (16 if tcp else 6)
    check = packet.read16(field)
    if not info & NOT_READY:
        if not tcp and check == 0:
            return  # UDP without a checksum stays so (RFC 768)
        check = update(check, delta)
    elif info & COMPLETED_LATER or (info & GSO and not tcp):
        packet.write16(field, update_partial(check, address_delta))
        return
    elif info & GSO and not local:
        return
    else:
        packet.write16(field, 0)
        check = packet.transport_checksum(src_high, src_low, dst_high, dst_low)
    if not tcp and check == 0:
        check = 0xFFFF  # zero would mean "none" (RFC 768)
    packet.write16(field, check)
