# C types of elements.py, for the compiled build, and the system call that it uses then.
cimport cython

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_bpf

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<errno.h>" nogil:
    int c_errno "errno"
    int E2BIG, EBUSY, ENOENT, ENOMEM

cdef enum:
    UPDATE_BATCH = 26
    DELETE_BATCH = 27

# The part of `union bpf_attr` for batches.
cdef struct Batch:
    unsigned long long before
    unsigned long long after
    unsigned long long keys
    unsigned long long values
    unsigned int count
    unsigned int fd
    unsigned long long element_flags
    unsigned long long flags


@cython.final
cdef class Elements:
    cdef readonly int fd
    cdef readonly Py_ssize_t key_size
    cdef object _table
    cdef Batch batch

    cdef inline Py_ssize_t run(self, long command, Py_ssize_t count) except -1:
        self.batch.count = <unsigned int>count
        self.batch.fd = self.fd
        if syscall(SYS_bpf, command, &self.batch, sizeof(Batch)) < 0:
            if c_errno not in (ENOENT, E2BIG, ENOMEM, EBUSY):
                raise OSError(c_errno, "bpf(2) refuses a batch")
        return self.batch.count

    cpdef Py_ssize_t update(
        self, unsigned char[::1] keys, unsigned int[::1] values, Py_ssize_t count) except -1
    @cython.locals(done=cython.Py_ssize_t)
    cpdef object delete(self, unsigned char[::1] keys, Py_ssize_t count)
