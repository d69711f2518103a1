"""The world around a balancer, in memory: clients, backends, and a clock that tests advance.

Packets are real bytes, and every translated packet is compared with scapy's translation of the
original. After each step `World.check` asserts the invariants. Works the same with the interpreted
and the compiled core.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from featherlb.core.flows.flight_recorder import FlightRecorder
from featherlb.core.flows.memory import anonymous
from featherlb.core.flows.tcp_state import ACTIVE, State
from featherlb.core.path.balancer import Balancer
from featherlb.core.path.export import FlowView, Statistics
from featherlb.model import (
    SOURCE_PORTS,
    Backend,
    Datapath,
    Endpoint,
    Hook,
    NatMode,
    PacketInfo,
    Protocol,
    Service,
    Timeouts,
    Verdict,
    Vip,
)
from featherlb.model.reason import Reason
from featherlb.model.shard import WHOLE, Shard
from featherlb.net.addresses import address_of
from tests.builders import parse, readdressed, tcp

VIP = "192.0.2.10:80"
ONE, TWO, THREE = BACKENDS = ("10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080")
CLIENT = "198.51.100.250:40000"
GUARD = b"\xa5" * 24
ROOM = 32
SECRET = bytes(range(16))


def client(number: int, port: int = 40000) -> str:
    """The endpoint of one of many clients."""
    return f"198.51.{100 + number // 200}.{number % 200 + 1}:{port}"


def vip(text: str) -> Vip:
    """`192.0.2.10:80`, `192.0.2.10:8000-8010` for a range of ports, `192.0.2.10:*` for all."""
    host, _, ports = text.replace(":*", ":1-65535").rpartition(":")
    first, _, last = ports.partition("-")
    return Vip(ip_address(host.strip("[]")), int(first), int(last or first))


def backend(text: str, weight: int = 1, **fields: object) -> Backend:
    """`fields` are those of `model.Backend`."""
    return Backend(Endpoint.of_backend(text), weight, **fields)  # type: ignore[arg-type]


def service(
    *backends: str | Backend,
    name: str = "web",
    vips: str | Sequence[str] = VIP,
    scheduler: str = "round-robin",
    nat: str = "dnat",
    protocol: Protocol = Protocol.TCP,
    sources: Sequence[str] = ("10.1.0.254",),
    local: bool = False,
    datapath: Datapath = Datapath.NFQUEUE,
) -> Service:
    """A service; backends given as text get `sources` (in `full` mode) and `local`."""
    mode = NatMode(nat)
    addresses = tuple(ip_address(source) for source in sources) if mode is NatMode.FULL else ()
    return Service(
        name=name,
        protocol=protocol,
        vips=tuple(vip(text) for text in ([vips] if isinstance(vips, str) else vips)),
        backends=tuple(
            one if isinstance(one, Backend) else backend(one, local=local, sources=addresses)
            for one in backends
        ),
        scheduler=scheduler,
        nat=mode,
        datapath=datapath,
    )


def endpoints(packet: bytes) -> tuple[str, str]:
    """Source and destination of a packet."""
    seen = parse(packet)
    transport = seen["TCP"] if "TCP" in seen else seen["UDP"]
    return (
        str(Endpoint(ip_address(seen.src), transport.sport)),
        str(Endpoint(ip_address(seen.dst), transport.dport)),
    )


@dataclass(frozen=True)
class Outcome:
    """What the balancer did with a packet; `packet` is the buffer's content afterwards."""

    verdict: Verdict
    reason: Reason
    packet: bytes
    answers: tuple[bytes, ...]
    """Packets that it originated in response."""
    sent_again: tuple[bytes, ...]
    """Clients' packets that are to come back at the OUTPUT hook."""

    @property
    def source(self) -> str:
        return endpoints(self.packet)[0]

    @property
    def destination(self) -> str:
        return endpoints(self.packet)[1]


