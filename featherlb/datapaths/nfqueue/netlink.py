"""The fast queue driver: NFQUEUE over an AF_NETLINK socket of our own.

Compared with the NetfilterQueue package: whole packets up to the kernel's limit, super-packets
uncut (NFQA_CFG_F_GSO) with the kernel's word on their checksums, many packets read and many
verdicts sent per system call, and no copy in between: a verdict's headers are written over the
attributes that stood in front of the packet in the very buffer that received it.

Message formats: include/uapi/linux/netfilter/nfnetlink_queue.h. Netlink headers are in host
order, what nfnetlink_queue puts into attributes is in network order.
"""

import os
from array import array
from functools import partial

from featherlb.core.path.balancer import Balancer
from featherlb.datapaths.base import Carrier, KernelFlows, QueueOptions
from featherlb.datapaths.batches import (
    BATCH,
    MAX_BATCHES,
    SEND_BUFFER,
    SLOT_SIZE,
)
from featherlb.datapaths.delayed import Delayed
from featherlb.datapaths.owners import TupleOwners
from featherlb.model import Hook, PacketInfo, Verdict
from featherlb.net.netlink import (
    NFNL_HEADER,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    error_code,
    parse_messages,
)
from featherlb.system.mmsg import MessageBatch
from featherlb.system.nfnetlink import open_socket
from featherlb.system.nfqueue import (
    FLAG_FAIL_OPEN,
    FLAG_GSO,
    PACKET_MESSAGE,
    VERDICT_MESSAGE,
    bind_attributes,
    config_message,
    copy_attributes,
    drop_message,
    flag_attributes,
)

VERDICT_SIZE = NFNL_HEADER + 12
"""Bytes of a verdict: the headers and NFQA_VERDICT_HDR."""

NFQA_PACKET_HDR = 1
NFQA_VERDICT_HDR = 2
NFQA_MARK = 3
NFQA_PAYLOAD = 10
NFQA_CAP_LEN = 13
NFQA_SKB_INFO = 14

NF_DROP = 0  # include/uapi/linux/netfilter.h
NF_ACCEPT = 1
NF_REPEAT = 4

INPUT = int(Hook.INPUT)
FORWARD = int(Hook.FORWARD)
POSTROUTING = int(Hook.POSTROUTING)
PASS = int(Verdict.PASS)
REWRITTEN = int(Verdict.REWRITTEN)
DROP = int(Verdict.DROP)
LOOK_UP = int(Verdict.LOOK_UP)
FIND_OWNER = int(Verdict.FIND_OWNER)
HOLD = int(Verdict.HOLD)
TRUNCATED = int(PacketInfo.TRUNCATED)


