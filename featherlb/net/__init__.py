"""Parses, builds, checksums and fragments packets. No policy, no I/O."""
