"""The portable queue driver, on the NetfilterQueue package; its only importer.

The package silently cuts packets to 4016 bytes, and answers them one by one. The first is fixed
here: the queue's configuration belongs to its socket, so a duplicate of the socket asks the kernel
for whole packets, and the package reads through an object of ours with a large enough buffer. The
package shows no packet metadata, so the kernel has to cut super-packets and to complete checksums
before it queues them (no NFQA_CFG_F_GSO).
"""

import errno
import os
import socket
from functools import partial

from netfilterqueue import NetfilterQueue

from featherlb.core.path.balancer import Balancer
from featherlb.datapaths.base import Carrier, KernelFlows, QueueOptions
from featherlb.datapaths.batches import SEND_BUFFER
from featherlb.datapaths.delayed import Delayed
from featherlb.datapaths.owners import TupleOwners
from featherlb.model import LATE_HOOKS, PacketInfo, Verdict
from featherlb.system import socket_buffers
from featherlb.system.nfqueue import COPY_RANGE, FLAG_FAIL_OPEN, config_message, copy_attributes

_READ_SIZE = 1 << 17
"""Bytes: more than any message (COPY_RANGE and its attributes)."""
_MAX_READS = 256
"""Reads per call of `process`, so that the worker gets to its timers under any load."""


class _Reader:
    """What the package takes for its socket: whole packets, never blocking."""

    def __init__(self, queue_socket: socket.socket) -> None:
        self._socket = queue_socket
        self.left = 0

    def recv(self, _size: int) -> bytes:
        if not self.left:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.left -= 1
        while True:
            try:
                return self._socket.recv(_READ_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                raise
            except OSError as error:
                # ENOBUFS: packets were dropped since the last read; the kernel counts them.
                if error.errno != errno.ENOBUFS:
                    raise


class NetfilterQueueDriver:
    """One queue through the NetfilterQueue package; satisfies `engine.QueueDriver`."""

    def __init__(self, options: QueueOptions) -> None:
        """Bind the queue; OSError if that can't be done."""
        self.pass_mark = 0
        self.received = 0
        self.truncated = 0
        self.refused = 0  # the package keeps that to itself
        self._buffer = bytearray(_READ_SIZE)
        self._core: Balancer | None = None
        self.owners: TupleOwners | None = None
        self.delayed: Delayed | None = None
        self._kernel_flows: KernelFlows | None = None
        self._carrier: Carrier | None = None
        self._now = 0.0
        self._queue = NetfilterQueue()
        self._queue.bind(options.number, self._handle, max_len=options.length)
        self._socket = socket.socket(fileno=os.dup(self._queue.get_fd()))
        socket_buffers.enlarge(self._socket, options.buffer, SEND_BUFFER)
        flags = FLAG_FAIL_OPEN if options.fail_open else 0
        attributes = copy_attributes(options.length, flags, FLAG_FAIL_OPEN)
        self._socket.send(config_message(options.number, attributes))
        self._reader = _Reader(self._socket)

    def fileno(self) -> int:
        return self._socket.fileno()

    def process(self, core: Balancer, now: float) -> None:
        if core.buffer is not self._buffer:
            core.attach(self._buffer)
        self._core = core
        self._now = now
        self._reader.left = _MAX_READS
        # Comes back when the reader says that nothing waits.
        self._queue.run_socket(self._reader)

    def _handle(self, packet) -> None:  # type: ignore[no-untyped-def]
        assert self._core is not None
        self.received += 1
        if self._carrier is not None:
            self._carrier.listen(self._now)
            if self._core.buffer is not self._buffer:
                self._core.attach(self._buffer)
        payload = packet.get_payload()
        length = len(payload)
        info = PacketInfo.NONE
        if length >= COPY_RANGE:
            total = _length_in_header(payload)
            if total > length:
                self.truncated += 1
                info = PacketInfo.TRUNCATED
                length = total
        self._judge(packet, payload, length, info)

    def _judge(self, packet, payload: bytes, length: int, info: int) -> None:  # type: ignore[no-untyped-def]
        """Have the core decide on the packet, and answer the kernel."""
        assert self._core is not None
        assert self.delayed is not None
        self._buffer[: len(payload)] = payload
        recording = self._core.recording
        recorded = recording.active
        if recorded:
            recording.begin(0, min(length, len(payload)))
        verdict = self._decide(length, packet.hook, info)
        if recorded:
            recording.end()
        if verdict == Verdict.HOLD:
            self.delayed.hold(partial(self._handle_held, packet, payload, length, info))
        elif verdict == Verdict.REWRITTEN:
            packet.set_payload(bytes(self._buffer[:length]))
            packet.accept()
        elif verdict == Verdict.PASS and self.pass_mark:
            packet.set_mark(self.pass_mark | (packet.hook in LATE_HOOKS))
            packet.repeat()
        elif verdict in (Verdict.PASS, Verdict.OFFLOAD):
            packet.accept()
        else:
            packet.drop()

    def _handle_held(self, packet, payload: bytes, length: int, info: int, now: float) -> None:  # type: ignore[no-untyped-def]
        """Handle a packet that was kept."""
        assert self._core is not None
        if self._core.buffer is not self._buffer:
            self._core.attach(self._buffer)
        self._now = now
        self._judge(packet, payload, length, info)

    def _decide(self, length: int, hook: int, info: int) -> int:
        """The verdict on the packet in the buffer."""
        assert self._core is not None
        packet = 0, length, hook, info, self._now
        verdict = self._core.handle_packet(*packet)
        if verdict == Verdict.LOOK_UP and self._kernel_flows is not None:
            self._kernel_flows.execute(self._now)
            verdict = self._core.handle_packet(*packet)
        while verdict == Verdict.FIND_OWNER and self.owners is not None:
            self.owners.answer()
            verdict = self._core.handle_packet(*packet)
        if self._kernel_flows is not None:
            self._core.offload.opened = 0
            self._kernel_flows.execute(self._now)
            if self._core.offload.take_refused():
                return Verdict.DROP
        if self._carrier is not None:
            self._carrier.execute()
        return verdict

    def attach(self, kernel_flows: KernelFlows) -> None:
        self._kernel_flows = kernel_flows

    def attach_program(self, carrier: Carrier) -> None:
        self._carrier = carrier

    def cut_segments(self, wanted: bool) -> None:
        """The kernel always does."""

    def close(self) -> None:
        self._queue.unbind()
        self._socket.close()


def _length_in_header(packet: bytes) -> int:
    """The packet's length in bytes by its own IP header."""
    if packet[0] >> 4 == 4:
        return int.from_bytes(packet[2:4], "big")
    return 40 + int.from_bytes(packet[4:6], "big")
