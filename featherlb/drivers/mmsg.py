"""Many datagrams per system call: one buffer with a slot for each, and pieces of it sent at once.

Imports the standard library (and, compiled, libc's recvmmsg(2) and sendmsg(2)). Compiled, up to
`slots` datagrams are received by one call; interpreted, by one call each.
"""

import errno
import socket
from array import array

import cython

MAX_PIECES = 1024
"""UIO_MAXIOV: more pieces than the kernel takes in one sendmsg."""


class MessageBatch:
    """A socket's receive buffer of `slots` slots of `size` bytes each, and what goes out of it.

    Slot i starts at `i * size` of `data`; its datagram has `lengths[i]` bytes.
    """

    def __init__(self, end: socket.socket, slots: int, size: int) -> None:
        """`end` must be non-blocking or not care: no call here waits."""
        self._socket = end
        self.fd = end.fileno()
        self.slots = slots
        self.size = size
        self.buffer = bytearray(slots * size)
        self.data = memoryview(self.buffer)
        self.lengths = memoryview(array("I", bytes(4 * slots)))
        self.pieces = 0
        self.error = 0
        """The errno of the last flush that failed."""
        if cython.compiled:
            for i in range(slots):
                self.into[i].iov_base = cython.address(self.data[i * size])
                self.into[i].iov_len = size
                self.received[i].msg_hdr.msg_iov = cython.address(self.into[i])
                self.received[i].msg_hdr.msg_iovlen = 1
            self.outgoing.msg_iov = cython.address(self.out[0])
        else:
            self._out: list[memoryview] = []

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

    def flush(self) -> bool:
        """Send all pieces as one datagram; False if the kernel refuses it (`error` says why)."""
        if not self.pieces:
            return True
        if cython.compiled:
            self.outgoing.msg_iovlen = self.pieces
            self.pieces = 0
            if sendmsg(self.fd, cython.address(self.outgoing), MSG_DONTWAIT) < 0:
                self.error = c_errno
                return False
            return True
        pieces, self._out = self._out, []
        self.pieces = 0
        try:
            self._socket.sendmsg(pieces, [], socket.MSG_DONTWAIT)
        except OSError as error:
            self.error = error.errno or 0
            return False
        return True
