# C types of tcp_options.py, for the compiled build.
cimport cython
from featherlb.net.checksum cimport MASK16, fold, update
from featherlb.net.packet cimport Packet

cdef int END_OF_OPTIONS, NO_OPERATION, MAXIMUM_SEGMENT_SIZE, WINDOW_SCALE, LARGEST_SCALE
cdef int SACK_PERMITTED, SACK

@cython.locals(at=cython.Py_ssize_t)
cpdef void lower(Packet packet, unsigned int limit, bint summed) noexcept
@cython.locals(at=cython.Py_ssize_t)
cpdef int window_scale(Packet packet) noexcept
@cython.locals(at=cython.Py_ssize_t)
cpdef int segment_size(Packet packet) noexcept
cpdef bint permits_sack(Packet packet) noexcept
@cython.locals(at=cython.Py_ssize_t, length=cython.int)
cdef Py_ssize_t find(Packet packet, int wanted, int size) noexcept
@cython.locals(length=cython.int)
cdef Py_ssize_t option_from(Packet packet, Py_ssize_t at) noexcept
@cython.locals(value=cython.uint, field=cython.Py_ssize_t)
cdef void replace(Packet packet, Py_ssize_t at, unsigned int limit, bint summed) noexcept
