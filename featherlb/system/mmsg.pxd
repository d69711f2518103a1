# C types of mmsg.py, for the compiled build, and the system calls that it uses then.
cimport cython

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<time.h>" nogil:
    struct timespec:
        pass

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int MSG_DONTWAIT
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    Py_ssize_t sendmsg(int fd, const msghdr *message, int flags)

cdef extern from "<errno.h>" nogil:
    int c_errno "errno"


cdef class MessageBatch:
    cdef readonly object buffer
    cdef readonly int fd, slots
    cdef readonly Py_ssize_t size, pieces
    cdef readonly list refused
    cdef object _socket, _out
    cdef unsigned char[::1] data
    cdef unsigned int[::1] lengths
    cdef mmsghdr received[64]
    cdef iovec into[64]
    cdef iovec out[1024]
    cdef msghdr outgoing

    @cython.locals(i=cython.int, count=cython.int)
    cpdef int receive(self) except -1
    cpdef void check(self, int number) except *
    cpdef void add(self, Py_ssize_t offset, Py_ssize_t length) noexcept
    cpdef object flush(self)
    cdef bint send(self, Py_ssize_t first, Py_ssize_t count) noexcept


cdef class DatagramBatch:
    cdef readonly int fd
    cdef readonly Py_ssize_t pending, failed
    cdef object _socket, _out
    cdef unsigned char[::1] data
    cdef mmsghdr outgoing[64]
    cdef iovec out[64]

    cpdef void add(self, Py_ssize_t offset, Py_ssize_t length) noexcept
    @cython.locals(done=cython.int, sent=cython.int)
    cpdef int flush(self) except -1
