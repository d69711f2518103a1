"""SYN cookies: nothing is kept of a SYN, and the two halves of a connection are translated."""

from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import TCP

from featherlb.core.path.export import read_flows
from featherlb.model import Datapath, Hook, NatMode, PacketInfo, Service, SynCookies, Verdict
from featherlb.model.reason import Reason
from featherlb.model.shard import WHOLE
from tests.builders import parse, rebuilt, tcp
from tests.world import CLIENT, ONE, TWO, VIP, Outcome, World, client, service

CLIENT6, VIP6, ONE6 = "[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080"
OFFER = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 10)]
FIRST, THEIRS = 0xFFFFFFFF, 0x11111111
"""Where the client and the backend begin."""


def guarded(*backends: str, mode: SynCookies = SynCookies.ALWAYS, **how: Any) -> Service:
    return replace(service(*(backends or (ONE,)), **how), syn_cookies=mode)


class Half:
    """A client that opens a connection with a cookie, and the backend that it gets."""

    def __init__(
        self, world: World, source: str = CLIENT, vip: str = VIP, offer: Any = OFFER
    ) -> None:
        self.world, self.source, self.vip = world, source, vip
        syn = tcp(source, vip, "S", seq=FIRST, options=offer)
        outcome = world.handle(syn)
        assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.SYN_COOKIE)
        (self.answer,) = outcome.answers
        assert self.answer == rebuilt(self.answer)
        self.cookie = parse(self.answer)[TCP].seq

    def send(self, flags: str = "A", seq: int = FIRST + 1, ack: int = 1, **fields: Any) -> Outcome:
        """`ack` counts from the cookie."""
        return self.world.handle(
            tcp(
                self.source,
                self.vip,
                flags,
                seq=seq & 0xFFFFFFFF,
                ack=(self.cookie + ack) & 0xFFFFFFFF,
                window=63,
                **fields,
            )
        )

    def begin(self) -> None:
        """Up to the SYN at the backend."""
        outcome = self.send()
        assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.COOKIE_ACK)
        (self.sent,) = outcome.sent_again
        assert self.sent == rebuilt(self.sent)
        forward = self.world.handle(self.sent, Hook.OUTPUT)
        assert forward.reason is Reason.FORWARD
        assert forward.packet == rebuilt(forward.packet)
        self.syn = forward.packet

    def open(self, scale: int | None = 7, mss: int = 1460) -> Outcome:
        """Up to the backend's SYN-ACK; returns what became of that."""
        self.begin()
        layers = parse(self.syn)
        port = layers[TCP].sport, layers[TCP].dport
        brackets = "[{}]:{}" if layers.version == 6 else "{}:{}"
        self.seen, self.backend = (
            brackets.format(address, number)
            for address, number in zip((layers.src, layers.dst), port, strict=True)
        )
        offer = [("MSS", mss), ("NOP", None), ("WScale", scale)] if scale is not None else []
        opened = self.reply("SA", seq=THEIRS, ack=FIRST + 1, window=64240, options=offer)
        (sent,) = opened.sent_again
        assert sent == rebuilt(sent)
        self.acknowledged = self.world.handle(sent, Hook.OUTPUT)
        return opened

    def reply(self, flags: str = "A", **fields: Any) -> Outcome:
        segment = tcp(
            self.backend, self.seen, flags, **{**fields, "ack": fields["ack"] & 0xFFFFFFFF}
        )
        kept = self.seen == self.source
        return self.world.handle(segment, Hook.POSTROUTING if kept else Hook.PREROUTING)


