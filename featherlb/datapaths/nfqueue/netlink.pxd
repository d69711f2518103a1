# C types of netlink.py, for the compiled build. Compiled, the core is called without a Python call.
cimport cython
from featherlb.core.path.balancer cimport Balancer
from featherlb.datapaths.owners cimport TupleOwners
from featherlb.system.mmsg cimport MessageBatch

cdef Py_ssize_t BATCH, SLOT_SIZE, MAX_BATCHES, NFNL_HEADER, VERDICT_SIZE
cdef int PACKET_MESSAGE, VERDICT_MESSAGE, NLM_F_REQUEST
cdef int NF_DROP, NF_ACCEPT, NF_REPEAT, INPUT, FORWARD, POSTROUTING
cdef int NFQA_PACKET_HDR, NFQA_VERDICT_HDR, NFQA_MARK, NFQA_PAYLOAD, NFQA_CAP_LEN, NFQA_SKB_INFO
cdef int PASS, REWRITTEN, DROP, LOOK_UP, FIND_OWNER, HOLD, TRUNCATED


cdef class NetlinkDriver:
    cdef readonly int number
    cdef public unsigned int pass_mark
    cdef public TupleOwners owners
    cdef public object delayed
    cdef readonly Py_ssize_t received, truncated, refused
    cdef object _socket, kernel_flows, carrier
    cdef bint cuts_segments
    cdef dict opened
    cdef MessageBatch batch
    cdef unsigned char[::1] u8
    cdef unsigned short[::1] u16
    cdef unsigned int[::1] u32, ids
    cdef int[::1] hooks, infos
    cdef long long[::1] payloads, sizes, lengths
    cdef Py_ssize_t packets

    @cython.locals(
        batch=MessageBatch, _=cython.int, count=cython.int, slot=cython.int, i=cython.Py_ssize_t)
    cpdef object process(self, Balancer core, double now)
    cdef object insert(self, Balancer core, double now)
    @cython.locals(i=cython.Py_ssize_t, at=cython.Py_ssize_t)
    cdef object drop_refused(self)
    @cython.locals(
        packet_id=cython.uint, hook=cython.int, info=cython.int, payload=cython.Py_ssize_t,
        size=cython.Py_ssize_t, length=cython.Py_ssize_t, at=cython.Py_ssize_t,
        end=cython.Py_ssize_t, step=cython.Py_ssize_t, kind=cython.int, i=cython.Py_ssize_t)
    cdef void read(self, Py_ssize_t start, Py_ssize_t received) except *
    @cython.locals(
        payload=cython.Py_ssize_t, size=cython.Py_ssize_t, hook=cython.int, verdict=cython.int,
        at=cython.Py_ssize_t, outcome=cython.int, total=cython.Py_ssize_t)
    cdef void handle(self, Py_ssize_t i, Balancer core, double now) except *
    @cython.locals(payload=cython.Py_ssize_t, size=cython.Py_ssize_t)
    cdef object hold(self, Py_ssize_t i, Balancer core)
    @cython.locals(batch=MessageBatch, payload=cython.Py_ssize_t, size=cython.Py_ssize_t)
    cpdef object handle_held(self, Balancer core, bytes packet, tuple noted, double now)
    @cython.locals(i=cython.Py_ssize_t)
    cdef void handle_recorded(self, Balancer core, double now) except *
