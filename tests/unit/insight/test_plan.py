"""insight/plan.py: what becomes of flows, slots and clients, by the steps of a transition."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from featherlb.config.file import parse
from featherlb.control.transition import State, plan
from featherlb.core.flows.tcp_state import State as TcpState
from featherlb.core.path.export import FlowView
from featherlb.insight.plan import Forecast, ServicePlan, host_changes
from featherlb.model import Backend, Datapath, Endpoint, Persistence, Protocol, Service
from tests.unit.core.pools.schedulers.pools import KEY
from tests.unit.datapaths.test_goldens import Case, at, web
from tests.world import CLIENT, ONE, THREE, TWO, VIP, World, backend, client, service


def state(*services: Service, down: str = "keep") -> State:
    """A state that serves these; the configuration says only what happens to flows."""
    text = "".join(
        f"- name: {one.name}\n  vip: 192.0.2.10:{number + 80}\n  on_backend_down: {down}\n"
        for number, one in enumerate(services)
    )
    config = parse(f"services:\n{text}" if text else "services: []\n", "test")
    return State(config, services=services)


def flow(name: str, to: str, source: str = CLIENT) -> FlowView:
    return FlowView(
        service=name,
        protocol=Protocol.TCP,
        state=TcpState.ESTABLISHED,
        client=Endpoint.parse(source),
        vip=Endpoint.parse(VIP),
        backend=Endpoint.parse(to),
        source=Endpoint.parse(source),
        age=1.0,
        idle=1.0,
        bytes_forward=0,
        bytes_reply=0,
    )


def become(before: State, wanted: State, *flows: FlowView) -> dict[str, ServicePlan]:
    return {one.name: one for one in forecast(before, wanted, flows).services()}


def forecast(before: State, wanted: State, flows: Sequence[FlowView], key: bytes = KEY) -> Forecast:
    found = Forecast(before, wanted, plan(before, wanted, repair=True), key)
    for one in flows:
        found.add(one)
    return found


def fates(found: ServicePlan) -> dict[str, int]:
    return {str(fate): count for fate, count in found.flows.items() if count}


FLOWS = (flow("web", ONE), flow("web", ONE, client(1)), flow("web", TWO, client(2)))


@pytest.mark.parametrize(
    ("down", "fate"), [("keep", "drain"), ("drop", "drop"), ("reset", "reset")]
)
def test_flows_of_a_backend_that_leaves(down: str, fate: str) -> None:
    before, wanted = state(service(ONE, TWO)), state(service(TWO, THREE), down=down)
    found = become(before, wanted, *FLOWS)["web"]
    assert fates(found) == {fate: 2, "stay": 1}
    assert (found.clients, found.moved, found.slots, found.least) == (3, None, None, None)


def test_flows_of_a_backend_that_gets_no_new_ones() -> None:
    wanted = state(service(backend(ONE, 0), TWO))
    assert fates(become(state(service(ONE, TWO)), wanted, *FLOWS)["web"]) == {"drain": 2, "stay": 1}


def test_flows_of_a_service_that_is_removed_or_new() -> None:
    before = state(service(ONE, TWO), service(ONE, name="other"))
    wanted = state(service(ONE, TWO), service(ONE, name="new"))
    found = become(before, wanted, *FLOWS, flow("other", ONE, client(3)))
    assert list(found) == ["web", "other", "new"]
    assert [fates(one) for one in found.values()] == [{"stay": 3}, {"reset": 1}, {}]
    assert found["other"].moved is None


def test_flows_that_another_datapath_carries_on() -> None:
    wanted = state(replace(service(ONE, TWO), datapath=Datapath.OFFLOAD))
    assert fates(become(state(service(ONE, TWO)), wanted, *FLOWS)["web"]) == {"move": 3}


def test_flows_whose_vip_leaves() -> None:
    elsewhere = service(ONE, TWO, vips="192.0.2.10:81")
    before = state(service(ONE, TWO))
    assert fates(become(before, state(elsewhere), *FLOWS)["web"]) == {"reset": 3}
    # Another service has it: its packets still come, and belong to their flow.
    both = state(elsewhere, service(THREE, name="other"))
    assert fates(become(before, both, *FLOWS)["web"]) == {"stay": 3}
    every = state(service(ONE, TWO, vips="0.0.0.0:80"))
    assert fates(become(before, every, *FLOWS)["web"]) == {"stay": 3}
    kernel = replace(elsewhere, datapath=Datapath.OFFLOAD)
    offloaded = state(replace(service(ONE, TWO), datapath=Datapath.OFFLOAD))
    assert fates(become(offloaded, state(kernel), *FLOWS)["web"]) == {"stay": 3}


@pytest.mark.parametrize("name", ["maglev", "source-hash", "five-tuple-hash"])
def test_slots_and_clients_of_hashes_are_those_that_really_move(name: str) -> None:
    old, new = (service(*pool, scheduler=name) for pool in ((ONE, TWO, THREE), (ONE, THREE)))
    before, after = World(old), World(new)
    for world in (before, after):
        world.balancer.handle_timer(world.now)
    told = [before.connect(client(number)) for number in range(60)]
    flows = [flow("web", one.server, one.client) for one in told]
    (found,) = forecast(state(old), state(new), flows, b"placement").services()
    assert found.least == pytest.approx(1 / 3)
    assert found.slots == pytest.approx(1 / 3, abs=0.02)
    again = [after.connect(one.client).server for one in told]
    moved = {one.client for one, server in zip(told, again, strict=True) if server != one.server}
    assert (found.clients, found.moved) == (60, len(moved))
    assert 0 < len(moved) < 60


def test_nothing_moves_without_a_change_and_everything_without_backends() -> None:
    same = state(service(ONE, TWO, scheduler="maglev"))
    found = become(same, same, *FLOWS)["web"]
    assert (found.slots, found.least, found.moved) == (0.0, 0.0, 0)
    none = state(service(scheduler="maglev"))
    assert become(same, none, *FLOWS)["web"].slots == 1.0
    assert become(none, none)["web"].slots == 0.0


def test_another_hash_has_other_slots_but_the_same_clients() -> None:
    before = state(service(ONE, TWO, scheduler="maglev"))
    wanted = state(service(ONE, TWO, scheduler="source-hash"))
    found = become(before, wanted, *FLOWS)["web"]
    assert (found.slots, found.least) == (None, None)
    assert found.moved is not None


def test_persistent_clients_move_only_with_their_backend() -> None:
    bound = [
        replace(service(*pool), persistence=Persistence(300.0, 32))
        for pool in ((ONE, TWO), (TWO, THREE))
    ]
    found = become(state(bound[0]), state(bound[1]), *FLOWS)["web"]
    assert (found.clients, found.moved) == (3, 2)


def test_a_backend_that_keeps_the_port_has_all_flows_to_its_address() -> None:
    def keeping(*texts: str) -> Service:
        return service(*(Backend(Endpoint.of_backend(text)) for text in texts))

    before, wanted = state(keeping("10.1.0.1", "10.1.0.2")), state(keeping("10.1.0.2"))
    flows = [flow("web", "10.1.0.1:80"), flow("web", "10.1.0.2:80", client(1))]
    assert fates(become(before, wanted, *flows)["web"]) == {"drain": 1, "stay": 1}
    (kept,) = forecast(before, wanted, flows).departing(whole=True)
    assert [str(one) for one in kept.backends] == ["10.1.0.1"]
    cut = state(keeping("10.1.0.2"), down="reset")
    assert fates(become(before, cut, *flows)["web"]) == {"reset": 1, "stay": 1}


def test_the_host_keeps_what_remaining_flows_need() -> None:
    before, wanted = state(service(ONE, TWO, THREE)), state(service(THREE))

    def kept(found: Forecast, whole: bool) -> list[str]:
        return [str(one) for each in found.departing(whole=whole) for one in each.backends]

    flows = [flow("web", ONE), flow("web", THREE)]
    assert kept(forecast(before, wanted, flows), True) == [ONE]
    assert kept(forecast(before, wanted, flows), False) == [ONE, TWO]
    cut = state(service(THREE), down="reset")
    assert kept(forecast(before, cut, flows), False) == []


def test_what_changes_on_the_host() -> None:
    before = Case("", (web(Datapath.NFQUEUE),)).plan()
    after = Case("", (web(Datapath.NFQUEUE, vips=[at(11)]),)).plan()
    changes = host_changes(before, after)
    assert "- ip address add 10.0.0.10/32 dev front" in changes
    assert "+ ip address add 10.0.0.11/32 dev front" in changes
    rules = [line for line in changes if " -d 10.0.0.10 " in line]
    assert rules
    assert all(line.startswith("- iptables") for line in rules)
    assert host_changes(before, before) == []
    everything = host_changes(None, before)
    assert [line.removeprefix("+ ") for line in everything] == before.describe()
