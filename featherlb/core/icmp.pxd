# C types of icmp.py, for the compiled build.
cimport cython
from featherlb.core.checksum cimport negate, sum_bytes, update
from featherlb.core.flow cimport ADDRESS_DELTA, FLAGS, FULL, PORTS, TRANSPORT_DELTA, FlowTable
from featherlb.core.packet cimport ICMP, ICMPV6, MASK16, TCP, Packet

cdef int HEADER, UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM, FIRST_V6, LAST_V6
cdef int ECHO_REQUEST, ECHO_REQUEST_V6

cpdef bint is_icmp(Packet packet) noexcept
@cython.locals(kind=cython.int)
cpdef bint is_error(Packet packet) noexcept
@cython.locals(kind=cython.int)
cpdef bint is_echo_request(Packet packet) noexcept
cpdef Py_ssize_t find_quoted(Packet packet, Packet quoted, FlowTable flows) noexcept
@cython.locals(length=cython.Py_ssize_t)
cdef unsigned long long checksum(
    Packet packet, unsigned long long src_high, unsigned long long src_low,
    unsigned long long dst_high, unsigned long long dst_low) noexcept
cpdef bint is_intact(Packet packet) noexcept
@cython.locals(
    at=cython.Py_ssize_t, field=cython.Py_ssize_t, header=cython.Py_ssize_t, ports=cython.uint,
    address_delta=cython.ulonglong, delta=cython.ulonglong, check=cython.ulonglong,
    src_high=cython.ulonglong, src_low=cython.ulonglong,
    dst_high=cython.ulonglong, dst_low=cython.ulonglong,
    peer_high=cython.ulonglong, peer_low=cython.ulonglong)
cpdef void translate_error(
    Packet packet, Packet quoted, FlowTable flows, Py_ssize_t flow, bint reply, bint own) noexcept
