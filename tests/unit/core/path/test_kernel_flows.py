"""Flows in the kernel, driven by an engine whose kernel is a dictionary: commands in, events out.

No conntrack message is involved, only commands and events.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest

from featherlb.core.flows.kernel import Command, Commands, KernelFlow
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.export import read_flows
from featherlb.model import Backend, Datapath, Endpoint, Hook, Protocol, Verdict
from featherlb.model.reason import Reason
from featherlb.model.shard import Shard
from tests.builders import ip, parse, tcp, udp
from tests.unit.core.path.test_icmp import message
from tests.world import Outcome, World, backend, service

CLIENT, VIP, ONE, TWO = "198.51.100.7:40001", "192.0.2.10:80", "10.1.0.1:8080", "10.1.0.2:8080"
ALONE = Shard(0, 1, 0)

Key = tuple[int, ...]


@dataclass
class Kernel:
    """A flow table in place of the kernel's, and the engine that serves it."""

    world: World
    capacity: int = 100
    flows: dict[Key, KernelFlow] = field(default_factory=dict)
    """By forward key."""
    done: list[Command] = field(default_factory=list)
    """What was executed."""

    @property
    def core(self) -> Any:
        return self.world.balancer.offload

    @property
    def ticks(self) -> int:
        return int(self.world.now * 10)

    def execute(self) -> list[Command]:
        """Execute the core's commands until there are none; what was executed."""
        batch = Commands()
        self.done = []
        while self.core.commands.count:
            self.core.commands.take(batch)
            for at in range(batch.count):
                self.done.append(Command(batch.kind(at)))
                self._execute(batch, at)
        return self.done

    def _execute(self, batch: Commands, at: int) -> None:
        # The copy of the record is not visible from outside when compiled: the keys are.
        wanted = as_inserted(batch.records.key(at))
        wanted.offset = batch.offset(at)
        flow = batch.flow(at)
        match Command(batch.kind(at)):
            case Command.INSERT:
                other = self.flows.get(forward(wanted))
                taken = any(reply(one) == reply(wanted) for one in self.flows.values())
                if other is not None or taken:
                    self.core.exists(flow, batch.attempts(at), other)
                elif len(self.flows) >= self.capacity:
                    self.core.refused(flow)
                else:
                    self.flows[forward(wanted)] = wanted
            case Command.DELETE:
                self.flows.pop(forward(wanted), None)
            case Command.LOOK_UP:
                there = self.flows.get(forward(wanted))
                if there is None:
                    self.core.gone(flow, self.ticks)
                else:
                    self.core.counters(flow, there, self.ticks)

    def end(self, one: KernelFlow) -> None:
        """The kernel's own timeout, or a RST, ends a flow."""
        del self.flows[forward(one)]
        self.core.ended(one, self.ticks)
        self.execute()

    @property
    def only(self) -> KernelFlow:
        (one,) = self.flows.values()
        return one


def as_inserted(key: bytes) -> KernelFlow:
    """What the kernel knows of a flow that was just inserted."""
    words = memoryview(key)
    found = KernelFlow()
    found.version = 4
    (
        found.src_high,
        found.src_low,
        found.dst_high,
        found.dst_low,
    ) = words[:32].cast("Q")
    source, destination = words[32:36].cast("H")
    found.ports = source << 16 | destination
    (
        found.reply_src_high,
        found.reply_src_low,
        found.reply_dst_high,
        found.reply_dst_low,
    ) = words[36:68].cast("Q")
    source, destination = words[68:72].cast("H")
    found.reply_ports = source << 16 | destination
    found.protocol = key[72]
    found.state = int(State.SYN_SENT if key[72] == Protocol.TCP else State.UDP_ONE_WAY)
    found.translated = True
    return found


def forward(one: KernelFlow) -> Key:
    return one.protocol, one.src_high, one.src_low, one.dst_high, one.dst_low, one.ports


def reply(one: KernelFlow) -> Key:
    return (
        one.protocol,
        one.reply_src_high,
        one.reply_src_low,
        one.reply_dst_high,
        one.reply_dst_low,
        one.reply_ports,
    )


