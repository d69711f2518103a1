# C types of entry.py, for the compiled build.
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    typedef struct {
        uint64_t client[2];
        uint64_t vip[2];
        uint64_t backend[2];
        uint64_t source[2];
        uint16_t client_port;
        uint16_t vip_port;
        uint16_t backend_port;
        uint16_t source_port;
        uint8_t live;
        uint8_t quiet;
        uint8_t options;
        uint8_t worker;
        uint32_t state;
        uint32_t expected[2];
        uint32_t ends[2];
        uint32_t seen;
        uint32_t packets[2];
        uint8_t protocol;
        uint8_t scales;
        uint16_t member;
        uint64_t bytes[2];
    } Entry;
    _Static_assert(sizeof(Entry) == 128, "Entry has gaps");
    """
    ctypedef struct Entry:
        uint64_t client[2]
        uint64_t vip[2]
        uint64_t backend[2]
        uint64_t source[2]
        uint16_t client_port
        uint16_t vip_port
        uint16_t backend_port
        uint16_t source_port
        uint8_t live
        uint8_t quiet
        uint8_t options
        uint8_t worker
        uint32_t state
        uint32_t expected[2]
        uint32_t ends[2]
        uint32_t seen
        uint32_t packets[2]
        uint8_t protocol
        uint8_t scales
        uint16_t member
        uint64_t bytes[2]
    unsigned short swap16 "__builtin_bswap16" (unsigned short number) noexcept
    unsigned long long swap64 "__builtin_bswap64" (unsigned long long number) noexcept
    void fence "__sync_synchronize" () noexcept

cdef enum:
    LIFT_SYN_ACK = 1
    IPV6_ENTRY = 2
    STATE_MASK = 0xFF
    ENTRY_CLIENT_SPOKE = 256
    ENTRY_BACKEND_SPOKE = 512
    RESET_BY_BACKEND = 1024
    DOUBTFUL_SHIFT = 16


@cython.final
cdef class Entries:
    cdef readonly Py_ssize_t count
    cdef unsigned char[::1] memory
    cdef Entry *first

    cdef inline Entry *at(self, Py_ssize_t index) noexcept:
        return self.first + index
