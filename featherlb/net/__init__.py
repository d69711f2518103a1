"""Bytes and numbers: packets parsed, built, checksummed and cut. No policy, no I/O."""
