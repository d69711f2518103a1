"""Distribution of connections for every scheduler, as reported by the servers."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.traffic import Session, ask

pytestmark = [ONE_DRIVER, pytest.mark.usefixtures("balanced")]

BACKENDS = ("10.0.1.2:8080", "10.0.1.3:8080", "10.0.1.4:8080")
CLIENTS = [f"10.0.0.{host}" for host in range(150, 211)]
"""Further addresses of client1, for schedulers that look at the client's address. No multiple of
three, or else taking turns would look like a hash that keeps its answer."""
EVEN = (1, 1, 1)
POOLS: list[tuple[str, tuple[int, ...]]] = [
    ("round-robin", EVEN),
    ("rr", EVEN),
    ("weighted-round-robin", (3, 1, 1)),
    ("wrr", (3, 1, 1)),
    ("wrr", (1, 0, 1)),
    ("least-connections", EVEN),
    ("lc", EVEN),
    ("weighted-least-connections", (2, 1, 1)),
    ("wlc", (2, 1, 1)),
    ("random", EVEN),
    ("p2c", EVEN),
    ("twos", EVEN),
    ("source-hash", EVEN),
    ("sh", EVEN),
    ("iphash", EVEN),
    ("five-tuple-hash", EVEN),
    ("maglev", EVEN),
    ("mh", EVEN),
    ("maglev", (8, 1, 1)),
    ("sed", (2, 1, 1)),
    ("nq", (5, 1, 1)),
    ("first", EVEN),
    ("fo", (1, 3, 2)),
    ("ovf", (1, 3, 2)),
    ("dh", EVEN),
    ("sh", (1, 1, 2)),
    ("mh", (2, 1, 1)),
]
"""Scheduler and weights of each service, whose port is its place here after FIRST_PORT. Each is for
one test alone."""
OPTIONS: dict[tuple[str, tuple[int, ...]], list[str]] = {
    ("sh", (1, 1, 2)): ["hash_balance: 125"],
    ("mh", (2, 1, 1)): ["hash_on: [src/25, dport]"],
}
"""Further keys of services."""
FIRST_PORT = 1000
VIPS = [VIP, *(f"10.0.0.{host}" for host in range(212, 220))]
"""Those of the service with dh."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=3) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        batch = "".join(f"addr add {address}/24 dev eth0\n" for address in CLIENTS)
        lab.client.run(["ip", "-batch", "-"], input=batch)
        yield lab


@pytest.fixture(scope="module")
def balanced(lab: Lab, featherlb: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One instance with all POOLS."""
    lines = ["services:"]
    for scheduler, weights in POOLS:
        number = port(scheduler, weights)
        vips = VIPS if scheduler == "dh" else [VIP]
        limit = ", max_connections: 2" if scheduler in ("first", "fo") else ""
        lines += [
            f"  - name: s{number}",
            f"    vip: [{', '.join(f'{vip}:{number}' for vip in vips)}]",
            f"    scheduler: {scheduler}",
            *(f"    {key}" for key in OPTIONS.get((scheduler, weights), ())),
            "    backends:",
        ]
        for backend, weight in zip(BACKENDS, weights, strict=True):
            lines.append(f"      - {{address: '{backend}', weight: {weight}{limit}}}")
    path = tmp_path_factory.mktemp("distribution") / "lb.yaml"
    path.write_text("\n".join(lines) + "\n")
    with featherlb(lab, "--config", str(path)):
        yield


def port(scheduler: str, weights: tuple[int, ...] = EVEN) -> int:
    return FIRST_PORT + POOLS.index((scheduler, weights))


def hold(stack: ExitStack, lab: Lab, port: int, count: int) -> list[tuple[Session, str]]:
    """Open connections that stay open, one after the other; each with its backend's name."""
    held = []
    for _ in range(count):
        session = stack.enter_context(Session(lab.client, port=port))
        held.append((session, session.ask().backend))
    return held


def names(held: list[tuple[Session, str]]) -> Counter[str]:
    return Counter(name for _, name in held)


def from_clients(lab: Lab, port: int) -> dict[str, str]:
    """The backend of each client address."""
    found = {}
    for client in CLIENTS:
        with Session(lab.client, port=port, source=(client, 0)) as session:
            found[client] = session.ask().backend
            session.reset()
    return found


@pytest.mark.parametrize("name", ["round-robin", "rr"])
def test_round_robin_takes_turns(lab: Lab, name: str) -> None:
    turns = [ask(lab.client, port=port(name)).backend for _ in range(9)]
    assert sorted(turns[:3]) == ["backend1", "backend2", "backend3"]
    assert turns == turns[:3] * 3


@pytest.mark.parametrize("name", ["weighted-round-robin", "wrr"])
def test_weighted_round_robin_is_proportional_and_smooth(lab: Lab, name: str) -> None:
    turns = [ask(lab.client, port=port(name, (3, 1, 1))).backend for _ in range(20)]
    assert Counter(turns) == {"backend1": 12, "backend2": 4, "backend3": 4}
    assert ["backend1"] * 3 not in [turns[i : i + 3] for i in range(5)]


def test_a_backend_of_weight_0_gets_nothing(lab: Lab) -> None:
    turns = Counter(ask(lab.client, port=port("wrr", (1, 0, 1))).backend for _ in range(8))
    assert turns == {"backend1": 4, "backend3": 4}


@pytest.mark.parametrize("name", ["least-connections", "lc"])
def test_least_connections_fills_the_emptiest(lab: Lab, name: str) -> None:
    with ExitStack() as stack:
        held = hold(stack, lab, port(name), 6)
        assert names(held) == {"backend1": 2, "backend2": 2, "backend3": 2}
        closed, reset = (session for session, name in held if name == "backend2")
        closed.close()
        reset.reset()
        assert names(hold(stack, lab, port(name), 2)) == {"backend2": 2}


@pytest.mark.parametrize("name", ["weighted-least-connections", "wlc", "sed"])
def test_weighted_least_connections_fills_in_proportion(lab: Lab, name: str) -> None:
    with ExitStack() as stack:
        held = hold(stack, lab, port(name, (2, 1, 1)), 8)
        assert names(held) == {"backend1": 4, "backend2": 2, "backend3": 2}
        for session in [session for session, name in held if name == "backend1"]:
            session.close()
        assert names(hold(stack, lab, port(name, (2, 1, 1)), 4)) == {"backend1": 4}


def test_never_queue_takes_idle_backends_first(lab: Lab) -> None:
    with ExitStack() as stack:
        held = hold(stack, lab, port("nq", (5, 1, 1)), 3)
        assert names(held) == {"backend1": 1, "backend2": 1, "backend3": 1}
        more = hold(stack, lab, port("nq", (5, 1, 1)), 3)
        assert names(more) == {"backend1": 3}
        (slow,) = (session for session, name in held if name == "backend3")
        slow.close()
        assert names(hold(stack, lab, port("nq", (5, 1, 1)), 1)) == {"backend3": 1}


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("first", EVEN, [1, 1, 2, 2, 3, 3]),
        ("fo", (1, 3, 2), [2, 2, 3, 3, 1, 1]),
        ("ovf", (1, 3, 2), [2, 2, 2, 3, 3, 1]),
    ],
)
def test_one_backend_fills_after_the_other_and_is_used_again_once_it_has_room(
    lab: Lab, name: str, weights: tuple[int, ...], expected: list[int]
) -> None:
    with ExitStack() as stack:
        held = hold(stack, lab, port(name, weights), 6)
        assert [backend for _, backend in held] == [f"backend{number}" for number in expected]
        with pytest.raises(ConnectionRefusedError):
            Session(lab.client, port=port(name, weights))
        session, backend = held[1]
        session.close()
        assert names(hold(stack, lab, port(name, weights), 1)) == {backend: 1}


