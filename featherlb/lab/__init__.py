"""The lab: clients, the balancer's host and backends as network namespaces of one machine.

For tests, the demo and manual use (`make lab-up`); topology.md has the drawing. Nothing outside its
namespaces changes.
"""

from featherlb.lab.namespaces import Lab, Node

__all__ = ["Lab", "Node"]
