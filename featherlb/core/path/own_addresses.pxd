# C types of own_addresses.py, for the compiled build.
cdef unsigned long long BITS, MULTIPLIER, MASK64


cdef class OwnAddresses:
    cdef readonly object addresses
    cdef unsigned char[::1] _seen

    cdef bint has(self, unsigned long long high, unsigned long long low) except -1

cdef unsigned long long place_of(unsigned long long high, unsigned long long low) noexcept
