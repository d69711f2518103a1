# C types of link_socket.py, for the compiled build.
from featherlb.core.flows.next_hops cimport LINK_SHIFT
from featherlb.system.mmsg cimport DatagramBatch


cdef class LinkSocket:
    cdef readonly object link, socket
    cdef readonly int link_id, family, mtu
    cdef readonly unsigned long long ingress
    cdef readonly unsigned int source_high, source_low
    cdef readonly DatagramBatch out
    cdef readonly object dropped
