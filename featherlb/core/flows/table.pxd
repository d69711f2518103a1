# C types of flow.py, for the compiled build.
cimport cython

cdef extern from *:
    void prefetch "__builtin_prefetch" (const void *address) nogil

cdef unsigned long long MASK32, MASK64
cdef Py_ssize_t FORWARD_KEY, REPLY_KEY, PORTS, PROTOCOL, STATE, QUEUE, FLAGS, MEMBER, RESPONSES
cdef Py_ssize_t ADDRESS_DELTA, TRANSPORT_DELTA, CREATED, PREVIOUS, NEXT, SEEN, EXPECTED, AWAITED, CARRIED, BYTES, KEY_BYTES
cdef int IPV6, FULL, LOCAL_BACKEND, LOCAL_CLIENT, REPLY_ONLY, COUNTED, WIRED, OFFLOADED, ABANDONED


cdef class FlowTable:
    cdef readonly Py_ssize_t capacity, count, queues
    cdef unsigned long long[::1] u64, index
    cdef unsigned int[::1] u32, used, head, tail, length, timeout, rank, grain
    cdef unsigned short[::1] u16
    cdef unsigned char[::1] u8
    cdef unsigned long long mask
    cdef unsigned int unused, free
    cdef unsigned long long k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10

    cpdef unsigned long long tag(
        self, unsigned long long src_high, unsigned long long src_low,
        unsigned long long dst_high, unsigned long long dst_low,
        unsigned long long ports, unsigned long long protocol) noexcept
    @cython.locals(
        tag=cython.ulonglong, slot=cython.ulonglong, entry=cython.ulonglong,
        ref=cython.Py_ssize_t, base=cython.Py_ssize_t)
    cpdef Py_ssize_t find(
        self, unsigned long long src_high, unsigned long long src_low,
        unsigned long long dst_high, unsigned long long dst_low,
        unsigned int ports, unsigned int protocol) noexcept
    cdef void fetch_entry(self, unsigned long long tag) noexcept
    @cython.locals(flow=cython.ulonglong)
    cdef void fetch_record(self, unsigned long long tag) noexcept
    @cython.locals(base=cython.Py_ssize_t, i=cython.Py_ssize_t, flow=cython.Py_ssize_t)
    cpdef Py_ssize_t insert(
        self, unsigned int protocol,
        unsigned long long client_high, unsigned long long client_low,
        unsigned long long vip_high, unsigned long long vip_low, unsigned int forward_ports,
        unsigned long long backend_high, unsigned long long backend_low,
        unsigned long long source_high, unsigned long long source_low, unsigned int reply_ports,
        Py_ssize_t queue, unsigned int ticks) noexcept
    cpdef void hide(self, Py_ssize_t flow) noexcept
    cpdef void remove(self, Py_ssize_t flow) noexcept
    @cython.locals(base=cython.Py_ssize_t)
    cpdef void turn_replies(self, Py_ssize_t flow, unsigned int ports) noexcept
    cpdef void move(self, Py_ssize_t flow, Py_ssize_t queue, unsigned int ticks) noexcept
    @cython.locals(queue=cython.Py_ssize_t)
    cpdef void touch(self, Py_ssize_t flow, unsigned int ticks) noexcept
    @cython.locals(queue=cython.Py_ssize_t, flow=cython.Py_ssize_t)
    cpdef Py_ssize_t expired(self, unsigned int ticks) noexcept
    @cython.locals(queue=cython.Py_ssize_t, flow=cython.Py_ssize_t, best=cython.Py_ssize_t)
    cpdef Py_ssize_t victim(self) noexcept
    cpdef Py_ssize_t last_record(self) noexcept
    cpdef bint is_carried(self, Py_ssize_t flow) noexcept
    @cython.locals(flow=cython.Py_ssize_t, base=cython.Py_ssize_t)
    cdef unsigned long long key_tag(self, Py_ssize_t ref) noexcept
    @cython.locals(tag=cython.ulonglong, slot=cython.ulonglong)
    cdef void link(self, Py_ssize_t ref) noexcept
    @cython.locals(
        wanted=cython.ulonglong, mask=cython.ulonglong, gap=cython.ulonglong,
        slot=cython.ulonglong, entry=cython.ulonglong, home=cython.ulonglong)
    cdef void unlink(self, Py_ssize_t ref) noexcept
    @cython.locals(last=cython.Py_ssize_t)
    cdef void append(self, Py_ssize_t flow, Py_ssize_t queue) noexcept
    @cython.locals(queue=cython.Py_ssize_t, before=cython.Py_ssize_t, after=cython.Py_ssize_t)
    cdef void take(self, Py_ssize_t flow) noexcept
