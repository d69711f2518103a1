"""Tracked connections: their table, their states, and what each of them holds."""
