# C types of windows.py, for the compiled build.
cimport cython
from featherlb.core.flows.record cimport UNSURE, Direction, Record, direction_of
from featherlb.net.packet cimport MASK32, Packet
from featherlb.net.tcp_options cimport window_scale

cdef int ACK, FIN
cdef unsigned int MAX_WINDOW, MAX_DISTANCE
cdef int LARGEST_SCALES, ADMITTED, REPEATED

@cython.locals(following=cython.uint, scale=cython.int)
cdef void begin(Record *record, Packet packet) noexcept
@cython.locals(following=cython.uint, scale=cython.int, scaled=cython.bint)
cdef void answer(Record *record, Packet packet) noexcept
cdef void renew(Record *record, Packet packet) noexcept
@cython.locals(distance=cython.uint)
cdef bint acknowledges_syn(Record *record, Packet packet) noexcept
cdef void start_unsure(Record *record) noexcept
@cython.locals(
    sender="Direction *", receiver="Direction *", end=cython.uint, acknowledged=cython.uint,
    window=cython.uint, reached=cython.uint, admitted=cython.int)
cdef int admits(Record *record, int reply, Packet packet, unsigned int more) noexcept
@cython.locals(ahead=cython.uint, reached=cython.uint)
cdef void learn(
    Record *record, int reply, Direction *sender, Direction *receiver, unsigned int end,
    unsigned int expected) noexcept
@cython.locals(expected=cython.uint, distance=cython.uint)
cdef bint admits_reset(Record *record, int reply, Packet packet) noexcept
@cython.locals(first=cython.uint, distance=cython.uint)
cdef bint is_in_flight(Record *record, int reply, unsigned int sequence) noexcept
cdef bint are_acknowledged(Record *record) noexcept
