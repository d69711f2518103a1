# C types of recording.py, for the compiled build.
cimport cython
from featherlb.core.flows.counters cimport Counters
from featherlb.core.flows.members cimport Members
from featherlb.core.flows.record cimport CARRIED, OFFLOADED, Record
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.context cimport Context
from featherlb.core.path.services cimport Services
from featherlb.net.packet cimport OK, Packet

cdef Py_ssize_t HEAD
cdef int NOT_OURS, COPY, MALFORMED, REPLY, WIRE, NONE_COUNTED


cdef class Recording:
    cdef readonly bint active
    cdef readonly object wanted
    cdef FlowTable _flows
    cdef Members _members
    cdef Services _services
    cdef Counters _counters
    cdef Context _context
    cdef Packet _packet, _own
    cdef unsigned char[::1] head
    cdef unsigned long long[::1] counted
    cdef unsigned long long net_high, net_low, mask_high, mask_low
    cdef Py_ssize_t offset, size
    cdef list _records
    cdef Py_ssize_t _bytes, _missed
    cdef dict _remarks, _comments

    @cython.locals(head=cython.Py_ssize_t)
    cpdef object begin(self, Py_ssize_t offset, Py_ssize_t size)
    @cython.locals(reason=cython.int, ctx=Context)
    cpdef object end(self)
    @cython.locals(i=cython.Py_ssize_t, reasons="unsigned long long[::1]")
    cdef int reason(self) noexcept
    cdef bint has_room(self) except -1
    cdef bint wants_client(self, unsigned long long high, unsigned long long low) noexcept
    @cython.locals(record="Record *")
    cdef bint wants(self, Py_ssize_t flow) except -1
    @cython.locals(packet=Packet)
    cdef bint wants_stray(self, int reason) except -1
    @cython.locals(packet=Packet)
    cdef object service_of_stray(self, int reason)
    cdef object service_at(
        self, unsigned long long high, unsigned long long low, int protocol, unsigned int port)
    cdef bytes before(self)
    cdef bytes after(self)
    @cython.locals(ctx=Context, record="Record *")
    cdef object record_of_flow(self, int reason)
    @cython.locals(ctx=Context)
    cdef object record_stray(self, int reason)
    @cython.locals(own=Packet, ref=cython.Py_ssize_t, parsed=cython.bint)
    cdef bint wants_sent(self, bytes packet) except -1
    @cython.locals(own=Packet, ports=cython.uint)
    cdef Py_ssize_t find_sent(self) noexcept
    @cython.locals(own=Packet, record="Record *")
    cdef object name_of_sent(self, Py_ssize_t ref)
    @cython.locals(own=Packet, ref=cython.Py_ssize_t, flow=cython.Py_ssize_t)
    cpdef object see(self, double time, bint leaving, Py_ssize_t length, bytes data)
    @cython.locals(ref=cython.Py_ssize_t)
    cpdef object send(self, bytes packet, double now)
    @cython.locals(record="Record *")
    cdef object about(self, Py_ssize_t flow, Py_ssize_t reply, bint leaving)
    @cython.locals(record="Record *")
    cdef object about_new(self, Py_ssize_t flow)
    @cython.locals(record="Record *")
    cdef object about_forward(self, Py_ssize_t flow)
    @cython.locals(record="Record *")
    cdef object about_reply(self, Py_ssize_t flow)
    @cython.locals(record="Record *")
    cdef object about_translation(self, Py_ssize_t flow, Py_ssize_t reply)
    @cython.locals(record="Record *")
    cdef object backend(self, Py_ssize_t flow)
    cdef object add(
        self, double time, object side, bint leaving, Py_ssize_t length, bytes data, object comment)
