# C types of icmp.py, for the compiled build.
cimport cython
from featherlb.core.path.outbox cimport Outbox
from featherlb.net.checksum cimport MASK16, negate, sum_bytes, update
from featherlb.core.flows.counters cimport Counters
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.next_hops cimport NextHops
from featherlb.core.flows.record cimport CARRIED, FULL, SPLICED, Record
from featherlb.core.flows.windows cimport is_in_flight
from featherlb.core.path.context cimport GO_ON, Context
from featherlb.core.path.hooks cimport DROP, REWRITE, VERIFY, for_error
from featherlb.core.flows.table cimport FlowTable
from featherlb.net.packet cimport MASK32, OK, Packet
from featherlb.core.path.redispatch cimport Redispatch
from featherlb.core.path.services cimport Services

cdef int ICMP, ICMPV6, TCP, UDP, FRAGMENTATION_NEEDED, UNREACHABLE_V6
cdef unsigned int TOO_BIG_V6, MIN_MTU_V4, MIN_MTU_V6
cdef int HEADER, UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM, FIRST_V6, LAST_V6
cdef int ECHO_V4, ECHO_V6, PREROUTING, OUTPUT, WIRE, NOT_READY, CUT, REWRITTEN, OFFLOAD
cdef int ICMP_ERROR, TRUNCATED, BAD_CHECKSUM, ECHO, COPY, TTL_EXCEEDED, NO_NEXT_HOP
cdef int FORGED_ERROR


cdef class IcmpHandler:
    cdef Packet _quoted
    cdef FlowTable _flows
    cdef NextHops _next_hops
    cdef Services _services
    cdef Counters _counters
    cdef Outbox _outbox
    cdef Redispatch _redispatch
    cdef Lifecycle _lifecycle

    cdef object attach(self, buffer)
    @cython.locals(
        packet=Packet, counters=Counters, ref=cython.Py_ssize_t, flow=cython.Py_ssize_t,
        record="Record *", reply=cython.Py_ssize_t, action=cython.int, own=cython.bint,
        reason=cython.int, verdict=cython.int)
    cdef int handle(self, Context ctx) except -1
    @cython.locals(reason=cython.int, verdict=cython.int)
    cdef int handle_offloaded(self, Context ctx) except -1
    @cython.locals(verdict=cython.int)
    cdef int move_refused(self, Context ctx) except -1
    @cython.locals(quoted=Packet, length=cython.Py_ssize_t)
    cdef object send_again(self, Context ctx)
    @cython.locals(packet=Packet, reason=cython.int)
    cdef int handle_echo(self, Context ctx) except -1
    cdef int damage(self, Context ctx) noexcept
    # -1 is OK.
    @cython.locals(next_hops=NextHops, record="Record *", hop=cython.ulonglong)
    cdef int route(self, Context ctx) except -2

cpdef bint is_icmp(Packet packet) noexcept
@cython.locals(kind=cython.int)
cpdef bint is_error(Packet packet) noexcept
@cython.locals(kind=cython.int)
cdef bint is_unreachable(Packet packet) noexcept
@cython.locals(kind=cython.int, mtu=cython.uint, sequence=cython.ulonglong, record="Record *")
cdef bint is_plausible(
    Packet packet, Packet quoted, FlowTable flows, Py_ssize_t flow, int reply) noexcept
@cython.locals(kind=cython.int)
cpdef bint is_echo_request(Packet packet) noexcept
cpdef Py_ssize_t find_quoted(Packet packet, Packet quoted, FlowTable flows) noexcept
@cython.locals(length=cython.Py_ssize_t)
cdef unsigned long long checksum(
    Packet packet, unsigned long long src_high, unsigned long long src_low,
    unsigned long long dst_high, unsigned long long dst_low) noexcept
cpdef bint is_intact(Packet packet) noexcept
@cython.locals(
    record="Record *", field=cython.Py_ssize_t, header=cython.Py_ssize_t,
    dst_port=cython.uint, peer_port=cython.uint, sequence=cython.ulonglong,
    address_delta=cython.ulonglong, delta=cython.ulonglong, check=cython.ulonglong,
    src_high=cython.ulonglong, src_low=cython.ulonglong,
    dst_high=cython.ulonglong, dst_low=cython.ulonglong,
    peer_high=cython.ulonglong, peer_low=cython.ulonglong)
cpdef void translate_error(
    Packet packet, Packet quoted, FlowTable flows, Py_ssize_t flow, bint reply, bint own) noexcept
