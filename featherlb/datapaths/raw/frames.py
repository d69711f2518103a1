"""Frames, from the packet sockets of all links to the core and out again.

The core rewrites a frame in the receive buffer. The frame then gets the MAC addresses for its next
hop and leaves through the socket of that hop's link. Checksum and segmentation offload stay in
place: a frame is sent with the virtio_net_hdr that it was received with.
"""

import socket
import struct
from array import array
from collections.abc import Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address

import cython

from featherlb.core.path.balancer import Balancer
from featherlb.datapaths.base import EngineCounters
from featherlb.datapaths.batches import BATCH, MAX_BATCHES, SLOT_SIZE
from featherlb.datapaths.delayed import Delayed
from featherlb.datapaths.owners import TupleOwners
from featherlb.datapaths.raw.held import HeldFrames
from featherlb.datapaths.raw.interest import Interest
from featherlb.datapaths.raw.link_socket import LinkSocket
from featherlb.datapaths.raw.socket_filter import build
from featherlb.model import Address, Hook, PacketInfo, Topology, Verdict
from featherlb.net.fragment import cut, sum_up
from featherlb.net.protocols import ETHER_TYPES, ETHERNET_HEADER
from featherlb.system.mmsg import MessageBatch

if not cython.compiled:
    from featherlb.core.flows.next_hops import LINK_MASK, LINK_SHIFT, MAC

VNET_HEADER = 10
"""struct virtio_net_hdr: flags, GSO type, lengths (include/uapi/linux/virtio_net.h)."""
NEEDS_CHECKSUM = 1
HEADERS = VNET_HEADER + ETHERNET_HEADER

WIRE = int(Hook.WIRE)
REWRITTEN = int(Verdict.REWRITTEN)
ANSWERED = int(Verdict.ANSWERED)
HOLD = int(Verdict.HOLD)
FIND_OWNER = int(Verdict.FIND_OWNER)
UNFINISHED = int(PacketInfo.CHECKSUM_NOT_READY | PacketInfo.COMPLETED_LATER)
GSO = int(PacketInfo.GSO)


class FrameBatch(MessageBatch):
    """Frames that came in on one socket."""

    def check(self, number: int) -> None:
        """No error is final: links go down, and come back."""


