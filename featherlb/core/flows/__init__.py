"""Tracked connections: their table, their states and their resources."""
