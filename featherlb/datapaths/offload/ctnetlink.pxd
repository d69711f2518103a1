# C types of ctnetlink.py, for the compiled build. Compiled, the handler is Offload.
cimport cython
from featherlb.core.flows.conntrack cimport Entry
from featherlb.core.path.offloaded cimport Offload
from featherlb.system.mmsg cimport MessageBatch

cdef int ENTRY, GONE
cdef unsigned int EEXIST, ERROR
cdef Py_ssize_t SLOTS, SLOT_SIZE, MAX_BATCHES, SWEPT


cdef class Conntrack:
    cdef object _requests, _events
    cdef unsigned int port
    cdef MessageBatch answers, events
    cdef public list failed
    cdef Py_ssize_t next
    cdef readonly bint watching

    cpdef object flush(self, Offload handler)
    @cython.locals(
        batch=MessageBatch, entry=Entry, count=cython.int, slot=cython.int, start=cython.Py_ssize_t)
    cdef list send(self, Offload handler)
    cdef object resolve(self, Offload handler, Py_ssize_t flow)
    cpdef bint ask(self, Offload handler, Py_ssize_t flow) except -1
    cpdef object learn(self, Offload handler, Py_ssize_t flow, double now)
    @cython.locals(entry=Entry, ticks=cython.uint, slot=cython.int, start=cython.Py_ssize_t)
    cpdef object consult(self, Offload handler, double now)
    @cython.locals(
        batch=MessageBatch, entry=Entry, ticks=cython.uint, _=cython.int, count=cython.int,
        slot=cython.int, at=cython.Py_ssize_t, end=cython.Py_ssize_t, flow=cython.Py_ssize_t)
    cpdef object process(self, Offload handler, double now)
    @cython.locals(last=cython.Py_ssize_t, count=cython.Py_ssize_t)
    cpdef object sweep(self, Offload handler, double now)
    @cython.locals(end=cython.Py_ssize_t, start=cython.Py_ssize_t, flow=cython.Py_ssize_t)
    cpdef object refresh(self, Offload handler, Py_ssize_t first, Py_ssize_t count, double now)
    @cython.locals(entry=Entry, adopted=cython.int)
    cpdef int adopt(
        self, Offload handler, object services, object shard, double now) except -1