def offloaded(*backends: str | Backend, **options: Any) -> World:
    return World(service(*(backends or (ONE,)), datapath=Datapath.OFFLOAD, **options))


def opened(**options: Any) -> tuple[World, Kernel]:
    """A connection that the kernel forwards."""
    world = offloaded(**options)
    kernel = Kernel(world)
    assert world.handle(tcp(CLIENT, VIP, "S")).verdict is Verdict.OFFLOAD
    assert kernel.execute() == [Command.INSERT]
    return world, kernel


def test_an_opened_flow_is_inserted() -> None:
    world, kernel = opened()
    assert len(kernel.flows) == 1
    assert world.balancer.offload.take_refused() == []
    (flow,) = world.flows()
    assert (str(flow.backend), flow.state) == (ONE, State.SYN_SENT)


def test_a_full_kernel_refuses_a_flow() -> None:
    world = offloaded()
    kernel = Kernel(world, capacity=0)
    world.handle(tcp(CLIENT, VIP, "S"))
    kernel.execute()
    assert world.balancer.offload.take_refused() == [1]
    assert world.flows() == []
    assert world.statistics().reasons[Reason.NO_ENTRY] == 1
    assert world.statistics().reasons[Reason.FORWARD] == 0


def test_a_stale_entry_is_replaced() -> None:
    world = offloaded()
    kernel = Kernel(world)
    world.handle(tcp(CLIENT, VIP, "S"))
    kernel.execute()
    old = kernel.only
    old.reply_src_low ^= 1  # to another backend
    old.state = int(State.CLOSED)
    world.balancer.offload.gone(1, kernel.ticks)
    world.handle(tcp(CLIENT, VIP, "S"))
    assert kernel.execute() == [Command.INSERT, Command.DELETE, Command.INSERT]
    assert kernel.only is not old
    assert len(world.flows()) == 1


@pytest.mark.parametrize("same", [True, False])
def test_an_open_connection_with_the_key_stays(same: bool) -> None:
    """Another process created it; or it is the flow itself, inserted twice."""
    world = offloaded()
    kernel = Kernel(world)
    world.handle(tcp(CLIENT, VIP, "S"))
    kernel.execute()
    old = kernel.only
    old.state = int(State.ESTABLISHED)
    if not same:
        old.reply_src_low ^= 1
    world.balancer.offload.gone(1, kernel.ticks)
    world.handle(tcp(CLIENT, VIP, "S"))
    assert kernel.execute() == [Command.INSERT]
    assert kernel.only is old
    assert len(world.flows()) == same


def test_full_nat_tries_other_source_ports() -> None:
    world = offloaded(nat="full")
    kernel = Kernel(world)
    world.handle(tcp(CLIENT, VIP, "S"))
    kernel.execute()
    first = kernel.only.reply_ports
    world.balancer.offload.gone(1, kernel.ticks)
    # Everything that leads back to the ports that come next is another's.
    holder = kernel.flows.pop(forward(kernel.only))
    taken = {}
    for port in range(3):
        other = holder.copy()
        other.ports ^= (port + 1) << 16
        other.reply_ports = (first & 0xFFFF0000) | ((first & 0xFFFF) + port)
        taken[forward(other)] = other
    kernel.flows |= taken
    world.handle(tcp(CLIENT, VIP, "S"))
    kernel.execute()
    (flow,) = world.flows()
    assert world.balancer.offload.take_refused() == []
    mine = next(one for key, one in kernel.flows.items() if key not in taken)
    assert mine.reply_ports & 0xFFFF == flow.source.port
    assert reply(mine) not in [reply(one) for one in taken.values()]


def test_a_client_is_refused_if_its_port_is_in_use_towards_the_backend() -> None:
    world, kernel = opened()
    taken = kernel.only.copy()
    taken.dst_low ^= 1
    kernel.flows = {forward(taken): taken}
    world.balancer.offload.gone(1, kernel.ticks)
    world.handle(tcp(CLIENT, VIP, "S"))
    assert kernel.execute() == [Command.INSERT, Command.DELETE, Command.INSERT]
    assert world.balancer.offload.take_refused() == [1]
    assert world.flows() == []


