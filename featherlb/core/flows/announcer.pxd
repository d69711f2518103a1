# C types of announcer.py, for the compiled build.
cimport cython
from featherlb.core.flows.record cimport (
    CARRIED, COUNTED, LOCAL_BACKEND, LOCAL_CLIENT, OFFLOADED, REPLY_ONLY, SPLICED, Record, Records,
    copy_record)
from featherlb.core.flows.table cimport FlowTable

cdef int OPENED, USED, CLOSED_KIND, OFF, IMMEDIATE, CLOSING, CLOSED, REPLACED, REPLICA
cdef int TCP, UDP
cdef int MAX_YOUNG, SWEEP, COPIED_AT_ONCE


@cython.final
cdef class Announcer:
    cdef FlowTable _flows
    cdef readonly unsigned int node
    cdef public bint lost
    cdef readonly Py_ssize_t count
    cdef unsigned int _ticks
    cdef unsigned int[::1] owners, epochs, announced, _young, _opened
    cdef unsigned char[::1] syncs, states
    cdef object _block
    cdef Records _waiting
    cdef Py_ssize_t _first_young, _young_count, _swept, _copied

    cdef object _use(self, Py_ssize_t flows, Py_ssize_t announcements)
    @cython.locals(at=cython.Py_ssize_t)
    cdef void open(self, Py_ssize_t flow, int sync) noexcept
    cdef void restore(self, Py_ssize_t flow, int sync) noexcept
    cdef void establish(self, Py_ssize_t flow) noexcept
    cdef void close(self, Py_ssize_t flow) noexcept
    @cython.locals(record="Record *", to="Record *", created=cython.uint)
    cdef void announce(self, Py_ssize_t flow, int kind) noexcept
    cpdef object handle_timer(self, unsigned int ticks)
    @cython.locals(at=cython.Py_ssize_t, flow=cython.Py_ssize_t, record="Record *")
    cdef void announce_young(self) noexcept
    @cython.locals(
        flows=FlowTable, last=cython.Py_ssize_t, flow=cython.Py_ssize_t, record="Record *",
        third=cython.uint, used=cython.bint, _=cython.Py_ssize_t)
    cdef void sweep(self) noexcept
    @cython.locals(flows=FlowTable, flow=cython.Py_ssize_t, record="Record *", _=cython.Py_ssize_t)
    cpdef bint copy(self) noexcept