class FrameSockets:
    """The packet sockets of one worker."""

    def __init__(self, interest: Interest, owners: TupleOwners, delayed: Delayed) -> None:
        """No socket is open yet; each will receive these packets. `owners` answers the core's
        questions, `delayed` keeps frames that it holds back."""
        self.owners = owners
        self.delayed = delayed
        self.batch = FrameBatch(BATCH, SLOT_SIZE)
        view = memoryview(self.batch.buffer)
        self.data = view
        self.u16 = view.cast("H")
        self.packets = memoryview(array("q", range(HEADERS, BATCH * SLOT_SIZE, SLOT_SIZE)))
        self.sizes = memoryview(array("q", bytes(8 * BATCH)))
        self.received = 0
        self.unsent = 0
        """Frames without an egress link, or that the kernel refused on links that are gone."""
        self.dropped = 0
        """Frames that the kernel dropped at sockets that are closed now."""
        self.open: dict[int, LinkSocket] = {}
        """By descriptor."""
        self.by_link: list[LinkSocket | None] = [None] * (2 * (LINK_MASK + 1))
        """By link id and address family."""
        self.held = HeldFrames()
        self._filters: dict[int, bytes] = {}
        self.set_interest(interest)

    # Sockets

    def descriptors(self) -> Sequence[int]:
        """Each is readable when frames wait."""
        return list(self.open)

    def set_interest(self, interest: Interest) -> None:
        """Receive these packets from now on."""
        self._filters = {family: build(family, interest) for family in ETHER_TYPES}
        for one in self.open.values():
            one.let_in(self._filters[one.family])

    def set_topology(self, topology: Topology, link_ids: Mapping[int, int]) -> None:
        """Open and close sockets for these links; `link_ids` are by interface index."""
        wanted = {
            (link, family, link_ids[link.index])
            for link in topology.links
            for family in ETHER_TYPES
        }
        for one in list(self.open.values()):
            key = (one.link, one.family, one.link_id)
            if key in wanted:
                wanted.remove(key)
            else:
                self._close(one)
        for link, family, link_id in sorted(wanted, key=lambda key: (key[0].index, key[1])):
            one = LinkSocket(link, family, link_id, self.batch)
            try:
                one.let_in(self._filters[family])
                one.listen()
            except OSError:
                # The link is gone; the next topology will not have it.
                one.close()
                continue
            self.open[one.fileno()] = one
            self.by_link[2 * link_id + (family == 6)] = one
        for held, hop, mac in self.held.release(topology.next_hops):
            self.send_held(held.frame, held.family, link_ids.get(hop.link, 0), mac)

    def _close(self, one: LinkSocket) -> None:
        del self.open[one.fileno()]
        self.by_link[2 * one.link_id + (one.family == 6)] = None
        self.unsent += one.out.failed
        self.dropped += one.count_dropped()
        one.close()

    # Frames

    def process(self, descriptor: int, core: Balancer, now: float) -> None:
        """Handle the frames that wait at one of the descriptors now."""
        batch = self.batch
        if core.buffer is not batch.buffer:
            core.attach(batch.buffer)
        one = self.open[descriptor]
        batch.use(one.socket)
        for _ in range(MAX_BATCHES):
            count = batch.receive()
            for slot in range(count):
                self.measure(one, slot, batch.lengths[slot])
            core.expect_packets(self.packets, self.sizes, count)
            if core.recording.active:
                self.handle_recorded(one, count, core, now)
            else:
                for slot in range(count):
                    if self.sizes[slot]:
                        self.handle(one, slot, core, now)
            self.flush()
            if count < BATCH:
                break

    def measure(self, one: LinkSocket, slot: int, received: int) -> None:
        """Note the length of the IP packet in this buffer slot's frame; 0 if there is none."""
        data = self.data
        at = slot * SLOT_SIZE + HEADERS
        self.received += 1
        self.sizes[slot] = 0
        if received < HEADERS + 20:
            return
        # Short frames are padded; the padding is not forwarded.
        if one.family == 4:
            size = data[at + 2] << 8 | data[at + 3]
        else:
            size = 40 + (data[at + 4] << 8 | data[at + 5])
        self.sizes[slot] = min(size, received - HEADERS)

    def handle(self, one: LinkSocket, slot: int, core: Balancer, now: float) -> None:
        """Handle the frame in this buffer slot."""
        data = self.data
        at = slot * SLOT_SIZE
        size = self.sizes[slot]
        ingress = data[at + 16]
        for i in range(17, 22):
            ingress = ingress << 8 | data[at + i]
        next_hops = core.next_hops
        next_hops.ingress = one.ingress | ingress
        info = UNFINISHED if data[at] & NEEDS_CHECKSUM else 0
        next_hops.gso_size = 0
        if data[at + 1]:
            info |= GSO
            next_hops.gso_size = self.u16[(at + 4) >> 1]
        verdict = core.handle_packet(at + HEADERS, size, WIRE, info, now)
        while verdict == FIND_OWNER:
            self.owners.answer()
            verdict = core.handle_packet(at + HEADERS, size, WIRE, info, now)
        if verdict == ANSWERED:
            self.send_answer(one, slot, next_hops.egress, now)
            return
        if verdict != REWRITTEN:
            if verdict == HOLD:
                frame = bytes(data[at : at + HEADERS + size])
                self.delayed.hold(partial(self.handle_held, one, frame, core))
            return
        if info & GSO:
            self.u16[(at + 4) >> 1] = next_hops.gso_size
        self.send(one.family, at, size, next_hops.egress, now)

    def send_answer(self, one: LinkSocket, slot: int, hop: int, now: float) -> None:
        """Send what stands in this buffer slot instead of its frame. It is complete."""
        at = slot * SLOT_SIZE
        self.data[at] = 0
        self.data[at + 1] = 0
        self.measure(one, slot, SLOT_SIZE)
        self.received -= 1
        self.send(one.family, at, self.sizes[slot], hop, now)

    def handle_held(self, one: LinkSocket, frame: bytes, core: Balancer, now: float) -> None:
        """Handle a frame that was kept, unless its link is gone."""
        if one not in self.open.values():
            self.unsent += 1
            return
        if core.buffer is not self.batch.buffer:
            core.attach(self.batch.buffer)
        self.batch.buffer[: len(frame)] = frame
        self.sizes[0] = len(frame) - HEADERS
        if core.recording.active:
            self.handle_recorded(one, 1, core, now)
        else:
            self.handle(one, 0, core, now)
        self.flush()

    def handle_recorded(self, one: LinkSocket, count: int, core: Balancer, now: float) -> None:
        """Handle the frames in the first `count` buffer slots, and have their packets recorded."""
        for slot in range(count):
            if self.sizes[slot]:
                core.recording.begin(self.packets[slot], self.sizes[slot])
                self.handle(one, slot, core, now)
                core.recording.end()

    def send(self, family: int, at: int, size: int, hop: int, now: float) -> None:
        """Send the frame at this offset, whose IP packet has `size` bytes, to this next hop."""
        if not hop & MAC:
            self.hold(family, at, size, now)
            return
        out = self.by_link[(hop >> LINK_SHIFT & LINK_MASK) * 2 + (family == 6)]
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

    def send_cut(self, out: LinkSocket, at: int, size: int) -> None:
        """Send the frame at this offset in fragments that fit its link."""
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
        """Send what is queued at all sockets."""
        for one in self.open.values():
            if one.out.pending:
                one.out.flush()

    # Unresolved next hops

    def hold(self, family: int, at: int, size: int, now: float) -> None:
        """Hold the frame at this offset until its next hop is resolved."""
        frame = bytes(self.data[at : at + HEADERS + size])
        if family == 4:
            destination: Address = IPv4Address(frame[HEADERS + 16 : HEADERS + 20])
        else:
            destination = IPv6Address(frame[HEADERS + 24 : HEADERS + 40])
        self.held.hold(destination, family, frame, now)

    def send_held(self, frame: bytes, family: int, link_id: int, mac: bytes) -> None:
        """Send a held frame to this MAC address on this link."""
        out = self.by_link[2 * link_id + (family == 6)]
        if out is None:
            self.unsent += 1
            return
        ethernet = mac + out.link.mac + frame[VNET_HEADER + 12 : HEADERS]
        try:
            out.socket.send(frame[:VNET_HEADER] + ethernet + frame[HEADERS:], socket.MSG_DONTWAIT)
        except OSError:
            self.unsent += 1

    def expire(self, now: float) -> None:
        """Drop frames that have waited for too long."""
        self.held.expire(now)

    def counters(self) -> EngineCounters:
        sockets = self.open.values()
        return EngineCounters(
            received=self.received,
            socket_dropped=self.dropped + sum(one.count_dropped() for one in sockets),
            unsent=self.unsent + sum(one.out.failed for one in sockets),
            unresolved=self.held.given_up,
            held=len(self.held),
        )

    def close(self) -> None:
        for one in list(self.open.values()):
            self._close(one)
