"""Sizes of batches and buffers, for queues and packet sockets."""

BATCH = 32
"""Packets per system call. More would evict the first ones from the processor's cache."""
SLOT_SIZE = 68 << 10
"""Bytes of a buffer slot: the largest IP packet, and the headers in front of it."""
MAX_BATCHES = 32
"""Batches per call of `process`, so that the worker's timers run under any load."""

RECEIVE_BUFFER = 32 << 20
"""Bytes of kernel memory for received frames; exceeds net.core.rmem_max."""
SEND_BUFFER = 8 << 20
"""Bytes of kernel memory for packets to send: a whole batch of GSO packets."""
