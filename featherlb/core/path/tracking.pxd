# C types of tracking.py, for the compiled build.
cimport cython
from featherlb.core.flows.counters cimport (
    DOUBTFUL, REFUSED, RESETS, RETRANSMITS, SYN_RETRIES, Counters)
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.next_hops cimport NextHops
from featherlb.core.flows.record cimport (
    BACKEND_SPOKE, CLIENT_SPOKE, COUNTED, UNSURE, Direction, Record, direction_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.flows.windows cimport (
    REPEATED, acknowledges_syn, admits, admits_reset, answer, begin, renew)
from featherlb.core.path.context cimport FIRST_FRAGMENT, Context
from featherlb.net.checksum cimport MASK16
from featherlb.net.packet cimport MASK32, Packet

cdef int ACK, FIN, RST, SYN
cdef Py_ssize_t EVENTS
cdef unsigned char[::1] NEXT_STATE
cdef int EVENT_SYN, EVENT_SYN_ACK, EVENT_FIN, EVENT_RST, EVENT_ACK
cdef int NO_EVENT, EVENT_ANSWERED
cdef Py_ssize_t REMEMBERED
cdef int NEW, SYN_SENT, SYN_RECEIVED, SYN_RETRIED, ADOPTED, ESTABLISHED, CLOSED, UDP_TWO_WAY
cdef int WIRE, NOT_READY


@cython.final
cdef class Tracker:
    cdef FlowTable _flows
    cdef Lifecycle _lifecycle
    cdef NextHops _next_hops
    cdef Counters _counters
    cdef unsigned int[::1] _syn_flows, _syn_sequences

    @cython.locals(
        packet=Packet, flows=FlowTable, flow=cython.Py_ssize_t, reply=cython.Py_ssize_t,
        record="Record *", state=cython.int, following=cython.int, event=cython.int,
        flags=cython.int, more=cython.uint, admitted=cython.int)
    cdef void follow(self, Context ctx) except *
    @cython.locals(packet=Packet, record="Record *", opening=cython.bint, real=cython.bint)
    cdef int judge_reset(self, Context ctx, int state) noexcept
    @cython.locals(packet=Packet, record="Record *", opening=cython.bint, following=cython.uint)
    cdef int judge_syn(self, Context ctx, int state) noexcept
    @cython.locals(at=cython.Py_ssize_t)
    cdef void remember_syn(self, Context ctx) noexcept
    @cython.locals(at=cython.Py_ssize_t, following=cython.uint)
    cdef bint answers_syn(self, Context ctx) noexcept
    @cython.locals(record="Record *")
    cdef bint lives(self, Context ctx) noexcept
    @cython.locals(record="Record *", responses="Direction *", awaited=cython.ulonglong)
    cdef bint is_last_response(self, Context ctx) noexcept
