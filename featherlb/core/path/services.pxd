# C types of services.py, for the compiled build.
cimport cython
from featherlb.core.flows.next_hops cimport NextHops
from featherlb.core.flows.members cimport Members
from featherlb.core.pools.pool cimport Pool

cdef unsigned long long MAPPED

cdef int ALL_PORTS


cdef class Services:
    cdef readonly dict pools
    cdef readonly set addresses
    cdef readonly list user_schedulers
    cdef dict _by_vip
    cdef bint _wildcards, _all_ports
    cdef list _awaiting
    cdef Members _members
    cdef NextHops _next_hops
    cdef object _source_ports, _seed, _hash_key

    @cython.locals(family=cython.ulonglong)
    cpdef Pool find(
        self, unsigned long long high, unsigned long long low, int protocol, unsigned int port,
        bint wire)
