# C types of owners.py, for the compiled build.
cimport cython
from featherlb.core.flows.kernel cimport UNKNOWN
from featherlb.core.flows.lifecycle cimport IS_REUSABLE
from featherlb.core.path.claims cimport Claims
from featherlb.system.conntrack_messages cimport NEW_MESSAGE, Entry, Requests
from featherlb.system.mmsg cimport MessageBatch


cdef class TupleOwners:
    cdef Claims claims
    cdef object _socket
    cdef MessageBatch answers
    cdef Entry entry
    cdef Requests requests

    @cython.locals(claims=Claims, entry=Entry, state=cython.int, owned=cython.bint)
    cpdef object answer(self)
