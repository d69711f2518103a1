"""The vocabulary: services, VIPs, backends, verdicts. Frozen values, no behaviour, no I/O.

Imports only the standard library's value modules. The words are the same in YAML, on the
command line, in logs and in tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Protocol(IntEnum):
    """Transport protocols that a service can have, by IANA protocol number."""

    TCP = 6
    UDP = 17

    def __str__(self) -> str:
        return self.name.lower()


class NatMode(StrEnum):
    """`dnat` keeps the client's address; `full` replaces it by one of the balancer's."""

    DNAT = "dnat"
    FULL = "full"


class OnBackendDown(StrEnum):
    """What becomes of the flows of a backend that leaves its service."""

    KEEP = "keep"
    """They go on until they end."""
    DROP = "drop"
    """They are forgotten: whoever sends next is refused, or joins another backend."""
    RESET = "reset"
    """Both ends of a connection get a RST at once."""


class Datapath(StrEnum):
    """How packets reach the packet processor."""

    NFQUEUE = "nfqueue"
    """Every packet passes an NFQUEUE."""
    RAW = "raw"
    """Whole frames over AF_PACKET sockets, past the kernel's routing and netfilter."""
    OFFLOAD = "offload"
    """The packet that opens a flow passes an NFQUEUE, the kernel's conntrack carries the rest."""


class Driver(StrEnum):
    """Queue drivers of the nfqueue datapath."""

    NETLINK = "netlink"
    NETFILTERQUEUE = "netfilterqueue"


class Hook(IntEnum):
    """Where a packet is met: at one of the netfilter hooks, numbered as in
    include/uapi/linux/netfilter.h (enum nf_inet_hooks), or on the wire."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4
    WIRE = 5
    """In a frame, in front of everything that the kernel does with it (the raw datapath)."""


LATE_HOOKS = frozenset({Hook.INPUT, Hook.FORWARD, Hook.POSTROUTING})
"""Those behind the routing decision."""


class PacketInfo(IntFlag):
    """What the kernel says of a packet (NFQA_SKB_INFO in nfnetlink_queue.h)."""

    NONE = 0
    CHECKSUM_NOT_READY = 1
    """The transport checksum field holds only the pseudo-header's sum (CHECKSUM_PARTIAL)."""
    GSO = 2
    """A super-packet: the kernel cuts it into segments when it leaves."""
    TRUNCATED = 256
    """featherlb's own bit: the copy is shorter than the packet, so it cannot be rewritten."""
    COMPLETED_LATER = 512
    """featherlb's own bit, beside CHECKSUM_NOT_READY: the field goes on as it is, whoever sends
    the packet out completes it."""


class Verdict(IntEnum):
    """What the queue driver does with a packet that the core has looked at."""

    PASS = 0
    """Let it go on, untouched."""
    REWRITTEN = 1
    """Let it go on with the buffer's new content."""
    DROP = 2
    CARRY = 3
    """Let it go on, untouched: conntrack translates it."""
    ASK = 4
    """Ask conntrack for the flow that the core names, tell the core, and ask again."""


SOURCE_PORTS = range(1024, 32768)
"""Ports that `full` NAT gives to flows: below Linux's default ephemeral range (32768 to 60999),
so that connections of the balancer's own host never share a port with a flow."""


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address and a port (0 to 65535)."""

    address: Address
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read `10.0.0.1:80` or `[2001:db8::1]:80`; ValueError says what is wrong."""
        host, port = split_host_port(text)
        try:
            address = ip_address(host)
        except ValueError:
            raise ValueError(f"'{host}' is not an IP address") from None
        return cls(address, port)

    def __str__(self) -> str:
        return join_host_port(str(self.address), self.port)


