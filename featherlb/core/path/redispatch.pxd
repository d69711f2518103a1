# C types of redispatch.py, for the compiled build.
cimport cython
from libc.string cimport memcpy
from featherlb.core.flows.carried cimport Carried
from featherlb.core.flows.counters cimport (
    MOVED_REFUSED, MOVED_SILENT, REFUSED, SYN_RETRIES, Counters)
from featherlb.core.flows.flight_recorder cimport MOVED, FlightRecorder
from featherlb.core.flows.kernel cimport Commands
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members, PoolMember
from featherlb.core.flows.next_hops cimport NextHops
from featherlb.core.flows.record cimport (
    ABANDONED, ANSWERED, CARRIED, LOCAL_CLIENT, OFFLOADED, REDISPATCHED, REPLY_ONLY, WIRED, Record,
    direction_of, ports_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.context cimport GO_ON, Context
from featherlb.core.path.outbox cimport Outbox
from featherlb.core.pools.pool cimport Pool
from featherlb.net.packet cimport MASK32, OK, Packet

cdef int ACK, RST, SYN, TCP
cdef Py_ssize_t SLOTS, SLOT_SIZE, MAX_PENDING, MAX_STORIES
cdef unsigned int PENDING
cdef int SYN_SENT, SYN_RETRIED, REPLACED, UDP_ONE_WAY, PREROUTING, OUTPUT, WIRE, NOT_READY
cdef int REDISPATCHED_REASON, LATE_ANSWER


cdef inline void copy_bytes(
    unsigned char[::1] to, Py_ssize_t at, unsigned char[::1] source, Py_ssize_t first,
    Py_ssize_t length) noexcept:
    memcpy(&to[at], &source[first], length)


@cython.final
cdef class Attempt:
    cdef tuple tried
    cdef int hook
    cdef unsigned long long hop
    cdef unsigned int ticks

    cdef object choose(self, Pool pool, flow, unsigned int ticks)


@cython.final
cdef class Redispatch:
    cdef readonly dict pending
    cdef readonly Py_ssize_t unkept
    cdef dict _stories
    cdef list _reinjected
    cdef unsigned char[::1] _syns, _unfinished
    cdef unsigned int[::1] _owners
    cdef unsigned short[::1] _lengths
    cdef Packet _kept
    cdef FlowTable _flows
    cdef Members _members
    cdef NextHops _next_hops
    cdef Lifecycle _lifecycle
    cdef Counters _counters
    cdef Outbox _outbox
    cdef Commands _commands
    cdef Carried _carried
    cdef FlightRecorder _recorder

    @cython.locals(packet=Packet, slot=cython.Py_ssize_t, length=cython.Py_ssize_t)
    cdef void keep(self, Context ctx) noexcept
    @cython.locals(packet=Packet, flow=cython.Py_ssize_t, record="Record *")
    cdef int decide(self, Context ctx) except -1
    @cython.locals(flow=cython.Py_ssize_t, record="Record *", sequence=cython.uint)
    cdef int decide_error(self, Context ctx, Packet quoted) except -1
    cdef Attempt find(self, Packet packet)
    @cython.locals(packet=Packet, flow=cython.Py_ssize_t, stories=dict, offloaded=cython.int)
    cdef object opened(self, Context ctx, Attempt attempt)
    cdef object forget(self, Packet packet)
    @cython.locals(attempt=Attempt)
    cdef object expire(self, unsigned int ticks)
    cdef object reinject(self, bytes packet)
    cpdef list take_reinjected(self)
    cdef tuple tried(self, Py_ssize_t flow)
    cdef bint may_leave(self, Py_ssize_t flow) except -1
    @cython.locals(record="Record *")
    cdef bint is_silent(self, Py_ssize_t flow, unsigned int ticks) except -1
    cdef object pool_of(self, Py_ssize_t flow)
    @cython.locals(record="Record *", member=PoolMember, tried=tuple)
    cdef bint has_other(self, Py_ssize_t flow) except -1
    @cython.locals(
        slot=cython.Py_ssize_t, record="Record *", kept=Packet, length=cython.Py_ssize_t,
        found=cython.bint)
    cdef bint find_kept(self, Py_ssize_t flow) noexcept
    @cython.locals(data=cython.uint)
    cdef bint is_refusal(self, Packet packet, Py_ssize_t flow) except -1
    @cython.locals(record="Record *", kept=Packet)
    cdef object refused(self, Py_ssize_t flow, unsigned int ticks)
    @cython.locals(record="Record *")
    cdef object replace(self, Py_ssize_t flow, unsigned int ticks)
    @cython.locals(flows=FlowTable, record="Record *")
    cdef object retire(self, Py_ssize_t flow, unsigned int ticks)
    @cython.locals(
        record="Record *", member=PoolMember, hook=cython.int, tried=tuple)
    cdef object await_opening(self, Py_ssize_t flow, str why, unsigned int ticks)

cdef tuple key_of(Packet packet)
@cython.locals(ip=cython.Py_ssize_t)
cdef bint is_whole(Packet quoted) noexcept
