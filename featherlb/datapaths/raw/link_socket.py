"""The packet socket (AF_PACKET) of one link and address family.

It is bound to ETH_P_IP or ETH_P_IPV6, not to ETH_P_ALL, and so receives what the kernel's IP layer
receives: a VLAN interface removes the VLAN tag and adds it again when the frame is sent; frames
that tc or nftables drop at ingress, and frames that this host sends, do not arrive. Each frame is
preceded by struct virtio_net_hdr (PACKET_VNET_HDR, include/uapi/linux/virtio_net.h), which holds
its checksum and segmentation offload state.
"""

import socket
import struct

import cython

from featherlb.datapaths.batches import RECEIVE_BUFFER, SEND_BUFFER
from featherlb.model import Link
from featherlb.net.protocols import ETHER_TYPES
from featherlb.system import socket_buffers
from featherlb.system.mmsg import DatagramBatch, MessageBatch
from featherlb.system.packet_socket import (
    PACKET_STATISTICS,
    PACKET_VNET_HDR,
    SOL_PACKET,
    attach_filter,
)

if not cython.compiled:
    from featherlb.core.flows.next_hops import LINK_SHIFT


class LinkSocket:
    """Receives and sends frames of one address family."""

    def __init__(self, link: Link, family: int, link_id: int, batch: MessageBatch) -> None:
        """It receives nothing until `listen`. It sends from the buffer of `batch`."""
        self.link = link
        self.link_id = link_id
        self.family = family
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        socket_buffers.enlarge(self.socket, RECEIVE_BUFFER, SEND_BUFFER)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.ingress = link_id << LINK_SHIFT
        self.mtu = link.mtu
        self.source_high = int.from_bytes(link.mac[:2], "big")
        self.source_low = int.from_bytes(link.mac[2:], "big")
        self.out = DatagramBatch(self.socket, batch)
        self.dropped = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def listen(self) -> None:
        """Begin to receive; OSError if the interface is gone."""
        self.socket.bind((self.link.name, ETHER_TYPES[self.family]))

    def let_in(self, program: bytes) -> None:
        """Attach this filter (an array of struct sock_filter)."""
        attach_filter(self.socket, program)

    def count_dropped(self) -> int:
        """Frames that the kernel has dropped because the buffer was full."""
        answer = self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self.dropped += struct.unpack("=II", answer)[1]  # reading clears it
        return self.dropped

    def close(self) -> None:
        self.socket.close()
