# C types of context.py, for the compiled build.
cimport cython
from featherlb.core.pools.pool cimport Pool
from featherlb.net.packet cimport Packet

cdef int GO_ON, WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT, ICMP_MESSAGE


@cython.final
cdef class Context:
    cdef Packet packet
    cdef Py_ssize_t offset, length, flow, reply
    cdef int hook, info, kind
    cdef double now
    cdef unsigned int ticks
    cdef bint offloaded
    cdef Pool pool

    cdef void begin(
        self, Py_ssize_t offset, Py_ssize_t length, int hook, int info, double now) noexcept
