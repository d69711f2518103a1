"""Many datagrams per system call: one buffer with a slot for each, and pieces of it sent at once.

Compiled, up to `slots` datagrams are received, or sent, by one call; interpreted, by one call each.
"""

import errno
import socket
from array import array
from contextlib import suppress

import cython


class MessageBatch:
    """A receive buffer of `slots` slots of `size` bytes each, and what goes out of it.

    Slot i starts at `i * size` of `data`; its datagram has `lengths[i]` bytes.
    """

    def __init__(self, slots: int, size: int) -> None:
        """Of no socket yet."""
        self.slots = slots
        self.size = size
        self.buffer = bytearray(slots * size)
        self.data = memoryview(self.buffer)
        self.lengths = memoryview(array("I", bytes(4 * slots)))
        self.pieces = 0
        if cython.compiled:
            for i in range(slots):
                self.into[i].iov_base = cython.address(self.data[i * size])
                self.into[i].iov_len = size
                self.received[i].msg_hdr.msg_iov = cython.address(self.into[i])
                self.received[i].msg_hdr.msg_iovlen = 1
            self.outgoing.msg_iov = cython.address(self.out[0])
        else:
            self._out: list[memoryview] = []

    def use(self, end: socket.socket) -> None:
        """Use this socket from now on; no call here waits for it."""
        self._socket = end
        self.fd = end.fileno()

    def receive(self) -> int:
        """Receive what waits, at most a datagram per slot; how many came (0 if none, or an error
        that is no more than a sign of loss, ENOBUFS). OSError for others."""
        if cython.compiled:
            count = recvmmsg(self.fd, self.received, self.slots, MSG_DONTWAIT, cython.NULL)
            for i in range(count):
                self.lengths[i] = self.received[i].msg_len
            if count < 0:
                self.check(c_errno)
                return 0
            return count
        for i in range(self.slots):
            slot = self.data[i * self.size : (i + 1) * self.size]
            try:
                self.lengths[i] = self._socket.recv_into(slot, 0, socket.MSG_DONTWAIT)
            except OSError as error:
                self.check(error.errno or 0)
                return i
        return self.slots

    def check(self, number: int) -> None:
        """OSError, unless `number` says that nothing waits or that something was lost."""
        if number not in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
            raise OSError(number, "cannot receive")

    def add(self, offset: int, length: int) -> None:
        """Send these bytes of `data` with the next flush."""
        if cython.compiled:
            self.out[self.pieces].iov_base = cython.address(self.data[offset])
            self.out[self.pieces].iov_len = length
        else:
            self._out.append(self.data[offset : offset + length])
        self.pieces += 1

    def flush(self) -> None:
        """Send all pieces as one datagram. One that the kernel refuses is lost."""
        if not self.pieces:
            return
        if cython.compiled:
            self.outgoing.msg_iovlen = self.pieces
            sendmsg(self.fd, cython.address(self.outgoing), MSG_DONTWAIT)
        else:
            with suppress(OSError):
                self._socket.sendmsg(self._out, [], socket.MSG_DONTWAIT)
            self._out = []
        self.pieces = 0


class DatagramBatch:
    """Datagrams that lie in the buffer of a `MessageBatch`, sent through a socket of their own."""

    def __init__(self, end: socket.socket, batch: MessageBatch) -> None:
        """No more than the slots of `batch` are sent at once."""
        self._socket = end
        self.fd = end.fileno()
        self.data = memoryview(batch.buffer)
        self.pending = 0
        self.failed = 0
        """Datagrams that the kernel refused: its buffer is full, or the link is down."""
        self._out: list[memoryview] = []
        if cython.compiled:
            for i in range(batch.slots):
                self.outgoing[i].msg_hdr.msg_iov = cython.address(self.out[i])
                self.outgoing[i].msg_hdr.msg_iovlen = 1

    def add(self, offset: int, length: int) -> None:
        """Send these bytes of the buffer as a datagram, with the next flush."""
        if cython.compiled:
            self.out[self.pending].iov_base = cython.address(self.data[offset])
            self.out[self.pending].iov_len = length
        else:
            self._out.append(self.data[offset : offset + length])
        self.pending += 1

    def flush(self) -> None:
        """Send what was added. One that the kernel refuses is lost, the others go."""
        if cython.compiled:
            done = 0
            while done < self.pending:
                sent = sendmmsg(
                    self.fd,
                    cython.address(self.outgoing[done]),
                    self.pending - done,
                    MSG_DONTWAIT,
                )
                if sent < 0:
                    self.failed += 1
                    sent = 1
                done += sent
        else:
            for datagram in self._out:
                try:
                    self._socket.send(datagram, socket.MSG_DONTWAIT)
                except OSError:
                    self.failed += 1
            self._out = []
        self.pending = 0
