"""Frames over AF_PACKET sockets: the datapath raw, past the kernel's routing and netfilter.

A worker has a socket for each link and address family. What comes in on one is handled by the core
where it lies, gets the MAC addresses of its next link, and leaves through the socket of that link.
Checksums and super-packets (GSO) stay as they are: the header in front of each frame
(PACKET_VNET_HDR, struct virtio_net_hdr) says what is left to be done when it leaves, and the frame
goes out with the header that it came with.

The sockets are bound to ETH_P_IP and ETH_P_IPV6, not to ETH_P_ALL: they see what the kernel's own
IP would get. So VLAN tags have been taken off by the VLAN interface that is the link, and are put
on again by the one that is sent through; what tc or nftables drop at ingress does not get here; and
nothing that this host sends comes back.

What arrives here goes on to the kernel as well; rules drop it there (`rules`).
"""

import errno
import socket
import struct
from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from featherlb.datapaths.base import FrameCounters, FrameHandler
from featherlb.datapaths.raw.socket_filter import Interest, build
from featherlb.model import Address, Hook, Link, NextHop, PacketInfo, Topology, Verdict
from featherlb.net.fragment import cut, sum_up
from featherlb.system.mmsg import DatagramBatch, MessageBatch

SOL_PACKET = 263
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
SO_ATTACH_FILTER = 26
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
ETHER_TYPES = {4: 0x0800, 6: 0x86DD}
RECEIVE_BUFFER = 32 << 20
"""Bytes of kernel memory for packets on their way to us; past net.core.rmem_max."""
SEND_BUFFER = 8 << 20
"""Bytes of kernel memory for packets that wait for their link."""

SLOTS = 32
"""Packets per system call. More would only push the first ones out of the processor's cache."""
SLOT_SIZE = 68 << 10
"""Bytes: an IP packet of the largest size, and the headers in front of it."""
MAX_BATCHES = 32
"""Per call of `process`, so that the worker gets to its timers under any load."""

VNET_HEADER = 10
"""struct virtio_net_hdr: flags, GSO type, lengths (include/uapi/linux/virtio_net.h)."""
NEEDS_CHECKSUM = 1
ETHERNET_HEADER = 14
HEADERS = VNET_HEADER + ETHERNET_HEADER

# A hop, as featherlb.core.flows.next_hops has it.
SLOT_SHIFT = 48
SLOT_MASK = 0xFF
MAC = 0xFFFF_FFFF_FFFF

MAX_HELD = 64
"""Packets that wait for their next hop's MAC address (RFC 1122 section 2.3.2.2: at least one)."""
HOLD_TIME = 1.0
"""Seconds that they wait."""

WIRE = int(Hook.WIRE)
REWRITTEN = int(Verdict.REWRITTEN)
UNFINISHED = int(PacketInfo.CHECKSUM_NOT_READY | PacketInfo.COMPLETED_LATER)
GSO = int(PacketInfo.GSO)