def test_counters_and_state_are_what_the_kernel_says() -> None:
    world, kernel = opened()
    one = kernel.only
    one.packets, one.bytes, one.reply_packets, one.reply_bytes = 3, 200, 2, 5000
    one.state, one.answered = int(State.ESTABLISHED), True
    world.balancer.offload.sweep()
    assert kernel.execute() == [Command.LOOK_UP]
    (flow,) = world.flows()
    assert flow.state is State.ESTABLISHED
    (counted,) = world.statistics().backends
    assert (counted.packets_forward, counted.bytes_forward) == (3, 200)
    assert (counted.packets_reply, counted.bytes_reply) == (2, 5000)


def test_a_flow_that_ended_in_the_kernel_is_forgotten() -> None:
    world, kernel = opened()
    world.advance(10)
    assert kernel.execute() == [Command.LOOK_UP]  # it isn't open yet
    last = kernel.only
    last.state = int(State.CLOSED)
    kernel.end(last)
    assert kernel.done == []
    assert world.flows() == []


def test_the_end_of_a_young_flow_is_confirmed_by_a_look_up() -> None:
    """It may be that of the connection before it, with the same ports."""
    world, kernel = opened()
    before = kernel.only
    world.balancer.offload.ended(before.copy(), kernel.ticks)
    assert kernel.execute() == [Command.LOOK_UP]
    assert len(world.flows()) == 1
    kernel.end(before)
    assert kernel.done == [Command.LOOK_UP]
    assert world.flows() == []


def test_a_retransmitted_syn_is_looked_up_first() -> None:
    world, kernel = opened()
    syn = tcp(CLIENT, VIP, "S")
    assert world.balancer.handle_packet is not None
    buffer = bytearray(syn)
    world.balancer.attach(buffer)
    assert world.balancer.handle_packet(0, len(syn), 0, 0, world.now) == Verdict.LOOK_UP
    assert kernel.execute() == [Command.LOOK_UP]
    assert world.balancer.handle_packet(0, len(syn), 0, 0, world.now) == Verdict.OFFLOAD
    # Had it ended meanwhile, the SYN would open another.
    assert world.balancer.handle_packet(0, len(syn), 0, 0, world.now) == Verdict.LOOK_UP
    kernel.flows.clear()
    kernel.execute()
    assert world.flows() == []
    assert world.balancer.handle_packet(0, len(syn), 0, 0, world.now) == Verdict.OFFLOAD
    assert kernel.execute() == [Command.INSERT]


def test_a_flow_that_an_operator_ends_leaves_the_kernel() -> None:
    world, kernel = opened()
    ((number, key, _),) = read_flows(world.balancer.views.copy_records(1, 1, world.now))
    assert world.balancer.termination.terminate(number, key, True, world.now)
    assert kernel.execute() == [Command.DELETE]
    assert kernel.flows == {}
    assert world.handle(tcp(CLIENT, VIP, "A")).reason is Reason.NO_FLOW


def test_a_service_takes_its_flows_along_to_and_from_the_kernel() -> None:
    world, kernel = opened()
    world.apply(service(ONE))
    assert kernel.execute() == [Command.DELETE]
    assert kernel.flows == {}
    world.apply(service(ONE, datapath=Datapath.OFFLOAD))
    assert kernel.execute() == [Command.INSERT]
    assert str(world.flows()[0].backend) == ONE


def test_flows_that_the_kernel_already_forwards_are_adopted() -> None:
    before, kernel = opened()
    kernel.only.state = int(State.ESTABLISHED)
    left = [one.copy() for one in kernel.flows.values()]
    strange = left[0].copy()
    strange.reply_src_low ^= 0xFF  # no backend
    world = offloaded(ONE, TWO)
    found = [
        world.balancer.offload.found(one, {"web"}, ALONE, kernel.ticks) for one in (*left, strange)
    ]
    assert found == [True, False]
    (flow,) = world.flows()
    assert (str(flow.backend), flow.state) == (ONE, State.ESTABLISHED)
    assert world.balancer.offload.commands.count == 0
    assert before.flows()[0].client == flow.client


