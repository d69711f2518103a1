"""Slow and obvious versions of what the core does fast, for tests to compare with."""
