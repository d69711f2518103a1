"""Replays a capture through the packet path, with the capture's clock and a seed: without root and
without a kernel, and with the same result every time.

What is replayed is the clients' side: packets to VIPs, and packets from VIPs, which the core gets
as answers of the backend that it has chosen. So a capture shows what another configuration would
have made of the same clients. Packets between balancer and backends, which a capture on all
interfaces has as well, are left out, and so are fragments, which the kernel reassembles.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from featherlb.config import Config, resolve
from featherlb.config.resolve import Lookup
from featherlb.core.flows.memory import anonymous
from featherlb.core.path.balancer import Balancer
from featherlb.insight.simulate import with_stand_ins
from featherlb.model import (
    DEFAULT_DATAPATH,
    Backend,
    Endpoint,
    Hook,
    NatMode,
    PacketInfo,
    Protocol,
    Service,
)
from featherlb.model.errors import ConfigError
from featherlb.model.reason import DROPPED, Reason
from featherlb.net.addresses import words_of
from featherlb.net.protocols import FRAGMENT_HEADER, TCP, UDP
from featherlb.system import hash_key
from featherlb.system.pcap import Captured

START = 1000.0
"""When the capture begins, on the core's clock."""
TICK = 0.1
"""Seconds between two rounds of expiry."""
SOURCES = {4: ip_address("198.19.0.1"), 6: ip_address("2001:db8::198:19:0:1")}
"""The source address towards backends in `full` mode, where none is configured (RFC 2544)."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A flow that packet `number` of the capture has opened, `time` seconds after its beginning."""

    number: int
    time: float
    service: str
    client: str
    vip: str
    backend: str


@dataclass(frozen=True, slots=True)
class Drop:
    """A packet that was dropped."""

    number: int
    time: float
    source: str
    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of a capture's packets.

    `packets` were replayed, and `ignored` not; `outcomes` are the reasons of the former, by their
    numbers in the capture. `answers` are packets of featherlb itself, such as RSTs.
    """

    packets: int
    ignored: int
    seconds: float
    outcomes: Mapping[int, Reason]
    openings: tuple[Opening, ...]
    drops: tuple[Drop, ...]
    answers: int
    stand_ins: Mapping[str, str]

    def counts(self) -> dict[str, int]:
        """The number of packets by outcome."""
        found = Counter(self.outcomes.values())
        return {reason.label: found[reason] for reason in sorted(found)}

    def flows(self) -> dict[str, dict[str, int]]:
        """The number of flows by service and backend."""
        found: dict[str, Counter[str]] = {}
        for one in self.openings:
            found.setdefault(one.service, Counter())[one.backend] += 1
        return {service: dict(sorted(counts.items())) for service, counts in found.items()}


@dataclass(frozen=True, slots=True)
class Change:
    """A flow that another replay gave to another backend, or only one of both opened (empty)."""

    number: int
    time: float
    client: str
    vip: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Between two replays of one capture: flows, and packets by their outcomes in both."""

    flows: tuple[Change, ...]
    packets: Mapping[tuple[str, str], int]

    def __bool__(self) -> bool:
        return bool(self.flows or self.packets)


Watch = Callable[[Captured, bytes, str], None]
"""Called for each packet with what has become of it, and with a comment."""


def replay(
    capture: Iterable[Captured],
    config: Config,
    seed: int,
    look_up: Lookup,
    watch: Watch = lambda _packet, _result, _comment: None,
) -> Replay:
    """Replay a capture with a configuration. ConfigError if that has no service."""
    stand_ins: dict[str, str] = {}
    services: list[Service] = []
    for one in config.services:
        alone = replace(config, services=(one,))
        services += map(_prepared, resolve(alone, with_stand_ins(look_up, stand_ins, alone)))
    if not services:
        raise ConfigError(["the configuration has no service to replay the capture with"])
    player = _Player(config, tuple(services), seed)
    first = last = None
    number = -1
    for number, packet in enumerate(capture):
        first = packet.time if first is None else first
        last = packet.time
        player.play(number, packet, packet.time - first, watch)
    return Replay(
        packets=len(player.outcomes),
        ignored=number + 1 - len(player.outcomes),
        seconds=0.0 if first is None or last is None else last - first,
        outcomes=player.outcomes,
        openings=tuple(player.openings),
        drops=tuple(player.drops),
        answers=player.answers,
        stand_ins=stand_ins,
    )


