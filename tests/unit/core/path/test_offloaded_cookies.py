"""SYN cookies with the datapath offload: conntrack learns of a connection when its backend has
answered, and translates sequence numbers from then on."""

from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import TCP

from featherlb.core.flows.kernel import Command, KernelFlow
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.export import read_flows
from featherlb.model import Datapath, Hook, NatMode, SynCookies, Verdict
from featherlb.model.reason import Reason
from featherlb.model.shard import WHOLE
from tests.builders import parse, rebuilt, tcp
from tests.ctnetlink import entry, messages, read
from tests.unit.core.path.test_cookies import FIRST, THEIRS, Half, guarded
from tests.unit.core.path.test_kernel_flows import Kernel
from tests.world import CLIENT, ONE, TWO, VIP, Outcome, World, client, endpoints

OPTIONS = [("MSS", 1460), ("NOP", None), ("WScale", 7)]


def offloaded(*backends: str, **how: Any) -> World:
    return World(replace(guarded(*backends, **how), datapath=Datapath.OFFLOAD), capacity=1024)


class Offloaded(Half):
    """Such a connection, and the kernel that is to forward it."""

    def __init__(self, world: World, kernel: Kernel | None = None) -> None:
        super().__init__(world)
        self.kernel = kernel or Kernel(world)

    def begin(self) -> None:
        (sent,) = self.send().sent_again
        outcome = self.world.handle(sent, Hook.OUTPUT)
        assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.FORWARD)
        (self.syn,) = self.world.balancer.offload.take_untracked()
        assert self.syn == rebuilt(self.syn)
        self.seen, self.backend = endpoints(self.syn)
        assert self.kernel.execute() == []

    def respond(self, scale: int = 7, **fields: Any) -> Outcome:
        """The backend's, at the hook where out-of-state packets are queued."""
        options = [("MSS", 1460), ("NOP", None), ("WScale", scale)]
        given = {"seq": THEIRS, "ack": 0, "window": 64240, "options": options, **fields}
        flags = given.pop("flags", "SA")
        return self.world.handle(tcp(self.backend, self.seen, flags, **given), Hook.FORWARD)


def opened(**how: Any) -> Offloaded:
    half = Offloaded(offloaded(**how))
    half.begin()
    assert half.respond().reason is Reason.REPLY
    return half


@pytest.mark.parametrize("nat", NatMode)
def test_the_kernel_learns_of_a_connection_when_its_backend_has_answered(nat: NatMode) -> None:
    half = Offloaded(offloaded(nat=nat))
    half.begin()
    assert half.backend == ONE
    syn = parse(half.syn)[TCP]
    assert (str(syn.flags), syn.seq, dict(syn.options)["WScale"]) == ("S", FIRST, 10)
    # The client waits, and may ask for its window.
    assert half.send("A", seq=FIRST).reason is Reason.COOKIE_ACK

    answered = half.respond()
    assert (answered.verdict, answered.reason) == (Verdict.DROP, Reason.REPLY)
    offset = (half.cookie - THEIRS) & 0xFFFFFFFF
    (insert,) = messages(half.world)
    assert insert.get_attr("CTA_SEQ_ADJ_REPLY").get_attr("CTA_NAT_SEQ_OFFSET_AFTER") == offset
    assert insert.get_attr("CTA_SEQ_ADJ_REPLY").get_attr("CTA_NAT_SEQ_OFFSET_BEFORE") == offset
    state = insert.get_attr("CTA_PROTOINFO").get_attr("CTA_PROTOINFO_TCP")
    assert state.get_attr("CTA_PROTOINFO_TCP_STATE") == 3
    assert state.get_attr("CTA_PROTOINFO_TCP_WSCALE_ORIGINAL") == 10
    assert state.get_attr("CTA_PROTOINFO_TCP_WSCALE_REPLY") == 7
    # The port that the backend has seen, also where it is the client's own.
    assert insert.get_attr("CTA_NAT_SRC")

    ((to_vip, from_backend),) = half.world.balancer.offload.take_completed()
    assert to_vip == rebuilt(to_vip)
    assert endpoints(to_vip) == (CLIENT, VIP)
    ack = parse(to_vip)[TCP]
    assert (str(ack.flags), ack.seq, ack.ack) == ("A", 0, half.cookie + 1)
    assert from_backend == rebuilt(from_backend)
    assert endpoints(from_backend) == (half.backend, half.seen)
    window = parse(from_backend)[TCP]
    assert (str(window.flags), window.seq, window.ack) == ("A", THEIRS + 1, 0)
    assert window.window == 64240 >> 7


def test_a_refusal_resets_the_client_where_it_is() -> None:
    half = Offloaded(offloaded())
    half.begin()
    refused = half.respond(flags="RA", seq=0, options=[])
    assert refused.verdict is Verdict.DROP
    (reset,) = refused.answers
    assert (str(parse(reset)[TCP].flags), parse(reset)[TCP].seq) == ("R", half.cookie + 1)
    assert endpoints(reset) == (VIP, CLIENT)
    assert half.kernel.execute() == []


