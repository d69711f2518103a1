# C types of balancer.py, for the compiled build.
cimport cython
from featherlb.core.answers cimport Answers
from featherlb.core.checksum cimport fold, words
from featherlb.core.conntrack cimport AF_INET6, DESTINATION_NAT, SEEN_REPLY, Entry, Requests
from featherlb.core.counters cimport (
    COUNTERS, OPENED, REFUSED, RESETS, SYN_RETRIES, SYN_TIMEOUTS, Counters)
from featherlb.core.flow cimport (
    ABANDONED, ADDRESS_DELTA, AWAITED, BYTES, CARRIED, COUNTED, CREATED, EXPECTED, FLAGS, FULL, IPV6,
    LOCAL_CLIENT, MEMBER, NEXT, OFFLOADED, PORTS, PROTOCOL, QUEUE, RESPONSES, SEEN,
    STATE, TRANSPORT_DELTA, WIRED, FlowTable)
from featherlb.core.hops cimport SLOT_MASK, SLOT_SHIFT, Hops
from featherlb.core.fragments cimport Fragments
from featherlb.core.icmp cimport IcmpHandler, is_icmp
from featherlb.core.members cimport Members, Slot
from featherlb.core.mss cimport lower
from featherlb.core.nat cimport translate, translate_addresses
from featherlb.core.packet cimport (
    ACK, FIN, FRAGMENT, MASK32, OK, RST, SYN, TCP, UDP, UNSUPPORTED, Packet)
from featherlb.core.services cimport Services

cdef Py_ssize_t EVENTS
cdef unsigned char[::1] NEXT_STATE, IS_ACTIVE, IS_REUSABLE, KERNEL_STATES
cdef int EVENT_SYN, EVENT_SYN_ACK, EVENT_FIN, EVENT_RST, EVENT_ACK
cdef int CLOSED
cdef int NEW, SYN_SENT, SYN_RECEIVED, SYN_RETRIED, ESTABLISHED, ADOPTED, YOUNG, INPUT, UDP_ONE_WAY, UDP_TWO_WAY, PREROUTING, OUTPUT, TRUNCATED, REWRITTEN, DROP
cdef int WIRE, COPY, MARTIAN, TTL_EXCEEDED, TOO_BIG, NO_NEXT_HOP
cdef int CARRY, ASK, INVALID, NO_ENTRY, FORWARD, GSO
cdef int NOT_READY, TRUNCATED_REASON, NO_BACKEND, POOL_FULL, NO_FLOW, NO_SOURCE_PORT, TUPLE_IN_USE


