# C types of latency.py, for the compiled build.
cimport cython
from libc.math cimport exp

cdef double[::1] BOUNDS
cdef double TAU, LEAST_COST, FAILURE, SMOOTHING
cdef Py_ssize_t BUCKETS, SLOTS, SMOOTHED, COST, CHANGED, VALUES, MICROSECONDS, COUNTS


@cython.final
cdef class Latencies:
    cdef public double now
    cdef unsigned int[::1] _owners
    cdef double[::1] _sent, _values
    cdef unsigned long long[::1] _counts

    @cython.locals(count=cython.Py_ssize_t, i=cython.Py_ssize_t)
    cpdef object begin(self, Py_ssize_t member)
    @cython.locals(slot=cython.Py_ssize_t)
    cpdef void sent(self, Py_ssize_t flow, double now) noexcept
    @cython.locals(slot=cython.Py_ssize_t)
    cdef void forget(self, Py_ssize_t flow) noexcept
    @cython.locals(slot=cython.Py_ssize_t)
    cpdef void answered(self, Py_ssize_t flow, Py_ssize_t member, double now) noexcept
    @cython.locals(
        values="double[::1]", at=cython.Py_ssize_t, smoothed=cython.double, kept=cython.double,
        bucket=cython.Py_ssize_t)
    cpdef void take(self, Py_ssize_t member, double seconds, double now) noexcept
    @cython.locals(values="double[::1]", at=cython.Py_ssize_t)
    cpdef void failed(self, Py_ssize_t member) noexcept
    @cython.locals(cost=cython.double, idle=cython.double)
    cpdef double cost(self, Py_ssize_t member) noexcept
    @cython.locals(first=cython.Py_ssize_t, i=cython.Py_ssize_t)
    cpdef tuple histogram(self, Py_ssize_t member)
