# C types of checksum.py, for the compiled build.
cimport cython

cdef unsigned long long MASK16

cpdef unsigned long long fold(unsigned long long total) noexcept
cpdef unsigned long long words(unsigned long long high, unsigned long long low) noexcept
cpdef unsigned long long negate(unsigned long long delta) noexcept
cpdef unsigned long long update(unsigned long long check, unsigned long long delta) noexcept
cpdef unsigned long long update_partial(unsigned long long check, unsigned long long delta) noexcept

@cython.locals(total=cython.ulonglong, even=cython.Py_ssize_t, i=cython.Py_ssize_t)
cpdef unsigned long long sum_bytes(unsigned char[::1] data, Py_ssize_t offset, Py_ssize_t length) noexcept
