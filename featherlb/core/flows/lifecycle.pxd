# C types of lifecycle.py, for the compiled build.
cimport cython
from featherlb.net.checksum cimport fold, words
from featherlb.core.flows.conntrack cimport Requests
from featherlb.core.flows.counters cimport OPENED, SYN_TIMEOUTS, Counters
from featherlb.core.flows.table cimport (
    ADDRESS_DELTA, COUNTED, FLAGS, FULL, IPV6, LOCAL_CLIENT, MEMBER, NEXT, OFFLOADED, PORTS,
    RESPONSES, STATE, TRANSPORT_DELTA, WIRED, FlowTable)
from featherlb.core.flows.next_hops cimport Hops
from featherlb.core.flows.members cimport Members, Slot
from featherlb.net.packet cimport SYN, TCP, Packet

cdef int MAX_EXPIRED_AT_ONCE, MAX_PORT_RECLAIMS
cdef unsigned char[::1] IS_ACTIVE, IS_REUSABLE
cdef int NEW, SYN_SENT, SYN_RETRIED, ADOPTED, UDP_ONE_WAY, UDP_TWO_WAY
cdef int OUTPUT, WIRE, NO_SOURCE_PORT, TUPLE_IN_USE


cdef class Lifecycle:
    cdef FlowTable _flows
    cdef Packet _packet
    cdef Hops _hops
    cdef Members _members
    cdef Counters _counters
    cdef object _source_ports
    cdef Requests _requests
    cdef unsigned char[::1] _queue_of
    cdef Py_ssize_t closed_queue, offload_queue
    cdef readonly Py_ssize_t evicted
    cdef public object opened

    # A negative reason is never -1: that is Reason.REPLY, which refuses nothing.
    @cython.locals(
        packet=Packet, flows=FlowTable, flags=cython.int, flow=cython.Py_ssize_t,
        clash=cython.Py_ssize_t, source_high=cython.ulonglong, source_low=cython.ulonglong,
        source_port=cython.uint)
    cdef Py_ssize_t open(
        self, pool, Slot slot, unsigned long long client_high, unsigned long long client_low,
        unsigned long long vip_high, unsigned long long vip_low, unsigned int ports, int hook,
        int state, unsigned int ticks) except -1
    @cython.locals(packet=Packet, flows=FlowTable)
    cdef bint serves(self, Py_ssize_t flow, Py_ssize_t member) noexcept
    @cython.locals(
        flows=FlowTable, closing=cython.Py_ssize_t, following=cython.Py_ssize_t, holder=Slot,
        _=cython.int)
    cdef object allocate_source(self, Slot slot)
    @cython.locals(
        flows=FlowTable, at=cython.Py_ssize_t, goes=cython.ulonglong, comes=cython.ulonglong,
        ports=cython.uint, back=cython.uint, address_delta=cython.ulonglong,
        ports_go=cython.ulonglong, ports_come=cython.ulonglong)
    cdef void settle(self, Py_ssize_t flow) noexcept
    @cython.locals(
        flows=FlowTable, before=cython.int, queue=cython.Py_ssize_t, slot=Slot)
    cdef void enter(self, Py_ssize_t flow, int state, unsigned int ticks) except *
    @cython.locals(state=cython.int)
    cdef bint reopens(self, Py_ssize_t flow) noexcept
    @cython.locals(flows=FlowTable, slot=Slot)
    cdef void close(self, Py_ssize_t flow) except *
    @cython.locals(flows=FlowTable, flow=cython.Py_ssize_t, _=cython.int)
    cdef bint expire(self, unsigned int ticks) except -1
