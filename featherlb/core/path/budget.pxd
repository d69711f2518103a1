# C types of budget.py, for the compiled build.
from featherlb.core.flows.lifecycle cimport Lifecycle

cdef int FILLED
cdef unsigned int TICKS_PER_SECOND


cdef class DatagramBudget:
    cdef Lifecycle _lifecycle
    cdef readonly Py_ssize_t limit
    cdef readonly unsigned int rate
    cdef unsigned int _tick, _left

    cdef bint allows(self, unsigned int ticks) noexcept
