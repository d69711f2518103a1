# C types of takeover.py, for the compiled build.
cimport cython
from featherlb.core.flow cimport (
    BYTES, COUNTED, CREATED, EXPECTED, FLAGS, FULL, IPV6, LOCAL_CLIENT, MASK32, MEMBER, OFFLOADED,
    PORTS, PROTOCOL, REPLY_ONLY, RESPONSES, SEEN, STATE, WIRED, FlowTable)
from featherlb.core.handover cimport Handover
from featherlb.core.hops cimport Hops
from featherlb.core.lifecycle cimport IS_ACTIVE, Lifecycle
from featherlb.core.members cimport Members, Slot
from featherlb.core.services cimport Services

cdef int STATES


cdef class Takeover:
    cdef FlowTable _flows
    cdef Services _services
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Handover _handover
    cdef Hops _hops
    cdef object _source_ports

    @cython.locals(flows=FlowTable, flow=cython.Py_ssize_t)
    cpdef bint has_own(self)
    cpdef object take(self, memory, share)
    cdef object client(self, memory, Py_ssize_t record)
    cdef Py_ssize_t enter(self, memory, Py_ssize_t record) except -1
    cdef bint claim(
        self, Slot slot, unsigned long long high, unsigned long long low, int port) except -1
