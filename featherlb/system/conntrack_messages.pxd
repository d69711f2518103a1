# C types of conntrack_messages.py, for the compiled build.
cimport cython
from featherlb.core.flows.kernel cimport INSERT, LOOK_UP, Commands, KernelFlow
from featherlb.core.flows.record cimport FULL, IPV6, SPLICED, Record

cdef unsigned long long MAPPED
cdef int TCP, UDP
cdef Py_ssize_t NLMSG_HEADER, NFNL_HEADER, LARGEST
cdef int NEW_MESSAGE, GET_MESSAGE, DELETE_MESSAGE, NLMSG_ERROR, NLM_F_REQUEST
cdef int NLM_F_CREATE, NLM_F_EXCL, NLM_F_DUMP, AF_INET, AF_INET6, NLA_F_NESTED, NLA_TYPE_MASK
cdef int TUPLE_ORIG, TUPLE_REPLY, STATUS, PROTOINFO, NAT_SRC, TIMEOUT
cdef int COUNTERS_ORIG, COUNTERS_REPLY, NAT_DST, SEQ_ADJ_REPLY, TUPLE_IP, TUPLE_PROTO
cdef int V4_SRC, V4_DST, V6_SRC, V6_DST, PROTO_NUM, PROTO_SRC_PORT, PROTO_DST_PORT
cdef int NAT_V4_MIN, NAT_V4_MAX, NAT_PROTO, NAT_V6_MIN, NAT_V6_MAX, NAT_PORT_MIN, NAT_PORT_MAX
cdef int PROTOINFO_TCP, TCP_STATE, TCP_SCALE_ORIGINAL, TCP_SCALE_REPLY
cdef int TCP_FLAGS_ORIGINAL, TCP_FLAGS_REPLY, TCP_SYN_SENT, TCP_ESTABLISHED, TCP_FIN_WAIT
cdef int TCP_SYN_SENT2, SCALED, SACK_PERMITTED, LIBERAL
cdef int CORRECTION_POSITION, OFFSET_BEFORE, OFFSET_AFTER
cdef int SYN_SENT, SYN_RECEIVED, FIN_WAIT, CLOSE_WAIT
cdef int COUNTERS_PACKETS, COUNTERS_BYTES
cdef int SEEN_REPLY, DESTINATION_NAT, FIRST_TIMEOUT, UDP_ONE_WAY, UDP_TWO_WAY, KERNEL_STATES
cdef unsigned char[::1] STATES


cdef class Requests:
    cdef readonly Py_ssize_t length, size
    cdef readonly object buffer
    cdef unsigned char[::1] u8
    cdef unsigned short[::1] u16
    cdef unsigned int[::1] u32

    cpdef object use(self, buffer)
    @cython.locals(length=cython.Py_ssize_t)
    cpdef object take(self)
    @cython.locals(
        family=cython.int, start=cython.Py_ssize_t, at=cython.Py_ssize_t, spliced=cython.bint)
    cdef object create(self, Record *record, unsigned int offset, unsigned int sequence)
    cdef object delete(self, Record *record, unsigned int sequence)
    cdef object get(self, Record *record, unsigned int sequence)
    @cython.locals(family=cython.int, start=cython.Py_ssize_t, end=cython.Py_ssize_t)
    cpdef object get_tuple(
        self, int version, int protocol, unsigned long long src_high, unsigned long long src_low,
        unsigned long long dst_high, unsigned long long dst_low, unsigned int ports)
    @cython.locals(at=cython.Py_ssize_t, kind=cython.int)
    cpdef object write(self, Commands commands, Py_ssize_t first, Py_ssize_t end)
    cpdef object ask(self, Commands commands, Py_ssize_t at)
    @cython.locals(start=cython.Py_ssize_t)
    cpdef object dump(self, int family)
    @cython.locals(family=cython.int, start=cython.Py_ssize_t)
    cdef object name(self, Record *record, int kind, unsigned int sequence)
    @cython.locals(start=cython.Py_ssize_t)
    cdef Py_ssize_t begin(self, int kind, int flags, int family, unsigned int sequence) except -1
    cdef void finish(self, Py_ssize_t start, Py_ssize_t end) noexcept
    cdef Py_ssize_t forward_tuple(self, Py_ssize_t at, Record *record, int family) noexcept
    @cython.locals(size=cython.int)
    cdef Py_ssize_t tuple_attribute(
        self, Py_ssize_t at, int kind, int family, unsigned long long src_high,
        unsigned long long src_low, unsigned long long dst_high, unsigned long long dst_low,
        unsigned int src_port, unsigned int dst_port, unsigned int protocol) noexcept
    cdef Py_ssize_t translation(
        self, Py_ssize_t at, int kind, int family, unsigned long long high,
        unsigned long long low, unsigned int port) noexcept
    @cython.locals(kind=cython.int)
    cdef Py_ssize_t tcp_state_attribute(self, Py_ssize_t at, int state) noexcept
    @cython.locals(kind=cython.int, flags=cython.int)
    cdef Py_ssize_t opened_attribute(self, Py_ssize_t at, int scales) noexcept
    @cython.locals(kind=cython.int)
    cdef Py_ssize_t offset_attribute(self, Py_ssize_t at, unsigned int offset) noexcept
    cdef void attribute(self, Py_ssize_t at, int kind, int length) noexcept
    cdef void put32(self, Py_ssize_t at, unsigned long long value) noexcept
    cdef void put128(self, Py_ssize_t at, unsigned long long high, unsigned long long low) noexcept


cdef class Entry(KernelFlow):
    cdef readonly int kind
    cdef readonly unsigned int sequence, sender, error
    cdef unsigned char[::1] u8
    cdef unsigned short[::1] u16
    cdef unsigned int[::1] u32

    cpdef object attach(self, buffer)
    cpdef void clear(self) noexcept
    @cython.locals(length=cython.Py_ssize_t)
    cpdef Py_ssize_t read(self, Py_ssize_t at, Py_ssize_t end) noexcept
    @cython.locals(
        length=cython.Py_ssize_t, kind=cython.int, status=cython.uint, inner=cython.Py_ssize_t,
        after=cython.Py_ssize_t, packets=cython.Py_ssize_t, size=cython.Py_ssize_t)
    cdef void read_attributes(self, Py_ssize_t at, Py_ssize_t end) noexcept
    @cython.locals(
        found=cython.Py_ssize_t, client=cython.Py_ssize_t, backend=cython.Py_ssize_t,
        scale=cython.Py_ssize_t, state=cython.int, answered=cython.bint)
    cdef void read_tcp(self, Py_ssize_t at, Py_ssize_t end) noexcept
    @cython.locals(
        length=cython.Py_ssize_t, kind=cython.int, four=cython.Py_ssize_t, six=cython.Py_ssize_t,
        number=cython.Py_ssize_t, src_high=cython.ulonglong, src_low=cython.ulonglong,
        dst_high=cython.ulonglong, dst_low=cython.ulonglong, protocol=cython.int,
        source=cython.uint, destination=cython.uint)
    cdef void read_tuple(self, Py_ssize_t at, Py_ssize_t end, bint reply) noexcept
    @cython.locals(length=cython.Py_ssize_t)
    cdef Py_ssize_t find(self, Py_ssize_t at, Py_ssize_t end, int wanted) noexcept
    @cython.locals(value=cython.uint)
    cdef unsigned int get32(self, Py_ssize_t at) noexcept
    @cython.locals(value=cython.ulonglong)
    cdef unsigned long long get64(self, Py_ssize_t at) noexcept
