"""How packets are received in batches, from a queue and from packet sockets alike."""

BATCH = 32
"""Packets per system call. More would only push the first ones out of the processor's cache."""
SLOT_SIZE = 68 << 10
"""Bytes of a buffer slot: an IP packet of the largest size, and what stands in front of it."""
MAX_BATCHES = 32
"""Per call of `process`, so that the worker gets to its timers under any load."""

RECEIVE_BUFFER = 32 << 20
"""Bytes of kernel memory for packets on their way to us; past net.core.rmem_max."""
SEND_BUFFER = 8 << 20
"""Bytes of kernel memory for packets on their way out: a whole batch of super-packets."""
