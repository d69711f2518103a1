# C types of restore.py, for the compiled build.
cimport cython
from featherlb.core.flows.announcer cimport Announcer
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members, PoolMember
from featherlb.core.flows.next_hops cimport NextHops
from featherlb.core.flows.record cimport (
    COUNTED, FULL, IPV6, LOCAL_CLIENT, OFFLOADED, REPLY_ONLY, SPLICED, UNSURE, WIRED, Direction,
    Record, Records, direction_of, ports_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.migrate cimport Migration
from featherlb.core.path.services cimport Services

cdef int TCP
cdef int STATES, NEW, SYN_SENT, SYN_RETRIED, REPLACED, REPLICA


cdef class Restoration:
    cdef FlowTable _flows
    cdef Services _services
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Migration _migration
    cdef Announcer _announcer
    cdef NextHops _next_hops
    cdef object _source_ports
    cdef dict _known
    cdef Records _records
    cdef object _created, _splices

    @cython.locals(flows=FlowTable, flow=cython.Py_ssize_t, record="Record *")
    cpdef bint has_flows(self)
    @cython.locals(number=cython.Py_ssize_t, record="Record *", flow=cython.Py_ssize_t)
    cpdef object restore(self, memory, shard)
    cdef object read_from(self, memory)
    @cython.locals(old="Record *", member=PoolMember, flow=cython.Py_ssize_t)
    cdef Py_ssize_t restore_flow(self, Py_ssize_t number) except -1
    @cython.locals(
        flows=FlowTable, record="Record *", forward="Direction *", reply="Direction *",
        flags=cython.int, state=cython.int, member=PoolMember, full=cython.bint, spliced=cython.bint,
        flow=cython.Py_ssize_t)
    cdef Py_ssize_t insert(
        self, Record *old, unsigned int created, unsigned long long splice) except -1
    cdef object forget_members(self)
    cdef bint is_taken(self, Direction *direction, int protocol) noexcept
    cdef object member(
        self, pool, unsigned long long high, unsigned long long low, int port, int vip_port)
