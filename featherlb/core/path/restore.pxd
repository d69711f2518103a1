# C types of takeover.py, for the compiled build.
cimport cython
from featherlb.core.flows.table cimport (
    BYTES, COUNTED, CREATED, EXPECTED, FLAGS, FULL, IPV6, LOCAL_CLIENT, MASK32, MEMBER, OFFLOADED,
    PORTS, PROTOCOL, REPLY_ONLY, RESPONSES, SEEN, STATE, WIRED, FlowTable)
from featherlb.core.path.migrate cimport Handover
from featherlb.core.flows.next_hops cimport Hops
from featherlb.core.flows.lifecycle cimport IS_ACTIVE, Lifecycle
from featherlb.core.flows.members cimport Members, Slot
from featherlb.core.path.services cimport Services

cdef int STATES


cdef class Takeover:
    cdef FlowTable _flows
    cdef Services _services
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Handover _handover
    cdef Hops _hops
    cdef object _source_ports
    cdef dict _slots
    cdef unsigned long long[::1] _u64
    cdef unsigned int[::1] _u32
    cdef unsigned short[::1] _u16
    cdef unsigned char[::1] _u8

    @cython.locals(flows=FlowTable, flow=cython.Py_ssize_t)
    cpdef bint has_own(self)
    @cython.locals(record=cython.Py_ssize_t, seen=cython.ulonglong, flow=cython.Py_ssize_t)
    cpdef object take(self, memory, shard)
    cdef object look_at(self, memory)
    @cython.locals(
        flows=FlowTable, key=cython.Py_ssize_t, protocol=cython.int, flags=cython.int,
        state=cython.int, ports=cython.uint, back=cython.uint, client_high=cython.ulonglong,
        client_low=cython.ulonglong, vip_high=cython.ulonglong, vip_low=cython.ulonglong,
        high=cython.ulonglong, low=cython.ulonglong, source_high=cython.ulonglong,
        source_low=cython.ulonglong, slot=Slot, hidden=cython.int, full=cython.bint,
        flow=cython.Py_ssize_t, direction=cython.Py_ssize_t, expected=cython.uint,
        seen=cython.uint, six=cython.bint)
    cdef Py_ssize_t enter(self, Py_ssize_t record) except -1
    cdef object slot(self, pool, unsigned long long high, unsigned long long low, int port)
    cdef bint claim(
        self, Slot slot, unsigned long long high, unsigned long long low, int port) except -1
