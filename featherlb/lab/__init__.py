"""The lab: clients, the balancer's host and backends as network namespaces of one machine.

Tests, the demo and people use it (`make lab-up`); see topology.md for the drawing. Nothing outside
its namespaces changes.
"""

from featherlb.lab.namespaces import Lab, Node

__all__ = ["Lab", "Node"]
