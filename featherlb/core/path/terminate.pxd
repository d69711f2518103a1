# C types of terminate.py, for the compiled build.
cimport cython
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.record cimport (
    CARRIED, IPV6, SPLICED, Direction, Record, direction_of, ports_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.offloaded cimport OffloadedFlows
from featherlb.core.path.outbox cimport Outbox
from featherlb.net.packet cimport MASK32

cdef int TCP, REPLACED


cdef class Termination:
    cdef FlowTable _flows
    cdef Lifecycle _lifecycle
    cdef OffloadedFlows _offload
    cdef object _tombstones
    cdef Outbox _outbox

    @cython.locals(record="Record *")
    cdef object _remember_ended(self, Py_ssize_t flow, ticks)
    @cython.locals(record="Record *")
    cdef object _reset_both(self, Py_ssize_t flow)


@cython.locals(direction="Direction *", ports=cython.uint)
cdef tuple towards(Record *record, Py_ssize_t side)
