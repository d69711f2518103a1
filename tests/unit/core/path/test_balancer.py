"""The packet path as a table: one packet, one verdict. Scenarios are in test_scenarios.py."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.model import Hook, PacketInfo, Protocol, Service, Verdict
from featherlb.model.reason import Reason
from tests.builders import ip, ipv6_extensions, parse, readdressed, tcp, udp
from tests.world import CLIENT, ONE, VIP, Outcome, World, backend, client, service

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING, WIRE = Hook
CLIENT6, VIP6, ONE6 = "[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080"
KNOWN = client(1)
"""A client of the `dnat` service whose connection is established."""
KNOWN_FULL = client(2)
"""The same of the `full` service."""
VIP_FULL, SOURCE = "192.0.2.20:80", "10.1.0.254:1024"
VIP_ADOPTING, VIP_EMPTY, VIP_DRAINED = "192.0.2.30:80", "192.0.2.40:80", "192.0.2.50:80"
ELSEWHERE = "203.0.113.5:80"

SERVICES = (
    service(ONE),
    service(ONE, name="full", vips=VIP_FULL, nat="full"),
    service(ONE, name="adopting", vips=VIP_ADOPTING, scheduler="source-hash"),
    service(name="empty", vips=VIP_EMPTY),
    service(backend(ONE, 0), name="drained", vips=VIP_DRAINED),
    service(ONE6, name="six", vips=VIP6),
    service(ONE, name="range", vips=["192.0.2.60:8000-8010", "192.0.2.61:8005"]),
    service(ONE, name="everywhere", vips="0.0.0.0:7777"),
    service(ONE6, name="everywhere six", vips="[::]:7777"),
    service(ONE, name="name server", vips="192.0.2.10:80", protocol=Protocol.UDP),
)


def make_world() -> World:
    """Of all services, with two connections that are established."""
    world = World(*SERVICES, source_ports=range(1024, 1025))
    world.connect(KNOWN)
    assert world.connect(KNOWN_FULL, VIP_FULL).source == SOURCE
    return world


@dataclass(frozen=True)
class Case:
    """What comes in, and what must come of it.

    `becomes` are source and destination afterwards (None: not rewritten); `reset` are the
    fields of the RST that answers.
    """

    description: str
    packet: bytes
    reason: Reason
    becomes: tuple[str, str] | None = None
    hook: Hook = PREROUTING
    info: PacketInfo = PacketInfo.NONE
    reset: tuple[str, int, int] | None = None
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        fate = {
            Reason.FORWARD: Verdict.REWRITTEN,
            Reason.REPLY: Verdict.REWRITTEN,
            Reason.NOT_OURS: Verdict.PASS,
        }
        object.__setattr__(self, "verdict", fate.get(self.reason, Verdict.DROP))


CUT = PacketInfo.TRUNCATED

CASES = [
    # 1. parse
    Case("a packet of no known version", b"\x55" * 40, Reason.MALFORMED),
    Case("a cut header", tcp(CLIENT, VIP, "S")[:39], Reason.MALFORMED),
    Case("SYN and FIN at once", tcp(CLIENT, VIP, "SF"), Reason.BAD_FLAGS),
    Case("no flags", tcp(CLIENT, VIP, ""), Reason.BAD_FLAGS),
    Case("a first fragment", tcp(CLIENT, VIP, header=ip(CLIENT, VIP, flags="MF")), Reason.FRAGMENT),
    Case("a later fragment", udp(CLIENT, VIP, header=ip(CLIENT, VIP, frag=9)), Reason.FRAGMENT),
    Case(
        "an IPv6 fragment",
        tcp(CLIENT6, VIP6, "S", header=ipv6_extensions(CLIENT6, VIP6, "fragment")),
        Reason.FRAGMENT,
    ),
    Case(
        "another protocol", bytes(ip(CLIENT, VIP, proto=132)) + bytes(12), Reason.UNSUPPORTED
    ),
    # behind the routing decision only of what is of a flow
    Case(
        "a backend's wrong segment", tcp(ONE, KNOWN, "SF"), Reason.BAD_FLAGS, hook=POSTROUTING
    ),
    Case("the same towards this host", tcp(ONE, KNOWN, "SF"), Reason.BAD_FLAGS, hook=INPUT),
    Case("somebody else's wrong segment", tcp(ONE, CLIENT, "SF"), Reason.NOT_OURS, hook=INPUT),
    Case("somebody else's cut header", tcp(ONE, CLIENT)[:39], Reason.NOT_OURS, hook=POSTROUTING),
    Case(
        "a backend's first fragment",
        tcp(ONE, KNOWN, header=ip(ONE, KNOWN, flags="MF")),
        Reason.FRAGMENT,
        hook=POSTROUTING,
    ),
    Case(
        "somebody else's first fragment",
        tcp(ONE, CLIENT, header=ip(ONE, CLIENT, flags="MF")),
        Reason.NOT_OURS,
        hook=POSTROUTING,
    ),
    Case(
        "a later fragment, whoever's",
        tcp(ONE, KNOWN, header=ip(ONE, KNOWN, frag=9)),
        Reason.NOT_OURS,
        hook=POSTROUTING,
    ),
    Case(
        "another protocol, late",
        bytes(ip(ONE, KNOWN, proto=132)) + bytes(12),
        Reason.NOT_OURS,
        hook=POSTROUTING,
    ),
    Case("no known version, late", b"\x55" * 40, Reason.NOT_OURS, hook=INPUT),
    # 2. of a known flow, at the hook where it is rewritten
    Case(
        "a client's packet", tcp(KNOWN, VIP, "PA", payload=b"x"), Reason.FORWARD, (KNOWN, ONE)
    ),
    Case("a backend's packet", tcp(ONE, KNOWN), Reason.REPLY, (VIP, KNOWN), POSTROUTING),
    Case("the same towards this host", tcp(ONE, KNOWN), Reason.REPLY, (VIP, KNOWN), INPUT),
    Case("a client's packet, full NAT", tcp(KNOWN_FULL, VIP_FULL), Reason.FORWARD, (SOURCE, ONE)),
    Case("from this host", tcp(KNOWN_FULL, VIP_FULL), Reason.FORWARD, (SOURCE, ONE), OUTPUT),
    Case("a backend's packet, full NAT", tcp(ONE, SOURCE), Reason.REPLY, (VIP_FULL, KNOWN_FULL)),
    Case(
        "the same of a backend on this host",
        tcp(ONE, SOURCE),
        Reason.REPLY,
        (VIP_FULL, KNOWN_FULL),
        OUTPUT,
    ),
    Case("a RST of a known flow", tcp(KNOWN, VIP, "R"), Reason.FORWARD, (KNOWN, ONE)),
    Case("a SYN on an open flow", tcp(KNOWN, VIP, "S"), Reason.FORWARD, (KNOWN, ONE)),
    # and at the hooks where it is not
    Case("a client's packet, late", tcp(KNOWN, VIP), Reason.NOT_OURS, hook=POSTROUTING),
    Case("a client's packet on its way in", tcp(KNOWN, VIP), Reason.NOT_OURS, hook=INPUT),
    Case("a backend's packet, early", tcp(ONE, KNOWN), Reason.NOT_OURS),
    Case("the same of a backend on this host", tcp(ONE, KNOWN), Reason.NOT_OURS, hook=OUTPUT),
    Case("full NAT, forward, late", tcp(KNOWN_FULL, VIP_FULL), Reason.NOT_OURS, hook=POSTROUTING),
    Case("full NAT, reply, late", tcp(ONE, SOURCE), Reason.NOT_OURS, hook=POSTROUTING),
    Case("full NAT, reply, in", tcp(ONE, SOURCE), Reason.NOT_OURS, hook=INPUT),
    Case("a translated packet, late", tcp(KNOWN, ONE), Reason.NOT_OURS, hook=POSTROUTING),
    Case("a translated reply, late", tcp(VIP, KNOWN), Reason.NOT_OURS, hook=POSTROUTING),
    # 3. opens a flow
    Case("a SYN", tcp(CLIENT, VIP, "S"), Reason.FORWARD, (CLIENT, ONE)),
    Case("a SYN of this host", tcp(CLIENT, VIP, "S"), Reason.FORWARD, (CLIENT, ONE), OUTPUT),
    Case("a SYN with data", tcp(CLIENT, VIP, "S", payload=b"0"), Reason.FORWARD, (CLIENT, ONE)),
    Case("a SYN with ECN", tcp(CLIENT, VIP, "SEC"), Reason.FORWARD, (CLIENT, ONE)),
    Case("a SYN, IPv6", tcp(CLIENT6, VIP6, "S"), Reason.FORWARD, (CLIENT6, ONE6)),
    Case("a datagram", udp(CLIENT, VIP, b"?"), Reason.FORWARD, (CLIENT, ONE)),
    Case("first port", tcp(CLIENT, "192.0.2.60:8000", "S"), Reason.FORWARD, (CLIENT, ONE)),
    Case("last port", tcp(CLIENT, "192.0.2.60:8010", "S"), Reason.FORWARD, (CLIENT, ONE)),
    Case("second VIP", tcp(CLIENT, "192.0.2.61:8005", "S"), Reason.FORWARD, (CLIENT, ONE)),
    Case("wildcard", tcp(CLIENT, "203.0.113.5:7777", "S"), Reason.FORWARD, (CLIENT, ONE)),
    Case("wildcard IPv6", tcp(CLIENT6, "[::1]:7777", "S"), Reason.FORWARD, (CLIENT6, ONE6)),
    Case(
        "the client has the VIP's own address",
        tcp("192.0.2.10:40000", VIP, "S"),
        Reason.FORWARD,
        ("192.0.2.10:40000", ONE),
        OUTPUT,
    ),
    # of no service
    Case("another address", tcp(CLIENT, ELSEWHERE, "S"), Reason.NOT_OURS),
    Case("another port", tcp(CLIENT, "192.0.2.10:81", "S"), Reason.NOT_OURS),
    Case("the port before the range", tcp(CLIENT, "192.0.2.60:7999", "S"), Reason.NOT_OURS),
    Case("the port after the range", tcp(CLIENT, "192.0.2.60:8011", "S"), Reason.NOT_OURS),
    Case("another protocol's service", udp(CLIENT, VIP_FULL), Reason.NOT_OURS),
    Case("a wildcard is for its protocol", udp(CLIENT, "203.0.113.5:7777"), Reason.NOT_OURS),
    Case("a new SYN at a late hook", tcp(CLIENT, VIP, "S"), Reason.NOT_OURS, hook=INPUT),
    Case("a backend's own traffic", tcp(ONE, ELSEWHERE, "S"), Reason.NOT_OURS, hook=POSTROUTING),
    Case("a backend's answer to others", tcp(ONE, CLIENT, "SA"), Reason.NOT_OURS, hook=POSTROUTING),
    # 4. mid-stream
    Case("an ACK", tcp(CLIENT, VIP, "A", ack=7), Reason.NO_FLOW, reset=("R", 7, 0)),
    Case("a FIN", tcp(CLIENT, VIP, "FA", ack=8), Reason.NO_FLOW, reset=("R", 8, 0)),
    Case("a SYN-ACK", tcp(CLIENT, VIP, "SA", ack=9), Reason.NO_FLOW, reset=("R", 9, 0)),
    Case("a RST", tcp(CLIENT, VIP, "R"), Reason.NO_FLOW),
    Case("a RST with ACK", tcp(CLIENT, VIP, "RA", ack=7), Reason.NO_FLOW),
    Case("full NAT: an ACK", tcp(CLIENT, VIP_FULL, ack=7), Reason.NO_FLOW, reset=("R", 7, 0)),
    Case("adopting: an ACK", tcp(CLIENT, VIP_ADOPTING), Reason.FORWARD, (CLIENT, ONE)),
    Case("adopting: a FIN", tcp(CLIENT, VIP_ADOPTING, "FA"), Reason.FORWARD, (CLIENT, ONE)),
    Case("adopting: a RST", tcp(CLIENT, VIP_ADOPTING, "R"), Reason.FORWARD, (CLIENT, ONE)),
    Case(
        "adopting: a SYN-ACK opens nothing",
        tcp(CLIENT, VIP_ADOPTING, "SA", ack=7),
        Reason.NO_FLOW,
        reset=("R", 7, 0),
    ),
    # 5. no backend
    Case("an empty pool", tcp(CLIENT, VIP_EMPTY, "S"), Reason.NO_BACKEND, reset=("RA", 0, 1001)),
    Case("only weight 0", tcp(CLIENT, VIP_DRAINED, "S"), Reason.NO_BACKEND, reset=("RA", 0, 1001)),
    Case("mid-stream, empty", tcp(CLIENT, VIP_EMPTY, ack=7), Reason.NO_FLOW, reset=("R", 7, 0)),
    Case("no source port left", tcp(CLIENT, VIP_FULL, "S"), Reason.NO_SOURCE_PORT),
    Case("the backend has this tuple", tcp(KNOWN, VIP_ADOPTING), Reason.TUPLE_IN_USE),
    # truncated
    Case("cut, of a flow", tcp(KNOWN, VIP), Reason.TRUNCATED, info=CUT),
    Case("cut, a reply", tcp(ONE, KNOWN), Reason.TRUNCATED, hook=POSTROUTING, info=CUT),
    Case("cut, opens a flow", tcp(CLIENT, VIP, "S"), Reason.TRUNCATED, info=CUT),
    Case("cut, mid-stream", tcp(CLIENT, VIP), Reason.TRUNCATED, info=CUT),
    Case("cut, not ours", tcp(CLIENT, ELSEWHERE), Reason.NOT_OURS, info=CUT),
    Case("cut, of a flow, wrong hook", tcp(KNOWN, VIP), Reason.NOT_OURS, hook=INPUT, info=CUT),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.description for case in CASES])
def test_one_packet(case: Case) -> None:
    world = make_world()
    flows = world.statistics().flows
    outcome = world.handle(case.packet, case.hook, case.info)
    assert (outcome.verdict, outcome.reason) == (case.verdict, case.reason)
    if case.becomes:
        assert outcome.packet == readdressed(case.packet, *case.becomes)
    assert [_reset_fields(case, outcome)] == [case.reset]
    opened = world.statistics().flows - flows
    known = {KNOWN, KNOWN_FULL} & set(_ends(case.packet))
    assert opened == (case.reason is Reason.FORWARD and not known)


def _ends(packet: bytes) -> list[str]:
    seen = parse(packet)
    if "TCP" not in seen:
        return []
    return [f"{seen.src}:{seen.sport}", f"{seen.dst}:{seen.dport}"]


def _reset_fields(case: Case, outcome: Outcome) -> tuple[str, int, int] | None:
    if not outcome.answers:
        return None
    (answer,) = outcome.answers
    sent, reset = parse(case.packet), parse(answer)
    assert (reset.src, reset.sport, reset.dst, reset.dport) == (
        sent.dst, sent.dport, sent.src, sent.sport,
    )  # fmt: skip
    return str(reset["TCP"].flags), reset["TCP"].seq, reset["TCP"].ack


@pytest.mark.parametrize("hook", Hook)
@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_each_direction_is_rewritten_at_its_hooks_and_nowhere_else(nat: str, hook: Hook) -> None:
    world = World(service(ONE, nat=nat))
    connection = world.connect()
    early = {PREROUTING, OUTPUT}
    forward = world.handle(tcp(CLIENT, VIP), hook)
    assert (forward.reason is Reason.FORWARD) is (hook in early)
    reply = world.handle(tcp(ONE, connection.source), hook)
    expected = early if nat == "full" else {INPUT, FORWARD, POSTROUTING}
    assert (reply.reason is Reason.REPLY) is (hook in expected)
    assert {forward.reason, reply.reason} <= {Reason.FORWARD, Reason.REPLY, Reason.NOT_OURS}


def test_a_truncated_packet_counts_by_its_whole_length_and_changes_nothing() -> None:
    """Only the queue's copy is short: its IP header tells the whole length."""
    world = World(service(ONE))
    connection = world.connect()
    whole = connection.segment("FA", bytes(3000))
    outcome = world.handle(whole[:1000] + bytes(len(whole) - 1000), info=CUT, length=len(whole))
    assert outcome.reason is Reason.TRUNCATED
    assert connection.state == "ESTABLISHED"


