# C types of ending.py, for the compiled build.
from featherlb.core.path.outbox cimport Answers
from featherlb.core.flows.table cimport EXPECTED, FLAGS, IPV6, KEY_BYTES, PORTS, PROTOCOL, FlowTable
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.path.offloaded cimport Offload
from featherlb.net.packet cimport TCP


cdef class Ending:
    cdef FlowTable _flows
    cdef Lifecycle _lifecycle
    cdef Offload _offload
    cdef object _ended
    cdef Answers _answers
