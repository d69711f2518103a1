"""Translation: rewrites the addresses and ports of a flow's packet.

Both NAT modes are one operation: a forward packet gets the flow's source and backend (in `dnat`
mode the source is the client itself), a reply gets VIP and client. How the transport checksum is
updated depends on the checksum offload state that came with the packet:

| checksum state | leaves through a device | goes to a socket of this host |
| --- | --- | --- |
| complete | incremental update | the same |
| not ready | full sum | full sum |
| not ready, TCP GSO packet | unchanged: the kernel sums each segment | full sum |
| not ready, UDP GSO packet | address delta into the pseudo-header sum | the same |
| not ready, completed later | address delta into the pseudo-header sum | |

The last row is for frames (the raw datapath), which leave with the offload state they came with. A
packet that was rewritten in a queue becomes CHECKSUM_NONE (nfqnl_mangle in
net/netfilter/nfnetlink_queue.c), so nothing downstream would complete a partial checksum.
"""

import cython

from featherlb.core.flows.table import FlowTable
from featherlb.model import PacketInfo
from featherlb.net.packet import Packet
from featherlb.net.protocols import TCP

if not cython.compiled:
    from featherlb.core.flows.record import LOCAL_BACKEND, LOCAL_CLIENT
    from featherlb.net.checksum import negate, update, update_partial

NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)
GSO = int(PacketInfo.GSO)
COMPLETED_LATER = int(PacketInfo.COMPLETED_LATER)


def rewrite_addresses(packet: Packet, flows: FlowTable, flow: int, reply: int) -> None:
    """Rewrite the parsed fragment of a packet of `flow`, which has no transport header."""
    record = flows.at(flow)
    delta = record.address_delta
    if reply:
        packet.write_source(record.vip_high, record.vip_low)
        packet.write_destination(record.client_high, record.client_low)
        delta = negate(delta)
    else:
        packet.write_source(record.source_high, record.source_low)
        packet.write_destination(record.backend_high, record.backend_low)
    if packet.version == 4:
        packet.write16(packet.ip + 10, update(packet.read16(packet.ip + 10), delta))


def rewrite(packet: Packet, flows: FlowTable, flow: int, reply: int, info: int) -> None:
    """Rewrite the parsed packet of `flow` in place; `reply` is 1 for backend to client.

    `info` are bits of `model.PacketInfo`.
    """
    record = flows.at(flow)
    address_delta = record.address_delta
    delta = record.transport_delta
    if reply:
        src_high, src_low, src_port = record.vip_high, record.vip_low, record.vip_port
        dst_high, dst_low, dst_port = record.client_high, record.client_low, record.client_port
        address_delta, delta = negate(address_delta), negate(delta)
        local = record.flags & LOCAL_CLIENT
    else:
        src_high, src_low, src_port = record.source_high, record.source_low, record.source_port
        dst_high, dst_low, dst_port = record.backend_high, record.backend_low, record.backend_port
        local = record.flags & LOCAL_BACKEND

    packet.write_source(src_high, src_low)
    packet.write_destination(dst_high, dst_low)
    packet.write16(packet.transport, src_port)
    packet.write16(packet.transport + 2, dst_port)
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
