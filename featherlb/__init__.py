"""featherlb: a layer-4 NAT load balancer whose packet processor is written in Python."""

from featherlb import compiled

__version__ = "0.1.0"

COMPILED = compiled.choose()
"""Whether the packet path runs compiled (see `build`)."""
