# C types of faults.py, for the compiled build.
cimport cython
from featherlb.core.flows.counters cimport Counters
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members, PoolMember
from featherlb.core.flows.record cimport OFFLOADED, WATCHED, Record, direction_of, ports_of
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.context cimport GO_ON, Context
from featherlb.core.path.outbox cimport Outbox
from featherlb.core.path.terminate cimport Termination
from featherlb.core.path.tracking cimport Tracker
from featherlb.net.packet cimport Packet

cdef int TCP, HOLD, INJECTED_FAULT
cdef Py_ssize_t MAX_HELD


@cython.final
cdef class Injected:
    cdef readonly object fault
    cdef readonly double until
    cdef readonly Py_ssize_t flows, packets
    cdef object service, backends, _limit, _hash, _random
    cdef double delay, part
    cdef bint drops, resets

    cdef bint concerns(self, PoolMember member, double now) except -1
    cdef bint chooses(self, bytes flow) except -1
    cdef bint meets(self) except -1


@cython.final
cdef class Faults:
    cdef readonly bint active
    cdef public bint releasing
    cdef readonly double due
    cdef public Py_ssize_t held
    cdef list _injected
    cdef FlowTable _flows
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Counters _counters
    cdef Outbox _outbox
    cdef Tracker _tracker
    cdef Termination _termination

    @cython.locals(found=Injected)
    cdef int begin(self, Context ctx) except -1
    @cython.locals(record="Record *", member=PoolMember, one=Injected)
    cdef Injected find(self, Context ctx)
    cdef int apply(self, Context ctx, Injected found) except -1
    @cython.locals(packet=Packet, flow=cython.Py_ssize_t)
    cdef int reset(self, Context ctx, Injected found) except -1

@cython.locals(record="Record *")
cdef bytes bytes_of(FlowTable flows, Py_ssize_t flow)
