# C types of base.py, for the compiled build. Members are read by schedulers in Python, which reads
# its own objects faster.


cdef class NewFlow:
    cdef public object protocol, version, client, client_port, vip, vip_port
