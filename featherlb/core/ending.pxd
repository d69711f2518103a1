# C types of ending.py, for the compiled build.
from featherlb.core.answers cimport Answers
from featherlb.core.flow cimport EXPECTED, FLAGS, IPV6, KEY_BYTES, PORTS, PROTOCOL, FlowTable
from featherlb.core.lifecycle cimport Lifecycle
from featherlb.core.offload cimport Offload
from featherlb.core.packet cimport TCP


cdef class Ending:
    cdef FlowTable _flows
    cdef Lifecycle _lifecycle
    cdef Offload _offload
    cdef object _ended
    cdef Answers _answers
