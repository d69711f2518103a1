# C types of members.py, for the compiled build.
cimport cython
from featherlb.core.flows.counters cimport Counters
from featherlb.core.flows.flight_recorder cimport (
    BACK_UP, DOWN, JOINED, LEFT, WEIGHED, FlightRecorder)
from featherlb.core.flows.kernel cimport UNKNOWN_SCALE
from featherlb.core.flows.record cimport LOCAL_BACKEND
from featherlb.core.flows.next_hops cimport NextHops
from featherlb.core.flows.port_holders cimport PortHolders
from featherlb.core.pools.pool cimport Pool


cdef class PoolMember:
    cdef readonly Pool pool
    cdef readonly object scheduled, target
    cdef public object sources, peer_sources
    cdef readonly unsigned long long high, low
    cdef readonly int id, weight
    cdef unsigned int holders
    cdef readonly bint ranged
    cdef int _port
    cdef public int flags, flows, scale

    cpdef int port_for(self, int vip_port) noexcept


cdef class Members:
    cdef readonly list by_id
    cdef unsigned char[::1] retired, down
    cdef list _free
    cdef NextHops _next_hops
    cdef Counters _counters
    cdef object _source_ports
    cdef PortHolders _port_holders
    cdef FlightRecorder _recorder

    @cython.locals(member=PoolMember)
    cpdef PoolMember find(
        self, pool, unsigned long long high, unsigned long long low, int port, int vip_port)
    @cython.locals(member=PoolMember)
    cpdef object retire(self, scheduled)
    cdef int end_flow(self, PoolMember member) except -1
    cdef object _free_id(self, PoolMember member)
    @cython.locals(member=PoolMember)
    cpdef object update_next_hops(self)
