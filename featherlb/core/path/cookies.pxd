# C types of cookies.py, for the compiled build.
cimport cython
from featherlb.core.flows.counters cimport Counters
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.next_hops cimport NextHops
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.context cimport Context
from featherlb.core.path.outbox cimport Outbox
from featherlb.core.pools.pool cimport Pool
from featherlb.net.checksum cimport sum_bytes
from featherlb.net.packet cimport MASK32, Packet
from featherlb.net.siphash cimport SipHash
from featherlb.net.tcp_options cimport permits_sack, segment_size, window_scale

cdef int ACK, SYN, TCP
cdef int SLOT, COUNT, LEAST, SHARE, DATA, NOT_SCALED, OFFERED_SIZE, TTL
cdef Py_ssize_t LONGEST
cdef unsigned int TICKS_PER_SECOND
cdef int SYN_COOKIE, WIRE, ANSWERED, DROP
cdef unsigned int[::1] SIZES
cdef tuple USUAL


@cython.final
cdef class Cookies:
    cdef Packet _packet
    cdef FlowTable _flows
    cdef Lifecycle _lifecycle
    cdef NextHops _next_hops
    cdef Counters _counters
    cdef Outbox _outbox
    cdef SipHash _hash
    cdef double _half_open
    cdef unsigned int _threshold, _until, _reviewed
    cdef long long _unreturned
    cdef readonly bint flooded, shielded
    cdef public long long answered, returned
    cdef readonly int size, scale, offered
    cdef dict _scales
    cdef readonly unsigned int first, cookie
    cdef readonly bint sack

    @cython.locals(half_open=cython.uint)
    cdef bint are_wanted(self, Pool pool) except -1
    @cython.locals(unreturned=cython.longlong, more=cython.longlong, half_open=cython.uint)
    cpdef object handle_timer(self, unsigned int ticks)
    cpdef object set_shield(self, bint up, dict scales, unsigned int ticks)
    @cython.locals(
        packet=Packet, client_size=cython.int, number=cython.int, scale=cython.int,
        sack=cython.bint, data=cython.int, size=cython.uint, code=cython.ulonglong, i=cython.int,
        offered=cython.int)
    cdef int answer(self, Context ctx) except -1
    @cython.locals(
        packet=Packet, cookie=cython.uint, slot=cython.uint, first=cython.uint, then=cython.uint,
        code=cython.ulonglong, data=cython.int, scales=tuple, offered=cython.int)
    cdef bint accepts(self, Context ctx, Pool pool) except -1
    @cython.locals(packet=Packet, hashing=SipHash, ports=cython.ulonglong)
    cdef unsigned long long code(
        self, unsigned long long first, unsigned int slot, int offered) noexcept
    @cython.locals(
        packet=Packet, length=cython.uint, at=cython.Py_ssize_t, data="unsigned char[::1]")
    cdef object write(self, unsigned int cookie, unsigned int size, int scale, bint sack)

@cython.locals(seal=cython.ulonglong)
cdef unsigned int cookie_of(unsigned long long code, unsigned int data) noexcept
@cython.locals(size=cython.int)
cpdef int offered_size(limit, int version) except -1
cpdef int threshold(Py_ssize_t capacity) noexcept
