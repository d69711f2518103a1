"""The interface of schedulers. A scheduler decides once per flow, when a packet opens it; packets
of known flows never get here. The pool owns the members and maintains `Member.active`; schedulers
only read it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, ClassVar, Self

from featherlb import model
from featherlb.core.pools.latency import Latencies

NEVER = -(1 << 30)
OVERFLOW_PICKS = 4
"""Further picks before a flow that the picked member can't take goes to the least loaded one."""


class Member:
    """A backend as a pool holds it, compared by identity.

    `active` counts its open flows (half-open or established). `index` is its number, which is
    constant. Weight 0 means no new flows. `unlimited` means that only the weight limits them.
    `labels` are the configuration's.
    """

    __slots__ = (
        "active",
        "backend",
        "credit",
        "failed",
        "index",
        "labels",
        "latencies",
        "ramp",
        "unlimited",
        "weight",
    )

    def __init__(
        self, backend: model.Backend, index: int, latencies: Latencies | None = None
    ) -> None:
        self.active: int = 0
        self.index: int = index
        self.latencies = latencies
        self.ramp: model.Ramp | None = None
        self.credit = 0.0
        """The fraction of a flow that the ramp has accumulated; a canary's is in per cent."""
        self.failed = NEVER
        """Ticks when it last refused a new flow, or did not answer one in time."""
        self.take_backend(backend)

    def take_backend(self, backend: model.Backend) -> None:
        """Apply a change of the backend's configuration."""
        self.backend = backend
        self.labels: dict[str, str] = {label.key: label.value for label in backend.labels}
        self.weight: int = backend.weight
        self.ramp = backend.ramp
        self.unlimited = backend.max_connections is None and backend.ramp is None

    def end_ramp(self) -> None:
        """Stop limiting new flows by the ramp."""
        self.ramp = None
        self.unlimited = self.backend.max_connections is None

    @property
    def has_room(self) -> bool:
        """Whether it can take one more flow."""
        limit = self.backend.max_connections
        return limit is None or self.active < limit

    @property
    def latency(self) -> float | None:
        """How long it takes to answer the first packet of a flow, in seconds; None if nothing is
        known. Longer after failures, shorter the longer it has had no flow (`Latencies.cost`)."""
        return None if self.latencies is None else self.latencies.cost(self.index) or None

    @property
    def endpoint(self) -> model.Endpoint:
        return self.backend.endpoint

    def __repr__(self) -> str:
        return f"<Member {self.endpoint} weight={self.weight} active={self.active}>"


class NewFlow:
    """A flow that a packet is about to open, as the client sees it (before translation).

    `protocol` is the IANA number, `version` 4 or 6; addresses and ports are integers in host order
    (10.0.0.1 is 0x0A000001).
    """

    __slots__ = ("client", "client_port", "protocol", "version", "vip", "vip_port")

    def __init__(
        self, protocol: int, version: int, client: int, client_port: int, vip: int, vip_port: int
    ) -> None:
        self.protocol: int = protocol
        self.version: int = version
        self.client: int = client
        self.client_port: int = client_port
        self.vip: int = vip
        self.vip_port: int = vip_port

    @classmethod
    def between(cls, protocol: int, client: model.Endpoint, vip: model.Endpoint) -> Self:
        """The flow of a client to a VIP."""
        version = client.address.version
        return cls(protocol, version, int(client.address), client.port, int(vip.address), vip.port)

    @property
    def client_address(self) -> model.Address:
        return IPv4Address(self.client) if self.version == 4 else IPv6Address(self.client)

    @property
    def vip_address(self) -> model.Address:
        return IPv4Address(self.vip) if self.version == 4 else IPv6Address(self.vip)

    def __repr__(self) -> str:
        client = model.Endpoint(self.client_address, self.client_port)
        vip = model.Endpoint(self.vip_address, self.vip_port)
        return f"<NewFlow {client} -> {vip} protocol={self.protocol}>"


class Scheduler(ABC):
    """Picks the backend of a new flow.

    `name` is used in configuration and logs; `aliases` are other systems' names for the same
    strategy. `consistent` means that a pick is a pure function of flow, pool and key, so that
    another node, or this one after a restart, makes the same decision. `rewindable` means that
    `save` and `restore` know all that picks change. `weight_limits` means that a member takes no
    more open flows than its weight says (`within_weights`), `by_latency` that picks depend on
    `Member.latency`.
    """

    name: str
    aliases: ClassVar[tuple[str, ...]] = ()
    consistent: bool = False
    rewindable: bool = True
    weight_limits: bool = False
    by_latency: bool = False

    @abstractmethod
    def __init__(self, *, seed: int, key: bytes) -> None:
        """`seed` is the only source of randomness. `key` (0 to 64 bytes) keys the hashes: the same
        on nodes that must agree, secret from clients, which must not choose their backend."""

    @abstractmethod
    def update(self, members: Sequence[Member]) -> None:
        """Replace the members; called whenever they or a weight change.

        Members of weight 0 are in the list and must not be picked.
        """

    @abstractmethod
    def pick(self, flow: NewFlow) -> Member | None:
        """The member that gets `flow`; None if there is none to pick."""

    def explain(self, flow: NewFlow) -> str:
        """Why `pick` would choose as it does, as a clause about the member. Changes nothing. Asked
        only if there is a member to pick."""
        return "the scheduler's code returned it"

    def slots(self) -> Sequence[Member]:
        """The owner of each slot of the hash table, or of the first ones if all would take long;
        empty without a table or members."""
        return ()

    def save(self) -> Any:
        """What picks change, for `restore`; None if they change nothing."""
        return None

    def restore(self, state: Any) -> None:  # noqa: B027 (most have nothing to undo)
        """Undo all picks since `save` returned this."""

    def peek(self, flow: NewFlow) -> Member | None:
        """What `pick` would return; changes nothing."""
        state = self.save()
        try:
            return self.pick(flow)
        finally:
            self.restore(state)

    def overflow(self, flow: NewFlow, members: Sequence[Member]) -> Member:
        """The member for `flow` if the picked one can't take it: one of `members`, which can."""
        for _ in range(OVERFLOW_PICKS):
            member = self.pick(flow)
            if member is not None and member in members:
                return member
        return min(members, key=_load)


def _load(member: Member) -> float:
    return (member.active + 1) / member.weight