cdef class Balancer:
    cdef readonly FlowTable flows
    cdef readonly Hops hops
    cdef Counters counters
    cdef readonly Answers answers
    cdef Members members
    cdef Services services
    cdef IcmpHandler icmp
    cdef Fragments fragments
    cdef readonly object buffer
    cdef readonly Packet packet
    cdef readonly object source_ports, ended
    cdef readonly Py_ssize_t evicted
    cdef readonly int refusal
    cdef public object opened
    cdef unsigned char[::1] queue_of
    cdef unsigned long long[::1] tags
    cdef Py_ssize_t closed_queue, offload_queue
    cdef readonly Requests requests
    cdef readonly Entry answer, event
    cdef public Py_ssize_t asked, created
    cdef list resent
    cdef double _adopt_until
    cdef dict _adoptable

    @cython.locals(packet=Packet, flows=FlowTable, i=cython.Py_ssize_t)
    cpdef void expect_packets(
        self, long long[::1] offsets, long long[::1] lengths, Py_ssize_t count)
    @cython.locals(
        packet=Packet, flows=FlowTable, ticks=cython.uint, reason=cython.int, early=cython.bint,
        ref=cython.Py_ssize_t, flow=cython.Py_ssize_t, reply=cython.Py_ssize_t, late=cython.bint,
        wire=cython.bint, first=cython.bint, verdict=cython.int)
    cpdef int handle_packet(
        self, Py_ssize_t offset, Py_ssize_t length, int hook, int info, double now) except -1
    @cython.locals(ticks=cython.uint, flow=cython.Py_ssize_t, _=cython.int)
    cpdef bint handle_timer(self, double now) except -1
    cpdef list take_crafted(self)
    @cython.locals(state=cython.int)
    cdef bint reopens(self, Py_ssize_t flow) except -1
    @cython.locals(packet=Packet, port=cython.uint, wire=cython.bint)
    cdef Py_ssize_t open(self, int hook, int info, unsigned int ticks) except -1
    @cython.locals(packet=Packet, alive=cython.bint)
    cdef int meet(self, Py_ssize_t flow, Py_ssize_t reply, int info, unsigned int ticks) except -2
    @cython.locals(packet=Packet)
    cdef int carry(self, Py_ssize_t flow, int info) except -2
    cpdef list take_resent(self)
    cpdef object fail(self, Py_ssize_t flow)
    cpdef object disown(self, Py_ssize_t flow)
    @cython.locals(flows=FlowTable, at=cython.Py_ssize_t)
    cpdef bint clash(self, Py_ssize_t flow, Entry entry) except -1
    cpdef object inquire(self, Py_ssize_t flow)
    cpdef object replace(self, Py_ssize_t flow)
    @cython.locals(
        flows=FlowTable, at=cython.Py_ssize_t, carried=cython.Py_ssize_t, packets=cython.ulonglong,
        back_packets=cython.ulonglong, base=cython.Py_ssize_t, counts="unsigned long long[::1]")
    cpdef object observe(self, Py_ssize_t flow, Entry entry, unsigned int ticks)
    @cython.locals(flow=cython.Py_ssize_t)
    cpdef object advance(self, Entry entry, unsigned int ticks)
    cdef object take_state(self, Py_ssize_t flow, Entry entry, unsigned int ticks)
    @cython.locals(before=cython.int, queue=cython.Py_ssize_t)
    cdef object enter_state(self, Py_ssize_t flow, int state, unsigned int ticks)
    @cython.locals(flow=cython.Py_ssize_t, opening=cython.bint, member=cython.Py_ssize_t)
    cpdef Py_ssize_t end(self, Entry entry, bint certain, unsigned int ticks) except -1
    @cython.locals(
        flows=FlowTable, ref=cython.Py_ssize_t, flow=cython.Py_ssize_t, known=cython.uint)
    cdef Py_ssize_t flow_of(self, Entry entry) noexcept
    @cython.locals(flows=FlowTable)
    cpdef bint is_carried(self, Py_ssize_t flow) noexcept
    cpdef Py_ssize_t last_record(self) noexcept
    @cython.locals(flows=FlowTable, flags=cython.int, flow=cython.Py_ssize_t, slot=Slot)
    cpdef bint adopt(self, Entry entry, int worker, int workers, unsigned int ticks) except -1
    @cython.locals(packet=Packet, client_port=cython.uint, ports=cython.uint,
        vip_high=cython.ulonglong, vip_low=cython.ulonglong, vip_port=cython.uint)
    cdef Py_ssize_t adopt_reply(self, int hook, int info, unsigned int ticks) except -1
    @cython.locals(
        packet=Packet, flows=FlowTable, flags=cython.int, flow=cython.Py_ssize_t,
        clash=cython.Py_ssize_t, source_high=cython.ulonglong, source_low=cython.ulonglong,
        source_port=cython.uint, goes=cython.ulonglong, comes=cython.ulonglong,
        address_delta=cython.ulonglong, ports_go=cython.ulonglong)
    cdef Py_ssize_t insert(
        self, pool, Slot slot, unsigned long long client_high, unsigned long long client_low,
        unsigned long long vip_high, unsigned long long vip_low, unsigned int ports, int hook,
        int state, unsigned int ticks) except -1
    @cython.locals(
        flows=FlowTable, at=cython.Py_ssize_t, goes=cython.ulonglong, comes=cython.ulonglong,
        ports=cython.uint, back=cython.uint, address_delta=cython.ulonglong,
        ports_go=cython.ulonglong, ports_come=cython.ulonglong)
    cdef object settle(self, Py_ssize_t flow)
    @cython.locals(
        packet=Packet, flows=FlowTable, state=cython.int, following=cython.int, event=cython.int,
        flags=cython.int, member=cython.Py_ssize_t, refused=cython.bint)
    cdef void track(self, Py_ssize_t flow, Py_ssize_t reply, unsigned int ticks) except *
    cdef bint resets_another(self, Py_ssize_t flow, int state) except -1
    @cython.locals(
        packet=Packet, flows=FlowTable, hops=Hops, at=cython.Py_ssize_t, hop=cython.ulonglong,
        mtu=cython.uint)
    cdef bint route(
        self, Py_ssize_t flow, Py_ssize_t reply, Py_ssize_t length,
        unsigned int ticks) except -1
    cdef Py_ssize_t expire(
        self, unsigned long long high, unsigned long long low, unsigned int ticks) except -1
    @cython.locals(flows=FlowTable, counters=Counters, at=cython.Py_ssize_t)
    cdef void count(self, Py_ssize_t flow, Py_ssize_t reply, Py_ssize_t length) noexcept
    @cython.locals(
        packet=Packet, flows=FlowTable, ref=cython.Py_ssize_t, flow=cython.Py_ssize_t,
        reply=cython.Py_ssize_t, at=cython.Py_ssize_t)
    cdef int handle_fragment(self, Py_ssize_t length, unsigned int ticks) except -1
    cdef int limit_segments(self, Py_ssize_t flow, int info) except -1
    @cython.locals(packet=Packet, flows=FlowTable)
    cdef bint serves(self, Py_ssize_t flow, Py_ssize_t member) except -1
    @cython.locals(flows=FlowTable, awaited=cython.ulonglong)
    cdef bint answered(self, Py_ssize_t flow, Py_ssize_t reply) noexcept
    @cython.locals(flows=FlowTable, slot=Slot)
    cdef void close(self, Py_ssize_t flow) except *
    cdef int refuse(self, int reason, unsigned int ticks) except -1
    @cython.locals(
        flows=FlowTable, closing=cython.Py_ssize_t, following=cython.Py_ssize_t, _=cython.int)
    cdef object _allocate_source(self, Slot slot)
