"""Health checks, active and passive: how a backend is probed, and how results are judged."""

from dataclasses import dataclass
from enum import StrEnum

from featherlb.model.address import Address, Endpoint


class CheckType(StrEnum):
    """How a backend is probed."""

    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"
    UDP = "udp"
    SCRIPT = "script"


class Health(StrEnum):
    """The state of a backend's health."""

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
    """Text that the response body must contain."""
    send: str = ""
    """UDP: the payload, one character per byte (ISO 8859-1), as is `expect`."""
    expect: str | None = None
    """UDP: what the answer must contain; None: no answer is needed."""
    command: tuple[str, ...] = ()
    user: str | None = None
    """Script: whom it runs as; None: as this program."""

    def endpoint(self, backend: Endpoint) -> Endpoint:
        """The endpoint that is checked for a backend."""
        return Endpoint(self.address or backend.address, self.port or backend.port)


@dataclass(frozen=True, slots=True)
class PassiveCheck:
    """When client connections show that a backend is unhealthy. Times are seconds."""

    failures: int = 5
    """Failed connections within the window."""
    share: int = 50
    """Minimum percentage of connections in that time that failed."""
    window: float = 10.0
    ejection: float = 10.0
    """Duration of an ejection; doubles each time."""
    longest_ejection: float = 300.0
    max_ejected: int = 50
    """Maximum percentage of a service's backends ejected at a time."""
    slower: int | None = None
    """A backend is ejected that takes so many times as long to answer SYNs as the others do."""
    slower_by: float = 0.02
    """And at least so much longer."""
