# C types of claims.py, for the compiled build.
cimport cython
from featherlb.core.flows.members cimport PoolMember
from featherlb.core.flows.table cimport FlowTable
from featherlb.net.packet cimport Packet

cdef int SYN, TCP
cdef int MAX_PORTS, MAX_DRAWS, FIND_OWNER, UNPRIVILEGED, NONE, PENDING


cdef class Claims:
    cdef public bint active
    cdef readonly PoolMember member
    cdef readonly int version, protocol
    cdef readonly unsigned long long client_high, client_low, backend_high, backend_low
    cdef readonly unsigned int ports
    cdef FlowTable _flows
    cdef Packet _packet
    cdef object _shard, _random
    cdef bint owned
    cdef int tries

    @cython.locals(member=PoolMember)
    cdef int answered_port(self) except -3
    @cython.locals(
        packet=Packet, backend_port=cython.uint, port=cython.uint, free=cython.bint)
    cdef int other_port(self, PoolMember member) except -3
    @cython.locals(packet=Packet, privileged=cython.bint)
    cdef int draw_port(self) except -1
    @cython.locals(packet=Packet, backend_port=cython.uint)
    cdef int ask(self, PoolMember member, int port) except -3
    cdef int ask_for(
        self, PoolMember member, unsigned int backend_port, unsigned long long high,
        unsigned long long low, int port) except -3
    cdef bint take_answer(self) noexcept
    cpdef object answer(self, bint owned)
