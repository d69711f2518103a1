# C types of next_hops.py, for the compiled build.
cimport cython

cdef unsigned long long MAC, ROUTED
cdef int LINK_SHIFT, LINK_MASK, EPOCH_SHIFT


cdef class NextHops:
    cdef unsigned long long[::1] clients, members
    cdef unsigned int[::1] mtu, _links
    cdef public unsigned long long ingress, egress
    cdef public unsigned int gso_size
    cdef unsigned long long epoch
    cdef readonly object addresses
    cdef readonly dict link_ids
    cdef dict _next_hops, _routes
    cdef frozenset _by_policy

    @cython.locals(link_id=cython.ulonglong, epoch=cython.ulonglong)
    cpdef object recall(self, Py_ssize_t flow, unsigned long long hop, link_ids)
    @cython.locals(hop=cython.ulonglong)
    cpdef void learn(
        self, Py_ssize_t flow, unsigned long long high, unsigned long long low) except *
    @cython.locals(hop=cython.ulonglong, came=cython.ulonglong)
    cdef bint comes_from(self, Py_ssize_t member) noexcept
    @cython.locals(hop=cython.ulonglong, ingress=cython.ulonglong)
    cpdef unsigned long long towards_client(
        self, Py_ssize_t flow, unsigned long long high, unsigned long long low) except? 0
    @cython.locals(egress=cython.ulonglong, hop=cython.ulonglong)
    cdef void decide(
        self, Py_ssize_t flow, unsigned long long high, unsigned long long low,
        unsigned long long ingress) except *
