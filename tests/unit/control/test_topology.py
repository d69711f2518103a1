"""What becomes of links, routes and neighbours: the topology, the questions, the complaints."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from featherlb.control.topology import (
    ASK_AGAIN,
    CONFIRM,
    MAX_ROUTES,
    PATIENCE,
    Asking,
    Complaints,
    Questions,
    build_topology,
    unreachable,
    wanted,
)
from featherlb.model import Link, NextHop
from featherlb.system.paths import Entry, Interface, Neighbour, NetworkState, Way

FRONT = Interface(2, "front", b"\x02\0\0\0\0\2", 1500, ethernet=True, up=True, member=False)
BACK = Interface(3, "back", b"\x02\0\0\0\0\3", 9000, ethernet=True, up=True, member=False)
TUNNEL = Interface(4, "wg0", b"", 1420, ethernet=False, up=True, member=False)
NEAR, FAR, GATEWAY = map(ip_address, ("10.0.1.2", "192.168.7.7", "10.0.1.254"))
NEAR6, ROUTER6 = map(ip_address, ("2001:db8:1::2", "fe80::1"))
MAC, OTHER_MAC = b"\x02\0\0\0\1\2", b"\x02\0\0\0\1\3"
STATE = NetworkState(
    interfaces={2: FRONT, 3: BACK},
    addresses=frozenset({ip_address("10.0.1.1")}),
    routes={
        ip_network("0.0.0.0/0"): Way(2, ip_address("10.0.0.254")),
        ip_network("10.0.1.0/24"): Way(3, None),
        ip_network("192.168.0.0/16"): Way(3, GATEWAY),
    },
    ways={NEAR: Way(3, None), FAR: Way(3, GATEWAY), NEAR6: Way(3, ROUTER6)},
)


def test_the_topology() -> None:
    neighbours: dict[Neighbour, Entry] = {
        (3, NEAR): Entry(MAC),
        (3, ROUTER6): Entry(OTHER_MAC, fixed=True),
    }
    topology = build_topology(STATE, neighbours, [NEAR6, FAR, NEAR])
    assert topology.links == (
        Link(2, "front", FRONT.address, 1500),
        Link(3, "back", BACK.address, 9000),
    )
    assert topology.next_hops == {
        NEAR: NextHop(3, MAC),
        FAR: NextHop(3, None),
        NEAR6: NextHop(3, OTHER_MAC),
    }
    assert topology.routes == (
        (ip_network("10.0.1.0/24"), NextHop(3, None)),
        (ip_network("192.168.0.0/16"), NextHop(3, None)),
        (ip_network("0.0.0.0/0"), NextHop(2, None)),
    )
    assert topology.addresses == STATE.addresses
    found = build_topology(STATE, neighbours | {(3, GATEWAY): Entry(MAC)}, [FAR])
    assert found.next_hops == {FAR: NextHop(3, MAC)}
    assert found.routes[1][1] == NextHop(3, MAC)


def test_only_what_is_needed_is_asked_for() -> None:
    assert wanted(STATE, [NEAR, FAR, ip_address("172.16.0.1")]) == {
        (3, NEAR),
        (3, GATEWAY),
        (2, ip_address("10.0.0.254")),
    }


@pytest.mark.parametrize(
    "unfit", [replace(BACK, up=False), replace(BACK, member=True), replace(BACK, ethernet=False)]
)
def test_links_without_frames(unfit: Interface) -> None:
    state = replace(STATE, interfaces={2: FRONT, 3: unfit})
    topology = build_topology(state, {(3, NEAR): Entry(MAC)}, [NEAR])
    assert [link.name for link in topology.links] == ["front"]
    assert topology.next_hops == {}
    assert wanted(state, [NEAR]) == {(2, ip_address("10.0.0.254"))}
    reason = "its route leads through back, which the datapath raw can't use"
    assert unreachable(state, topology, [NEAR]) == {NEAR: reason}


def test_too_many_routes_are_none() -> None:
    networks = [ip_network((i << 8, 24)) for i in range(MAX_ROUTES)]
    routes = {network: Way(3, GATEWAY) for network in networks}
    assert len(build_topology(replace(STATE, routes=routes), {}, []).routes) == MAX_ROUTES
    routes[ip_network("255.0.0.0/24")] = Way(2, GATEWAY)
    state = replace(STATE, routes=routes)
    assert build_topology(state, {}, []).routes == ()
    assert wanted(state, []) == set()


def test_reasons() -> None:
    strange = ip_address("172.16.0.1")
    topology = build_topology(STATE, {(3, NEAR): Entry(MAC)}, [NEAR, FAR, strange])
    assert unreachable(STATE, topology, [NEAR, FAR, strange]) == {
        FAR: "10.0.1.254 does not answer on back",
        strange: "there is no route to it",
    }


KEY: Neighbour = (3, NEAR)
LOST, FOUND = {KEY: Entry(None)}, {KEY: Entry(MAC)}
NONE, BROADCAST, CONFIRMATION = Questions((), ()), Questions((KEY,), ()), Questions((), (KEY,))


def test_a_silent_neighbour_is_asked_for_ever_less_often() -> None:
    asking = Asking(lambda: 1.0)
    now = 100.0
    pauses = []
    for _ in range(7):
        assert asking.questions(LOST, now) == BROADCAST
        assert asking.questions(LOST, now) == NONE
        pauses.append(asking.due - now)
        assert asking.questions(LOST, asking.due - 0.01) == NONE
        now = asking.due
    first, last = ASK_AGAIN
    assert pauses == [first, 2 * first, 4 * first, last, last, last, last]


def test_a_neighbour_is_asked_whether_it_is_still_there() -> None:
    asking = Asking(lambda: 0.0)
    asking.questions(LOST, 0.0)
    assert asking.questions(FOUND, 1.0) == NONE
    assert asking.due == 1.0 + CONFIRM / 2
    assert asking.questions(FOUND, asking.due) == CONFIRMATION
    assert asking.due == 1.0 + CONFIRM * 1.5
    # It has not answered: it is looked for at once, and as eagerly as the first time.
    assert asking.questions(LOST, 7.0) == BROADCAST
    assert asking.due == 7.0 + ASK_AGAIN[0]


def test_nobody_else_is_asked() -> None:
    asking = Asking(lambda: 0.0)
    assert asking.questions({KEY: Entry(MAC, fixed=True)}, 0.0) == NONE
    assert asking.due == float("inf")
    asking.questions(LOST, 0.0)
    assert asking.questions({}, 100.0) == NONE
    assert asking.due == float("inf")


def test_complaints_come_once_and_not_at_once() -> None:
    complaints = Complaints()
    assert list(complaints.update({NEAR: "gone"}, 10.0)) == []
    assert complaints.due == 10.0 + PATIENCE
    assert list(complaints.update({NEAR: "gone"}, complaints.due)) == [(NEAR, "gone")]
    assert complaints.due == float("inf")
    assert list(complaints.update({NEAR: "gone"}, 99.0)) == []
    assert list(complaints.update({NEAR: "no route"}, 99.0)) == [(NEAR, "no route")]
    assert list(complaints.update({}, 100.0)) == [(NEAR, None)]
    assert list(complaints.update({}, 101.0)) == []


def test_a_short_absence_is_no_complaint() -> None:
    complaints = Complaints()
    list(complaints.update({NEAR: "gone"}, 10.0))
    assert list(complaints.update({}, 10.0 + PATIENCE)) == []
    assert complaints.due == float("inf")
