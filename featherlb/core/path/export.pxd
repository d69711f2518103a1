# C types of export.py, for the compiled build.
from featherlb.core.flows.counters cimport (
    COUNTERS, DOUBTFUL, MOVED_REFUSED, MOVED_SILENT, OPENED, PORTS_RECLAIMED, REFUSED, RESETS,
    RETRANSMITS, SYN_RETRIES, SYN_TIMEOUTS, Counters)
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members
from featherlb.core.flows.kernel cimport UNKNOWN_SCALE
from featherlb.core.flows.record cimport REDISPATCHED, Records
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.path.redispatch cimport Redispatch
from featherlb.core.path.services cimport Services


cdef class Views:
    cdef FlowTable _flows
    cdef Services _services
    cdef Members _members
    cdef Counters _counters
    cdef Lifecycle _lifecycle
    cdef Redispatch _redispatch
    cdef object _source_ports
