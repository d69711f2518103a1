# C types of splice.py, for the compiled build.
cimport cython
from featherlb.core.flows.counters cimport SYN_TIMEOUTS, Counters
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members, PoolMember
from featherlb.core.flows.next_hops cimport NextHops
from featherlb.core.flows.record cimport (
    OFFLOADED, SPLICED, WIRED, Record, direction_of, ports_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.context cimport GO_ON, Context
from featherlb.core.path.cookies cimport Cookies
from featherlb.core.path.hooks cimport is_after_routing
from featherlb.core.path.offloaded cimport OffloadedFlows
from featherlb.core.path.outbox cimport Outbox
from featherlb.core.path.redispatch cimport Redispatch, key_of
from featherlb.core.path.terminate cimport towards
from featherlb.net.checksum cimport MASK16, fold, update
from featherlb.net.packet cimport MASK32, Packet
from featherlb.net.tcp_options cimport (
    MAXIMUM_SEGMENT_SIZE, NO_OPERATION, SACK, SACK_PERMITTED, WINDOW_SCALE, option_from,
    window_scale)

cdef int ACK, RST, SYN
cdef Py_ssize_t MAX_OPENINGS
cdef int NEW, SYN_SENT, SYN_RETRIED, CLOSED, COOKIE_ACK, INVALID, NOT_READY
cdef int WINDOW_SCALE_REASON
cdef int DROP, REWRITTEN, PREROUTING
cdef int REPLY_LEFT, REPLY_RIGHT, FORWARD_LEFT


@cython.final
cdef class Opening:
    cdef int hook, scale, offered, tries
    cdef unsigned long long hop
    cdef tuple ends
    cdef unsigned int first, cookie, window, due
    cdef object size
    cdef bint sack

    cdef bytes syn(self)
    cdef bytes acknowledgement(self)
    @cython.locals(ports=cython.uint)
    cdef bytes reset(self)


@cython.final
cdef class Splices:
    cdef readonly dict openings
    cdef Packet _packet
    cdef FlowTable _flows
    cdef Lifecycle _lifecycle
    cdef NextHops _next_hops
    cdef Counters _counters
    cdef Outbox _outbox
    cdef Redispatch _redispatch
    cdef Cookies _cookies
    cdef Members _members
    cdef OffloadedFlows _offload
    cdef Opening _answered

    @cython.locals(cookies=Cookies, packet=Packet)
    cdef int begin(self, Context ctx) except -1
    cdef Opening find(self, Packet packet)
    @cython.locals(record="Record *")
    cdef object opened(self, Context ctx, Opening opening)
    @cython.locals(opening=Opening)
    cdef object forget(self, Packet packet)
    @cython.locals(opening=Opening)
    cdef int receive(self, Context ctx) except -1
    @cython.locals(record="Record *", opening=Opening)
    cdef int send(self, Context ctx) except -1
    @cython.locals(packet=Packet)
    cdef int leave(self, Context ctx) except -1
    cdef Opening find_by_flow(self, Py_ssize_t flow)
    @cython.locals(record="Record *")
    cdef tuple key_of_flow(self, Py_ssize_t flow)
    @cython.locals(packet=Packet, expected=cython.uint)
    cdef int wait(self, Context ctx, Opening opening) except -1
    @cython.locals(
        packet=Packet, flow=cython.Py_ssize_t, splice=cython.ulonglong, scale=cython.int,
        shift=cython.ulonglong, at=cython.Py_ssize_t, i=cython.Py_ssize_t)
    cdef object join(self, Context ctx, Opening opening)
    @cython.locals(record="Record *", scale=cython.int, member=PoolMember)
    cdef int check_scale(self, Context ctx, Opening opening) except -1
    @cython.locals(packet=Packet, record="Record *", scale=cython.int, window=cython.uint)
    cdef object hand_over(self, Context ctx, Opening opening)
    @cython.locals(
        packet=Packet, at=cython.Py_ssize_t, splice=cython.ulonglong, offset=cython.uint,
        summed=cython.bint, left=cython.int, right=cython.int, window=cython.uint)
    cdef void translate(self, Context ctx) noexcept
    @cython.locals(
        packet=Packet, at=cython.Py_ssize_t, end=cython.Py_ssize_t, edge=cython.Py_ssize_t)
    cdef void translate_blocks(self, unsigned int offset, bint summed) noexcept
    @cython.locals(opening=Opening, flow=cython.Py_ssize_t)
    cpdef object handle_timer(self, unsigned int ticks)

@cython.locals(ports=cython.uint)
cdef tuple from_backend(Record *record)
@cython.locals(field=cython.Py_ssize_t, delta=cython.ulonglong)
cdef void replace16(Packet packet, Py_ssize_t at, unsigned int value, bint summed) noexcept
@cython.locals(
    before=cython.uint, total=cython.ulonglong, delta=cython.ulonglong, field=cython.Py_ssize_t)
cdef void replace32(Packet packet, Py_ssize_t at, unsigned int value, bint summed) noexcept
