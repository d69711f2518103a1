"""The validated configuration: frozen values, names not yet resolved. Each value that can still
turn out faulty (a name without an address, a VIP that another service has too) carries its origin.
Comparisons ignore origins (as do the writer and `check`): two configurations are equal if they mean
the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from featherlb.config.expression import Condition
from featherlb.config.faults import NOWHERE, Origin
from featherlb.core.pools.schedulers import is_file_reference
from featherlb.model import (
    DEFAULT_DATAPATH,
    LAST_PORT,
    Address,
    Datapath,
    Driver,
    Endpoint,
    HashPart,
    HealthCheck,
    Label,
    NatMode,
    Network,
    NetworkSet,
    OnBackendDown,
    PassiveCheck,
    Preference,
    Protocol,
    Rate,
    Redispatch,
    Refusal,
    Role,
    Sync,
    SynCookies,
    Timeouts,
    join_host_ports,
    join_vip,
)
from featherlb.model.user_code import CodeKind

Host = Address | str
"""An IP address, or a name that is resolved later."""
BackendKey = tuple[Host, int, int]
"""Host, `port` and `last_port`, as in `model.Endpoint`."""
HOOKS = ("on_open", "on_close", "on_backend_change")
"""The options that name users' hooks."""
Automatic = Literal["auto"]
AUTO: Automatic = "auto"
"""In place of a datapath: the fastest that works."""


@dataclass(frozen=True, slots=True)
class VipConfig:
    """Where clients connect; like `model.Vip`, but the host may be a name."""

    host: Host
    first_port: int
    last_port: int
    origin: Origin = field(compare=False)

    @property
    def all_ports(self) -> bool:
        """See `model.Vip`."""
        return (self.first_port, self.last_port) == (1, LAST_PORT)

    def __str__(self) -> str:
        return join_vip(str(self.host), self.first_port, self.last_port)


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """A server of the pool; weight 0 gets no new flows. Its ports are as in `model.Endpoint`."""

    host: Host
    port: int
    origin: Origin = field(compare=False)
    weight: int = 1
    role: Role = Role.PRIMARY
    max_connections: int | None = None
    last_port: int = 0
    labels: tuple[Label, ...] = ()
    canary: float = 0.0
    """As in `model.Backend`. Run-time changes alone set it."""

    @property
    def key(self) -> BackendKey:
        """What identifies it in its pool."""
        return self.host, self.port, self.last_port

    def __str__(self) -> str:
        return join_host_ports(str(self.host), self.port, self.last_port)


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """An address of this host that `full` NAT may use."""

    address: Address
    origin: Origin = field(compare=False)

    def __str__(self) -> str:
        return str(self.address)


@dataclass(frozen=True, slots=True)
class PersistenceConfig:
    """Like `model.Persistence`; `prefix` is None for single addresses."""

    timeout: float
    prefix: int | None
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """A file that lists networks. `networks` is its content, None if it wasn't read yet."""

    path: str
    networks: NetworkSet | None = None

    def __str__(self) -> str:
        return self.path


ListedClients = tuple[Network | NetworkFile, ...]
"""Clients by their networks."""


@dataclass(frozen=True, slots=True)
class MaxFlowsConfig:
    """Like `model.MaxFlows`; `prefix` is None for the default of the address family."""

    limit: int
    prefix: int | None = None
    action: Refusal = Refusal.DROP

    def __str__(self) -> str:
        return f"{self.limit}{_limit_options(self.prefix, self.action)}"


@dataclass(frozen=True, slots=True)
class MaxNewConfig:
    """Like `model.MaxNew`; `burst` is None for as many as in one unit of the rate, `prefix` for the
    default of the address family."""

    rate: Rate
    burst: int | None = None
    prefix: int | None = None
    action: Refusal = Refusal.DROP

    def __str__(self) -> str:
        burst = "" if self.burst is None else f" burst {self.burst}"
        return f"{self.rate}{burst}{_limit_options(self.prefix, self.action)}"