@pytest.mark.parametrize("nat", NatMode)
@pytest.mark.parametrize(
    ("source", "vip", "server"), [(CLIENT, VIP, ONE), (CLIENT6, VIP6, ONE6)], ids=["IPv4", "IPv6"]
)
def test_a_connection_opens_when_its_cookie_comes_back(
    nat: NatMode, source: str, vip: str, server: str
) -> None:
    sources = ("fd00::254",) if vip == VIP6 else ("10.1.0.254",)
    world = World(guarded(server, vips=vip, nat=nat, sources=sources))
    half = Half(world, source, vip)
    answer = parse(half.answer)[TCP]
    assert (str(answer.flags), answer.ack, answer.window) == ("SA", 0, 0)
    assert not world.flows()
    options = dict(answer.options)
    assert "Timestamp" not in options
    assert options["WScale"] == 7

    opened = half.open()
    syn = parse(half.syn)[TCP]
    assert (str(syn.flags), syn.seq, syn.window) == ("S", FIRST, 63 << 10)
    assert [name for name, _ in syn.options if name != "NOP"] == ["MSS", "SAckOK", "WScale"]
    assert dict(syn.options)["MSS"] == 1460
    assert half.acknowledged.packet == rebuilt(half.acknowledged.packet)
    ack = parse(half.acknowledged.packet)[TCP]
    assert (str(ack.flags), ack.seq, ack.ack) == ("A", 0, THEIRS + 1)
    # The client gets its window.
    assert opened.packet == rebuilt(opened.packet)
    window = parse(opened.packet)[TCP]
    assert (str(window.flags), window.seq, window.ack) == ("A", half.cookie + 1, 0)
    assert window.window == 64240 >> 7
    assert world.states() == ["ESTABLISHED"]

    # SACK blocks at an even and at an odd offset.
    blocks = (half.cookie + 100, half.cookie + 200)
    for padding in (["NOP", "NOP"], ["NOP"]):
        sack = [*((name, None) for name in padding), ("SAck", blocks)]
        sent = half.send("A", options=sack)
        assert sent.packet == rebuilt(sent.packet)
        there = parse(sent.packet)[TCP]
        assert there.ack == THEIRS + 1
        assert dict(there.options)["SAck"] == (THEIRS + 100, THEIRS + 200)
    back = half.reply("PA", seq=THEIRS + 1, ack=FIRST + 1, window=500, payload=b"hello")
    assert back.packet == rebuilt(back.packet)
    assert parse(back.packet)[TCP].seq == half.cookie + 1
    assert parse(back.packet)[TCP].window == 500


@pytest.mark.parametrize(
    ("scale", "window", "expected"),
    [(10, 100, 800), (4, 800, 100), (7, 65535, 65535), (10, 65535, 65535), (None, 1280, 10)],
)
def test_windows_are_converted_if_the_backend_scales_otherwise(
    scale: int | None, window: int, expected: int
) -> None:
    """The SYN-ACK had announced a scale of 7. A backend that has none gets the client's windows
    as they are meant."""
    half = Half(World(guarded()))
    half.open(scale)
    back = half.reply("A", seq=THEIRS + 1, ack=FIRST + 1, window=window)
    assert parse(back.packet)[TCP].window == expected
    there = half.send("A")
    assert parse(there.packet)[TCP].window == (63 << 10 if scale is None else 63)


@pytest.mark.parametrize(("limit", "offered"), [(1000, 1000), (9000, 1460)])
def test_answers_offer_the_mss_of_the_service(limit: int, offered: int) -> None:
    half = Half(World(replace(guarded(), mss=limit)))
    assert dict(parse(half.answer)[TCP].options)["MSS"] == offered
    half.open()
    assert dict(parse(half.syn)[TCP].options)["MSS"] == min(limit, 1460)


def test_without_options_none_are_used() -> None:
    world = World(guarded())
    half = Half(world, offer=[])
    assert [name for name, _ in parse(half.answer)[TCP].options] == ["MSS"]
    half.open(None)
    assert dict(parse(half.syn)[TCP].options) == {"MSS": 536}
    there = half.send("A")
    assert parse(there.packet)[TCP].window == 63


@pytest.mark.parametrize(
    ("change", "seconds"),
    [({"ack": 2}, 0), ({"seq": FIRST + 3}, 0), ({"flags": "FA"}, 0), ({}, 130)],
    ids=["another cookie", "another connection", "no ACK alone", "too late"],
)
def test_what_returns_no_valid_cookie_is_refused(change: dict[str, Any], seconds: float) -> None:
    world = World(guarded())
    half = Half(world)
    world.advance(seconds)
    outcome = half.send(**change)
    assert outcome.reason is Reason.NO_FLOW
    assert parse(outcome.answers[0])[TCP].flags == "R"
    assert not world.flows()


