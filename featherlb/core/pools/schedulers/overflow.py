"""Overflow: the member of the greatest weight, until it has as many open flows as its weight says;
then the next one. IPVS's ovf (net/netfilter/ipvs/ip_vs_ovf.c; it takes one flow more).

The weight is a limit like `max_connections`, and goes the same way: the service's limits
(`Backend.max_connections`) include it before a pool has them, as workers share it. So this is
failover, and if all members are full, so is the pool.
"""

from featherlb.core.pools.schedulers.failover import Failover
from featherlb.core.pools.schedulers.registry import register


@register
class Overflow(Failover):
    name = "overflow"
    aliases = ("ovf",)
    weight_limits = True
