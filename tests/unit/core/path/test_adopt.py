"""After a restart: connections continue, whichever side sends first."""

import pytest

from featherlb.model import Hook, PacketInfo, Protocol, Timeouts
from featherlb.model.reason import Reason
from tests.builders import readdressed, tcp, udp
from tests.world import BACKENDS, CLIENT, VIP, Connection, World, client, service

INPUT, POSTROUTING = Hook.INPUT, Hook.POSTROUTING
CONSISTENT = "maglev"
UNTIL = 1060.0


def restarted(*services: object, until: float = UNTIL) -> World:
    """A balancer that knows nothing of the connections that there are."""
    return World(*services, adopt_until=until)  # type: ignore[arg-type]


def web(**how: object) -> object:
    return service(*BACKENDS, scheduler=CONSISTENT, **how)  # type: ignore[arg-type]


def before(who: str = CLIENT, vip: str = VIP, **how: object) -> Connection:
    """A connection that was established with a balancer that is gone."""
    return World(web(**how)).connect(who, vip)  # type: ignore[arg-type]


@pytest.mark.parametrize("hook", [POSTROUTING, INPUT])
@pytest.mark.parametrize("number", range(8))
def test_a_backend_that_speaks_first(number: int, hook: Hook) -> None:
    connection = before(client(number))
    world = restarted(web())
    segment = tcp(connection.server, connection.client, "PA", ack=7, payload=b"news")
    outcome = world.handle(segment, hook)
    assert outcome.reason is Reason.REPLY
    assert outcome.packet == readdressed(segment, VIP, connection.client)
    assert world.states() == ["ESTABLISHED"]
    answer = world.handle(tcp(connection.client, VIP, "A", ack=9))
    assert answer.destination == connection.server
    assert sum(world.active().values()) == 1


@pytest.mark.parametrize(
    ("flags", "state"),
    [("A", "ESTABLISHED"), ("FA", "CLOSE_WAIT"), ("R", "CLOSED")],
)
def test_the_state_follows_from_the_segment(flags: str, state: str) -> None:
    connection = before()
    world = restarted(web())
    assert world.handle(tcp(connection.server, CLIENT, flags), POSTROUTING).reason is Reason.REPLY
    assert world.states() == [state]


@pytest.mark.parametrize("hook", [POSTROUTING, INPUT])
def test_a_connection_to_the_backend_itself_is_none_of_ours(hook: Hook) -> None:
    """Such as a health check: it began after the restart, and its SYN did not come here."""
    connection = before()
    world = restarted(web())
    for flags in ("SA", "A", "PA", "FA"):
        outcome = world.handle(tcp(connection.server, CLIENT, flags), hook)
        assert outcome.reason is Reason.NOT_OURS
    assert world.flows() == []
    # The same client may open one to the VIP from the same port later.
    assert world.handle(tcp(CLIENT, VIP, "S")).destination == connection.server
    assert world.handle(tcp(connection.server, CLIENT, "SA"), POSTROUTING).reason is Reason.REPLY


def test_a_client_that_speaks_first() -> None:
    connection = before()
    world = restarted(web(), until=0.0)
    assert world.handle(tcp(CLIENT, VIP, "PA", ack=7)).destination == connection.server
    assert world.states() == ["ADOPTED"]
    assert world.handle(tcp(connection.server, CLIENT), POSTROUTING).reason is Reason.REPLY
    assert world.states() == ["ESTABLISHED"]


def test_a_forged_segment_holds_no_more_than_a_forged_syn() -> None:
    """Only the backend knows that there is no such connection."""
    world = restarted(web())
    for number in range(3):
        world.handle(tcp(client(number), VIP, "FA" if number else "A", ack=7))
    assert world.states() == ["ADOPTED"] * 3
    world.advance(Timeouts().half_open + 1)
    assert world.flows() == []
    refused = world.handle(tcp(CLIENT, VIP, ack=7))
    world.handle(tcp(refused.destination, CLIENT, "R", seq=7), POSTROUTING)
    assert world.states() == ["CLOSED"]


