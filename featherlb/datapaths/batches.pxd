# C types of batches.py, for the compiled build.

cdef Py_ssize_t BATCH, SLOT_SIZE, MAX_BATCHES
