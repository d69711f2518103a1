# C types of offloaded.py, for the compiled build.
cimport cython
from featherlb.core.flows.counters cimport COUNTERS, REFUSED, SYN_RETRIES, SYN_TIMEOUTS, Counters
from featherlb.core.flows.kernel cimport UNKNOWN, UNKNOWN_SCALE, Commands, KernelFlow
from featherlb.core.flows.lifecycle cimport IS_REUSABLE, Lifecycle
from featherlb.core.flows.members cimport Members, PoolMember
from featherlb.core.flows.record cimport (
    ABANDONED, ANSWERED, FULL, IPV6, LOCAL_BACKEND, OFFLOADED, SPLICED, Direction, Record,
    direction_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.context cimport GO_ON, Context
from featherlb.core.path.outbox cimport Outbox
from featherlb.core.path.redispatch cimport Redispatch
from featherlb.core.path.services cimport Services
from featherlb.net.packet cimport MASK32, Packet

cdef int ACK, RST, SYN, TCP, UDP
cdef int YOUNG, MAX_ATTEMPTS, SYN_SENT, SYN_RECEIVED, SYN_RETRIED, CLOSED, UDP_ONE_WAY, UDP_TWO_WAY
cdef int REPLACED, OUTPUT, NOT_READY, GSO, CUT, FORWARD, REPLY, INVALID, NO_ENTRY, NO_FLOW, TRUNCATED, TTL_EXCEEDED
cdef int DROP, OFFLOAD, LOOK_UP
cdef Py_ssize_t SWEPT


cdef class OffloadedFlows:
    cdef readonly Commands commands
    cdef readonly Py_ssize_t looked_up
    cdef public Py_ssize_t opened
    cdef Py_ssize_t _next
    cdef list _refused, _reinjected, _untracked
    cdef dict _destroyed, _completed
    cdef FlowTable _flows
    cdef Services _services
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Counters _counters
    cdef Outbox _outbox
    cdef object _source_ports
    cdef Redispatch _redispatch

    @cython.locals(
        packet=Packet, flows=FlowTable, flow=cython.Py_ssize_t, record="Record *",
        alive=cython.bint, verdict=cython.int)
    cdef int handle(self, Context ctx) except -1
    cdef int pass_refusal(self, Context ctx, bint alive) except -1
    @cython.locals(flows=FlowTable)
    cpdef bint is_open(self, Py_ssize_t flow) noexcept
    @cython.locals(packet=Packet)
    cdef bint takes_hop(self, Context ctx, int flags) noexcept
    cdef bint is_last_hop(self, Context ctx, int flags) noexcept
    cdef int hand_over(self, Context ctx) except -1
    @cython.locals(packet=Packet)
    cdef int forward(self, Context ctx) except -1
    @cython.locals(record="Record *")
    cdef bint is_splicing(self, Py_ssize_t flow) noexcept
    @cython.locals(record="Record *")
    cdef object open_untracked(self, Py_ssize_t flow, unsigned int ticks)
    cdef object send_untracked(self, bytes packet)
    @cython.locals(record="Record *", reply=cython.int)
    cdef object hand_over_spliced(
        self, Py_ssize_t flow, bytes acknowledgement, bytes window, unsigned int ticks)
    cpdef list take_untracked(self)
    cpdef list take_completed(self)
    cpdef list take_reinjected(self)
    cpdef list take_refused(self)
    cpdef object look_up(self, Py_ssize_t flow)
    @cython.locals(flows=FlowTable, flow=cython.Py_ssize_t)
    cpdef object look_up_range(self, Py_ssize_t first, Py_ssize_t count)
    cpdef object look_up_all(self)
    @cython.locals(last=cython.Py_ssize_t, count=cython.Py_ssize_t)
    cpdef object sweep(self)
    cpdef object refused(self, Py_ssize_t flow)
    @cython.locals(connection=cython.bint, ours=cython.bint)
    cpdef object exists(self, Py_ssize_t flow, int attempts, KernelFlow other)
    cpdef object counters(self, Py_ssize_t flow, KernelFlow found, unsigned int ticks)
    @cython.locals(last=KernelFlow)
    cpdef object gone(self, Py_ssize_t flow, unsigned int ticks)
    @cython.locals(flow=cython.Py_ssize_t, record="Record *", answers=cython.int)
    cpdef object changed(self, KernelFlow found, double now)
    @cython.locals(flow=cython.Py_ssize_t)
    cpdef object ended(self, KernelFlow last, unsigned int ticks)
    @cython.locals(
        flows=FlowTable, record="Record *", flags=cython.int, port=cython.uint,
        flow=cython.Py_ssize_t, member=PoolMember)
    cpdef bint found(
        self, KernelFlow entry, object services, object shard, unsigned int ticks) except -1
    cdef object disown(self, Py_ssize_t flow)
    cdef bint is_opening(self, Py_ssize_t flow) noexcept
    @cython.locals(record="Record *")
    cdef object await_refusal(self, Py_ssize_t flow, unsigned int ticks)
    cdef object abandon(self, Py_ssize_t flow, unsigned int ticks)
    @cython.locals(record="Record *", same=cython.bint, spliced=cython.bint)
    cdef bint is_same(self, Py_ssize_t flow, KernelFlow other) noexcept
    @cython.locals(flows=FlowTable, record="Record *", before=cython.uint, after=cython.uint)
    cdef bint change_port(self, Py_ssize_t flow) except -1
    cdef object observe(self, Py_ssize_t flow, KernelFlow entry, unsigned int ticks)
    @cython.locals(
        record="Record *", forward="Direction *", reply="Direction *", counters=Counters,
        at=cython.Py_ssize_t, packets=cython.ulonglong, reply_packets=cython.ulonglong)
    cdef object count(self, Py_ssize_t flow, KernelFlow entry, unsigned int ticks)
    @cython.locals(record="Record *", port=cython.uint)
    cdef object observe_port(self, Py_ssize_t flow, KernelFlow entry)
    cdef object observe_state(self, Py_ssize_t flow, KernelFlow entry, unsigned int ticks)
    @cython.locals(before=cython.int)
    cdef object enter(self, Py_ssize_t flow, int state, unsigned int ticks)
    @cython.locals(record="Record *", refused=cython.bint)
    cdef object finish(self, Py_ssize_t flow, KernelFlow last, unsigned int ticks)
    cdef Py_ssize_t find(self, KernelFlow entry) noexcept
    @cython.locals(
        flows=FlowTable, record="Record *", ref=cython.Py_ssize_t, flow=cython.Py_ssize_t)
    cdef Py_ssize_t flow_of(self, KernelFlow entry) noexcept