def test_only_for_a_while() -> None:
    connection = before()
    world = restarted(web())
    world.advance(UNTIL - world.now)
    assert world.handle(tcp(connection.server, CLIENT), POSTROUTING).reason is Reason.NOT_OURS


@pytest.mark.parametrize("hook", [Hook.PREROUTING, Hook.OUTPUT])
def test_not_at_the_early_hooks(hook: Hook) -> None:
    world = restarted(web())
    assert world.handle(tcp(before().server, CLIENT), hook).reason is Reason.NOT_OURS
    assert world.flows() == []


def test_only_of_the_backend_that_would_have_been_chosen() -> None:
    world = restarted(web())
    for other in set(BACKENDS) - {before().server}:
        assert world.handle(tcp(other, CLIENT), POSTROUTING).reason is Reason.NOT_OURS
    assert world.flows() == []


def test_the_vip_is_found_by_the_schedulers_choice() -> None:
    """Where both would have chosen the backend, nobody can tell."""
    vips = ["192.0.2.10:80", "192.0.2.11:80"]
    seen = set()
    earlier = {vip: World(web(vips=vips)) for vip in vips}  # type: ignore[arg-type]
    for number in range(20):
        servers = {vip: earlier[vip].connect(client(number), vip).server for vip in vips}
        world = restarted(web(vips=vips))
        outcome = world.handle(tcp(servers[vips[0]], client(number)), POSTROUTING)
        if servers[vips[0]] == servers[vips[1]]:
            assert outcome.reason is Reason.NOT_OURS
        else:
            assert outcome.source == vips[0]
        seen.add(outcome.reason)
    assert seen == {Reason.REPLY, Reason.NOT_OURS}


@pytest.mark.parametrize(
    "how",
    [
        {"scheduler": "round-robin"},
        {"scheduler": CONSISTENT, "nat": "full"},
        {"scheduler": CONSISTENT, "vips": "0.0.0.0:80"},
        {"scheduler": CONSISTENT, "vips": "192.0.2.10:80-200"},
        {"scheduler": "source-hash", "vips": "192.0.2.10:80-81"},
        {"scheduler": CONSISTENT, "protocol": Protocol.UDP},
    ],
    ids=["not consistent", "full NAT", "any address", "many ports", "several ports", "UDP"],
)
def test_services_whose_connections_cannot_be_recognised(how: dict[str, object]) -> None:
    world = restarted(service("10.1.0.1:8080", **how))  # type: ignore[arg-type]
    for packet in (tcp("10.1.0.1:8080", CLIENT), udp("10.1.0.1:8080", CLIENT)):
        assert world.handle(packet, POSTROUTING).reason is Reason.NOT_OURS
    assert world.flows() == []


def test_what_is_no_reply() -> None:
    server = before().server
    world = restarted(web())
    own_connection = tcp(server, CLIENT, "S")
    cut = world.handle(tcp(server, CLIENT), POSTROUTING, PacketInfo.TRUNCATED)
    assert cut.reason is Reason.NOT_OURS
    assert world.handle(own_connection, POSTROUTING).reason is Reason.NOT_OURS
    assert world.handle(udp(server, CLIENT), POSTROUTING).reason is Reason.NOT_OURS
    assert world.flows() == []


def test_a_connection_that_has_moved_is_not_doubled() -> None:
    """The client has a new connection on the same port, to another backend."""
    connection = before()
    other = next(one for one in BACKENDS if one != connection.server)
    world = restarted(service(other, scheduler=CONSISTENT))
    world.connect(CLIENT)
    world.apply(web())  # type: ignore[arg-type]
    assert world.handle(tcp(connection.server, CLIENT), POSTROUTING).reason is Reason.NOT_OURS


def test_ipv6() -> None:
    vip, server, who = "[2001:db8::10]:80", "[fd00::1]:8080", "[2001:db8:1::7]:40000"
    world = restarted(service(server, vips=vip, scheduler=CONSISTENT))
    segment = tcp(server, who, "PA", payload=b"news")
    outcome = world.handle(segment, POSTROUTING)
    assert outcome.packet == readdressed(segment, vip, who)
