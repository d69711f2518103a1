"""Services, backends and their options: the terms of the YAML file, as values."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from featherlb.model.address import LAST_PORT, Address, Endpoint, Protocol, Vip, reached_ports
from featherlb.model.admission import EVERYBODY, Admission


class NatMode(StrEnum):
    """`dnat` keeps the client's address; `full` replaces it with one of the balancer's."""

    DNAT = "dnat"
    FULL = "full"


class SynCookies(StrEnum):
    """When SYNs are answered with cookies."""

    AUTO = "auto"
    """While many connections are half-open."""
    ALWAYS = "always"
    OFF = "off"


class OnBackendDown(StrEnum):
    """What happens to the flows of a backend that leaves its service."""

    KEEP = "keep"
    """They continue until they end."""
    DROP = "drop"
    """They are removed: their next packet is refused or adopted by another backend."""
    RESET = "reset"
    """Both ends of a connection get a RST at once."""


class Sync(StrEnum):
    """When the other nodes of a cluster hear of a service's flows."""

    ESTABLISHED = "established"
    """When they are established, or 0.1 s old."""
    IMMEDIATE = "immediate"
    """With their first packet."""
    OFF = "off"


class Datapath(StrEnum):
    """How packets reach the packet processor."""

    NFQUEUE = "nfqueue"
    """Every packet passes an NFQUEUE."""
    RAW = "raw"
    """Whole frames over AF_PACKET sockets, past the kernel's routing and netfilter."""
    OFFLOAD = "offload"
    """The packet that opens a flow passes an NFQUEUE; conntrack handles the rest in the kernel."""

    EBPF = "ebpf"
    """As `nfqueue`, but a program in the kernel carries the packets of open flows."""

    @property
    def kernel_forwards(self) -> bool:
        """Whether the kernel forwards packets of open flows itself, even if no worker runs. Workers
        see the packets that open a flow, and untracked or out-of-state ones."""
        return self is Datapath.OFFLOAD

    @property
    def takes_frames(self) -> bool:
        """Whether workers take packets as frames from the links and choose the next hop. The
        kernel gets copies of these packets, which it must drop."""
        return self is Datapath.RAW

    @property
    def carries(self) -> bool:
        """Whether a program in the kernel carries packets of open flows in place of the workers,
        which get those that open a flow, and those that it leaves alone."""
        return self is Datapath.EBPF

    @property
    def outlives_workers(self) -> bool:
        """Whether packets of open flows are forwarded even if no worker runs."""
        return self.kernel_forwards or self.carries


DEFAULT_DATAPATH = Datapath.NFQUEUE
"""For services without one. Every host that can run featherlb can run this one."""


class Driver(StrEnum):
    """Queue drivers of the nfqueue datapath."""

    NETLINK = "netlink"
    NETFILTERQUEUE = "netfilterqueue"


SOURCE_PORTS = range(1024, 32768)
"""Source ports of `full` NAT: below Linux's default ephemeral range (32768 to 60999),
so that connections of the balancer's own host never share a port with a flow."""
PRIVILEGED_SOURCE_PORTS = range(512, 665)
"""Those for clients with a port below 1024, as some servers take requests from such ports alone
(RFC 4787 REQ-3a): NFS from any, rsh from 512 on (rcmd(3)). Below those of Linux's own NFS client
(`sunrpc.min_resvport`, 665)."""
ALL_SOURCE_PORTS = (SOURCE_PORTS, PRIVILEGED_SOURCE_PORTS)
FIRST_UNPRIVILEGED_PORT = 1024


class Role(StrEnum):
    """When a backend gets new flows: if none of an earlier role is usable or has room."""

    PRIMARY = "primary"
    BACKUP = "backup"
    SORRY = "sorry"


@dataclass(frozen=True, slots=True)
class Ramp:
    """Slow start: a share of new flows that grows linearly from nothing. Seconds of the monotonic
    clock."""

    since: float
    duration: float

    def progress(self, now: float) -> float:
        """From 0 to 1."""
        return min(1.0, max(0.0, (now - self.since) / self.duration))


