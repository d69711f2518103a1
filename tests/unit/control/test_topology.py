"""What becomes of links, routes and neighbours: the topology, the questions, the reports."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from featherlb.control.topology import (
    MAX_ROUTES,
    PROBE_INTERVAL,
    REPORT_DELAY,
    SOLICIT_INTERVALS,
    Due,
    NetworkState,
    Reports,
    Solicitations,
    build_topology,
    needed,
    unreachable,
)
from featherlb.model import Link, Neighbour, NeighbourKey, NextHop, Route

FRONT = Link(2, "front", b"\x02\0\0\0\0\2", 1500)
BACK = Link(3, "back", b"\x02\0\0\0\0\3", 9000)
NEAR, FAR, GATEWAY = map(ip_address, ("10.0.1.2", "192.168.7.7", "10.0.1.254"))
NEAR6, ROUTER6 = map(ip_address, ("2001:db8:1::2", "fe80::1"))
MAC, OTHER_MAC = b"\x02\0\0\0\1\2", b"\x02\0\0\0\1\3"
STATE = NetworkState(
    links={2: FRONT, 3: BACK},
    addresses=frozenset({ip_address("10.0.1.1")}),
    routes={
        ip_network("0.0.0.0/0"): Route(2, ip_address("10.0.0.254")),
        ip_network("10.0.1.0/24"): Route(3, None),
        ip_network("192.168.0.0/16"): Route(3, GATEWAY),
    },
    backends={NEAR: Route(3, None), FAR: Route(3, GATEWAY), NEAR6: Route(3, ROUTER6)},
)


def test_the_topology() -> None:
    neighbours: dict[NeighbourKey, Neighbour] = {
        (3, NEAR): Neighbour(3, NEAR, MAC),
        (3, ROUTER6): Neighbour(3, ROUTER6, OTHER_MAC, fixed=True),
    }
    topology = build_topology(STATE, neighbours, [NEAR6, FAR, NEAR])
    assert topology.links == (
        Link(2, "front", FRONT.mac, 1500),
        Link(3, "back", BACK.mac, 9000),
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
    found = build_topology(STATE, neighbours | {(3, GATEWAY): Neighbour(3, GATEWAY, MAC)}, [FAR])
    assert found.next_hops == {FAR: NextHop(3, MAC)}
    assert found.routes[1][1] == NextHop(3, MAC)


def test_only_what_is_needed_is_asked_for() -> None:
    assert needed(STATE, [NEAR, FAR, ip_address("172.16.0.1")]) == {
        (3, NEAR),
        (3, GATEWAY),
        (2, ip_address("10.0.0.254")),
    }


@pytest.mark.parametrize(
    "unfit", [replace(BACK, up=False), replace(BACK, member=True), replace(BACK, ethernet=False)]
)
def test_links_without_frames(unfit: Link) -> None:
    state = replace(STATE, links={2: FRONT, 3: unfit})
    topology = build_topology(state, {(3, NEAR): Neighbour(3, NEAR, MAC)}, [NEAR])
    assert [link.name for link in topology.links] == ["front"]
    assert topology.next_hops == {}
    assert needed(state, [NEAR]) == {(2, ip_address("10.0.0.254"))}
    reason = "its route leads through back, which the datapath raw can't use"
    assert unreachable(state, topology, [NEAR]) == {NEAR: reason}


def test_too_many_routes_are_none() -> None:
    networks = [ip_network((i << 8, 24)) for i in range(MAX_ROUTES)]
    routes = {network: Route(3, GATEWAY) for network in networks}
    assert len(build_topology(replace(STATE, routes=routes), {}, []).routes) == MAX_ROUTES
    routes[ip_network("255.0.0.0/24")] = Route(2, GATEWAY)
    state = replace(STATE, routes=routes)
    assert build_topology(state, {}, []).routes == ()
    assert needed(state, []) == set()


def test_reasons() -> None:
    strange = ip_address("172.16.0.1")
    topology = build_topology(STATE, {(3, NEAR): Neighbour(3, NEAR, MAC)}, [NEAR, FAR, strange])
    assert unreachable(STATE, topology, [NEAR, FAR, strange]) == {
        FAR: "10.0.1.254 does not answer on back",
        strange: "there is no route to it",
    }


KEY: NeighbourKey = (3, NEAR)
LOST, FOUND = {KEY: Neighbour(*KEY, None)}, {KEY: Neighbour(*KEY, MAC)}
NONE, BROADCAST, PROBE = Due((), ()), Due((KEY,), ()), Due((), (KEY,))


def test_a_silent_neighbour_is_asked_for_ever_less_often() -> None:
    solicitations = Solicitations(lambda: 1.0)
    now = 100.0
    pauses = []
    for _ in range(7):
        assert solicitations.take_due(LOST, now) == BROADCAST
        assert solicitations.take_due(LOST, now) == NONE
        pauses.append(solicitations.due - now)
        assert solicitations.take_due(LOST, solicitations.due - 0.01) == NONE
        now = solicitations.due
    first, last = SOLICIT_INTERVALS
    assert pauses == [first, 2 * first, 4 * first, last, last, last, last]


def test_a_neighbour_is_asked_whether_it_is_still_there() -> None:
    solicitations = Solicitations(lambda: 0.0)
    solicitations.take_due(LOST, 0.0)
    assert solicitations.take_due(FOUND, 1.0) == NONE
    assert solicitations.due == 1.0 + PROBE_INTERVAL / 2
    assert solicitations.take_due(FOUND, solicitations.due) == PROBE
    assert solicitations.due == 1.0 + PROBE_INTERVAL * 1.5
    # It has not answered: it is looked for at once, and as eagerly as the first time.
    assert solicitations.take_due(LOST, 7.0) == BROADCAST
    assert solicitations.due == 7.0 + SOLICIT_INTERVALS[0]


def test_nobody_else_is_asked() -> None:
    solicitations = Solicitations(lambda: 0.0)
    assert solicitations.take_due({KEY: Neighbour(*KEY, MAC, fixed=True)}, 0.0) == NONE
    assert solicitations.due == float("inf")
    solicitations.take_due(LOST, 0.0)
    assert solicitations.take_due({}, 100.0) == NONE
    assert solicitations.due == float("inf")


def test_complaints_come_once_and_not_at_once() -> None:
    reports = Reports()
    assert list(reports.update({NEAR: "gone"}, 10.0)) == []
    assert reports.due == 10.0 + REPORT_DELAY
    assert list(reports.update({NEAR: "gone"}, reports.due)) == [(NEAR, "gone")]
    assert reports.due == float("inf")
    assert list(reports.update({NEAR: "gone"}, 99.0)) == []
    assert list(reports.update({NEAR: "no route"}, 99.0)) == [(NEAR, "no route")]
    assert list(reports.update({}, 100.0)) == [(NEAR, None)]
    assert list(reports.update({}, 101.0)) == []


def test_a_short_absence_is_no_complaint() -> None:
    reports = Reports()
    list(reports.update({NEAR: "gone"}, 10.0))
    assert list(reports.update({}, 10.0 + REPORT_DELAY)) == []
    assert reports.due == float("inf")
