# C types of exchange.py, for the compiled build.
cimport cython
from libc.string cimport memcpy
from featherlb.core.flows.carried cimport Carried, Keys
from featherlb.core.path.balancer cimport Balancer
from featherlb.system.elements cimport Elements
from featherlb.system.ring cimport Ring

cdef Py_ssize_t HEADERS, OPENING
cdef double NANOSECONDS


cdef inline void copy_bytes(
    unsigned char[::1] to, const unsigned char[::1] source, Py_ssize_t at,
    Py_ssize_t length) noexcept:
    memcpy(&to[0], &source[at], length)


@cython.final
cdef class Exchange:
    cdef Balancer _core
    cdef Ring _ring
    cdef Elements _keys4, _keys6
    cdef object _buffer
    cdef unsigned char[::1] _headers
    cdef const unsigned char[::1] _bytes
    cdef const unsigned short[::1] _halves
    cdef const unsigned int[::1] _words
    cdef const unsigned long long[::1] _longs

    @cython.locals(
        core=Balancer, at=cython.Py_ssize_t, index=cython.Py_ssize_t, before=cython.int,
        after=cython.int, time=cython.double)
    cpdef object listen(self, double now)
    @cython.locals(core=Balancer, headers="unsigned char[::1]", total=cython.Py_ssize_t)
    cdef object take_opened(
        self, Py_ssize_t index, Py_ssize_t at, Py_ssize_t length, double time)
    @cython.locals(carried=Carried)
    cpdef object execute(self)
    @cython.locals(count=cython.Py_ssize_t, done=cython.Py_ssize_t)
    cdef object change(self, Keys keys, Elements table)
