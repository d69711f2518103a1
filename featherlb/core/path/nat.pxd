# C types of nat.py, for the compiled build.
cimport cython
from featherlb.net.checksum cimport negate, update, update_partial
from featherlb.core.flows.table cimport (
    ADDRESS_DELTA, FLAGS, LOCAL_BACKEND, LOCAL_CLIENT, PORTS, TRANSPORT_DELTA, FlowTable)
from featherlb.net.packet cimport TCP, Packet

cdef int NOT_READY, GSO, COMPLETED_LATER

@cython.locals(at=cython.Py_ssize_t, delta=cython.ulonglong)
cpdef void translate_addresses(
    Packet packet, FlowTable flows, Py_ssize_t flow, bint reply) noexcept

@cython.locals(
    at=cython.Py_ssize_t, field=cython.Py_ssize_t, tcp=cython.bint, local=cython.int,
    address_delta=cython.ulonglong, delta=cython.ulonglong, check=cython.ulonglong,
    src_high=cython.ulonglong, src_low=cython.ulonglong,
    dst_high=cython.ulonglong, dst_low=cython.ulonglong, ports=cython.uint)
cpdef void translate(Packet packet, FlowTable flows, Py_ssize_t flow, bint reply, int info) noexcept