class NetlinkDriver:
    """One queue over a netlink socket of its own; satisfies `engine.QueueDriver`."""

    def __init__(self, options: QueueOptions) -> None:
        """Bind the queue; OSError if that can't be done."""
        self.number = options.number
        self.pass_mark = 0
        self.received = 0
        self.truncated = 0
        self.refused = 0
        self.owners: TupleOwners | None = None
        self.delayed: Delayed | None = None
        self.kernel_flows: KernelFlows | None = None
        self.carrier: Carrier | None = None
        self.cuts_segments = False
        self.opened: dict[int, int] = {}
        self._socket = open_socket(options.buffer, SEND_BUFFER)
        flags = FLAG_GSO | (FLAG_FAIL_OPEN if options.fail_open else 0)
        try:
            self._configure(bind_attributes())
            self._configure(copy_attributes(options.length, flags, FLAG_GSO | FLAG_FAIL_OPEN))
        except OSError:
            self._socket.close()
            raise
        self.batch = MessageBatch(BATCH, SLOT_SIZE)
        self.batch.use(self._socket)
        view = memoryview(self.batch.buffer)
        self.u8 = view
        self.u16 = view.cast("H")
        self.u32 = view.cast("I")
        # What has been read of the batch's packets.
        self.packets = 0
        self.ids = memoryview(array("I", bytes(4 * BATCH)))
        self.hooks = memoryview(array("i", bytes(4 * BATCH)))
        self.infos = memoryview(array("i", bytes(4 * BATCH)))
        self.payloads = memoryview(array("q", bytes(8 * BATCH)))
        self.sizes = memoryview(array("q", bytes(8 * BATCH)))
        self.lengths = memoryview(array("q", bytes(8 * BATCH)))

    def _configure(self, attributes: bytes) -> None:
        """Send a configuration message and wait for the kernel's answer."""
        self._socket.send(config_message(self.number, attributes, acknowledge=True))
        while True:
            (message,) = parse_messages(self._socket.recv(SLOT_SIZE))
            if message.kind == NLMSG_ERROR:
                break
            # A packet for a queue that doesn't deliver whole ones yet.
            self._socket.send(drop_message(self.number, message.body))
        if code := error_code(message.body):
            raise OSError(code, os.strerror(code))

    def fileno(self) -> int:
        return self._socket.fileno()

    def process(self, core: Balancer, now: float) -> None:
        batch = self.batch
        if core.buffer is not batch.buffer:
            core.attach(batch.buffer)
        for _ in range(MAX_BATCHES):
            count = batch.receive()
            if self.carrier is not None:
                self.carrier.listen(now)
                if core.buffer is not batch.buffer:
                    core.attach(batch.buffer)
            self.packets = 0
            for slot in range(count):
                self.read(slot * SLOT_SIZE, batch.lengths[slot])
            core.expect_packets(self.payloads, self.sizes, self.packets)
            if self.kernel_flows is not None:
                core.look_up_ahead(self.payloads, self.sizes, self.packets)
                self.kernel_flows.execute(now)
                core.offload.take_refused()  # their packets are gone
            if core.recording.active:
                self.handle_recorded(core, now)
            else:
                for i in range(self.packets):
                    self.handle(i, core, now)
            if core.offload.commands.count:
                self.insert(core, now)
            if self.carrier is not None and core.carrying.carried.pending():
                self.carrier.execute()
            batch.flush()
            if batch.refused:
                self.drop_refused()
            if count < BATCH:
                break

    def insert(self, core: Balancer, now: float) -> None:
        """Have the kernel know the flows that this batch has opened before it meets their packets;
        the packet of a flow that it refuses is dropped."""
        if self.kernel_flows is not None:
            self.kernel_flows.execute(now)
            self.refuse(core.offload.take_refused())
        self.opened.clear()

    def refuse(self, refused: list[int]) -> None:
        """Drop the packets of this batch that have opened these flows."""
        for flow in refused:
            at = self.opened.pop(flow, None)
            if at is not None:
                self.u8[at + 27] = NF_DROP

    def drop_refused(self) -> None:
        """Drop the packets whose verdicts the kernel had no memory for. They would stay in the
        queue for good; a verdict without a packet needs next to nothing."""
        self.refused += len(self.batch.refused)
        for i in self.batch.refused:
            at = self.payloads[i] - VERDICT_SIZE - 4
            self.u32[at >> 2] = VERDICT_SIZE
            self.u8[at + 27] = NF_DROP
            self.batch.add(at, VERDICT_SIZE)
        self.batch.flush()

    def read(self, start: int, received: int) -> None:
        """Note the packet of the message at an offset of the buffer. The kernel sends each in a
        datagram of its own (net/netfilter/nfnetlink_queue.c, __nfqnl_enqueue_packet)."""
        # An error is the answer to a verdict on a packet that is no longer there.
        if received < NFNL_HEADER or self.u16[(start + 4) >> 1] != PACKET_MESSAGE:
            return
        packet_id = 0
        hook = 0
        info = 0
        payload = start + VERDICT_SIZE + 4  # of a packet without content
        size = 0
        length = 0
        at = start + NFNL_HEADER
        end = start + min(received, self.u32[start >> 2])
        while at + 4 <= end:
            step = self.u16[at >> 1]
            kind = self.u16[(at + 2) >> 1]
            if step < 4 or at + step > end:
                break
            if kind == NFQA_PACKET_HDR:
                packet_id = self.u32[(at + 4) >> 2]  # only handed back: its order is no matter
                hook = self.u8[at + 10]
            elif kind == NFQA_SKB_INFO:
                info |= self.u8[at + 7]
            elif kind == NFQA_CAP_LEN:
                info |= TRUNCATED
                length = self.u8[at + 5] << 16 | self.u8[at + 6] << 8 | self.u8[at + 7]
            elif kind == NFQA_PAYLOAD:
                payload = at + 4
                size = step - 4
            at += (step + 3) & ~3
        self.received += 1
        if info & TRUNCATED:
            self.truncated += 1
        else:
            length = size
        i = self.packets
        self.packets = i + 1
        self.ids[i] = packet_id
        self.hooks[i] = hook
        self.infos[i] = info
        self.payloads[i] = payload
        self.sizes[i] = size
        self.lengths[i] = length

    def handle(self, i: int, core: Balancer, now: float) -> None:
        """Have a noted packet handled; its verdict goes to the batch."""
        payload = self.payloads[i]
        size = self.sizes[i]
        hook = self.hooks[i]
        verdict = core.handle_packet(payload, self.lengths[i], hook, self.infos[i], now)
        if verdict == LOOK_UP:
            if self.kernel_flows is not None:
                # Flows of this batch are inserted before the look-up.
                self.kernel_flows.execute(now)
                self.refuse(core.offload.take_refused())
            verdict = core.handle_packet(payload, self.lengths[i], hook, self.infos[i], now)
        while verdict == FIND_OWNER and self.owners is not None:
            self.owners.answer()
            verdict = core.handle_packet(payload, self.lengths[i], hook, self.infos[i], now)
        if verdict == HOLD:
            self.hold(i, core)
            return

        # The verdict stands in front of the packet, over attributes that have been read.
        at = payload - VERDICT_SIZE - 4
        total = VERDICT_SIZE
        outcome = NF_DROP if verdict == DROP else NF_ACCEPT
        if verdict == REWRITTEN:
            self.u16[(at + 32) >> 1] = size + 4
            self.u16[(at + 34) >> 1] = NFQA_PAYLOAD
            total += (size + 4 + 3) & ~3
        elif verdict == PASS and self.pass_mark:
            outcome = NF_REPEAT
            self.u16[(at + 32) >> 1] = 8
            self.u16[(at + 34) >> 1] = NFQA_MARK
            self.u8[at + 36] = self.pass_mark >> 24
            self.u8[at + 37] = self.pass_mark >> 16 & 0xFF
            self.u8[at + 38] = self.pass_mark >> 8 & 0xFF
            self.u8[at + 39] = self.pass_mark & 0xFF | (hook in (INPUT, FORWARD, POSTROUTING))
            total += 8
        self.u32[at >> 2] = total
        self.u16[(at + 4) >> 1] = VERDICT_MESSAGE
        self.u16[(at + 6) >> 1] = NLM_F_REQUEST
        self.u32[(at + 8) >> 2] = 0
        self.u32[(at + 12) >> 2] = 0
        self.u16[(at + 16) >> 1] = 0
        self.u8[at + 18] = self.number >> 8
        self.u8[at + 19] = self.number & 0xFF
        self.u16[(at + 20) >> 1] = 12
        self.u16[(at + 22) >> 1] = NFQA_VERDICT_HDR
        self.u32[(at + 24) >> 2] = 0
        self.u8[at + 27] = outcome
        self.u32[(at + 28) >> 2] = self.ids[i]
        self.batch.add(at, total)
        if core.offload.opened:
            self.opened[core.offload.opened] = at
            core.offload.opened = 0

    def hold(self, i: int, core: Balancer) -> None:
        """Keep a noted packet, which stays in the queue, and have it handled later."""
        payload = self.payloads[i]
        size = self.sizes[i]
        assert self.delayed is not None
        packet = bytes(self.u8[payload : payload + size])
        noted = self.ids[i], self.hooks[i], self.infos[i], self.lengths[i]
        self.delayed.hold(partial(self.handle_held, core, packet, noted))

    def handle_held(
        self, core: Balancer, packet: bytes, noted: tuple[int, int, int, int], now: float
    ) -> None:
        """Handle a packet that was kept."""
        batch = self.batch
        if core.buffer is not batch.buffer:
            core.attach(batch.buffer)
        payload = VERDICT_SIZE + 4
        size = len(packet)
        batch.buffer[payload : payload + size] = packet
        self.packets = 1
        self.ids[0], self.hooks[0], self.infos[0], self.lengths[0] = noted
        self.payloads[0] = payload
        self.sizes[0] = size
        if core.recording.active:
            self.handle_recorded(core, now)
        else:
            self.handle(0, core, now)
        batch.flush()
        if batch.refused:
            self.drop_refused()

    def handle_recorded(self, core: Balancer, now: float) -> None:
        """Have the noted packets handled and recorded."""
        for i in range(self.packets):
            core.recording.begin(self.payloads[i], self.sizes[i])
            self.handle(i, core, now)
            core.recording.end()

    def attach(self, kernel_flows: KernelFlows) -> None:
        self.kernel_flows = kernel_flows

    def attach_program(self, carrier: Carrier) -> None:
        self.carrier = carrier

    def cut_segments(self, wanted: bool) -> None:
        if wanted == self.cuts_segments:
            return
        self.cuts_segments = wanted
        attributes = flag_attributes(0 if wanted else FLAG_GSO, FLAG_GSO)
        self._socket.send(config_message(self.number, attributes))

    def close(self) -> None:
        self._socket.close()
