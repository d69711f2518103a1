# C types of record.py, for the compiled build.
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

# From the tables of record.py, by `scripts/check_record.py --write`:
cdef extern from *:
    """
    typedef struct {
        uint64_t src_high;
        uint64_t src_low;
        uint64_t dst_high;
        uint64_t dst_low;
        uint16_t src_port;
        uint16_t dst_port;
        union {
            uint32_t expected;
            uint32_t awaited;
            uint32_t kernel_packets;
        };
        uint64_t bytes;
    } Direction;
    typedef struct {
        union {
            Direction directions[2];
            struct {
                uint64_t client_high;
                uint64_t client_low;
                uint64_t vip_high;
                uint64_t vip_low;
                uint16_t client_port;
                uint16_t vip_port;
                uint32_t client_expects;
                uint64_t forward_bytes;
                uint64_t backend_high;
                uint64_t backend_low;
                uint64_t source_high;
                uint64_t source_low;
                uint16_t backend_port;
                uint16_t source_port;
                uint32_t backend_expects;
                union {
                    uint64_t reply_bytes;
                    uint64_t splice;
                };
            };
        };
        union {
            uint32_t seen;
            uint32_t idle;
        };
        union {
            uint32_t previous;
            uint32_t epoch;
        };
        union {
            uint32_t next;
            uint32_t owner;
        };
        union {
            uint32_t ends[2];
            uint16_t responses;
        };
        uint16_t member_id;
        uint16_t flags;
        union {
            struct {
                uint16_t address_delta;
                uint16_t transport_delta;
            };
            uint32_t age;
        };
        uint8_t protocol;
        uint8_t state;
        union {
            uint8_t queue;
            uint8_t kind;
        };
        uint8_t scales;
    } Record;
    _Static_assert(sizeof(Direction) == 48, "Direction has gaps");
    _Static_assert(sizeof(Record) == 128, "Record has gaps");
    """
    ctypedef struct Direction:
        uint64_t src_high
        uint64_t src_low
        uint64_t dst_high
        uint64_t dst_low
        uint16_t src_port
        uint16_t dst_port
        uint32_t expected
        uint32_t awaited
        uint32_t kernel_packets
        uint64_t bytes
    ctypedef struct Record:
        Direction directions[2]
        uint64_t client_high
        uint64_t client_low
        uint64_t vip_high
        uint64_t vip_low
        uint16_t client_port
        uint16_t vip_port
        uint32_t client_expects
        uint64_t forward_bytes
        uint64_t backend_high
        uint64_t backend_low
        uint64_t source_high
        uint64_t source_low
        uint16_t backend_port
        uint16_t source_port
        uint32_t backend_expects
        uint64_t reply_bytes
        uint64_t splice
        uint32_t seen
        uint32_t idle
        uint32_t previous
        uint32_t epoch
        uint32_t next
        uint32_t owner
        uint32_t ends[2]
        uint16_t responses
        uint16_t member_id
        uint16_t flags
        uint16_t address_delta
        uint16_t transport_delta
        uint32_t age
        uint8_t protocol
        uint8_t state
        uint8_t queue
        uint8_t kind
        uint8_t scales

cdef enum:
    IPV6 = 1
    FULL = 2
    LOCAL_BACKEND = 4
    LOCAL_CLIENT = 8
    REPLY_ONLY = 16
    COUNTED = 32
    SPLICED = 32
    WIRED = 64
    OFFLOADED = 128
    ABANDONED = 256
    UNSURE = 512
    CLIENT_SPOKE = 1024
    BACKEND_SPOKE = 2048
    REDISPATCHED = 4096
    ANSWERED = 8192
    WATCHED = 16384
    CARRIED = 32768
# End of what the tables of record.py say.


@cython.final
cdef class Records:
    cdef readonly Py_ssize_t count
    cdef unsigned char[::1] memory
    cdef Record *first

    cdef inline Record *at(self, Py_ssize_t number) noexcept:
        return self.first + number


cdef inline Direction *direction_of(Record *record, Py_ssize_t reply) noexcept:
    return &record.directions[reply]


cdef inline unsigned int ports_of(Direction *direction) noexcept:
    return <unsigned int> direction.src_port << 16 | direction.dst_port


cdef inline void copy_record(Record *to, Record *record) noexcept:
    to[0] = record[0]


cdef inline void clear(Record *record) noexcept:
    memset(record, 0, sizeof(Record))
