# C types of lifecycle.py, for the compiled build.
cimport cython
from featherlb.core.flows.announcer cimport Announcer
from featherlb.net.checksum cimport fold, words
from featherlb.core.flows.kernel cimport Commands
from featherlb.core.flows.carried cimport Carried
from featherlb.core.flows.counters cimport PORTS_RECLAIMED, RESETS, SYN_TIMEOUTS, Counters
from featherlb.core.flows.entry cimport (
    ENTRY_BACKEND_SPOKE, ENTRY_CLIENT_SPOKE, RESET_BY_BACKEND, STATE_MASK, Entry)
from featherlb.core.flows.flight_recorder cimport (
    CHANGED, ENDED, EVICTED, EXPIRED, NEW_FLOW, FlightRecorder)
from featherlb.core.flows.members cimport Members, PoolMember
from featherlb.core.flows.next_hops cimport NextHops
from featherlb.core.flows.port_holders cimport RANK_OF, PortHolders
from featherlb.core.flows.record cimport (
    ABANDONED, BACKEND_SPOKE, CARRIED, CLIENT_SPOKE, COUNTED, FULL, IPV6, LOCAL_CLIENT, OFFLOADED,
    UNSURE, WIRED, Record)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.flows.windows cimport are_acknowledged, start_unsure
from featherlb.core.pools.pool cimport Pool
from featherlb.net.packet cimport MASK32, Packet

cdef int SYN, TCP
cdef int MAX_EXPIRED_AT_ONCE, MAX_PORT_RECLAIMS, MAX_REVIEWED, MAX_BALANCE
cdef unsigned int PROMPT, RETRANSMITTED
cdef unsigned int YIELDS_CLOSING, YIELDS_UNANSWERED, YIELDS_ANSWERED
cdef unsigned char[::1] IS_ACTIVE, IS_REUSABLE, IS_ENDED
cdef int NEW, SYN_SENT, SYN_RETRIED, CLOSING, CLOSED, ADOPTED, REPLACED, REPLICA, ESTABLISHED
cdef int UDP_ONE_WAY
cdef unsigned int LONG_SILENCE
cdef int OUTPUT, WIRE, NO_SOURCE_PORT, TUPLE_IN_USE, UNPRIVILEGED


