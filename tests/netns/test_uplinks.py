"""A host with two uplinks: replies leave by the one that the request came in by."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from featherlb.lab import Lab
from featherlb.lab.servers import HttpServer
from tests.netns.command import run
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.traffic import Answer, Session, wait_for
from tests.netns.wire import Capture

VIP = "10.0.0.10"
OUTSIDE = "203.0.113.7"
"""A client behind the second uplink; the table main leads to it through the first one."""
TABLE = "200"
WEB = ("--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080")
WARNING = f"routes packets from {VIP} by rules of its own"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(clients=2, backends=1) as lab:
        gateway, client = lab.clients
        lab.balancer.run(
            ["ip", "link", "add", "up2", "type", "veth", "peer", "up2", "netns", client.namespace]
        )
        for node, commands in (
            (
                lab.balancer,
                (
                    "address add 10.9.0.1/24 dev up2",
                    "link set up2 up",
                    f"route add default via {gateway.address}",
                    f"route add default via 10.9.0.2 table {TABLE}",
                ),
            ),
            (
                client,
                (
                    "link set eth0 down",
                    "address add 10.9.0.2/24 dev up2",
                    "link set up2 up",
                    f"address add {OUTSIDE}/32 dev lo",
                    f"route add {VIP} via 10.9.0.1 src {OUTSIDE}",
                ),
            ),
        ):
            for command in commands:
                node.run(["ip", *command.split()])
        lab.balancer.sysctl("net.ipv4.conf.up2.rp_filter", 0)
        with HttpServer(lab.backends[0]):
            yield lab


def by_source(lab: Lab) -> None:
    lab.balancer.run(f"ip rule add from {VIP} lookup {TABLE}".split())


def by_connection(lab: Lab) -> None:
    for command in (
        "iptables -t mangle -A PREROUTING -i up2 -j CONNMARK --set-mark 2",
        "iptables -t mangle -A PREROUTING -i back -j CONNMARK --restore-mark",
        f"ip rule add fwmark 2 lookup {TABLE}",
    ):
        lab.balancer.run(command.split())


def by_client(lab: Lab) -> None:
    """As docs/operations.md says."""
    for command in (
        "ipset create uplink2 hash:ip timeout 900",
        f"iptables -t raw -I PREROUTING -i up2 -d {VIP} -j SET --add-set uplink2 src --exist",
        "iptables -t mangle -A PREROUTING -m set --match-set uplink2 dst -j MARK --set-mark 2",
        f"ip rule add fwmark 2 lookup {TABLE}",
    ):
        lab.balancer.run(command.split())


WAYS = {
    "raw": [(nat, way) for nat in ("dnat", "full") for way in (by_source, by_connection)],
    "netlink": [("full", by_source), ("dnat", by_client), ("full", by_client)],
    "offload": [("dnat", by_connection), ("full", by_connection), ("dnat", by_client)],
}
"""What works with each driver (docs/operations.md, several uplinks)."""


@pytest.mark.parametrize(
    ("driver", "nat", "way"),
    [(driver, *one) for driver, ways in WAYS.items() for one in ways],
    indirect=["driver"],
)
def test_replies_leave_by_the_uplink_of_the_client(
    lab: Lab, featherlb: Up, nat: str, way: Callable[[Lab], None]
) -> None:
    way(lab)
    with featherlb(lab, *WEB, "--nat", nat) as running:
        with Session(lab.clients[1], VIP, source=(OUTSIDE, 0)) as session:
            for _ in range(2):
                peer = OUTSIDE if nat == "dnat" else lab.balancer.addresses["back"][0]
                assert session.ask() == Answer("backend1", peer)
        assert WARNING not in running.log


@pytest.mark.parametrize(
    ("driver", "nat"), [("netlink", "dnat"), ("offload", "full")], indirect=["driver"]
)
def test_rules_that_replies_do_not_meet_are_named(lab: Lab, featherlb: Up, nat: str) -> None:
    by_source(lab)
    with featherlb(lab, *WEB, "--nat", nat) as running:
        wait_for(lambda: WARNING in running.log, "the warning")
        assert WARNING in run(lab.balancer, "doctor").stdout
        lab.balancer.run(["ip", "route", "del", "default"])
        assert WARNING in run(lab.balancer, "doctor").stdout


@ONE_DRIVER
def test_marks_that_replies_do_not_get_are_noted(lab: Lab, featherlb: Up) -> None:
    by_connection(lab)
    with featherlb(lab, *WEB):
        assert "CONNMARK restores no marks" in run(lab.balancer, "doctor").stdout


@pytest.mark.parametrize("driver", ["raw"], indirect=True)
def test_rules_come_and_go(lab: Lab, featherlb: Up) -> None:
    """Without rules the host's routes count, with them the client's link."""
    gateway, client = lab.clients
    with featherlb(lab, *WEB), Capture(gateway, "eth0") as wire:

        def leaves_by_the_first() -> bool:
            """Whether the answer to a SYN does."""
            before = len(wire.packets(OUTSIDE))
            with client.new_socket() as attempt:
                attempt.settimeout(0.2)
                attempt.bind((OUTSIDE, 0))
                with suppress(TimeoutError):
                    attempt.connect((VIP, 80))
            return len(wire.packets(OUTSIDE)) > before

        wait_for(leaves_by_the_first, "an answer by the route")
        by_source(lab)
        with Session(client, VIP, source=(OUTSIDE, 0)) as session:
            session.ask()
            lab.balancer.run(f"ip rule delete from {VIP} lookup {TABLE}".split())
            wait_for(leaves_by_the_first, "an answer by the route")
            by_source(lab)
            session.ask()


@pytest.mark.parametrize("driver", ["raw"], indirect=True)
def test_an_uplink_goes(lab: Lab, featherlb: Up) -> None:
    """The host's routes count then."""
    by_source(lab)
    gateway, client = lab.clients
    with (
        featherlb(lab, "--vip", f"{VIP}:81", "--backend", "10.0.1.2:8081"),
        lab.backends[0].listen("0.0.0.0", 8081) as listener,
        client.new_socket() as end,
    ):
        end.bind((OUTSIDE, 0))
        end.connect((VIP, 81))
        server, _ = listener.accept()
        with server, Capture(gateway, "eth0") as wire:
            server.sendall(b"word")
            assert end.recv(4) == b"word"
            assert not wire.packets(OUTSIDE)
            lab.balancer.run(["ip", "link", "set", "up2", "down"])
            # Retransmitted until it is acknowledged.
            server.sendall(b"word")
            wait_for(lambda: bool(wire.packets(OUTSIDE)), "a reply by the first uplink")