@dataclass(frozen=True, slots=True)
class Label:
    """What an operator says about a backend: its zone, its rack. Schedulers see it."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class Backend:
    """A server of a pool.

    `endpoint` may stand for several ports: each port of a VIP then leads to its own, which is the
    same one, or lies at the same distance from the first.
    `local`: its address belongs to the balancer's host. `sources`: source addresses that `full` NAT
    may use towards it; empty in `dnat` mode. `peer_sources`: those of other nodes, whose replies
    may come here.
    """

    endpoint: Endpoint
    weight: int = 1
    local: bool = False
    sources: tuple[Address, ...] = ()
    peer_sources: tuple[Address, ...] = ()
    role: Role = Role.PRIMARY
    max_connections: int | None = None
    """Limit of open flows."""
    ramp: Ramp | None = None
    labels: tuple[Label, ...] = ()
    down: bool = False
    """It fails its health checks, or is ejected."""
    missing: bool = False
    """That has taken its weight: it would serve otherwise."""
    canary: float = 0.0
    """It is on trial, and gets this share of the service's new flows, in per cent, whatever its
    weight; 0: it isn't."""

    def __str__(self) -> str:
        return str(self.endpoint)

    @property
    def reply_addresses(self) -> tuple[Address, ...]:
        """Where its replies may go to in `full` mode."""
        return (*self.sources, *self.peer_sources)


QUIC_KEY = "quic-connection-id"
"""The key that QUIC connections keep when their client's address or port changes."""


class HashField(StrEnum):
    """What a scheduler can hash of a new flow, as the client sees it."""

    SRC = "src"
    SPORT = "sport"
    DST = "dst"
    DPORT = "dport"
    PROTOCOL = "protocol"
    PAYLOAD = "payload"
    """UDP: a key in the first datagram."""


TUPLE_FIELDS = tuple(field for field in HashField if field is not HashField.PAYLOAD)


@dataclass(frozen=True, slots=True)
class HashPart:
    """A field of a flow; of the client's address perhaps only the network, by the length of its
    prefix, of the payload the `key` with this name."""

    field: HashField
    prefix: int | None = None
    key: str = ""

    def __str__(self) -> str:
        if self.key:
            return self.key
        return self.field.value if self.prefix is None else f"{self.field}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class Preference:
    """New flows go to the backends with these labels; others of their role take what is left.

    `spill_below` is the percentage of the preferred backends that must be usable so that they take
    all flows; with fewer, they take a share in proportion.
    """

    labels: tuple[Label, ...]
    spill_below: int = 70

    def covers(self, backend: Backend) -> bool:
        """Whether this backend is preferred."""
        return set(self.labels) <= set(backend.labels)

    def share(self, usable: int, missing: int) -> float:
        """The part of the new flows, from 0 to 1, that so many preferred backends take if so many
        more are missing."""
        wanted = self.spill_below * (usable + missing)
        return min(1.0, 100 * usable / wanted) if wanted else 1.0


@dataclass(frozen=True, slots=True)
class Persistence:
    """New flows from a client's network go to the backend of its last one.

    `timeout` is in seconds since that flow; `prefix` is the network's prefix length.
    """

    timeout: float
    prefix: int


@dataclass(frozen=True, slots=True)
class Redispatch:
    """Whether a new flow goes to another backend if its backend refuses it or does not answer."""

    refused: bool = True
    """TCP: the SYN is answered with a RST, or an ICMP unreachable; UDP: with the latter."""
    silent: bool = True
    """TCP: the client retransmits its SYN before the backend has answered."""
    attempts: int = 2
    """Other backends to try for a flow, one after the other."""


