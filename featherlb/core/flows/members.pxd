# C types of members.py, for the compiled build.
cimport cython
from featherlb.core.flows.counters cimport Counters
from featherlb.core.flows.table cimport LOCAL_BACKEND
from featherlb.core.flows.next_hops cimport Hops


cdef class Slot:
    cdef readonly object pool, member, target
    cdef public object sources
    cdef readonly unsigned long long high, low
    cdef readonly int port, index
    cdef public int flags, held


cdef class Members:
    cdef readonly list slots
    cdef unsigned char[::1] retired
    cdef list _free
    cdef Hops _hops
    cdef Counters _counters
    cdef object _source_ports

    @cython.locals(slot=Slot)
    cpdef object retire(self, member)
    cdef int let_go(self, Slot slot) except -1
    cdef object _free_slot(self, Slot slot)
    @cython.locals(slot=Slot)
    cpdef object update_next_hops(self)
