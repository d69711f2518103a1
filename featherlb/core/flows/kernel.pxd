# C types of kernel.py, for the compiled build.
cimport cython
from featherlb.core.flows.record cimport SPLICED, Record, Records, copy_record
from featherlb.core.flows.table cimport FlowTable
from featherlb.net.packet cimport MASK32

cdef int TCP
cdef int INSERT, DELETE, LOOK_UP, UNKNOWN, UNKNOWN_SCALE


cdef class Commands:
    cdef readonly Py_ssize_t count, size
    cdef unsigned int[::1] fields
    cdef readonly Records records

    cdef object grow(self)
    cpdef object insert(self, FlowTable table, Py_ssize_t flow, int attempts=*)
    cpdef object delete(self, FlowTable table, Py_ssize_t flow)
    cpdef object look_up(self, FlowTable table, Py_ssize_t flow)
    @cython.locals(at=cython.Py_ssize_t, record="Record *", spliced=cython.bint)
    cdef object add(self, int kind, FlowTable table, Py_ssize_t flow, int attempts)
    cpdef int kind(self, Py_ssize_t at) noexcept
    cpdef Py_ssize_t flow(self, Py_ssize_t at) noexcept
    cpdef int attempts(self, Py_ssize_t at) noexcept
    cpdef unsigned int offset(self, Py_ssize_t at) noexcept
    cpdef object take(self, Commands batch)


cdef class KernelFlow:
    cdef public int version, protocol, state, scale
    cdef public bint answered, translated
    cdef public unsigned int ports, reply_ports, offset
    cdef public unsigned long long src_high, src_low, dst_high, dst_low
    cdef public unsigned long long reply_src_high, reply_src_low, reply_dst_high, reply_dst_low
    cdef public unsigned long long packets, bytes, reply_packets, reply_bytes

    cpdef void forget(self) noexcept
    cpdef KernelFlow copy(self)
