# C types of packet.py, for the compiled build.
cimport cython
from featherlb.net.checksum cimport MASK16, fold, sum_bytes, update, words

cdef unsigned long long MAPPED, MASK32
cdef int TCP, UDP, FIN, SYN, RST, ACK, STATE_FLAGS
cdef int OK, MALFORMED, BAD_FLAGS, FRAGMENT, UNSUPPORTED
cdef int HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION_OPTIONS, MAX_EXTENSION_HEADERS


cdef class Packet:
    cdef unsigned char[::1] data
    cdef readonly Py_ssize_t ip, transport, payload, end
    cdef readonly int version, protocol, flags
    cdef readonly unsigned int ports, sequence, acknowledgement, identification
    cdef readonly unsigned long long src_high, src_low, dst_high, dst_low

    cpdef void attach(self, buffer)
    @cython.locals(version=cython.int, reason=cython.int)
    cpdef int parse(self, Py_ssize_t offset, Py_ssize_t length) noexcept
    @cython.locals(header=cython.Py_ssize_t, total=cython.Py_ssize_t)
    cdef int parse_ipv4(self, Py_ssize_t offset, Py_ssize_t length) noexcept
    @cython.locals(end=cython.Py_ssize_t, reason=cython.int)
    cdef int parse_ipv6(self, Py_ssize_t offset, Py_ssize_t length) noexcept
    @cython.locals(at=cython.Py_ssize_t, following=cython.int, _=cython.int)
    cdef int skip_extensions(
        self, Py_ssize_t offset, Py_ssize_t end, bint first_fragment) noexcept
    @cython.locals(
        at=cython.Py_ssize_t, following=cython.int, end=cython.Py_ssize_t, later=cython.int)
    cpdef int parse_fragment(self, Py_ssize_t offset) noexcept
    cdef int read_addresses(self, Py_ssize_t offset) noexcept
    @cython.locals(at=cython.Py_ssize_t, header=cython.Py_ssize_t, flags=cython.int)
    cdef int parse_tcp(self) noexcept
    @cython.locals(at=cython.Py_ssize_t, size=cython.Py_ssize_t)
    cdef int parse_udp(self) noexcept
    @cython.locals(header=cython.Py_ssize_t)
    cpdef bint parse_quoted(self, int version, Py_ssize_t offset, Py_ssize_t end) noexcept
    cpdef bint has_unicast_source(self) noexcept
    @cython.locals(first=cython.int)
    cpdef bint is_header_intact(self) noexcept
    cpdef bint is_martian(self) noexcept
    cpdef int ttl(self) noexcept
    cpdef void decrement_ttl(self) noexcept
    cpdef bint may_be_fragmented(self) noexcept
    @cython.locals(field=cython.Py_ssize_t, check=cython.uint)
    cpdef object complete_checksum(self)
    cdef object number(self, high, low)
    cpdef bytes quote(self, Py_ssize_t limit)
    @cython.locals(value=cython.uint)
    cdef unsigned int read16(self, Py_ssize_t offset) noexcept
    @cython.locals(value=cython.uint)
    cdef unsigned long long read32(self, Py_ssize_t offset) noexcept
    cdef void write16(self, Py_ssize_t offset, unsigned int value) noexcept
    cdef void write32(self, Py_ssize_t offset, unsigned long long value) noexcept
    cdef void write_source(self, unsigned long long high, unsigned long long low) noexcept
    cdef void write_destination(self, unsigned long long high, unsigned long long low) noexcept
    cdef void write_address(
        self, Py_ssize_t offset, unsigned long long high, unsigned long long low) noexcept
    @cython.locals(length=cython.Py_ssize_t, total=cython.ulonglong)
    cpdef unsigned long long transport_checksum(
        self, unsigned long long src_high, unsigned long long src_low,
        unsigned long long dst_high, unsigned long long dst_low) noexcept
