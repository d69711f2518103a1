# C types of fragments.py, for the compiled build.
cimport cython
from featherlb.net.packet cimport Packet

cdef int MAX_PACKETS, MEMORY


cdef class Fragments:
    cdef object _packets

    cpdef object remember(self, Packet first, Py_ssize_t ref, unsigned int ticks)
    @cython.locals(seen=cython.uint)
    cpdef Py_ssize_t find(self, Packet later, unsigned int ticks) except -1

cdef tuple key_of(Packet packet)
