# C types of offload.py, for the compiled build.
cimport cython
from featherlb.core.path.context cimport GO_ON, Context
from featherlb.core.path.outbox cimport Answers
from featherlb.core.flows.conntrack cimport AF_INET6, DESTINATION_NAT, SEEN_REPLY, Entry, Requests
from featherlb.core.flows.counters cimport COUNTERS, REFUSED, SYN_RETRIES, SYN_TIMEOUTS, Counters
from featherlb.core.flows.lifecycle cimport IS_REUSABLE, Lifecycle
from featherlb.core.flows.members cimport Members, PoolMember
from featherlb.core.flows.record cimport (
    ABANDONED, FULL, IPV6, OFFLOADED, Direction, Record, direction_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.net.packet cimport MASK32, SYN, TCP, UDP, Packet
from featherlb.core.path.services cimport Services

cdef unsigned char[::1] KERNEL_STATES
cdef int YOUNG, SYN_SENT, SYN_RETRIED, CLOSED, UDP_ONE_WAY, UDP_TWO_WAY, NOT_READY, GSO
cdef int CUT, FORWARD, INVALID, NO_ENTRY, NO_FLOW, TRUNCATED, DROP, CARRY, ASK


cdef class Offload:
    cdef readonly Requests requests
    cdef readonly Entry answer, event
    cdef public Py_ssize_t asked, created
    cdef list _resent
    cdef FlowTable _flows
    cdef Services _services
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Counters _counters
    cdef Answers _answers
    cdef object _source_ports

    @cython.locals(
        packet=Packet, flows=FlowTable, flow=cython.Py_ssize_t, record="Record *",
        alive=cython.bint)
    cdef int meet(self, Context ctx) except -1
    @cython.locals(flows=FlowTable)
    cpdef bint is_open(self, Py_ssize_t flow) noexcept
    cdef int hand_over(self, Context ctx) except -1
    @cython.locals(packet=Packet)
    cdef int carry(self, Context ctx) except -1
    cpdef list take_resent(self)
    cpdef object fail(self, Py_ssize_t flow)
    cpdef object disown(self, Py_ssize_t flow)
    @cython.locals(record="Record *")
    cpdef bint clash(self, Py_ssize_t flow, Entry entry) except -1
    cpdef object inquire(self, Py_ssize_t flow)
    cpdef object replace(self, Py_ssize_t flow)
    @cython.locals(flows=FlowTable, record="Record *")
    cpdef bint give_port(self, Py_ssize_t flow) except -1
    @cython.locals(
        record="Record *", forward="Direction *", reply="Direction *", counters=Counters,
        at=cython.Py_ssize_t, packets=cython.ulonglong, back_packets=cython.ulonglong)
    cpdef object observe(self, Py_ssize_t flow, Entry entry, unsigned int ticks)
    @cython.locals(flow=cython.Py_ssize_t)
    cpdef object advance(self, Entry entry, unsigned int ticks)
    @cython.locals(record="Record *", port=cython.uint)
    cdef object take_port(self, Py_ssize_t flow, Entry entry)
    @cython.locals(state=cython.int)
    cdef object take_state(self, Py_ssize_t flow, Entry entry, unsigned int ticks)
    @cython.locals(before=cython.int)
    cdef object enter(self, Py_ssize_t flow, int state, unsigned int ticks)
    @cython.locals(flow=cython.Py_ssize_t, record="Record *", opening=cython.bint)
    cpdef Py_ssize_t end(self, Entry entry, bint certain, unsigned int ticks) except -1
    cdef Py_ssize_t find(self, Entry entry) noexcept
    @cython.locals(
        flows=FlowTable, record="Record *", ref=cython.Py_ssize_t, flow=cython.Py_ssize_t)
    cdef Py_ssize_t flow_of(self, Entry entry) noexcept
    cpdef bint is_offloaded(self, Py_ssize_t flow) noexcept
    cpdef Py_ssize_t last_record(self) noexcept
    @cython.locals(
        flows=FlowTable, record="Record *", flags=cython.int, flow=cython.Py_ssize_t,
        member=PoolMember)
    cpdef bint adopt(
        self, Entry entry, object services, object shard, unsigned int ticks) except -1
    cdef object abandon(self, Py_ssize_t flow, unsigned int ticks)
