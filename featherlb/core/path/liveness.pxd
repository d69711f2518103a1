# C types of liveness.py, for the compiled build.
cimport cython
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.record cimport Record, direction_of
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.outbox cimport Outbox
from featherlb.core.path.terminate cimport towards
from featherlb.net.packet cimport MASK32


cdef class Liveness:
    cdef FlowTable _flows
    cdef Lifecycle _lifecycle
    cdef Outbox _outbox
    cdef object _silent

    @cython.locals(flow=cython.Py_ssize_t, _=cython.int)
    cpdef object probe(self)
    @cython.locals(record="Record *", expected=cython.uint, acknowledgement=cython.uint)
    cdef object _probe(self, Py_ssize_t flow)