class World:
    """A balancer with its clock; tests call the balancer through it."""

    def __init__(
        self,
        *services: Service,
        capacity: int = 64,
        timeouts: Timeouts | None = None,
        source_ports: range = SOURCE_PORTS,
        adopt_until: float = 0.0,
        shard: Shard = WHOLE,
        recorder: FlightRecorder | None = None,
    ) -> None:
        self.memory = anonymous(capacity)
        self.balancer = Balancer(
            memory=self.memory,
            secret=SECRET,
            hash_key=b"placement",
            cookie_key=SECRET,
            timeouts=timeouts or Timeouts(),
            source_ports=source_ports,
            adopt_until=adopt_until,
            shard=shard,
            recorder=recorder,
        )
        self.now = 1000.0
        self.received = 0
        self.tracked: set[tuple[str, str]] = set()
        """Clients' connections with backends that connection tracking knows."""
        self.asked: list[tuple[str, str]] = []
        """What it was asked, if it is to be asked at all (`balancer.claims.active`)."""
        self._orphans: set[tuple[object, ...]] = set()
        self.services: tuple[Service, ...] = ()
        self.apply(*services)

    # Entry points of the balancer

    def handle(
        self,
        packet: bytes,
        hook: Hook = Hook.PREROUTING,
        info: PacketInfo = PacketInfo.NONE,
        length: int | None = None,
    ) -> Outcome:
        """Give the balancer a packet; `length` is the one before truncation."""
        before = self.statistics().reasons
        # The answer to a SYN may be longer than the SYN.
        buffer = bytearray(GUARD + packet + bytes(ROOM) + GUARD)
        self.balancer.attach(buffer)
        size = len(packet) if length is None else length
        arguments = len(GUARD), size, int(hook), int(info), self.now
        verdict = self.balancer.handle_packet(*arguments)
        while verdict == Verdict.FIND_OWNER:
            self._answer()
            verdict = self.balancer.handle_packet(*arguments)
        self.received += 1
        after = self.statistics().reasons
        (reason,) = [reason for reason in Reason if after[reason] != before[reason]]
        end = len(GUARD) + len(packet) + (ROOM if reason is Reason.SYN_COOKIE else 0)
        result = bytes(buffer[len(GUARD) : end])
        assert reason is Reason.SYN_COOKIE or not any(buffer[end : -len(GUARD)])
        assert buffer.startswith(GUARD)
        assert buffer.endswith(GUARD)
        if verdict not in (Verdict.REWRITTEN, Verdict.ANSWERED, Verdict.DROP):
            assert result == packet
        self.check()
        return Outcome(
            Verdict(verdict),
            reason,
            result,
            tuple(self.balancer.outbox.take()),
            tuple(self.balancer.redispatch.take_reinjected()),
        )

    def _answer(self) -> None:
        """What connection tracking says to the core's question."""
        claims = self.balancer.claims
        client, server = (
            str(Endpoint(address_of(high, low), port))
            for high, low, port in (
                (claims.client_high, claims.client_low, claims.ports >> 16),
                (claims.backend_high, claims.backend_low, claims.ports & 0xFFFF),
            )
        )
        self.asked.append((client, server))
        claims.answer((client, server) in self.tracked)

    def advance(self, seconds: float) -> None:
        """Let time pass; the timer fires once at the end."""
        self.now += seconds
        while self.balancer.handle_timer(self.now):
            pass
        self.check()

    def apply(self, *services: Service) -> None:
        """Apply another configuration."""
        kept = {(one.name, each.endpoint) for one in services for each in one.backends}
        for view in self.flows():
            if not any(
                name == view.service and endpoint.covers(view.backend) for name, endpoint in kept
            ):
                self._orphans.add(self._identity(view))
        self.services = services
        self.balancer.apply(services)
        self.check()

    # Observation

    def flows(self) -> list[FlowView]:
        return list(self.balancer.views.list_flows(self.now, limit=1_000_000))

    def states(self) -> list[str]:
        """The states of all flows, by name."""
        return sorted(view.state.name for view in self.flows())

    def statistics(self) -> Statistics:
        return self.balancer.views.statistics()

    def active(self) -> dict[str, int]:
        """Active flows by backend."""
        return {str(one.backend): one.active for one in self.statistics().backends}

    def check(self) -> None:
        """Assert the invariants."""
        statistics = self.statistics()
        flows = self.flows()
        assert statistics.received == self.received
        assert statistics.received == statistics.translated + statistics.passed + statistics.dropped
        assert statistics.received == sum(statistics.reasons.values())
        assert statistics.flows == len(flows) <= statistics.capacity
        unanswered = [view for view in flows if view.state is State.UDP_ONE_WAY]
        assert self.balancer.lifecycle.unanswered == len(unanswered)
        # Each direction of each flow has a unique tuple, except for the forward direction with
        # one-packet scheduling, and for clients that have got another backend.
        one_packet = {one.name for one in self.services if one.one_packet}
        forward = Counter(
            (view.protocol, view.client, view.vip)
            for view in flows
            if view.service not in one_packet and view.state is not State.REPLACED
        )
        replies = Counter((view.protocol, view.backend, view.source) for view in flows)
        assert set((forward | replies).values()) <= {1}
        # Every active flow counts as load of its backend, and nothing else does.
        identities = {self._identity(view) for view in flows}
        self._orphans &= identities
        load = Counter(
            (one.name, each.endpoint)
            for view in flows
            if view.state in ACTIVE and self._identity(view) not in self._orphans
            for one in self.services
            for each in one.backends
            if one.name == view.service and each.endpoint.covers(view.backend)
        )
        assert {(one.service, one.backend.endpoint): one.active for one in statistics.backends} == {
            (one.name, each.endpoint): load[one.name, each.endpoint]
            for one in self.services
            for each in one.backends
        }

    def _identity(self, view: FlowView) -> tuple[object, ...]:
        created = int(self.now * 10) - round(view.age * 10)  # in ticks, as the balancer counts
        return view.service, view.protocol, view.client, view.vip, view.backend, created

    # Scenarios

    def connect(self, client: str = CLIENT, vip: str = VIP, *, local: bool = False) -> "Connection":
        """A connection whose handshake is complete."""
        connection = Connection(self, client, vip, local=local)
        connection.handshake()
        return connection


