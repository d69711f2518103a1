# C types of tracking.py, for the compiled build.
cimport cython
from featherlb.core.flows.counters cimport REFUSED, RESETS, SYN_RETRIES, Counters
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.record cimport COUNTED, Direction, Record, direction_of
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.context cimport Context
from featherlb.net.packet cimport MASK32, Packet

cdef int ACK, FIN, RST, SYN
cdef Py_ssize_t EVENTS
cdef unsigned char[::1] NEXT_STATE
cdef int EVENT_SYN, EVENT_SYN_ACK, EVENT_FIN, EVENT_RST, EVENT_ACK
cdef int SYN_SENT, SYN_RECEIVED, SYN_RETRIED, CLOSED


@cython.final
cdef class Tracker:
    cdef FlowTable _flows
    cdef Lifecycle _lifecycle
    cdef Counters _counters

    @cython.locals(
        packet=Packet, flows=FlowTable, flow=cython.Py_ssize_t, reply=cython.Py_ssize_t,
        record="Record *", state=cython.int, following=cython.int, event=cython.int,
        flags=cython.int, refused=cython.bint)
    cdef void follow(self, Context ctx) except *
    cdef bint resets_another(self, Context ctx, int state) except -1
    @cython.locals(record="Record *", responses="Direction *", awaited=cython.ulonglong)
    cdef bint is_last_response(self, Context ctx) noexcept