def compare(before: Replay, after: Replay) -> Difference:
    """What differs between two replays of the same capture."""
    old = {one.number: one for one in before.openings}
    new = {one.number: one for one in after.openings}
    changes = []
    for number in sorted(old | new):
        one = old.get(number) or new[number]
        had = old[number].backend if number in old else ""
        has = new[number].backend if number in new else ""
        if had != has:
            changes.append(Change(number, one.time, one.client, one.vip, had, has))
    packets: Counter[tuple[str, str]] = Counter()
    for number in before.outcomes.keys() | after.outcomes.keys():
        labels = [
            one.outcomes[number].label if number in one.outcomes else "ignored"
            for one in (before, after)
        ]
        if labels[0] != labels[1]:
            packets[labels[0], labels[1]] += 1
    return Difference(tuple(changes), dict(sorted(packets.items())))


def _prepared(service: Service) -> Service:
    """The service for the core alone: every packet passes it, and `full` mode has a source."""

    def prepared(backend: Backend) -> Backend:
        if service.nat is not NatMode.FULL or backend.sources:
            return backend
        return replace(backend, sources=(SOURCES[backend.endpoint.address.version],))

    return replace(
        service,
        datapath=DEFAULT_DATAPATH,
        backends=tuple(prepared(backend) for backend in service.backends),
    )


class _Player:
    """A balancer with the clock of a capture."""

    def __init__(self, config: Config, services: tuple[Service, ...], seed: int) -> None:
        self._balancer = Balancer(
            memory=anonymous(config.max_flows),
            secret=seed.to_bytes(16, "big"),
            hash_key=hash_key.find(config.hash_key),
            cookie_key=seed.to_bytes(16, "big"),
            timeouts=config.timeouts,
        )
        self._balancer.apply(services)
        self._balancer.lifecycle.opened = []
        self._services = services
        self._now = START
        self._expired = START
        self._counted: Mapping[Reason, int] = self._balancer.views.statistics().reasons
        self.outcomes: dict[int, Reason] = {}
        self.openings: list[Opening] = []
        self.drops: list[Drop] = []
        self.answers = 0

    def play(self, number: int, packet: Captured, time: float, watch: Watch) -> None:
        """Hand a packet to the core, if it is one of the clients' side."""
        ends = _ends(packet.data)
        if ends is None:
            return
        protocol, source, destination = ends
        content = bytearray(packet.data.ljust(packet.length, b"\0"))
        hook = Hook.PREROUTING
        if not self._is_served(protocol, destination):
            answer = self._as_answer(protocol, source, destination)
            if answer is None:
                return
            flow_ends, hook = answer
            _readdress(content, protocol, *flow_ends)
        self._advance(START + time)
        core = self._balancer
        core.attach(content)
        core.handle_packet(0, packet.length, int(hook), int(PacketInfo.NONE), self._now)
        reason = self._reason()
        self.outcomes[number] = reason
        self.answers += len(core.outbox.take())
        comment = reason.label
        for flow in core.views.take_opened(self._now):
            self.openings.append(
                Opening(
                    number,
                    time,
                    flow.service,
                    str(flow.client),
                    str(flow.vip),
                    str(flow.backend),
                )
            )
            comment = f"opens a flow of {flow.service} to {flow.backend}"
        if reason in DROPPED:
            comment = f"dropped: {reason.label}"
            self.drops.append(Drop(number, time, str(source), str(destination), reason.label))
        watch(packet, bytes(content[: len(packet.data)]), comment)

    def _is_served(self, protocol: int, destination: Endpoint) -> bool:
        """Whether a packet is to a VIP; one that is neither TCP nor UDP, to the address of one."""
        if protocol in (TCP, UDP):
            return self._balancer.views.find_pool(Protocol(protocol), destination) is not None
        return any(
            vip.address == destination.address for service in self._services for vip in service.vips
        )

    def _as_answer(
        self, protocol: int, source: Endpoint, destination: Endpoint
    ) -> tuple[tuple[Endpoint, Endpoint], Hook] | None:
        """The ends of a packet from a VIP as the backend of its flow would have sent it, and the
        hook where it is rewritten; None if there is no flow."""
        if protocol not in (TCP, UDP):
            return None
        core = self._balancer
        ports = destination.port << 16 | source.port
        ref = core.flows.find(
            *words_of(destination.address), *words_of(source.address), ports, protocol
        )
        if not ref or ref & 1:
            return None
        flow = core.views.view(ref >> 1, self._now)
        same = flow.source == flow.client
        return (flow.backend, flow.source), Hook.POSTROUTING if same else Hook.PREROUTING

    def _advance(self, now: float) -> None:
        """Let time pass, with the rounds of expiry that a worker makes."""
        self._now = max(self._now, now)
        while self._expired + TICK <= self._now:
            # Where nothing expires, a long silence takes one round.
            self._expired = max(self._expired + TICK, self._now - TICK)
            while self._balancer.handle_timer(self._expired):
                pass

    def _reason(self) -> Reason:
        """What the last packet was counted under."""
        counted = self._balancer.views.statistics().reasons
        (reason,) = [one for one in Reason if counted[one] != self._counted[one]]
        self._counted = counted
        return reason


