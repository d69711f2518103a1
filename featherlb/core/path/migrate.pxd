# C types of handover.py, for the compiled build.
cimport cython
from featherlb.core.flows.conntrack cimport Requests
from featherlb.core.flows.table cimport (
    ABANDONED, BYTES, CARRIED, FLAGS, LOCAL_CLIENT, MEMBER, OFFLOADED, PROTOCOL, SEEN, STATE,
    WIRED, FlowTable)
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members

cdef int CLOSING, CLOSED


cdef class Handover:
    cdef FlowTable _flows
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Requests _requests

    @cython.locals(flows=FlowTable, flow=cython.Py_ssize_t, at=cython.Py_ssize_t, wired=cython.int)
    cpdef object switch(self, pools)
    @cython.locals(
        flows=FlowTable, at=cython.Py_ssize_t, state=cython.int, direction=cython.Py_ssize_t,
        ticks=cython.uint)
    cdef object hand_over(self, Py_ssize_t flow, bint carried)