def test_another_backend_is_tried_if_one_refuses() -> None:
    half = Offloaded(offloaded(ONE, TWO, scheduler="rr"))
    half.begin()
    first = half.backend
    refused = half.respond(flags="RA", seq=0, options=[])
    assert refused.reason is Reason.REDISPATCHED
    (again,) = refused.sent_again
    half.world.handle(again, Hook.OUTPUT)
    (syn,) = half.world.balancer.offload.take_untracked()
    half.seen, half.backend = endpoints(syn)
    assert {first, half.backend} == {ONE, TWO}
    assert half.respond().reason is Reason.REPLY
    assert half.kernel.execute() == [Command.INSERT]


def test_a_backend_that_scales_less_than_announced_costs_one_connection() -> None:
    """Its client would believe windows to be larger than they are. The next ones are told right."""
    half = Offloaded(offloaded())
    half.begin()
    outcome = half.respond(scale=6)
    assert outcome.reason is Reason.WINDOW_SCALE
    to_client, to_backend = (parse(packet)[TCP] for packet in outcome.answers)
    assert (to_client.seq, to_backend.seq) == (half.cookie + 1, 0)
    assert not half.world.flows()
    assert half.kernel.execute() == []

    world = half.world
    assert world.balancer.views.scales() == {"web": (6,)}
    early = Offloaded(world)
    world.balancer.cookies.set_shield(False, {"web": (6, 7)}, int(world.now * 10))
    # A cookie remembers what it has announced.
    early.begin()
    assert early.respond(scale=6).reason is Reason.WINDOW_SCALE
    assert not world.flows()
    half = Offloaded(world)
    assert dict(parse(half.answer)[TCP].options)["WScale"] == 6
    half.begin()
    assert half.respond(scale=6).reason is Reason.REPLY


def test_where_a_backend_does_not_scale_nobody_does() -> None:
    world = offloaded()
    world.balancer.cookies.set_shield(False, {"web": (-1, 7)}, int(world.now * 10))
    half = Offloaded(world)
    assert "WScale" not in dict(parse(half.answer)[TCP].options)
    half.begin()
    assert "WScale" not in dict(parse(half.syn)[TCP].options)
    assert half.respond(options=[]).reason is Reason.REPLY
    ((_, from_backend),) = world.balancer.offload.take_completed()
    assert parse(from_backend)[TCP].window == 64240


def test_windows_that_are_larger_than_announced_do_no_harm() -> None:
    half = Offloaded(offloaded())
    half.begin()
    assert half.respond(scale=10).reason is Reason.REPLY
    ((_, from_backend),) = half.world.balancer.offload.take_completed()
    assert parse(from_backend)[TCP].window == 64240 >> 10
    assert half.world.balancer.views.scales() == {"web": (10,)}


def test_if_the_kernel_takes_no_entry_both_ends_are_reset() -> None:
    half = Offloaded(offloaded())
    half.kernel.capacity = 0
    half.begin()
    half.respond()
    half.kernel.execute()
    world = half.world
    to_client, to_backend = world.balancer.outbox.take()
    assert endpoints(to_client) == (VIP, CLIENT)
    assert parse(to_client)[TCP].seq == half.cookie + 1
    assert endpoints(to_backend) == (half.seen, half.backend)
    assert parse(to_backend)[TCP].seq == FIRST + 1 & 0xFFFFFFFF
    assert world.balancer.offload.take_completed() == []
    assert not world.flows()
    assert world.statistics().reasons[Reason.NO_ENTRY] == 1


@pytest.mark.parametrize("state", [State.ESTABLISHED, State.CLOSING])
def test_an_earlier_entry_gives_way(state: State) -> None:
    """The client has just proved that it has no such connection any more."""
    half = opened()
    half.kernel.execute()
    stale = half.kernel.only
    stale.state = int(state)
    later = Offloaded(offloaded())
    later.kernel.flows = dict.fromkeys(half.kernel.flows, stale)
    later.begin()
    later.world.advance(0)
    later.respond(seq=THEIRS + 5)
    assert later.kernel.execute() == [Command.INSERT, Command.DELETE, Command.INSERT]
    assert later.kernel.only.offset == (later.cookie - THEIRS - 5) & 0xFFFFFFFF
    assert later.world.balancer.offload.take_completed()


def adopted(half: Offloaded) -> World:
    """A successor that has found the connection in the kernel."""
    half.kernel.execute()
    entry = half.kernel.only.copy()
    entry.state = int(State.ESTABLISHED)
    world = offloaded()
    assert world.balancer.offload.found(entry, {"web"}, WHOLE, int(world.now * 10))
    return world


def test_a_worker_that_takes_over_knows_the_difference() -> None:
    half = opened()
    world = half.world = adopted(half)
    world.apply(guarded())
    kernel = Kernel(world, flows=dict(half.kernel.flows))
    assert kernel.execute() == [Command.DELETE]
    there = half.send("A")
    assert parse(there.packet)[TCP].ack == THEIRS + 1
    back = half.reply("A", seq=THEIRS + 1, ack=0)
    assert parse(back.packet)[TCP].seq == half.cookie + 1