def test_a_datagram_waits_for_its_flow() -> None:
    world = offloaded(protocol=Protocol.UDP)
    kernel = Kernel(world)
    assert world.handle(udp(CLIENT, VIP)).verdict is Verdict.DROP
    assert kernel.execute() == [Command.INSERT]
    hop_less = udp(CLIENT, VIP, header=ip(CLIENT, VIP, ttl=63))
    assert world.balancer.offload.take_reinjected() == [hop_less]
    one = kernel.only
    one.state = int(State.UDP_TWO_WAY)
    world.balancer.offload.changed(one, world.now)
    assert [flow.state for flow in world.flows()] == [State.UDP_TWO_WAY]


def test_more_commands_than_there_was_room_for() -> None:
    world = offloaded(*(backend(f"10.1.0.{number}:8080") for number in (1, 2)))
    kernel = Kernel(world, capacity=60)
    for number in range(64):
        world.handle(tcp(f"198.51.100.7:{1000 + number}", VIP, "S"))
    world.balancer.offload.look_up_all()
    kernel.execute()
    assert len(kernel.flows) == 60
    assert len(world.flows()) == 60
    assert {one.backend for one in world.flows()} == {Endpoint.parse(ONE), Endpoint.parse(TWO)}


def syn_again(world: World, kernel: Kernel) -> Outcome:
    """The client's SYN comes a second later, and the engine looks its flow up."""
    world.advance(1)
    buffer = bytearray(tcp(CLIENT, VIP, "S"))
    world.balancer.attach(buffer)
    arguments = 0, len(buffer), int(Hook.PREROUTING), 0, world.now
    assert world.balancer.handle_packet(*arguments) == Verdict.LOOK_UP
    kernel.execute()
    return world.handle(tcp(CLIENT, VIP, "S"))


def moves(world: World) -> list[tuple[int, int, int, int]]:
    """For each backend, connections that it refused or did not answer, and how many have left."""
    return [
        (one.refused, one.syn_retries, one.moved_refused, one.moved_silent)
        for one in world.statistics().backends
    ]


def test_a_silent_backend_is_replaced_by_the_second_syn() -> None:
    world = offloaded(ONE, TWO)
    kernel = Kernel(world)
    world.handle(tcp(CLIENT, VIP, "S"))
    kernel.execute()
    assert syn_again(world, kernel).verdict is Verdict.OFFLOAD
    assert kernel.execute() == [Command.DELETE, Command.INSERT]
    assert moves(world) == [(0, 1, 0, 1), (0, 0, 0, 0)]
    assert kernel.only.reply_src_low & 0xFF == 2
    # A late answer is no reply of a connection that the kernel knows.
    late = tcp(ONE, CLIENT, "SA", seq=5, ack=1)
    outcome = world.handle(late, Hook.FORWARD)
    assert (outcome.reason, len(outcome.answers)) == (Reason.LATE_ANSWER, 1)
    assert world.states() == ["SYN_SENT"]


@pytest.mark.parametrize("state", [State.SYN_SENT, State.SYN_RECEIVED])
def test_a_backend_that_has_answered_keeps_the_connection(state: State) -> None:
    """With a SYN-ACK, or a challenge ACK, of which the kernel tells no state."""
    world = offloaded(ONE, TWO)
    kernel = Kernel(world)
    world.handle(tcp(CLIENT, VIP, "S"))
    kernel.execute()
    kernel.only.answered = True
    kernel.only.state = int(state)
    assert syn_again(world, kernel).verdict is Verdict.OFFLOAD
    assert kernel.execute() == []
    assert [moved for *_, moved in moves(world)] == [0, 0]
    assert kernel.only.reply_src_low & 0xFF == 1


def refused(kernel: Kernel) -> None:
    """The kernel has met a RST, with which it ends the flow at once."""
    last = kernel.only
    last.state = int(State.CLOSED)
    last.packets = last.reply_packets = 1
    kernel.end(last)


