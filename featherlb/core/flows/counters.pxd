# C types of counters.py, for the compiled build.
cimport cython
from featherlb.core.flows.record cimport Record
from featherlb.core.pools.latency cimport Latencies

cdef Py_ssize_t OPENED, RESETS, REFUSED, SYN_TIMEOUTS, SYN_RETRIES, DOUBTFUL
cdef Py_ssize_t MOVED_REFUSED, MOVED_SILENT, PORTS_RECLAIMED, RETRANSMITS, COUNTERS
cdef int NOT_OURS, PASS, DROP
cdef unsigned long long NETWORK_MULTIPLIER, MASK64, FIRST_BIT


cdef class Counters:
    cdef unsigned long long[::1] reasons, members, networks
    cdef readonly Latencies latencies

    @cython.locals(end=cython.Py_ssize_t, i=cython.Py_ssize_t)
    cpdef object begin(self, Py_ssize_t member)
    cdef void add(self, Py_ssize_t member, Py_ssize_t which) noexcept
    cpdef void count_repeated(
        self, Py_ssize_t member, Py_ssize_t reply, unsigned long long count) noexcept
    cdef void open(
        self, Py_ssize_t member, unsigned long long high, unsigned long long low) noexcept
    @cython.locals(member=cython.Py_ssize_t)
    cdef void fail(self, Record *record, Py_ssize_t how) noexcept
    @cython.locals(at=cython.Py_ssize_t)
    cpdef tuple take_networks(self, Py_ssize_t member)
    cdef int drop(self, int reason) noexcept
    cdef int pass_on(self) noexcept


@cython.locals(network=cython.ulonglong)
cdef unsigned long long network_bit(unsigned long long high, unsigned long long low) noexcept