@pytest.mark.parametrize(("scale", "kept"), [(7, True), (10, False)])
def test_the_kernel_takes_over_what_it_can_translate(scale: int, kept: bool) -> None:
    """It can't convert windows."""
    world = World(guarded())
    half = Half(world)
    half.open(scale)
    world.apply(replace(guarded(), datapath=Datapath.OFFLOAD))
    kernel = Kernel(world)
    assert kernel.execute() == ([Command.INSERT] if kept else [])
    assert len(world.flows()) == kept
    if kept:
        assert kernel.only.offset == (half.cookie - THEIRS) & 0xFFFFFFFF


def test_a_silent_backend_is_asked_again_and_then_given_up() -> None:
    half = Offloaded(offloaded())
    half.begin()
    world = half.world
    again: list[bytes] = []
    for _ in range(16):
        world.advance(1)
        for syn in world.balancer.redispatch.take_reinjected():
            world.handle(syn, Hook.OUTPUT)
            again += world.balancer.offload.take_untracked()
    assert again == [half.syn] * 3
    (reset,) = world.balancer.outbox.take()
    assert parse(reset)[TCP].seq == half.cookie + 1
    assert not world.flows()
    assert half.kernel.execute() == []


def test_an_operator_ends_one_that_waits_for_its_backend() -> None:
    half = Offloaded(offloaded())
    half.begin()
    world = half.world
    ((number, key, _),) = read_flows(world.balancer.views.copy_records(1, 9, world.now))
    assert world.balancer.termination.terminate(number, key, True, world.now)
    assert half.kernel.execute() == []
    assert not world.flows()


def test_a_flood_is_what_the_kernel_still_has_half_open_after_a_while() -> None:
    """It alone knows: a sample of new connections is asked for."""
    world = offloaded(mode=SynCookies.AUTO)
    kernel = Kernel(world, capacity=1000)

    def open_more(first: int, count: int, state: State) -> None:
        for i in range(first, first + count):
            assert world.handle(tcp(client(i), VIP, "S")).reason is Reason.FORWARD
        kernel.execute()
        for one in list(kernel.flows.values())[first:]:
            one.state = int(state)
        for _ in range(8):
            world.advance(0.1)
            kernel.execute()

    open_more(0, 300, State.ESTABLISHED)
    assert world.handle(tcp(client(998), VIP, "S")).reason is Reason.FORWARD
    kernel.execute()
    open_more(301, 100, State.SYN_RECEIVED)
    open_more(401, 300, State.SYN_RECEIVED)
    assert world.handle(tcp(client(999), VIP, "S")).reason is Reason.SYN_COOKIE


def test_a_half_open_connection_ends_in_the_kernel_as_well() -> None:
    world = offloaded(mode=SynCookies.AUTO)
    kernel = Kernel(world)
    for i in range(2):
        world.handle(tcp(client(i), VIP, "S"))
    kernel.execute()
    for _ in range(320):
        world.advance(0.1)
        if world.now > 1029:  # it is looked up once more before it ends
            next(iter(kernel.flows.values())).state = int(State.ESTABLISHED)
        kernel.execute()
    assert len(kernel.flows) == 1
    assert world.states() == ["ESTABLISHED"]


def test_conntrack_tells_scale_and_difference() -> None:
    def told(**attributes: Any) -> KernelFlow:
        given = {"source": "198.51.100.7", "destination": "192.0.2.10", "protocol": 6}
        connection = {"attrs": [(f"CTA_PROTOINFO_TCP_{k}", v) for k, v in attributes.items()]}
        return read(
            entry(
                {**given, "ports": (40000, 80)},
                {**given, "ports": (8080, 40000)},
                CTA_PROTOINFO={"attrs": [("CTA_PROTOINFO_TCP", connection)]},
                CTA_SEQ_ADJ_REPLY={"attrs": [("CTA_NAT_SEQ_OFFSET_AFTER", 0x80000001)]},
            )
        )

    scaled = {"FLAGS_ORIGINAL": (3, 0), "FLAGS_REPLY": (3, 0), "WSCALE_REPLY": 10}
    assert told(STATE=3, **scaled).offset == 0x80000001
    assert told(STATE=3, **scaled).scale == 10
    assert told(STATE=3, **{**scaled, "FLAGS_REPLY": (2, 0)}).scale == -1
    assert told(STATE=1, **scaled).scale == -2
    assert told(STATE=3, **{**scaled, "FLAGS_ORIGINAL": (8, 0)}).scale == -2


def test_a_cookie_ends_the_connection_that_its_client_had_before() -> None:
    half = opened()
    half.kernel.execute()
    world = half.world
    world.balancer.cookies.set_shield(True, {}, int(world.now * 10))
    later = Half(offloaded())  # the kernel's answer to a SYN
    half.cookie = later.cookie
    assert half.send().reason is Reason.INVALID
    (flow,) = half.kernel.flows.values()
    flow.state = int(State.CLOSING)
    world.balancer.offload.look_up_all()
    half.kernel.execute()
    outcome = half.send()
    assert outcome.reason is Reason.COOKIE_ACK
    assert outcome.sent_again
    assert half.kernel.execute() == [Command.DELETE]
