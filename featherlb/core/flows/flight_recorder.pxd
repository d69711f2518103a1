# C types of flight_recorder.py, for the compiled build.
cimport cython
from featherlb.core.flows.record cimport Record
from featherlb.net.packet cimport Packet

cdef int UDP
cdef int STARTED, NEW_FLOW, CHANGED, MOVED, ENDED, EXPIRED, EVICTED, REFUSED
cdef int JOINED, LEFT, DOWN, BACK_UP, WEIGHED, OF_UDP
cdef Py_ssize_t WORDS, SIZE_WORD, COUNT_WORD


@cython.final
cdef class FlightRecorder:
    cdef public double now
    cdef readonly Py_ssize_t size
    cdef unsigned long long[::1] _words
    cdef double[::1] _times

    @cython.locals(words="unsigned long long[::1]", at=cython.Py_ssize_t, ports=cython.uint)
    cdef void note(self, int kind, Record *record, int detail) noexcept
    @cython.locals(words="unsigned long long[::1]", at=cython.Py_ssize_t, kind=cython.int)
    cdef void refuse(self, Packet packet, int reason) noexcept
    cdef Py_ssize_t begin(self) noexcept
    cdef unsigned long long pack(
        self, unsigned long long ports, unsigned long long backend_port, int kind,
        int detail) noexcept
