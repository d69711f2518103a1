# C types of table.py, for the compiled build.
cimport cython
from featherlb.core.flows.record cimport (
    ABANDONED, OFFLOADED, REPLY_ONLY, Direction, Record, Records, clear, direction_of, ports_of)
from featherlb.net.packet cimport MASK32

cdef extern from *:
    void prefetch "__builtin_prefetch" (const void *address) nogil

cdef unsigned long long MASK64


@cython.final
cdef class FlowTable:
    cdef readonly Py_ssize_t capacity, count, queues
    cdef Records records
    cdef unsigned long long[::1] index, splices
    cdef unsigned int[::1] used, created, head, tail, length, timeout, rank, grain
    cdef unsigned long long mask
    cdef unsigned int unused, free
    cdef unsigned long long k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10

    cdef inline Record *at(self, Py_ssize_t flow) noexcept:
        return self.records.first + flow

    cpdef unsigned long long tag(
        self, unsigned long long src_high, unsigned long long src_low,
        unsigned long long dst_high, unsigned long long dst_low,
        unsigned long long ports, unsigned long long protocol) noexcept
    @cython.locals(
        tag=cython.ulonglong, slot=cython.ulonglong, entry=cython.ulonglong,
        ref=cython.Py_ssize_t, record="Record *", direction="Direction *")
    cpdef Py_ssize_t find(
        self, unsigned long long src_high, unsigned long long src_low,
        unsigned long long dst_high, unsigned long long dst_low,
        unsigned int ports, unsigned int protocol) noexcept
    cdef void fetch_entry(self, unsigned long long tag) noexcept
    @cython.locals(record="Record *")
    cdef void fetch_record(self, unsigned long long tag) noexcept
    @cython.locals(record="Record *", flow=cython.Py_ssize_t)
    cpdef Py_ssize_t insert(
        self, unsigned int protocol,
        unsigned long long client_high, unsigned long long client_low,
        unsigned long long vip_high, unsigned long long vip_low, unsigned int forward_ports,
        unsigned long long backend_high, unsigned long long backend_low,
        unsigned long long source_high, unsigned long long source_low, unsigned int reply_ports,
        Py_ssize_t queue, unsigned int ticks) noexcept
    cpdef void hide(self, Py_ssize_t flow) noexcept
    @cython.locals(record="Record *")
    cpdef void remove(self, Py_ssize_t flow) noexcept
    @cython.locals(record="Record *", found=cython.Py_ssize_t)
    cpdef bint set_source_port(self, Py_ssize_t flow, unsigned int port) noexcept
    @cython.locals(record="Record *")
    cpdef void move(self, Py_ssize_t flow, Py_ssize_t queue, unsigned int ticks) noexcept
    @cython.locals(record="Record *")
    cpdef void touch(self, Py_ssize_t flow, unsigned int ticks) noexcept
    @cython.locals(queue=cython.Py_ssize_t, flow=cython.Py_ssize_t)
    cpdef Py_ssize_t expired(self, unsigned int ticks) noexcept
    @cython.locals(
        queue=cython.Py_ssize_t, flow=cython.Py_ssize_t, best=cython.Py_ssize_t,
        best_queue=cython.Py_ssize_t)
    cpdef Py_ssize_t victim(self) noexcept
    cpdef Py_ssize_t last_record(self) noexcept
    @cython.locals(record="Record *")
    cpdef bint is_offloaded(self, Py_ssize_t flow) noexcept
    @cython.locals(record="Record *", direction="Direction *")
    cdef unsigned long long key_tag(self, Py_ssize_t ref) noexcept
    @cython.locals(tag=cython.ulonglong, slot=cython.ulonglong)
    cdef void link(self, Py_ssize_t ref) noexcept
    @cython.locals(
        wanted=cython.ulonglong, mask=cython.ulonglong, gap=cython.ulonglong,
        slot=cython.ulonglong, entry=cython.ulonglong, home=cython.ulonglong)
    cdef void unlink(self, Py_ssize_t ref) noexcept
    @cython.locals(last=cython.Py_ssize_t, record="Record *")
    cdef void append(self, Py_ssize_t flow, Py_ssize_t queue) noexcept
    @cython.locals(queue=cython.Py_ssize_t, record="Record *")
    cdef void take(self, Py_ssize_t flow) noexcept