@dataclass(frozen=True, slots=True)
class Service:
    """A VIP endpoint and the pool behind it, with every name resolved."""

    name: str
    protocol: Protocol
    vips: tuple[Vip, ...]
    backends: tuple[Backend, ...] = ()
    scheduler: str = "round-robin"
    hash_on: tuple[HashPart, ...] = ()
    """What a hash scheduler hashes of a flow; its default if empty."""
    hash_balance: int | None = None
    """Limit of a backend's open flows under a hash scheduler, in per cent of its fair share."""
    nat: NatMode = NatMode.DNAT
    datapath: Datapath = DEFAULT_DATAPATH
    one_packet: bool = False
    """UDP: every datagram is scheduled anew (ipvsadm --ops)."""
    responses: int | None = None
    """UDP: answers per datagram; the flow ends after the last one."""
    mss: int | None = None
    """TCP: upper limit of the MSS that either side announces, in bytes (RFC 9293 section 3.7.1)."""
    persistence: Persistence | None = None
    prefer: Preference | None = None
    redispatch: Redispatch = Redispatch()
    on_open: str = ""
    """Reference to a user's function that is told of each new flow; empty for none."""
    on_close: str = ""
    """The same, of each flow that ends."""
    on_backend_change: str = ""
    """The same, of each change of a backend."""
    admission: Admission = EVERYBODY
    measured: bool = False
    """How long its backends take to answer matters: it is measured on every datapath."""
    sync: Sync = Sync.ESTABLISHED
    """When other nodes hear of its flows."""
    syn_cookies: SynCookies = SynCookies.AUTO
    """TCP; without effect where the kernel translates."""

    @property
    def key(self) -> str:
        """The name of the key in datagrams that a hash scheduler hashes; empty if there is none."""
        return next((part.key for part in self.hash_on if part.key), "")

    @property
    def user_code(self) -> frozenset[str]:
        """The names of what may be users' code."""
        hooks = (self.on_open, self.on_close, self.on_backend_change)
        return frozenset({self.scheduler, self.key, *hooks})

    @property
    def remembered_prefixes(self) -> tuple[int, ...]:
        """By how many bits of their addresses clients are told apart, for each thing that is
        remembered of them. A QUIC connection keeps its backend from another port."""
        persistence = () if self.persistence is None else (self.persistence.prefix,)
        quic = (self.vips[0].address.max_prefixlen,) if self.key == QUIC_KEY else ()
        return (*persistence, *quic, *self.admission.prefixes)

    def endpoints_of(self, backend: Backend) -> tuple[Endpoint, ...]:
        """What packets reach at a backend of this service: its endpoint, or, if that keeps the
        client's port, one for each range of the VIPs' ports. The first one comes first."""
        endpoint = backend.endpoint
        if not endpoint.last_port:
            return (endpoint,)
        vip_ports = ((vip.first_port, vip.last_port) for vip in self.vips)
        return tuple(
            Endpoint(endpoint.address, first, last if last > first else 0)
            for first, last in reached_ports(endpoint.port, endpoint.last_port, vip_ports)
        )

    def reached(self, endpoint: Endpoint, vip_port: int) -> Endpoint:
        """Where packets to this port of a VIP go at a backend with this endpoint."""
        if not endpoint.last_port:
            return endpoint
        shift = endpoint.port - self.vips[0].first_port if endpoint.port else 0
        return Endpoint(endpoint.address, vip_port + shift)

    def probed(self, backend: Backend) -> Endpoint:
        """Where a backend of this service is probed: at its first port; 0 if it has all."""
        first = self.endpoints_of(backend)[0]
        every = (first.port, first.last_port) == (1, LAST_PORT)
        return Endpoint(first.address, 0 if every else first.port)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Idle time in seconds after which a flow expires, by class of state."""

    half_open: float = 30.0
    established: float = 900.0
    fin: float = 120.0
    closed: float = 10.0
    udp_one_way: float = 30.0
    udp_two_way: float = 120.0


def addressed_vips(
    services: Sequence[Service], protocol: Protocol, addresses: Collection[Address]
) -> Iterator[tuple[Service, Vip]]:
    """The VIPs of this protocol, each with its service; no wildcards, which stand for these
    `addresses` of this host. What names an address comes behind what stands for all of them."""
    for wildcard in (True, False):
        for service in services:
            if service.protocol is not protocol:
                continue
            for vip in service.vips:
                if vip.wildcard is not wildcard:
                    continue
                for address in addresses if wildcard else (vip.address,):
                    if address.version == vip.address.version:
                        yield service, Vip(address, vip.first_port, vip.last_port)
