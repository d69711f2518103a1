# C types of carried.py, for the compiled build.
cimport cython
from libc.string cimport memcpy
from featherlb.core.flows.counters cimport COUNTERS, DOUBTFUL, Counters
from featherlb.core.flows.entry cimport (
    DOUBTFUL_SHIFT, ENTRY_BACKEND_SPOKE, ENTRY_CLIENT_SPOKE, IPV6_ENTRY, Entries, Entry,
    fence, swap16, swap64)
from featherlb.core.flows.record cimport (
    BACKEND_SPOKE, CARRIED, CLIENT_SPOKE, IPV6, Record, direction_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.net.packet cimport MASK32

cdef Py_ssize_t ENTRY_SIZE, KEY4, KEY6, NO_MEMBER
cdef unsigned int NOT_NUMBERED


cdef inline void copy_bytes(
    unsigned char[::1] to, Py_ssize_t at, unsigned char[::1] source, Py_ssize_t first,
    Py_ssize_t length) noexcept:
    memcpy(&to[at], &source[first], length)


@cython.final
cdef class Keys:
    cdef readonly Py_ssize_t size
    cdef public Py_ssize_t count, gone
    cdef readonly unsigned char[::1] inserts, deletes
    cdef readonly unsigned int[::1] refs

    cdef object insert(self, Entries entries, Py_ssize_t index, Py_ssize_t reply)
    cdef object delete(self, Entries entries, Py_ssize_t index, Py_ssize_t reply)
    @cython.locals(found=cython.bint, at=cython.Py_ssize_t)
    cdef bint forget(self, Py_ssize_t index) noexcept
    @cython.locals(
        at=cython.Py_ssize_t, length=cython.Py_ssize_t, first=cython.Py_ssize_t,
        memory="unsigned char[::1]")
    cdef object write(
        self, unsigned char[::1] to, Py_ssize_t number, Entries entries, Py_ssize_t index,
        Py_ssize_t reply)


@cython.final
cdef class Carried:
    cdef readonly bint active
    cdef readonly Py_ssize_t carried, given, unplaced
    cdef readonly Keys keys4, keys6
    cdef readonly Entries entries
    cdef readonly Py_ssize_t worker, workers
    cdef FlowTable _flows
    cdef Counters _counters
    cdef list _ended, _resting
    cdef unsigned int[::1] entry_of, flow_of, free, known_packets
    cdef unsigned long long[::1] known_bytes
    cdef unsigned short[::1] known_doubtful
    cdef readonly Py_ssize_t free_count
    cdef unsigned int _word

    cdef unsigned int[::1] _ends
    cdef unsigned long long[::1] _spare

    cpdef bint pending(self) noexcept
    cpdef object attach_spare(self, object queue, object spare)
    @cython.locals(
        ends="unsigned int[::1]", slots="unsigned long long[::1]", size=cython.Py_ssize_t,
        head=cython.uint, room=cython.Py_ssize_t)
    cpdef object spare(self)
    @cython.locals(reply=cython.Py_ssize_t)
    cdef object bind_opened(self, Py_ssize_t flow, Py_ssize_t index)
    @cython.locals(entry="Entry *")
    cpdef object reject(self, Py_ssize_t index)
    @cython.locals(entry="Entry *", keys=Keys)
    cdef object _delete_keys(self, Py_ssize_t index)
    @cython.locals(
        record="Record *", entry="Entry *", index=cython.Py_ssize_t, reply=cython.Py_ssize_t,
        keys=Keys)
    cdef bint give(self, Py_ssize_t flow, int options, unsigned int ticks) except -1
    @cython.locals(record="Record *", entry="Entry *", reply=cython.Py_ssize_t)
    cdef void bind(self, Py_ssize_t flow, Py_ssize_t index) noexcept
    @cython.locals(entry="Entry *")
    cdef void take(self, Py_ssize_t flow) noexcept
    @cython.locals(record="Record *", entry="Entry *", state=cython.uint)
    cdef void resume(self, Py_ssize_t flow, unsigned int ticks) noexcept
    cdef void quieten(self, Py_ssize_t flow) noexcept
    @cython.locals(record="Record *", index=cython.Py_ssize_t, keys=Keys)
    cdef object end(self, Py_ssize_t flow)
    @cython.locals(flow=cython.Py_ssize_t)
    cpdef object refuse(self, Py_ssize_t index)
    cdef inline Entry *of(self, Py_ssize_t flow) noexcept:
        return self.entries.at(self.entry_of[flow])
    @cython.locals(
        entry="Entry *", members="unsigned long long[::1]", at=cython.Py_ssize_t,
        reply=cython.Py_ssize_t, known=cython.Py_ssize_t, packets=cython.uint,
        total=cython.ulonglong, more=cython.ulonglong, doubtful=cython.uint)
    cdef void count(self, Py_ssize_t index, Py_ssize_t member_id, Py_ssize_t flow) noexcept
    @cython.locals(index=cython.Py_ssize_t, member_id=cython.Py_ssize_t)
    cpdef object reclaim(self)
    cdef void discard(self, Py_ssize_t index) noexcept
    @cython.locals(entries=Entries, entry="Entry *", index=cython.Py_ssize_t)
    cpdef object release_rest(self)
    cdef Py_ssize_t find(self, Entry *entry, Py_ssize_t reply) noexcept
