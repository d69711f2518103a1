# C types of siphash.py, for the compiled build.
cimport cython

cdef unsigned long long MASK64


@cython.final
cdef class SipHash:
    cdef unsigned long long k0, k1, v0, v1, v2, v3
    cdef unsigned long long words

    cpdef void begin(self) noexcept
    cpdef void add(self, unsigned long long word) noexcept
    cpdef unsigned long long end(self) noexcept
    @cython.locals(
        v0=cython.ulonglong, v1=cython.ulonglong, v2=cython.ulonglong, v3=cython.ulonglong,
        _=cython.int)
    cdef void mix(self, int rounds) noexcept


cdef unsigned long long rotated(unsigned long long word, int bits) noexcept
