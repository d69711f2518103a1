# C types of frames.py, for the compiled build. Compiled, the core is called without a Python call.
cimport cython
from featherlb.core.flows.next_hops cimport MAC, LINK_MASK, LINK_SHIFT, NextHops
from featherlb.core.path.balancer cimport Balancer
from featherlb.datapaths.owners cimport TupleOwners
from featherlb.datapaths.raw.link_socket cimport LinkSocket
from featherlb.system.mmsg cimport MessageBatch

cdef Py_ssize_t BATCH, SLOT_SIZE, MAX_BATCHES, VNET_HEADER, HEADERS
cdef int NEEDS_CHECKSUM, WIRE, REWRITTEN, ANSWERED, FIND_OWNER, HOLD, UNFINISHED, GSO


cdef class FrameBatch(MessageBatch):
    pass


cdef class FrameSockets:
    cdef readonly FrameBatch batch
    cdef TupleOwners owners
    cdef unsigned char[::1] data
    cdef unsigned short[::1] u16
    cdef long long[::1] packets, sizes
    cdef readonly Py_ssize_t received, unsent
    cdef readonly object dropped, held, delayed
    cdef readonly dict open
    cdef list by_link
    cdef dict _filters

    @cython.locals(
        batch=MessageBatch, one=LinkSocket, _=cython.int, count=cython.int, slot=cython.int)
    cpdef object process(self, int descriptor, Balancer core, double now)
    @cython.locals(data="unsigned char[::1]", at=cython.Py_ssize_t, size=cython.Py_ssize_t)
    cdef void measure(self, LinkSocket one, int slot, Py_ssize_t received) noexcept
    @cython.locals(
        data="unsigned char[::1]", at=cython.Py_ssize_t, size=cython.Py_ssize_t, next_hops=NextHops,
        info=cython.int, ingress=cython.ulonglong, verdict=cython.int, i=cython.int)
    cdef void handle(self, LinkSocket one, int slot, Balancer core, double now) except *
    @cython.locals(at=cython.Py_ssize_t)
    cdef void send_answer(
        self, LinkSocket one, int slot, unsigned long long hop, double now) except *
    cpdef object handle_held(self, LinkSocket one, bytes frame, Balancer core, double now)
    @cython.locals(slot=cython.int)
    cdef void handle_recorded(
        self, LinkSocket one, int count, Balancer core, double now) except *
    @cython.locals(data="unsigned char[::1]", out=LinkSocket)
    cdef void send(
        self, int family, Py_ssize_t at, Py_ssize_t size, unsigned long long hop,
        double now) except *
    cdef void send_cut(self, LinkSocket out, Py_ssize_t at, Py_ssize_t size) except *
    @cython.locals(one=LinkSocket)
    cdef int flush(self) except -1
    cdef void hold(self, int family, Py_ssize_t at, Py_ssize_t size, double now) except *
    @cython.locals(out=LinkSocket)
    cdef object send_held(self, bytes frame, int family, Py_ssize_t link_id, bytes mac)
