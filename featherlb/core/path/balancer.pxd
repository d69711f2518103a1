# C types of balancer.py, for the compiled build.
cimport cython
from featherlb.core.path.adopt cimport Adoption
from featherlb.core.path.outbox cimport Answers
from featherlb.core.flows.counters cimport COUNTERS, REFUSED, RESETS, SYN_RETRIES, Counters
from featherlb.core.path.terminate cimport Ending
from featherlb.core.flows.record cimport (
    COUNTED, FULL, OFFLOADED, WIRED, Direction, Record, direction_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.fragments cimport Fragments
from featherlb.core.path.migrate cimport Handover
from featherlb.core.flows.next_hops cimport SLOT_MASK, SLOT_SHIFT, Hops
from featherlb.core.path.icmp cimport IcmpHandler, is_icmp
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members
from featherlb.net.tcp_options cimport lower
from featherlb.core.path.nat cimport translate, translate_addresses
from featherlb.core.path.offloaded cimport Offload
from featherlb.net.packet cimport (
    ACK, FIN, FRAGMENT, MASK32, OK, RST, SYN, TCP, UDP, UNSUPPORTED, Packet)
from featherlb.core.path.services cimport Services
from featherlb.core.path.restore cimport Takeover
from featherlb.core.path.export cimport Views

cdef Py_ssize_t EVENTS
cdef unsigned char[::1] NEXT_STATE
cdef int EVENT_SYN, EVENT_SYN_ACK, EVENT_FIN, EVENT_RST, EVENT_ACK
cdef int NEW, SYN_SENT, SYN_RECEIVED, SYN_RETRIED, CLOSED, UDP_ONE_WAY
cdef int PREROUTING, OUTPUT, WIRE, NOT_READY, TRUNCATED, REWRITTEN
cdef int TRUNCATED_REASON, NO_BACKEND, POOL_FULL, NO_FLOW, COPY, INVALID, MARTIAN, TTL_EXCEEDED
cdef int TOO_BIG, NO_NEXT_HOP


cdef class Balancer:
    cdef readonly FlowTable flows
    cdef readonly Hops hops
    cdef readonly Answers answers
    cdef readonly Lifecycle lifecycle
    cdef readonly Offload offload
    cdef readonly Ending ending
    cdef readonly Takeover takeover
    cdef readonly Views views
    cdef readonly object buffer
    cdef Packet packet
    cdef Counters counters
    cdef Members members
    cdef Services services
    cdef Handover handover
    cdef IcmpHandler icmp
    cdef Fragments fragments
    cdef object ended
    cdef Adoption adoption
    cdef unsigned long long[::1] tags
    cdef int refusal

    @cython.locals(packet=Packet, flows=FlowTable, i=cython.Py_ssize_t)
    cpdef void expect_packets(
        self, long long[::1] offsets, long long[::1] lengths, Py_ssize_t count)
    @cython.locals(packet=Packet, i=cython.Py_ssize_t, ref=cython.Py_ssize_t)
    cpdef object ask_ahead(self, long long[::1] offsets, long long[::1] lengths, Py_ssize_t count)
    @cython.locals(
        packet=Packet, flows=FlowTable, ticks=cython.uint, reason=cython.int, early=cython.bint,
        ref=cython.Py_ssize_t, flow=cython.Py_ssize_t, record="Record *", reply=cython.Py_ssize_t,
        late=cython.bint, wire=cython.bint, first=cython.bint, verdict=cython.int)
    cpdef int handle_packet(
        self, Py_ssize_t offset, Py_ssize_t length, int hook, int info, double now) except -1
    cpdef bint handle_timer(self, double now) except -1
    @cython.locals(packet=Packet)
    cdef Py_ssize_t find(self) noexcept
    @cython.locals(
        packet=Packet, port=cython.uint, wire=cython.bint, late=cython.bint, flow=cython.Py_ssize_t)
    cdef Py_ssize_t open(self, int hook, int info, unsigned int ticks) except -1
    cdef int refuse(self, int reason, unsigned int ticks) except -1
    @cython.locals(
        packet=Packet, flows=FlowTable, record="Record *", state=cython.int, following=cython.int,
        event=cython.int, flags=cython.int, refused=cython.bint)
    cdef void track(self, Py_ssize_t flow, Py_ssize_t reply, unsigned int ticks) except *
    cdef bint resets_another(self, Py_ssize_t flow, int state) except -1
    cdef int limit_segments(self, Py_ssize_t flow, int info) except -1
    @cython.locals(record="Record *", counters=Counters, at=cython.Py_ssize_t)
    cdef void count(self, Py_ssize_t flow, Py_ssize_t reply, Py_ssize_t length) noexcept
    @cython.locals(record="Record *", responses="Direction *", awaited=cython.ulonglong)
    cdef bint answered(self, Py_ssize_t flow, Py_ssize_t reply) noexcept
    @cython.locals(
        packet=Packet, record="Record *", hops=Hops, hop=cython.ulonglong,
        mtu=cython.uint)
    cdef bint route(
        self, Py_ssize_t flow, Py_ssize_t reply, Py_ssize_t length,
        unsigned int ticks) except -1
    cdef Py_ssize_t expire(
        self, unsigned long long high, unsigned long long low, unsigned int ticks) except -1
    @cython.locals(
        packet=Packet, flows=FlowTable, ref=cython.Py_ssize_t, flow=cython.Py_ssize_t,
        reply=cython.Py_ssize_t, record="Record *", direction="Direction *")
    cdef int handle_fragment(self, Py_ssize_t length, unsigned int ticks) except -1