class PacketSocket:
    """The socket of one link for one address family."""

    def __init__(self, link: Link, family: int, slot: int, batch: MessageBatch) -> None:
        """It gets nothing until it listens."""
        self.link = link
        self.slot = slot
        self.family = family
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        for level, option, value in (
            (socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER),
            (socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER),
            (SOL_PACKET, PACKET_VNET_HDR, 1),
        ):
            self.socket.setsockopt(level, option, value)
        self.fd = self.socket.fileno()
        self.came = slot << SLOT_SHIFT
        self.mtu = link.mtu
        self.source_high = int.from_bytes(link.mac[:2], "big")
        self.source_low = int.from_bytes(link.mac[2:], "big")
        self.out = DatagramBatch(self.socket, batch)
        self.dropped = 0

    def listen(self) -> None:
        """Begin to receive; OSError if the interface is gone."""
        self.socket.bind((self.link.name, ETHER_TYPES[self.family]))

    def let_in(self, program: bytes) -> None:
        """Receive only what this filter lets in."""
        code = array("B", program)
        address, _ = code.buffer_info()
        fprog = struct.pack("HxxxxxxP", len(program) // 8, address)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)

    def count_dropped(self) -> int:
        """Packets that the kernel dropped because our buffer was full, since the start."""
        answer = self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self.dropped += struct.unpack("=II", answer)[1]  # reading clears it
        return self.dropped

    def close(self) -> None:
        self.socket.close()


@dataclass(frozen=True, slots=True)
class Held:
    """A frame that waits until its next hop's MAC address is known, or until it is too late."""

    destination: Address
    family: int
    frame: bytes
    until: float


class FrameBatch(MessageBatch):
    """Frames that came in on one socket; an error of a link ends nothing."""

    def check(self, number: int) -> None:
        """Links go down, and come back."""
        if number not in (errno.EAGAIN, errno.EINTR):
            self.error = number


class PacketSockets:
    """All sockets of one worker."""

    def __init__(self, interest: Interest) -> None:
        """None is open yet; each receives these packets."""
        self.batch = FrameBatch(SLOTS, SLOT_SIZE)
        view = memoryview(self.batch.buffer)
        self.data = view
        self.u16 = view.cast("H")
        self.packets = memoryview(array("q", range(HEADERS, SLOTS * SLOT_SIZE, SLOT_SIZE)))
        self.sizes = memoryview(array("q", bytes(8 * SLOTS)))
        self.received = 0
        self.unsent = 0
        """Frames for which there was no link, or that the kernel refused on links gone by now."""
        self.unresolved = 0
        """Frames given up because their next hop's MAC address did not become known."""
        self.dropped = 0
        """Frames that the kernel dropped at sockets that are closed by now."""
        self.by_slot: list[PacketSocket | None] = [None] * (2 * (SLOT_MASK + 1))
        self.open: list[PacketSocket] = []
        self.held: deque[Held] = deque()
        self._filters: dict[int, bytes] = {}
        self.set_interest(interest)

    # What is open

    def descriptors(self) -> list[int]:
        """Each is readable when packets wait."""
        return [one.fd for one in self.open]

    def set_interest(self, interest: Interest) -> None:
        """Receive these packets from now on."""
        self._filters = {family: build(family, interest) for family in ETHER_TYPES}
        for one in self.open:
            one.let_in(self._filters[one.family])

    def set_topology(self, topology: Topology, slots: Mapping[int, int]) -> None:
        """Have sockets on these links, whose slots are given by interface index."""
        wanted = {
            (link, family, slots[link.index]) for link in topology.links for family in ETHER_TYPES
        }
        for one in list(self.open):
            key = (one.link, one.family, one.slot)
            if key in wanted:
                wanted.remove(key)
            else:
                self._close(one)
        for link, family, slot in sorted(wanted, key=lambda key: (key[0].index, key[1])):
            one = PacketSocket(link, family, slot, self.batch)
            try:
                one.let_in(self._filters[family])
                one.listen()
            except OSError:
                # Gone already; whoever watches the links will say so.
                one.close()
                continue
            self.open.append(one)
            self.by_slot[2 * slot + (family == 6)] = one
        self._release(topology.next_hops, slots)

    def _close(self, one: PacketSocket) -> None:
        self.open.remove(one)
        self.by_slot[2 * one.slot + (one.family == 6)] = None
        self.unsent += one.out.failed
        self.dropped += one.count_dropped()
        one.close()

    # Packets

    def process(self, descriptor: int, handler: FrameHandler, now: float) -> int:
        """Handle the frames that wait at one of the descriptors now; how many there were."""
        batch = self.batch
        if handler.buffer is not batch.buffer:
            handler.attach(batch.buffer)
        before = self.received
        for one in self.open:
            if one.fd == descriptor:
                self.process_socket(one, handler, now)
                break
        return self.received - before

    def process_socket(self, one: PacketSocket, handler: FrameHandler, now: float) -> None:
        """Handle the frames that wait at a socket, a batch at a time."""
        batch = self.batch
        batch.use(one.socket)
        for _ in range(MAX_BATCHES):
            count = batch.receive()
            for slot in range(count):
                self.measure(one, slot, batch.lengths[slot])
            handler.expect_packets(self.packets, self.sizes, count)
            for slot in range(count):
                if self.sizes[slot]:
                    self.handle(one, slot, handler, now)
            self.flush()
            if count < SLOTS:
                break

    def measure(self, one: PacketSocket, slot: int, received: int) -> None:
        """Note how long the IP packet is in the frame of this slot; 0 if it is none."""
        data = self.data
        at = slot * SLOT_SIZE + HEADERS
        self.received += 1
        self.sizes[slot] = 0
        if received < HEADERS + 20:
            return
        # Padding, which short frames have, does not go on.
        if one.family == 4:
            size = data[at + 2] << 8 | data[at + 3]
        else:
            size = 40 + (data[at + 4] << 8 | data[at + 5])
        self.sizes[slot] = min(size, received - HEADERS)

    def handle(self, one: PacketSocket, slot: int, handler: FrameHandler, now: float) -> None:
        """Handle the frame in this slot, and its header."""
        data = self.data
        at = slot * SLOT_SIZE
        size = self.sizes[slot]
        came = data[at + 16]
        for i in range(17, 22):
            came = came << 8 | data[at + i]
        hops = handler.hops
        hops.came = one.came | came
        info = UNFINISHED if data[at] & NEEDS_CHECKSUM else 0
        hops.gso_size = 0
        if data[at + 1]:
            info |= GSO
            hops.gso_size = self.u16[(at + 4) >> 1]
        if handler.handle_packet(at + HEADERS, size, WIRE, info, now) != REWRITTEN:
            return
        if info & GSO:
            self.u16[(at + 4) >> 1] = hops.gso_size
        self.send(one.family, at, size, hops.goes, now)

    def send(self, family: int, at: int, size: int, hop: int, now: float) -> None:
        """Send the frame at this offset, whose IP packet has `size` bytes, to this next hop."""
        if not hop & MAC:
            self.hold(family, at, size, now)
            return
        out = self.by_slot[(hop >> SLOT_SHIFT & SLOT_MASK) * 2 + (family == 6)]
        if out is None:
            self.unsent += 1
            return
        data = self.data
        data[at + 10] = hop >> 40 & 0xFF
        data[at + 11] = hop >> 32 & 0xFF
        data[at + 12] = hop >> 24 & 0xFF
        data[at + 13] = hop >> 16 & 0xFF
        data[at + 14] = hop >> 8 & 0xFF
        data[at + 15] = hop & 0xFF
        data[at + 16] = out.source_high >> 8
        data[at + 17] = out.source_high & 0xFF
        data[at + 18] = out.source_low >> 24
        data[at + 19] = out.source_low >> 16 & 0xFF
        data[at + 20] = out.source_low >> 8 & 0xFF
        data[at + 21] = out.source_low & 0xFF
        if size > out.mtu and not data[at + 1]:
            self.send_cut(out, at, size)
            return
        out.out.add(at, HEADERS + size)

    def send_cut(self, out: PacketSocket, at: int, size: int) -> None:
        """Send the frame at this offset in pieces that its link takes."""
        frame = bytearray(self.data[at : at + HEADERS + size])
        if frame[0] & NEEDS_CHECKSUM:
            start, field = struct.unpack_from("=HH", frame, 6)
            sum_up(frame, VNET_HEADER + start, VNET_HEADER + start + field)
        head = bytes(VNET_HEADER) + frame[VNET_HEADER:HEADERS]
        for piece in cut(bytes(frame[HEADERS:]), out.mtu):
            try:
                out.socket.send(head + piece, socket.MSG_DONTWAIT)
            except OSError:
                self.unsent += 1

    def flush(self) -> None:
        """Send what waits in all sockets."""
        for one in self.open:
            if one.out.pending:
                one.out.flush()

    # Unresolved next hops

    def hold(self, family: int, at: int, size: int, now: float) -> None:
        """Keep the frame at this offset until its next hop is known."""
        self.expire(now)
        if len(self.held) >= MAX_HELD:
            self.unresolved += 1
            return
        frame = bytes(self.data[at : at + HEADERS + size])
        if family == 4:
            destination: Address = IPv4Address(frame[HEADERS + 16 : HEADERS + 20])
        else:
            destination = IPv6Address(frame[HEADERS + 24 : HEADERS + 40])
        self.held.append(Held(destination, family, frame, now + HOLD_TIME))

    def expire(self, now: float) -> None:
        """Give up the frames that have waited for too long."""
        while self.held and self.held[0].until <= now:
            self.held.popleft()
            self.unresolved += 1

    def _release(self, next_hops: Mapping[Address, NextHop], slots: Mapping[int, int]) -> None:
        waiting, self.held = self.held, deque()
        for held in waiting:
            hop = next_hops.get(held.destination)
            if hop is None or hop.mac is None:
                self.held.append(held)
                continue
            out = self.by_slot[2 * slots.get(hop.link, 0) + (held.family == 6)]
            if out is None:
                self.unsent += 1
                continue
            ethernet = hop.mac + out.link.mac + held.frame[VNET_HEADER + 12 : HEADERS]
            try:
                out.socket.send(
                    held.frame[:VNET_HEADER] + ethernet + held.frame[HEADERS:],
                    socket.MSG_DONTWAIT,
                )
            except OSError:
                self.unsent += 1

    def counters(self) -> FrameCounters:
        return FrameCounters(
            received=self.received,
            dropped=self.dropped + sum(one.count_dropped() for one in self.open),
            unsent=self.unsent + sum(one.out.failed for one in self.open),
            unresolved=self.unresolved,
            held=len(self.held),
        )

    def close(self) -> None:
        for one in list(self.open):
            self._close(one)
