"""The vocabulary: services, VIPs, backends, verdicts. Frozen values, no behaviour, no I/O.

The words are the same in YAML, on the command line, in logs and in tests.
"""

from featherlb.model.address import (
    Address,
    Endpoint,
    Network,
    Protocol,
    Vip,
    join_host_port,
    split_host_port,
)
from featherlb.model.health import CheckType, Health, HealthCheck, PassiveCheck, StatusRange
from featherlb.model.packet import LATE_HOOKS, Hook, PacketInfo, Verdict
from featherlb.model.route import Link, NextHop, Topology
from featherlb.model.service import (
    DEFAULT_DATAPATH,
    SOURCE_PORTS,
    Backend,
    Datapath,
    Driver,
    NatMode,
    OnBackendDown,
    Persistence,
    Ramp,
    Role,
    Service,
    Timeouts,
)

__all__ = [
    "DEFAULT_DATAPATH",
    "LATE_HOOKS",
    "SOURCE_PORTS",
    "Address",
    "Backend",
    "CheckType",
    "Datapath",
    "Driver",
    "Endpoint",
    "Health",
    "HealthCheck",
    "Hook",
    "Link",
    "NatMode",
    "Network",
    "NextHop",
    "OnBackendDown",
    "PacketInfo",
    "PassiveCheck",
    "Persistence",
    "Protocol",
    "Ramp",
    "Role",
    "Service",
    "StatusRange",
    "Timeouts",
    "Topology",
    "Verdict",
    "Vip",
    "join_host_port",
    "split_host_port",
]