@pytest.mark.parametrize("told", ["before", "after", "by a look-up"])
@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_a_refusal_moves_the_flow_once(nat: str, told: str) -> None:
    """Whether the kernel's event comes before or after the RST, or after a look-up for another
    reason."""
    world = offloaded(ONE, TWO, nat=nat)
    kernel = Kernel(world)
    world.handle(tcp(CLIENT, VIP, "S", seq=7, header=ip(CLIENT, VIP, ttl=64)))
    kernel.execute()
    (flow,) = world.flows()
    last = kernel.only.copy()
    if told == "before":
        refused(kernel)
        assert world.states() == ["SYN_SENT"]
    elif told == "by a look-up":
        del kernel.flows[forward(last)]
        world.balancer.offload.sweep()
        kernel.execute()
    rst = tcp(ONE, str(flow.source), "RA", seq=0, ack=8)
    outcome = world.handle(rst, Hook.FORWARD if nat == "dnat" else Hook.PREROUTING)
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.REDISPATCHED)
    (syn,) = outcome.sent_again
    assert syn == tcp(CLIENT, VIP, "S", seq=7, header=ip(CLIENT, VIP, ttl=63))
    assert world.handle(syn, Hook.OUTPUT).verdict is Verdict.OFFLOAD
    kernel.execute()
    if told != "before":
        last.state = int(State.CLOSED)
        last.packets = last.reply_packets = 1
        world.balancer.offload.ended(last, kernel.ticks)
        kernel.execute()
    assert kernel.only.reply_src_low & 0xFF == 2
    assert moves(world) == [(1, 0, 1, 0), (0, 0, 0, 0)]
    (flow,) = world.flows()
    assert flow.tried == ((Endpoint.parse(ONE), "refused"),)


@pytest.mark.parametrize("told", ["before", "after"])
def test_the_client_gets_a_refusal_that_nobody_else_can_take(told: str) -> None:
    world, kernel = opened()
    rst = tcp(ONE, CLIENT, "RA", seq=0, ack=1)
    if told == "before":
        refused(kernel)
        assert world.handle(rst, Hook.FORWARD).verdict is Verdict.PASS
    else:
        outcome = world.handle(rst, Hook.FORWARD)
        assert (outcome.verdict, outcome.reason) == (Verdict.OFFLOAD, Reason.REPLY)
        refused(kernel)
    assert world.flows() == []
    assert moves(world) == [(1, 0, 0, 0)]


def test_the_client_gets_a_refusal_if_the_other_backend_has_left_in_the_meantime() -> None:
    world = offloaded(ONE, TWO)
    kernel = Kernel(world)
    world.handle(tcp(CLIENT, VIP, "S"))
    kernel.execute()
    refused(kernel)
    world.apply(service(ONE, datapath=Datapath.OFFLOAD))
    outcome = world.handle(tcp(ONE, CLIENT, "RA", seq=0, ack=1), Hook.FORWARD)
    assert (outcome.verdict, outcome.reason) == (Verdict.OFFLOAD, Reason.REPLY)
    assert world.flows() == []
    assert moves(world) == [(1, 0, 0, 0)]


def unreachable(packet: bytes) -> bytes:
    """This host can't deliver it: host unreachable."""
    return message("10.1.0.254", parse(packet).src, 3, 1, bytes(4), packet)


def test_an_unreachable_backend_is_replaced() -> None:
    world = offloaded(ONE, TWO)
    kernel = Kernel(world)
    world.handle(tcp(CLIENT, VIP, "S", seq=7))
    kernel.execute()
    error = unreachable(tcp(CLIENT, ONE, "S", seq=7))
    outcome = world.handle(error, Hook.OUTPUT)
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.REDISPATCHED)
    (syn,) = outcome.sent_again
    world.handle(syn, Hook.OUTPUT)
    assert kernel.execute() == [Command.DELETE, Command.INSERT]
    assert kernel.only.reply_src_low & 0xFF == 2
    # One about another packet is the kernel's.
    kernel.only.state = int(State.ESTABLISHED)
    world.balancer.offload.changed(kernel.only, world.now)
    outcome = world.handle(unreachable(tcp(CLIENT, TWO, "A")), Hook.OUTPUT)
    assert (outcome.verdict, outcome.reason) == (Verdict.OFFLOAD, Reason.ICMP_ERROR)
