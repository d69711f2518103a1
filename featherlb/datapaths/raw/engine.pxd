# C types of packet_socket.py, for the compiled build. Compiled, the handler is the core's Balancer
# itself, so that a frame costs no Python call.
cimport cython
from featherlb.core.path.balancer cimport Balancer
from featherlb.core.flows.next_hops cimport Hops
from featherlb.system.mmsg cimport DatagramBatch, MessageBatch

cdef Py_ssize_t SLOTS, SLOT_SIZE, MAX_BATCHES, VNET_HEADER, ETHERNET_HEADER, HEADERS, MAX_HELD
cdef int NEEDS_CHECKSUM, SLOT_SHIFT, SLOT_MASK, WIRE, REWRITTEN, UNFINISHED, GSO
cdef unsigned long long MAC


cdef class PacketSocket:
    cdef readonly object link, socket
    cdef readonly int slot, family, fd, mtu
    cdef readonly unsigned long long came
    cdef readonly unsigned int source_high, source_low
    cdef readonly DatagramBatch out
    cdef readonly object dropped


cdef class FrameBatch(MessageBatch):
    pass


cdef class PacketSockets:
    cdef readonly FrameBatch batch
    cdef unsigned char[::1] data
    cdef unsigned short[::1] u16
    cdef long long[::1] packets, sizes
    cdef readonly Py_ssize_t received, unsent, unresolved
    cdef readonly object dropped
    cdef list by_slot
    cdef readonly list open
    cdef readonly object held
    cdef dict _filters

    @cython.locals(batch=MessageBatch, before=cython.Py_ssize_t, one=PacketSocket)
    cpdef Py_ssize_t process(self, int descriptor, Balancer handler, double now) except -1
    @cython.locals(batch=MessageBatch, _=cython.int, count=cython.int, slot=cython.int)
    cdef int process_socket(self, PacketSocket one, Balancer handler, double now) except -1
    @cython.locals(data="unsigned char[::1]", at=cython.Py_ssize_t, size=cython.Py_ssize_t)
    cdef void measure(self, PacketSocket one, int slot, Py_ssize_t received) noexcept
    @cython.locals(
        data="unsigned char[::1]", at=cython.Py_ssize_t, size=cython.Py_ssize_t, hops=Hops,
        info=cython.int, came=cython.ulonglong, i=cython.int)
    cdef void handle(self, PacketSocket one, int slot, Balancer handler, double now) except *
    @cython.locals(data="unsigned char[::1]", out=PacketSocket)
    cdef void send(
        self, int family, Py_ssize_t at, Py_ssize_t size, unsigned long long hop,
        double now) except *
    cdef void send_cut(self, PacketSocket out, Py_ssize_t at, Py_ssize_t size) except *
    @cython.locals(one=PacketSocket)
    cdef int flush(self) except -1
    cdef void hold(self, int family, Py_ssize_t at, Py_ssize_t size, double now) except *
    cpdef int expire(self, double now) except -1