def test_a_probe_of_the_window_returns_the_cookie_as_well() -> None:
    """Where the ACK was lost."""
    world = World(guarded())
    half = Half(world)
    world.advance(64)
    (syn,) = half.send(seq=FIRST).sent_again
    assert parse(syn)[TCP].seq == FIRST
    assert not half.send(seq=FIRST).sent_again
    assert world.handle(syn, Hook.OUTPUT).reason is Reason.FORWARD


def test_a_refusal_resets_the_client_where_it_is() -> None:
    world = World(guarded())
    half = Half(world)
    half.begin()
    half.seen, half.backend = CLIENT, ONE
    refused = half.reply("RA", seq=0, ack=FIRST + 1)
    assert refused.packet == rebuilt(refused.packet)
    assert parse(refused.packet)[TCP].seq == half.cookie + 1
    assert world.states() == ["CLOSED"]


@pytest.mark.parametrize("flags", ["SA", "A"])
def test_the_challenge_of_a_backend_that_has_an_earlier_connection_is_reset(flags: str) -> None:
    """As the client would do, which doesn't know that the backend has not answered yet."""
    half = Half(World(guarded()))
    half.begin()
    half.seen, half.backend = CLIENT, ONE
    outcome = half.reply(flags, seq=THEIRS, ack=77)
    assert outcome.reason is Reason.INVALID
    reset = parse(outcome.answers[0])[TCP]
    assert (str(reset.flags), reset.seq, reset.dport) == ("R", 77, 8080)
    opened = half.reply("SA", seq=THEIRS, ack=FIRST + 1, window=64240)
    assert parse(opened.packet)[TCP].seq == half.cookie + 1


def test_another_backend_is_tried_if_one_refuses() -> None:
    world = World(guarded(ONE, TWO, scheduler="rr"))
    half = Half(world)
    half.begin()
    first = parse(half.syn).dst
    half.seen, half.backend = CLIENT, ONE
    half.backend = ONE if first == "10.1.0.1" else TWO
    refused = half.reply("RA", seq=0, ack=FIRST + 1)
    assert refused.reason is Reason.REDISPATCHED
    (again,) = refused.sent_again
    second = world.handle(again, Hook.OUTPUT)
    half.backend = TWO if first == "10.1.0.1" else ONE
    assert parse(second.packet).dst == half.backend.partition(":")[0]
    opened = half.reply("SA", seq=THEIRS, ack=FIRST + 1, window=64240)
    assert parse(opened.packet)[TCP].seq == half.cookie + 1


def test_if_there_is_no_backend_the_client_is_reset() -> None:
    world = World(guarded())
    half = Half(world)
    (syn,) = half.send().sent_again
    world.apply(replace(guarded(), backends=()))
    outcome = world.handle(syn, Hook.OUTPUT)
    assert outcome.reason is Reason.NO_BACKEND
    (reset,) = outcome.answers
    assert (parse(reset)[TCP].flags, parse(reset)[TCP].seq) == ("R", half.cookie + 1)


def test_a_client_that_gives_up_ends_the_flow() -> None:
    world = World(guarded())
    half = Half(world)
    half.begin()
    assert half.send("A").reason is Reason.COOKIE_ACK
    assert half.send("R").reason is Reason.COOKIE_ACK
    assert not world.flows()


def test_a_silent_backend_is_asked_again_and_then_given_up() -> None:
    world = World(guarded())
    half = Half(world)
    half.begin()
    again: list[bytes] = []
    for _ in range(16):
        world.advance(1)
        again += world.balancer.redispatch.take_reinjected()
    assert again == [half.sent] * 3
    (reset,) = world.balancer.outbox.take()
    assert parse(reset)[TCP].flags == "R"
    assert parse(reset)[TCP].seq == half.cookie + 1
    assert not world.flows()


def test_a_reset_of_both_ends_has_the_numbers_that_each_expects() -> None:
    world = World(guarded())
    half = Half(world)
    half.open()
    half.send("A")
    half.reply("A", seq=THEIRS + 1, ack=FIRST + 1)
    ((number, key, _),) = read_flows(world.balancer.views.copy_records(1, 9, world.now))
    assert world.balancer.termination.terminate(number, key, True, world.now)
    to_client, to_backend = world.balancer.outbox.take()
    assert parse(to_client)[TCP].seq == half.cookie + 1
    assert parse(to_backend)[TCP].seq == FIRST + 1 & 0xFFFFFFFF


