# C types of nat.py, for the compiled build.
cimport cython
from featherlb.net.checksum cimport negate, update, update_partial
from featherlb.core.flows.record cimport LOCAL_BACKEND, LOCAL_CLIENT, Record
from featherlb.core.flows.table cimport FlowTable
from featherlb.net.packet cimport Packet

cdef int TCP
cdef int NOT_READY, GSO, COMPLETED_LATER

@cython.locals(record="Record *", delta=cython.ulonglong)
cpdef void rewrite_addresses(
    Packet packet, FlowTable flows, Py_ssize_t flow, bint reply) noexcept

@cython.locals(
    record="Record *", field=cython.Py_ssize_t, tcp=cython.bint, local=cython.int,
    address_delta=cython.ulonglong, delta=cython.ulonglong, check=cython.ulonglong,
    src_high=cython.ulonglong, src_low=cython.ulonglong,
    dst_high=cython.ulonglong, dst_low=cython.ulonglong,
    src_port=cython.uint, dst_port=cython.uint)
cpdef void rewrite(Packet packet, FlowTable flows, Py_ssize_t flow, bint reply, int info) noexcept
