# C types of carrying.py, for the compiled build.
cimport cython
from featherlb.core.flows.carried cimport Carried
from featherlb.core.flows.counters cimport Counters
from featherlb.core.flows.entry cimport (
    IPV6_ENTRY, LIFT_SYN_ACK, STATE_MASK, Entry, swap16, swap64)
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members, PoolMember
from featherlb.core.flows.record cimport (
    CARRIED, COUNTED, FULL, IPV6, LOCAL_BACKEND, LOCAL_CLIENT, OFFLOADED, REPLY_ONLY, UNSURE, WATCHED,
    WIRED,
    Record)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.context cimport Context
from featherlb.core.path.services cimport Services
from featherlb.core.pools.latency cimport Latencies

cdef int TCP, UDP
cdef int STATES, REWRITTEN, SYN_SENT, SYN_RECEIVED, UDP_ONE_WAY, UDP_TWO_WAY
cdef Py_ssize_t SWEPT
cdef unsigned char[::1] IS_CARRIABLE

cdef enum:
    NOT_CARRIED = (
        LOCAL_BACKEND | LOCAL_CLIENT | REPLY_ONLY | COUNTED | WIRED | OFFLOADED | UNSURE
        | WATCHED | CARRIED)


@cython.final
cdef class Carrying:
    cdef readonly Carried carried
    cdef Py_ssize_t taken, _next
    cdef FlowTable _flows
    cdef Services _services
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Counters _counters
    cdef object _source_ports

    cdef void take(self, Py_ssize_t flow) except *
    @cython.locals(flow=cython.Py_ssize_t)
    cdef void settle(self, Context ctx, int verdict) except *
    @cython.locals(record="Record *", carries=cython.bint)
    cdef bint may_give(self, Py_ssize_t flow) except -1
    @cython.locals(member=PoolMember, options=cython.int)
    cdef object give(self, Py_ssize_t flow, unsigned int ticks)
    @cython.locals(entry="Entry *", member=PoolMember)
    cdef PoolMember backend_of(self, Py_ssize_t index, object pool)
    cdef bint has(self, Py_ssize_t flow, Py_ssize_t index) noexcept
    cdef object opened(self, Py_ssize_t flow, Py_ssize_t index)
    @cython.locals(carried=Carried, entry="Entry *", index=cython.Py_ssize_t)
    cpdef tuple start(self, object memory, object shard, unsigned int ticks)
    @cython.locals(
        carried=Carried, flows=FlowTable, entry="Entry *", forward=cython.Py_ssize_t,
        flow=cython.Py_ssize_t, record="Record *")
    cdef bint adopt(self, Py_ssize_t index, unsigned int ticks) except -1
    @cython.locals(carries=cython.bint)
    cdef bint _carries(self, Py_ssize_t flow) except -1
    @cython.locals(
        flows=FlowTable, state=cython.int, vip_port=cython.uint, vip_high=cython.ulonglong,
        vip_low=cython.ulonglong, client_high=cython.ulonglong, client_low=cython.ulonglong,
        source_high=cython.ulonglong, source_low=cython.ulonglong,
        backend_high=cython.ulonglong, backend_low=cython.ulonglong, backend_port=cython.uint,
        member=PoolMember, source_port=cython.uint, flags=cython.int, seen=cython.uint,
        flow=cython.Py_ssize_t, record="Record *")
    cdef Py_ssize_t insert(self, Entry *entry, unsigned int ticks) except -1
    @cython.locals(flows=FlowTable, flow=cython.Py_ssize_t)
    cpdef object catch_up_range(self, Py_ssize_t first, Py_ssize_t count)
    cpdef object catch_up_all(self)
    @cython.locals(flow=cython.Py_ssize_t, answered=cython.bint, latencies=Latencies)
    cpdef object noticed(self, Py_ssize_t index, int before, int after, double now)
    @cython.locals(last=cython.Py_ssize_t)
    cpdef object sweep(self)
    @cython.locals(
        flows=FlowTable, flow=cython.Py_ssize_t, record="Record *", retired=cython.bint)
    cpdef object recall(self)
    cdef object release(self, Py_ssize_t flow)