def test_cookies_begin_with_a_flood_and_end_after_it() -> None:
    """With `auto`, 256 half-open connections, or more in a large table."""
    world = World(guarded(mode=SynCookies.AUTO), capacity=1024)
    reasons = [world.handle(tcp(client(i), VIP, "S")).reason for i in range(300)]
    assert reasons == [Reason.FORWARD] * 256 + [Reason.SYN_COOKIE] * 44
    assert len(world.flows()) == 256
    world.advance(31)
    # As many SYNs a second without their cookies keep it up.
    assert world.handle(tcp(client(400), VIP, "S")).reason is Reason.SYN_COOKIE
    world.advance(1)
    world.advance(1)
    assert world.handle(tcp(client(401), VIP, "S")).reason is Reason.FORWARD


def test_where_there_are_none() -> None:
    world = World(guarded(mode=SynCookies.OFF), capacity=1024)
    for i in range(300):
        world.handle(tcp(client(i), VIP, "S"))
    assert world.statistics().reasons[Reason.SYN_COOKIE] == 0


def test_a_frame_is_replaced_by_its_answer() -> None:
    world = World(replace(guarded(), datapath=Datapath.RAW))
    world.balancer.next_hops.ingress = 7
    outcome = world.handle(
        tcp(CLIENT, VIP, "S", options=OFFER), Hook.WIRE, PacketInfo.CHECKSUM_NOT_READY
    )
    assert (outcome.verdict, outcome.reason) == (Verdict.ANSWERED, Reason.SYN_COOKIE)
    assert world.balancer.next_hops.egress == 7
    length = parse(outcome.packet).len
    assert outcome.packet[:length] == rebuilt(outcome.packet[:length])


def test_a_flow_of_frames_opens_through_the_output_hook_and_stays_one_of_frames() -> None:
    world = World(replace(guarded(), datapath=Datapath.RAW))
    world.balancer.next_hops.ingress = 1 << 48 | 7
    syn = tcp(CLIENT, VIP, "S", seq=FIRST, options=OFFER)
    answer = parse(world.handle(syn, Hook.WIRE).packet)[TCP]
    ack = tcp(CLIENT, VIP, "A", seq=0, ack=answer.seq + 1)
    (syn,) = world.handle(ack, Hook.WIRE).sent_again
    assert world.handle(syn, Hook.OUTPUT).reason is Reason.FORWARD
    reply = tcp(ONE, CLIENT, "SA", seq=THEIRS, ack=0)
    (last,) = world.handle(reply, Hook.WIRE).sent_again
    assert world.handle(last, Hook.OUTPUT).reason is Reason.FORWARD
    assert world.states() == ["ESTABLISHED"]
    assert world.handle(ack, Hook.PREROUTING).reason is Reason.COPY


def test_halves_survive_the_worker() -> None:
    world = World(guarded())
    half = Half(world)
    half.open()
    successor = World(guarded())
    assert successor.balancer.restoration.restore(world.memory, WHOLE) == (
        1,
        0,
    )
    half.world = successor
    assert parse(half.send("A").packet)[TCP].ack == THEIRS + 1


def test_a_cookie_reopens_a_port_as_the_syn_would_have_done() -> None:
    """The kernel has answered that, and knows no flows."""
    world = World(guarded(mode=SynCookies.AUTO))
    world.balancer.cookies.set_shield(True, {}, int(world.now * 10))
    kernel = Half(World(guarded()))

    def returned() -> Outcome:
        ack = tcp(CLIENT, VIP, "A", seq=FIRST + 1 & 0xFFFFFFFF, ack=kernel.cookie + 1)
        return world.handle(ack)

    world.handle(tcp(CLIENT, VIP, "S", seq=70))
    world.handle(tcp(ONE, CLIENT, "SA", seq=90, ack=71), Hook.POSTROUTING)
    world.handle(tcp(CLIENT, VIP, "A", seq=71, ack=91))
    assert returned().reason is Reason.FORWARD
    world.handle(tcp(CLIENT, VIP, "R", seq=71))
    assert world.states() == ["CLOSED"]
    outcome = returned()
    assert outcome.reason is Reason.COOKIE_ACK
    assert not world.flows()
    assert parse(outcome.sent_again[0])[TCP].seq == FIRST