def split_host_port(text: str) -> tuple[str, int]:
    """Split `host:port` or `[ipv6]:port`; ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"'{text}' is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"'{text}' needs brackets around its IPv6 address: [{host}]:{port}")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"port '{port}' is not a number from 1 to 65535")
    return host, int(port)


def join_host_port(host: str, port: int) -> str:
    """The inverse of `split_host_port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True, order=True)
class Vip:
    """Where clients connect: an address, or the unspecified one for every address of this
    host, and an inclusive range of ports (usually one)."""

    address: Address
    first_port: int
    last_port: int

    @property
    def wildcard(self) -> bool:
        """Whether it stands for every address of this host (0.0.0.0 or ::)."""
        return self.address.is_unspecified

    def __str__(self) -> str:
        text = join_host_port(str(self.address), self.first_port)
        return text if self.first_port == self.last_port else f"{text}-{self.last_port}"


class Role(StrEnum):
    """When a backend gets new flows: if none of an earlier role is usable or has room."""

    PRIMARY = "primary"
    BACKUP = "backup"
    SORRY = "sorry"


@dataclass(frozen=True, slots=True)
class Ramp:
    """A share of the new flows that grows linearly from nothing, in seconds of the monotonic
    clock."""

    since: float
    duration: float

    def progress(self, now: float) -> float:
        """From 0 to 1, where it is over."""
        return min(1.0, max(0.0, (now - self.since) / self.duration))


@dataclass(frozen=True, slots=True)
class Backend:
    """A server of a pool.

    `local` says that its address belongs to the balancer's host. `sources` are the balancer's
    addresses that `full` NAT may give to packets towards it; empty in `dnat` mode.
    """

    endpoint: Endpoint
    weight: int = 1
    local: bool = False
    sources: tuple[Address, ...] = ()
    role: Role = Role.PRIMARY
    max_connections: int | None = None
    """Open flows at a time."""
    ramp: Ramp | None = None

    def __str__(self) -> str:
        return str(self.endpoint)


@dataclass(frozen=True, slots=True)
class Persistence:
    """New flows of a client's network go where its last one went.

    `timeout` is in seconds since that one; a network has the first `prefix` bits in common.
    """

    timeout: float
    prefix: int


class CheckType(StrEnum):
    """How a backend is asked whether it is well."""

    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"
    UDP = "udp"
    SCRIPT = "script"


class Health(StrEnum):
    """Whether a backend is taken to be well."""

    UP = "up"
    DOWN = "down"
    EJECTED = "ejected"
    """Its clients' connections failed."""


@dataclass(frozen=True, slots=True)
class StatusRange:
    """HTTP status codes from `low` to `high`, both included."""

    low: int
    high: int

    def __contains__(self, code: int) -> bool:
        return self.low <= code <= self.high

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """How the backends of a service are checked. Times are seconds.

    `address` and `port` are checked in place of the backend's own.
    """

    type: CheckType
    interval: float = 2.0
    timeout: float = 1.0
    rise: int = 2
    """Good results in a row that bring a backend up."""
    fall: int = 3
    """Bad results in a row that bring it down."""
    initial: Health = Health.UP
    """Before the first result."""
    address: Address | None = None
    port: int | None = None
    method: str = "GET"
    path: str = "/"
    host: str | None = None
    """The Host header; None for the address."""
    status: tuple[StatusRange, ...] = (StatusRange(200, 399),)
    body: str | None = None
    """Text that the response's body holds."""
    send: str = ""
    """UDP: the payload, a character for each byte (ISO 8859-1); `expect` likewise."""
    expect: str | None = None
    """UDP: what the answer holds; None if there may be none."""
    command: tuple[str, ...] = ()

    def endpoint(self, backend: Endpoint) -> Endpoint:
        """What is checked for a backend."""
        return Endpoint(self.address or backend.address, self.port or backend.port)


@dataclass(frozen=True, slots=True)
class PassiveCheck:
    """When the connections of clients show that a backend is not well. Times are seconds."""

    failures: int = 5
    """Failed connections since some moment of the window."""
    share: int = 50
    """Per cent of the connections since then that have failed, at least."""
    window: float = 10.0
    ejection: float = 10.0
    """Time out of use; twice as long each further time."""
    longest_ejection: float = 300.0
    max_ejected: int = 50
    """Per cent of a service's backends that are out of use because of this, at most."""


@dataclass(frozen=True, slots=True)
class Service:
    """A VIP endpoint and the pool behind it, with every name resolved."""

    name: str
    protocol: Protocol
    vips: tuple[Vip, ...]
    backends: tuple[Backend, ...] = ()
    scheduler: str = "round-robin"
    nat: NatMode = NatMode.DNAT
    datapath: Datapath = Datapath.NFQUEUE
    one_packet: bool = False
    """UDP: every datagram is scheduled anew (ipvsadm --ops)."""
    responses: int | None = None
    """UDP: datagrams that a backend answers to each datagram; after them the flow ends."""
    mss: int | None = None
    """TCP: the largest segment, in bytes, that either side may ask for (RFC 9293 section 3.7.1)."""
    persistence: Persistence | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds without a packet after which a flow is forgotten, by kind of state."""

    half_open: float = 30.0
    established: float = 900.0
    fin: float = 120.0
    closed: float = 10.0
    udp_one_way: float = 30.0
    udp_two_way: float = 120.0


@dataclass(frozen=True, slots=True)
class Link:
    """An Ethernet interface that the raw datapath uses; its MAC `address` and `mtu` in bytes."""

    index: int
    name: str
    address: bytes
    mtu: int


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a frame goes: out of which link (its interface index), to which MAC address.

    `address` is None as long as the neighbour does not answer, or its link is down.
    """

    link: int
    address: bytes | None


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the frames of the raw datapath go: a whole picture, that replaces the one before.

    `next_hops` are the backends', by address; one that isn't there has no route. `routes` lead to
    clients, the longest prefix first: one counts where its link is not the one that the client's
    packet came in by, and its address is known (it isn't where clients are on the link itself).
    Else a reply goes back by the link, and to the MAC address, that the client's packets come
    from. `addresses` are this host's own: what a wildcard VIP stands for.
    """

    links: tuple[Link, ...] = ()
    next_hops: Mapping[Address, NextHop] = field(default_factory=dict)
    routes: tuple[tuple[Network, NextHop], ...] = ()
    addresses: frozenset[Address] = frozenset()
