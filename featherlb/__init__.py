"""featherlb: a layer-4 NAT load balancer whose packet processor is written in Python."""

__version__ = "0.1.0"
