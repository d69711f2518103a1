# C types of port_holders.py, for the compiled build.
cimport cython

cdef unsigned int RANKS
cdef unsigned char[::1] RANK_OF


cdef class PortHolders:
    cdef unsigned int[::1] _following, _preceding, _list, _first, _last
    cdef dict _numbers
    cdef list _free

    @cython.locals(wanted=cython.uint, last=cython.uint)
    cdef void place(
        self, Py_ssize_t flow, unsigned int target, bint privileged, unsigned int rank) noexcept
    @cython.locals(number=cython.uint, before=cython.uint, after=cython.uint)
    cdef void take(self, Py_ssize_t flow) noexcept
    cdef Py_ssize_t first(self, unsigned int target, bint privileged, unsigned int rank) noexcept
