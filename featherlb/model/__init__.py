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
from featherlb.model.route import (
    LOOPBACK,
    HostAddress,
    Link,
    Neighbour,
    NeighbourKey,
    NextHop,
    Route,
    Topology,
)
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
    "LOOPBACK",
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
    "HostAddress",
    "Link",
    "NatMode",
    "Neighbour",
    "NeighbourKey",
    "Network",
    "NextHop",
    "OnBackendDown",
    "PacketInfo",
    "PassiveCheck",
    "Persistence",
    "Protocol",
    "Ramp",
    "Role",
    "Route",
    "Service",
    "StatusRange",
    "Timeouts",
    "Topology",
    "Verdict",
    "Vip",
    "join_host_port",
    "split_host_port",
]
