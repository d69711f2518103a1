# C types of outbox.py, for the compiled build.
from featherlb.net.packet cimport Packet

cdef int RST, UDP
cdef int MAX_WAITING, MAX_ICMP_ERRORS, MAX_REFUSED_CLIENTS


cdef class Outbox:
    cdef Packet _packet
    cdef list _waiting
    cdef unsigned int _errors, _ticks, _refused_clients, _refused_ticks

    cpdef list take(self)
    cpdef object add(self, bytes packet)
    cdef object refuse(self, unsigned int ticks)
    cdef object refuse_client(self, unsigned int ticks)
    cdef object echo(self)
    cdef object report_ttl_exceeded(self, unsigned long long high, unsigned long long low, unsigned int ticks)
    cdef object report_too_big(
        self, unsigned long long high, unsigned long long low, unsigned int mtu,
        unsigned int ticks)
    cdef bint may_answer(self) noexcept
    cdef bint may_send_error(self, unsigned int ticks) noexcept