class Connection:
    """Both ends of a TCP connection; the test decides which end sends what.

    Sequence numbers advance as in a real one. `server` is where the client's last packet arrived,
    `source` the source address it had there.
    """

    def __init__(
        self,
        world: World,
        client: str = CLIENT,
        vip: str = VIP,
        *,
        local: bool = False,
        sequence: int = 0xFFFFFFF0,
    ) -> None:
        """`local` puts the client on the balancer's host."""
        self.world = world
        self.client = client
        self.vip = vip
        self.local = local
        self.server = ""
        self.source = ""
        self.sent = sequence
        self.replied = 5000

    def handshake(self) -> None:
        self.send("S")
        self.reply("SA")
        self.send("A")

    def segment(self, flags: str = "A", payload: bytes = b"") -> bytes:
        """The client's next segment."""
        acknowledged = self.replied if "A" in flags else 0
        return tcp(self.client, self.vip, flags, seq=self.sent, ack=acknowledged, payload=payload)

    def send(self, flags: str = "A", payload: bytes = b"") -> Outcome:
        """The client sends, the balancer translates, the backend receives."""
        outcome = self.lose(flags, payload)
        assert outcome.verdict is Verdict.REWRITTEN, outcome
        self.sent = (self.sent + len(payload) + _consumed(flags)) & 0xFFFFFFFF
        return outcome

    def lose(self, flags: str = "A", payload: bytes = b"") -> Outcome:
        """The client sends, the balancer decides, the segment is lost: the client's next one is a
        retransmission."""
        segment = self.segment(flags, payload)
        hook = Hook.OUTPUT if self.local else Hook.PREROUTING
        outcome = self.world.handle(segment, hook)
        if outcome.verdict is Verdict.REWRITTEN:
            assert outcome.reason is Reason.FORWARD
            self.source, self.server = endpoints(outcome.packet)
            assert outcome.packet == readdressed(segment, self.source, self.server)
        return outcome

    def reply(self, flags: str = "A", payload: bytes = b"") -> Outcome:
        """The backend sends, the balancer translates, the client receives."""
        acknowledged = self.sent if "A" in flags else 0
        segment = tcp(
            self.server, self.source, flags, seq=self.replied, ack=acknowledged, payload=payload
        )
        outcome = self.world.handle(segment, self.reply_hook)
        assert outcome.verdict is Verdict.REWRITTEN, outcome
        assert outcome.reason is Reason.REPLY
        assert outcome.packet == readdressed(segment, self.vip, self.client)
        self.replied = (self.replied + len(payload) + _consumed(flags)) & 0xFFFFFFFF
        return outcome

    @property
    def reply_hook(self) -> Hook:
        """The hook that rewrites replies: a late one if the client's address was kept."""
        if Endpoint.parse(self.source).address != Endpoint.parse(self.client).address:
            return Hook.PREROUTING
        return Hook.INPUT if self.local else Hook.POSTROUTING

    @property
    def state(self) -> str:
        """The state of its flow."""
        (view,) = [
            view
            for view in self.world.flows()
            if (str(view.client), str(view.vip)) == (self.client, self.vip)
        ]
        return view.state.name


def _consumed(flags: str) -> int:
    """Sequence numbers that SYN and FIN consume (RFC 9293 section 3.4)."""
    return ("S" in flags) + ("F" in flags)
