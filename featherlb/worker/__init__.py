"""The data plane: one process a queue, one core, its own flows."""