cdef class Lifecycle:
    cdef FlowTable _flows
    cdef Packet _packet
    cdef NextHops _next_hops
    cdef Members _members
    cdef Counters _counters
    cdef object _source_ports
    cdef PortHolders _port_holders
    cdef Commands _commands
    cdef Carried _carried
    cdef FlightRecorder _recorder
    cdef Announcer _announcer
    cdef unsigned char[::1] _queue_of
    cdef Py_ssize_t closed_queue, half_open_queue, offload_queue, opening_queue
    cdef Py_ssize_t established_queue, silent_queue, replica_queue
    cdef int _balance
    cdef list _silent
    cdef unsigned int _scarce_tcp, _scarce_udp
    cdef readonly Py_ssize_t evicted, unanswered
    cdef public object opened, noted
    cdef readonly Py_ssize_t missed
    cdef object note(self, Py_ssize_t flow, bint opened)

    # A negative reason is never -1: that is Reason.REPLY, which refuses nothing.
    @cython.locals(
        packet=Packet, flows=FlowTable, flags=cython.int, flow=cython.Py_ssize_t, record="Record *",
        clash=cython.Py_ssize_t, victim=cython.Py_ssize_t, source_high=cython.ulonglong, source_low=cython.ulonglong,
        backend_port=cython.uint, privileged=cython.bint)
    cdef Py_ssize_t open(
        self, Pool pool, PoolMember member, unsigned long long client_high, unsigned long long client_low,
        unsigned long long vip_high, unsigned long long vip_low, unsigned int ports, int hook,
        unsigned int source_port, int state, unsigned int ticks) except -1
    cdef bint keeps_client(self, Pool pool, int hook) noexcept
    @cython.locals(packet=Packet, record="Record *")
    cdef bint serves(self, Py_ssize_t flow, Py_ssize_t member_id) noexcept
    cdef object allocate_source(
        self, PoolMember member, unsigned int port, bint privileged, unsigned int ticks)
    @cython.locals(flow=cython.Py_ssize_t, _=cython.int)
    cdef object find_source(
        self, PoolMember member, unsigned int port, bint privileged, unsigned int ticks)
    @cython.locals(
        created="unsigned int[::1]", closing=cython.Py_ssize_t, unanswered=cython.Py_ssize_t,
        answered=cython.Py_ssize_t)
    cdef Py_ssize_t find_holder(
        self, unsigned int holders, bint privileged, unsigned int ticks) except -1
    @cython.locals(
        rank=cython.uint, flow=cython.Py_ssize_t, udp=cython.bint, timeout=cython.uint,
        _=cython.int)
    cdef void relieve(self, unsigned int holders, bint privileged, unsigned int ticks) except *
    @cython.locals(record="Record *")
    cdef void reclaim(self, Py_ssize_t flow) except *
    @cython.locals(record="Record *", member=PoolMember, privileged=cython.bint)
    cdef void rank(self, Py_ssize_t flow) except *
    @cython.locals(_=cython.int, source_port=cython.uint)
    cdef object allocate_free(self, PoolMember member, unsigned int port, bint privileged)
    @cython.locals(
        record="Record *", before=cython.ulonglong, after=cython.ulonglong,
        address_delta=cython.ulonglong, ports_before=cython.ulonglong,
        ports_after=cython.ulonglong)
    cdef void compute_deltas(self, Py_ssize_t flow) noexcept
    @cython.locals(
        record="Record *", before=cython.int, queue=cython.Py_ssize_t, member=PoolMember)
    cdef void enter(self, Py_ssize_t flow, int state, unsigned int ticks) except *
    @cython.locals(queue=cython.Py_ssize_t)
    cdef Py_ssize_t offloaded_queue(self, int state) noexcept
    cdef void count_active(self, PoolMember member, Record *record, int change) except *
    @cython.locals(record="Record *", state=cython.int)
    cdef void restore(self, Py_ssize_t flow, PoolMember member, unsigned int seen) except *
    @cython.locals(
        flows=FlowTable, flow=cython.Py_ssize_t, record="Record *", member=PoolMember)
    cdef object recount(self, Pool pool)
    @cython.locals(queue=cython.Py_ssize_t)
    cdef void enter_replica(self, Py_ssize_t flow, int state, unsigned int ticks) except *
    cdef void take_over(self, Py_ssize_t flow, int state, unsigned int ticks) except *
    @cython.locals(record="Record *", member_id=cython.Py_ssize_t)
    cdef bint reopens(self, Py_ssize_t flow, unsigned int ticks) noexcept
    cdef bint is_retransmission(self, Py_ssize_t flow, unsigned int ticks) noexcept
    @cython.locals(state=cython.int)
    cdef bint is_over(self, Record *record, unsigned int ticks) noexcept
    @cython.locals(record="Record *")
    cdef bint yields(self, Py_ssize_t flow, unsigned int ticks) noexcept
    cdef void close(self, Py_ssize_t flow) except *
    @cython.locals(
        carried=Carried, record="Record *", entry="Entry *", before=cython.uint, seen=cython.uint,
        word=cython.uint, state=cython.int)
    cdef bint catch_up(self, Py_ssize_t flow) except -1
    @cython.locals(flows=FlowTable, record="Record *", member=PoolMember)
    cdef void end(self, Py_ssize_t flow, int how) except *
    @cython.locals(known=cython.bint)
    cdef void review(self, Py_ssize_t flow, bint ask) except *
    @cython.locals(
        flows=FlowTable, record="Record *", opening=cython.bint, age=cython.uint,
        change=cython.int)
    cdef void judge(self, Py_ssize_t flow, unsigned int ticks) except *
    cdef bint is_silent(self, Py_ssize_t flow) noexcept
    cdef void wake(self, Py_ssize_t flow, unsigned int ticks) except *
    cdef list take_silent(self)
    @cython.locals(
        flows=FlowTable, flow=cython.Py_ssize_t, record="Record *", reviewed=cython.int,
        _=cython.int)
    cdef bint expire(self, unsigned int ticks) except -1
