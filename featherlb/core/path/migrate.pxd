# C types of migrate.py, for the compiled build.
cimport cython
from featherlb.core.flows.kernel cimport Commands
from featherlb.core.flows.lifecycle cimport Lifecycle
from featherlb.core.flows.members cimport Members
from featherlb.core.flows.record cimport (
    ABANDONED, CARRIED, COUNTED, LOCAL_CLIENT, OFFLOADED, SPLICED, WIRED, Record, direction_of)
from featherlb.core.flows.table cimport FlowTable
from featherlb.core.flows.windows cimport start_unsure
from featherlb.core.path.carrying cimport Carrying

cdef int TCP
cdef int NEW, SYN_SENT, SYN_RETRIED, CLOSING, CLOSED, REPLACED


cdef class Migration:
    cdef FlowTable _flows
    cdef Members _members
    cdef Lifecycle _lifecycle
    cdef Commands _commands
    cdef Carrying _carrying

    @cython.locals(flows=FlowTable, flow=cython.Py_ssize_t, record="Record *")
    cpdef object migrate(self, pools)
    @cython.locals(
        flows=FlowTable, record="Record *", state=cython.int, reply=cython.Py_ssize_t,
        spliced=cython.bint, kept=cython.bint)
    cdef object migrate_flow(self, Py_ssize_t flow, bint offloaded)
