# C types of adopt.py, for the compiled build.
cimport cython
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members
from featherlb.core.path.claims cimport Claims
from featherlb.core.path.context cimport Context
from featherlb.net.packet cimport Packet

cdef int SYN, TCP
cdef int ESTABLISHED, INPUT, OUTPUT, WIRE, TRUNCATED


cdef class Adoption:
    cdef readonly double until
    cdef FlowTable _flows
    cdef Members _members
    cdef object _tombstones
    cdef Lifecycle _lifecycle
    cdef Claims _claims
    cdef dict _vips

    @cython.locals(
        packet=Packet, claims=Claims, hook=cython.int, client_port=cython.uint, ports=cython.uint, vip_high=cython.ulonglong,
        vip_low=cython.ulonglong, vip_port=cython.uint)
    cdef Py_ssize_t adopt(self, Context ctx) except -2
