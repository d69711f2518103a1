# C types of ctnetlink.py, for the compiled build.
cimport cython
from featherlb.core.flows.kernel cimport INSERT, LOOK_UP, Commands
from featherlb.core.path.offloaded cimport OffloadedFlows
from featherlb.system.conntrack_messages cimport (
    DELETE_MESSAGE, NEW_MESSAGE, Entry, Requests)
from featherlb.system.mmsg cimport MessageBatch

cdef unsigned int EEXIST
cdef int NLMSG_ERROR
cdef Py_ssize_t SLOTS, SLOT_SIZE, MAX_BATCHES, AT_ONCE


cdef class Conntrack:
    cdef OffloadedFlows _flows
    cdef object _requests, _events
    cdef unsigned int port
    cdef MessageBatch answers, events
    cdef Entry answer, event
    cdef Requests requests
    cdef Commands batch
    cdef readonly bint watching

    @cython.locals(
        commands=Commands, ticks=cython.uint, first=cython.Py_ssize_t, end=cython.Py_ssize_t,
        at=cython.Py_ssize_t)
    cpdef object execute(self, double now)
    cdef bint submit(self, Py_ssize_t first, Py_ssize_t end) except -1
    cdef bint send(self) except -1
    @cython.locals(at=cython.Py_ssize_t)
    cdef object report(self, unsigned int ticks)
    @cython.locals(
        batch=Commands, entry=Entry, count=cython.int, slot=cython.int, start=cython.Py_ssize_t,
        at=cython.Py_ssize_t, kind=cython.int)
    cdef list read_answers(self, unsigned int ticks)
    @cython.locals(batch=Commands, entry=Entry, there=cython.bint)
    cdef object report_clash(self, Py_ssize_t at, unsigned int ticks)
    @cython.locals(
        batch=MessageBatch, entry=Entry, ticks=cython.uint, _=cython.int, count=cython.int,
        slot=cython.int, at=cython.Py_ssize_t)
    cpdef object process(self, double now)
