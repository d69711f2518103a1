"""The data plane: one process per queue, with a core and flows of its own."""
