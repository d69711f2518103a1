"""Many datagrams per system call: one buffer with a slot for each, and pieces of it sent at once.

Compiled, up to `slots` datagrams are received, or sent, by one call; interpreted, by one call each.
"""

import errno
import socket
from array import array

import cython

PASSING = (errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM, errno.ENETDOWN)
"""Errors after which a socket can be read again."""


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
        self.refused: list[int] = []
        """Of the pieces flushed last, the numbers of those that the kernel refused."""
        if cython.compiled:
            for i in range(slots):
                self.into[i].iov_base = cython.address(self.data[i * size])
                self.into[i].iov_len = size
                self.received[i].msg_hdr.msg_iov = cython.address(self.into[i])
                self.received[i].msg_hdr.msg_iovlen = 1
        else:
            self._out: list[memoryview] = []

    def use(self, end: socket.socket) -> None:
        """Use this socket from now on; no call here waits for it."""
        self._socket = end
        self.fd = end.fileno()

    def receive(self) -> int:
        """Receive what waits, at most a datagram per slot; how many came (0 if none, or an error
        that passes, see `check`). OSError for others."""
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
        """OSError, unless `number` says that nothing waits, that something was lost or that the
        kernel lacks memory for the moment, or that the link went down: it may come up again, and
        the socket of one that is gone is closed with the next topology."""
        if number not in PASSING:
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
        """Send all pieces as one datagram. If the kernel refuses that, for lack of memory, send
        each as one of its own, which needs less; those that it refuses, too, are `refused`."""
        if self.refused:
            self.refused = []
        if not self.pieces:
            return
        if not self.send(0, self.pieces):
            self.refused = [i for i in range(self.pieces) if not self.send(i, 1)]
        self.pieces = 0
        if not cython.compiled:
            self._out = []

    def send(self, first: int, count: int) -> bool:
        """Send some of the pieces as one datagram; False if the kernel refuses it."""
        if cython.compiled:
            self.outgoing.msg_iov = cython.address(self.out[first])
            self.outgoing.msg_iovlen = count
            return sendmsg(self.fd, cython.address(self.outgoing), MSG_DONTWAIT) >= 0
        try:
            self._socket.sendmsg(self._out[first : first + count], [], socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True


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