@given(
    packet=st.binary(max_size=100) | st.builds(
        lambda flags, payload, known: tcp(KNOWN if known else CLIENT, VIP, flags, payload=payload),
        st.sampled_from(["S", "SA", "A", "FA", "R", "RA", "PA"]),
        st.binary(max_size=20),
        st.booleans(),
    ),
    changes=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=3),
    hook=st.sampled_from(Hook),
    info=st.sampled_from([PacketInfo.NONE, PacketInfo(1), PacketInfo(3), CUT]),
)  # fmt: skip
def test_no_packet_raises_and_every_packet_is_counted(
    packet: bytes, changes: list[tuple[int, int]], hook: Hook, info: PacketInfo
) -> None:
    """`World` checks the counts, the flows and the bytes around the packet each time."""
    changed = bytearray(packet)
    for at, byte in changes:
        if at < len(changed):
            changed[at] = byte
    HOSTILE.handle(bytes(changed), hook, info)


HOSTILE = make_world()


def test_services_as_a_table_do_not_share_endpoints() -> None:
    """Guards this file: each case must have only one service that it can mean."""

    def ends(one: Service) -> set[tuple[object, ...]]:
        return {(one.protocol, vip) for vip in one.vips}

    assert sum(len(ends(one)) for one in SERVICES) == len(set().union(*map(ends, SERVICES)))
