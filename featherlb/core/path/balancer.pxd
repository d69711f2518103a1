# C types of balancer.py, for the compiled build.
cimport cython
from featherlb.core.flows.announcer cimport Announcer
from featherlb.core.path.adopt cimport Adoption
from featherlb.core.path.budget cimport DatagramBudget
from featherlb.core.path.carrying cimport Carrying
from featherlb.core.path.outbox cimport Outbox
from featherlb.core.path.own_addresses cimport OwnAddresses
from featherlb.core.path.claims cimport FIND_OWNER, PENDING, Claims
from featherlb.core.path.context cimport (
    FIRST_FRAGMENT, GO_ON, ICMP_MESSAGE, LATER_FRAGMENT, Context)
from featherlb.core.path.hooks cimport (
    VERIFY, DROP, PASS, REWRITE, for_flow, for_new, is_after_routing)
from featherlb.core.path.cookies cimport Cookies
from featherlb.core.path.splice cimport Opening, Splices
from featherlb.core.path.tracking cimport Tracker
from featherlb.core.flows.counters cimport COUNTERS, Counters
from featherlb.core.path.terminate cimport Termination
from featherlb.core.flows.record cimport (
    CARRIED, SPLICED, WATCHED, Direction, Record, direction_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.fragments cimport Fragments
from featherlb.core.path.liveness cimport Liveness
from featherlb.core.path.migrate cimport Migration
from featherlb.core.flows.next_hops cimport LINK_MASK, LINK_SHIFT, NextHops
from featherlb.core.path.icmp cimport IcmpHandler, is_icmp
from featherlb.core.flows.flight_recorder cimport FlightRecorder
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members, PoolMember
from featherlb.net.tcp_options cimport lower
from featherlb.core.path.nat cimport rewrite, rewrite_addresses
from featherlb.core.path.offloaded cimport OffloadedFlows
from featherlb.net.packet cimport FRAGMENT, OK, UNSUPPORTED, Packet
from featherlb.core.path.recording cimport Recording
from featherlb.core.path.services cimport Services
from featherlb.core.path.redispatch cimport Attempt, Redispatch
from featherlb.core.path.replicas cimport Replicas
from featherlb.core.pools.pool cimport Pool
from featherlb.core.path.restore cimport Restoration
from featherlb.core.path.export cimport Views
from featherlb.core.path.faults cimport Faults, Injected

cdef int ACK, SYN, TCP, UDP, LONG_HEADER
cdef int NEW, SYN_SENT, SYN_RETRIED, ESTABLISHED, REPLACED, REPLICA, UDP_ONE_WAY
cdef int PREROUTING, OUTPUT, WIRE, NOT_READY, TRUNCATED, REWRITTEN
cdef int TRUNCATED_REASON, NO_BACKEND, POOL_FULL, NO_FLOW, COPY, INVALID, MARTIAN, TTL_EXCEEDED
cdef int TOO_BIG, NO_NEXT_HOP, TUPLE_IN_USE, NOT_ALLOWED, MALFORMED, BAD_CHECKSUM
cdef int UDP_FLOOD


@cython.final
cdef class Balancer:
    cdef readonly FlowTable flows
    cdef readonly NextHops next_hops
    cdef readonly Outbox outbox
    cdef readonly Lifecycle lifecycle
    cdef readonly OffloadedFlows offload
    cdef readonly Carrying carrying
    cdef readonly object openings
    cdef readonly Termination termination
    cdef readonly Redispatch redispatch
    cdef readonly Restoration restoration
    cdef readonly Announcer announcer
    cdef readonly Replicas replicas
    cdef readonly Views views
    cdef readonly Recording recording
    cdef readonly Faults faults
    cdef readonly object buffer
    cdef Packet packet
    cdef Counters counters
    cdef Members members
    cdef Services services
    cdef Migration migration
    cdef IcmpHandler icmp
    cdef Fragments fragments
    cdef object tombstones
    cdef Adoption adoption
    cdef unsigned long long[::1] tags
    cdef Context context
    cdef Tracker tracker
    cdef Liveness liveness
    cdef readonly Claims claims
    cdef readonly Cookies cookies
    cdef Splices splices
    cdef OwnAddresses own_addresses
    cdef readonly DatagramBudget budget
    cdef readonly FlightRecorder recorder

    @cython.locals(packet=Packet, flows=FlowTable, i=cython.Py_ssize_t)
    cpdef void expect_packets(
        self, long long[::1] offsets, long long[::1] lengths, Py_ssize_t count)
    @cython.locals(packet=Packet, i=cython.Py_ssize_t, ref=cython.Py_ssize_t)
    cpdef object look_up_ahead(
        self, long long[::1] offsets, long long[::1] lengths, Py_ssize_t count)
    @cython.locals(ctx=Context, verdict=cython.int)
    cpdef int handle_packet(
        self, Py_ssize_t offset, Py_ssize_t length, int hook, int info, double now) except -1
    cpdef object review_openings(self)
    cpdef object opened(self, Py_ssize_t index, Py_ssize_t length, double now)
    @cython.locals(
        ctx=Context, packet=Packet, ref=cython.Py_ssize_t, port=cython.uint, member=PoolMember,
        flow=cython.Py_ssize_t)
    cdef bint take_opened(self, Py_ssize_t index, Py_ssize_t length, double now) except -1
    cpdef bint handle_timer(self, double now) except -1
    @cython.locals(packet=Packet, reason=cython.int)
    cdef int parse(self, Context ctx) except -1
    @cython.locals(packet=Packet)
    cdef int parse_further(self, Context ctx, int reason) except -1
    @cython.locals(
        packet=Packet, ref=cython.Py_ssize_t, flow=cython.Py_ssize_t, reply=cython.Py_ssize_t,
        record="Record *", action=cython.int)
    cdef int look_up(self, Context ctx) except -1
    @cython.locals(verdict=cython.int, fault=Injected)
    cdef int look_up_watched(self, Context ctx) except -1
    @cython.locals(pool=Pool)
    cdef bint reopens_by_cookie(self, Context ctx) except -1
    @cython.locals(packet=Packet, member=PoolMember)
    cdef bint learn_ids(self, Context ctx) except -1
    @cython.locals(
        packet=Packet, pool=Pool, wire=cython.bint, port=cython.uint, action=cython.int, verdict=cython.int)
    cdef int admit(self, Context ctx) except -1
    @cython.locals(
        packet=Packet, claims=Claims, redispatch=Redispatch, member=PoolMember, attempt=Attempt,
        opening=Opening, pool=Pool, hook=cython.int, port=cython.int, flow=cython.Py_ssize_t,
        reason=cython.int)
    cdef int schedule(self, Context ctx) except -1
    @cython.locals(
        packet=Packet, flow=cython.Py_ssize_t, next_hops=NextHops, record="Record *",
        hop=cython.ulonglong, length=cython.Py_ssize_t, mtu=cython.uint)
    cdef int route(self, Context ctx) except -1
    @cython.locals(packet=Packet, spliced=cython.bint, verdict=cython.int)
    cdef int translate(self, Context ctx) except -1
    @cython.locals(
        packet=Packet, ref=cython.Py_ssize_t, record="Record *", direction="Direction *")
    cdef int look_up_fragment(self, Context ctx) except -1
    cdef int translate_fragment(self, Context ctx) except -1
    @cython.locals(packet=Packet, reason=cython.int)
    cdef int pass_gate(self, Context ctx, bint opens) except -1
    @cython.locals(packet=Packet)
    cdef PoolMember choose(self, Context ctx, Attempt attempt)
    @cython.locals(packet=Packet)
    cdef Py_ssize_t find(self) noexcept
    @cython.locals(packet=Packet)
    cdef bint is_ours(self, Context ctx) except -1
    cdef int refuse(self, Context ctx, int reason) except -1
    cdef int turn_away(self, Context ctx, int reason) except -1
    cdef int drop_ttl_exceeded(
        self, Context ctx, unsigned long long high, unsigned long long low) except -1
    cdef int clamp_mss(self, Context ctx) except -1
    @cython.locals(record="Record *", counters=Counters, at=cython.Py_ssize_t)
    cdef void count(self, Context ctx) noexcept
