# C types of pool.py, for the compiled build.
cimport cython


cdef class Tier:
    cdef readonly object scheduler
    cdef readonly list usable

    cpdef object pick(self, flow, unsigned int ticks)


cdef class Pool:
    cdef readonly object service, gate, key, persistence, responses, spill, canaries
    cdef readonly object connection_ids
    cdef readonly dict members, ranged
    cdef readonly bint full, raw, offloaded, carries, one_packet, all_ports
    cdef readonly bint cookies_always, cookies_allowed, guarded, counts_clients
    cdef readonly bint keeps_openings, adopts
    cdef readonly int sync
    cdef public bint awaiting_rules
    cdef public object turn, left_to_worker
    cdef object _seed, _key, _strategy, _takers
    cdef bint _plain
    cdef dict _tiers, _spilling
    cdef Tier _serving

    cpdef object pick(self, flow, unsigned int ticks)
    @cython.locals(tier=Tier, tiers=dict)
    cdef object _pick(self, flow, unsigned int ticks)