def _ends(data: bytes) -> tuple[int, Endpoint, Endpoint] | None:
    """Protocol, source and destination of an IP packet, with port 0 unless it is TCP or UDP; None
    for fragments, and for what is too short."""
    version = data[0] >> 4
    if version == 4:
        if int.from_bytes(data[6:8], "big") & 0x3FFF:
            return None
        protocol, start = data[9], 4 * (data[0] & 15)
        source, destination = data[12:16], data[16:20]
    elif version == 6 and len(data) >= 40:
        protocol, start = data[6], 40
        source, destination = data[8:24], data[24:40]
        if protocol == FRAGMENT_HEADER:
            return None
    else:
        return None
    ports = (0, 0)
    if protocol in (TCP, UDP):
        if len(data) < start + 4:
            return None
        ports = struct.unpack_from("!2H", data, start)
    return (
        protocol,
        Endpoint(ip_address(source), ports[0]),
        Endpoint(ip_address(destination), ports[1]),
    )


def _readdress(content: bytearray, protocol: int, source: Endpoint, destination: Endpoint) -> None:
    """Give a TCP or UDP packet other ends, and update its checksums (RFC 1624 equation 3)."""
    version = content[0] >> 4
    addresses = slice(12, 20) if version == 4 else slice(8, 40)
    start = 4 * (content[0] & 15) if version == 4 else 40
    ports = slice(start, start + 4)
    before = bytes(content[addresses]), bytes(content[ports])
    content[addresses] = source.address.packed + destination.address.packed
    content[ports] = struct.pack("!2H", source.port, destination.port)
    changes = [
        (old, bytes(content[place])) for old, place in zip(before, (addresses, ports), strict=True)
    ]
    if version == 4:
        _update(content, 10, changes[:1])
    place = start + (16 if protocol == TCP else 6)
    absent = protocol == UDP and not any(content[place : place + 2])
    if place + 2 <= len(content) and not absent:
        _update(content, place, changes)


def _update(content: bytearray, place: int, changes: Iterable[tuple[bytes, bytes]]) -> None:
    """Update the checksum at this place for bytes that have become others."""
    total = 0xFFFF ^ int.from_bytes(content[place : place + 2], "big")
    for old, new in changes:
        words = len(old) // 2
        total += 0xFFFF * words - sum(struct.unpack(f"!{words}H", old))
        total += sum(struct.unpack(f"!{words}H", new))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    content[place : place + 2] = (0xFFFF ^ total).to_bytes(2, "big")
