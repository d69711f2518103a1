# C types of hooks.py, for the compiled build.
cimport cython
from featherlb.core.flows.record cimport FULL, OFFLOADED, WIRED
from featherlb.core.pools.pool cimport Pool

cdef unsigned char[::1] ACTIONS
cdef int HOOKS, PASS, REWRITE, OPEN, DROP, VERIFY
cdef int QUEUED, QUEUED_DNAT_REPLY, FRAMED, KERNEL, ERRORS, NEW_NFQUEUE, NEW_RAW, NEW_OFFLOAD
cdef int PREROUTING, OUTPUT, WIRE

cdef int for_flow(int flags, Py_ssize_t reply, int hook) noexcept
cdef int for_error(int flags, Py_ssize_t reply, int hook) noexcept
@cython.locals(row=cython.int)
cdef int for_new(Pool pool, int hook) noexcept
cdef int row_of(int flags, Py_ssize_t reply) noexcept
cdef bint is_after_routing(int hook) noexcept
