# C types of replicas.py, for the compiled build.
cimport cython
from featherlb.core.flows.announcer cimport Announcer
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members
from featherlb.core.flows.record cimport (
    ANSWERED, FULL, SPLICED, UNSURE, Record, Records, direction_of, ports_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.context cimport Context
from featherlb.core.path.restore cimport Restoration

cdef int TCP, UDP
cdef int STATES, REPLICA, REPLACED, OPENED, USED, CLOSED_KIND, WHEN_ESTABLISHED


@cython.final
cdef class Replicas:
    cdef FlowTable _flows
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Restoration _restoration
    cdef Announcer _announcer
    cdef object _shard, _living
    cdef readonly Py_ssize_t entered, taken_over, yielded, conflicts, unmatched

    @cython.locals(records=Records, number=cython.Py_ssize_t)
    cpdef object receive(self, announcements, unsigned int ticks)
    @cython.locals(
        announcer=Announcer, flows=FlowTable, ref=cython.Py_ssize_t, flow=cython.Py_ssize_t,
        seen=cython.uint, created=cython.uint, splice=cython.ulonglong, record="Record *", order=cython.int, same=cython.bint)
    cdef void enter(self, Record *new, unsigned int ticks) except *
    @cython.locals(announcer=Announcer)
    cdef void keep(self, Py_ssize_t flow, Record *new, unsigned int seen) except *
    @cython.locals(announcer=Announcer, epoch=cython.uint, owner=cython.uint)
    cdef int compare(self, Py_ssize_t flow, Record *new) noexcept
    cdef void remove(self, Py_ssize_t flow) except *
    @cython.locals(announcer=Announcer, flow=cython.Py_ssize_t, record="Record *")
    cdef void meet(self, Context ctx) except *