def _limit_options(prefix: int | None, action: Refusal) -> str:
    """The options of a limit that differ from the default."""
    whose = "" if prefix is None else f" per /{prefix}" if prefix else " for the service"
    return f"{whose} ({action})" if action is not Refusal.DROP else whose


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """A service as configured; `scheduler` is a canonical name of the registry."""

    name: str
    vips: tuple[VipConfig, ...]
    origin: Origin = field(compare=False)
    protocol: Protocol = Protocol.TCP
    scheduler: str = "round-robin"
    scheduler_origin: Origin = field(default=NOWHERE, compare=False)
    hash_on: tuple[HashPart, ...] = ()
    hash_balance: int | None = None
    nat: NatMode = NatMode.DNAT
    datapath: Datapath | Automatic = DEFAULT_DATAPATH
    one_packet: bool = False
    responses: int | None = None
    mss: int | None = None
    syn_cookies: SynCookies = SynCookies.AUTO
    persistence: PersistenceConfig | None = None
    prefer: Preference | None = None
    redispatch: Redispatch = field(default_factory=Redispatch)
    allow: ListedClients = ()
    """Empty: every client."""
    deny: ListedClients = ()
    deny_action: Refusal = Refusal.DROP
    max_flows: tuple[MaxFlowsConfig, ...] = ()
    max_new: tuple[MaxNewConfig, ...] = ()
    source_addresses: tuple[SourceConfig, ...] = ()
    sync: Sync = Sync.ESTABLISHED
    on_backend_down: OnBackendDown = OnBackendDown.KEEP
    on_open: str = ""
    on_close: str = ""
    on_backend_change: str = ""
    health: HealthCheck | None = None
    passive_health: PassiveCheck | None = None
    slow_start: float | None = None
    """Duration of slow start in seconds."""
    panic_threshold: int = 0
    """Percentage of usable backends below which health is ignored."""
    backends: tuple[BackendConfig, ...] = ()
    option_origins: Mapping[str, Origin] = field(default_factory=dict, compare=False)
    """Of the keys that conflict with others."""

    @property
    def hash_key_name(self) -> str:
        """See `model.Service.key`."""
        return next((part.key for part in self.hash_on if part.key), "")

    @property
    def user_code(self) -> dict[str, "tuple[CodeKind, Origin]"]:
        """The files of users' code that it refers to, each with what it is for."""
        key = self.hash_key_name
        found = {self.scheduler: (CodeKind.SCHEDULER, self.scheduler_origin)}
        if key:
            found[key] = CodeKind.KEY, self.option_origins.get("hash_on", self.origin)
        for option in HOOKS:
            origin = self.option_origins.get(option, self.origin)
            found[getattr(self, option)] = CodeKind.HOOK, origin
        return {name: what for name, what in found.items() if is_file_reference(name)}


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """The runtime API on TCP, protected by the token."""

    listen: Endpoint
    token: str
    hosts: tuple[str, ...] = ()
    """Names that clients without the token may call this host by, besides those it knows."""


DEFAULT_KEYS = "/etc/featherlb/cluster"


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Other nodes with the same services. `node` is this one's name, `keys` the directory with its
    certificate, `source_addresses` those of `full` NAT by node."""

    node: str
    listen: Endpoint
    peers: tuple[Endpoint, ...] = ()
    keys: str = DEFAULT_KEYS
    source_addresses: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    origin: Origin = field(default=NOWHERE, compare=False)

    def sources(self, family: int, *, own: bool) -> tuple[Address, ...]:
        """The source addresses of this address family that are this node's `own`, or all others."""
        return tuple(
            address
            for node, addresses in self.source_addresses.items()
            for address in addresses
            if (node == self.node) is own and address.version == family
        )


def default_name(vip: VipConfig, protocol: Protocol) -> str:
    """The name of a service without one: `10.0.0.10:80/tcp`."""
    return f"{vip}/{protocol}"


@dataclass(frozen=True, slots=True)
class RecorderConfig:
    """The flight recorder of each worker: its number of records, and when it is saved."""

    size: int = 65536
    dump_when: Condition | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """A complete configuration. `queue` None: featherlb chooses a free number."""

    services: tuple[ServiceConfig, ...] = ()
    queue: int | None = None
    workers: int = 1
    fail_open: bool = False
    assign: bool = True
    """Give the host the VIPs that it doesn't have."""
    restore: bool = True
    """Restore what others change of featherlb's on the host."""
    driver: Driver = Driver.NETLINK
    hash_key: str = ""
    max_flows: int = 262144
    timeouts: Timeouts = field(default_factory=Timeouts)
    resolve_interval: float = 30.0
    recorder: RecorderConfig = field(default_factory=RecorderConfig)
    api: ApiConfig | None = None
    cluster: ClusterConfig | None = None
