# C types of ring.py, for the compiled build.
cimport cython
from featherlb.core.flows.entry cimport fence

cdef unsigned int BUSY, DISCARDED
cdef unsigned long long HEADER


@cython.final
cdef class Ring:
    cdef readonly unsigned long long size
    cdef readonly Py_ssize_t length
    cdef readonly object memory
    cdef object _consumer, _producer
    cdef unsigned long long[::1] _position
    cdef const unsigned long long[::1] _end
    cdef const unsigned int[::1] _headers
    cdef unsigned long long _next

    @cython.locals(at="unsigned long long", header="unsigned int")
    cpdef Py_ssize_t next(self) noexcept
    cpdef void free(self) noexcept