def test_destination_hash_keeps_an_address_on_its_backend(lab: Lab) -> None:
    def by_vip() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for vip in VIPS:
            for client in CLIENTS[:4]:
                with Session(lab.client, vip, port("dh"), (client, 0)) as session:
                    found.setdefault(vip, set()).add(session.ask().backend)
                    session.reset()
        return found

    first = by_vip()
    assert by_vip() == first
    assert all(len(backends) == 1 for backends in first.values())
    assert len(set().union(*first.values())) > 1


def test_random_uses_every_backend_in_no_fixed_order(lab: Lab) -> None:
    turns = [ask(lab.client, port=port("random")).backend for _ in range(60)]
    # By chance alone, each of these fails once in 10^10 runs or less.
    assert set(turns) == {"backend1", "backend2", "backend3"}
    assert turns != (turns[:3] * 20)


@pytest.mark.parametrize("name", ["p2c", "twos"])
def test_power_of_two_choices_keeps_open_connections_even(lab: Lab, name: str) -> None:
    with ExitStack() as stack:
        count = names(hold(stack, lab, port(name), 30))
        # The fullest of three is picked only at a tie, so they can't drift apart.
        assert max(count.values()) - min(count.values()) <= 4
        assert count.total() == 30


@pytest.mark.parametrize("name", ["source-hash", "sh", "iphash"])
def test_source_hash_keeps_a_client_on_its_backend(lab: Lab, name: str) -> None:
    first = from_clients(lab, port(name))
    again = from_clients(lab, port(name))
    assert again == first
    assert set(first.values()) == {"backend1", "backend2", "backend3"}


@pytest.mark.parametrize("name", ["five-tuple-hash", "maglev", "mh"])
def test_flow_hashes_keep_a_5_tuple_and_spread_a_client(lab: Lab, name: str) -> None:
    def by_port() -> dict[int, str]:
        found = {}
        for number in range(20000, 20061):
            source = (lab.client.address, number)
            with Session(lab.client, port=port(name), source=source) as session:
                found[number] = session.ask().backend
                session.reset()
        return found

    first = by_port()
    again = by_port()
    assert again == first
    assert set(first.values()) == {"backend1", "backend2", "backend3"}


def test_the_bound_of_hash_balance_holds_for_a_single_client(lab: Lab) -> None:
    with ExitStack() as stack:
        held = names(hold(stack, lab, port("sh", (1, 1, 2)), 16))
        # Of 16: fair shares are 4, 4 and 8, and the bounds 5, 5 and 10.
        assert held.total() == 16
        assert all(held[f"backend{number}"] <= bound for number, bound in ((1, 5), (2, 5), (3, 10)))


def test_hash_on_keeps_a_network_on_its_backend(lab: Lab) -> None:
    found = from_clients(lab, port("mh", (2, 1, 1)))
    # All of them are in 10.0.0.128/25.
    assert len(set(found.values())) == 1


def test_maglev_splits_by_weight(lab: Lab) -> None:
    count = Counter(ask(lab.client, port=port("maglev", (8, 1, 1))).backend for _ in range(100))
    # 80 are expected; 5 standard deviations are 20.
    assert 60 <= count["backend1"] <= 99
    assert count.total() == 100
