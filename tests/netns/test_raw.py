"""Services of the datapath raw while links, neighbours, routes and their own datapath change."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import api, reload, run
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.load import Load
from tests.netns.test_host_changes import snapshot
from tests.netns.test_host_topology import OTHER_MAC, hasten
from tests.netns.traffic import Answer, Session, ask, pair, plug_again, wait_for

pytestmark = ONE_DRIVER

NAT_MODES = pytest.mark.parametrize("nat", ["dnat", "full"])
RAW = ("--vip", f"{VIP}:80", "--datapath", "raw", "--backend", "10.0.1.2:8080")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With HTTP servers on port 8080 of two backends. The balancer's host misses silent neighbours
    soon."""
    with Lab(clients=2, backends=2) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        lab.balancer.sysctl("net.ipv4.neigh.back.retrans_time_ms", 50)
        yield lab


def answers(lab: Lab) -> bool:
    try:
        with Session(lab.client, timeout=1) as session:
            return session.ask().backend == "backend1"
    except OSError:
        return False


@NAT_MODES
def test_nothing_but_rules_and_the_vip_is_changed(lab: Lab, featherlb: Up, nat: str) -> None:
    before = snapshot(lab.balancer)
    with featherlb(lab, *RAW, "--nat", nat):
        assert ask(lab.client).backend == "backend1"
        during = snapshot(lab.balancer)
        assert during["settings"] == before["settings"]
        # Nothing is forwarded. Where bridges pass iptables, frames that cross them are looked at.
        jumps = set(re.findall(r"-A FORWARD.*", during["iptables"]))
        assert jumps <= {"-A FORWARD -j FEATHERLB-BRIDGE-0"}
    assert snapshot(lab.balancer) == before


@NAT_MODES
def test_a_backend_gets_another_mac_address(lab: Lab, featherlb: Up, nat: str) -> None:
    with featherlb(lab, *RAW, "--nat", nat), Session(lab.client) as session:
        session.ask()
        lab.backends[0].run(["ip", "link", "set", "eth0", "address", OTHER_MAC])
        # The connection waits for it: TCP sends again.
        session.socket.settimeout(30)
        assert session.ask().backend == "backend1"


def frames(lab: Lab) -> dict[str, int]:
    """The counters of the one worker's frames."""
    counters: dict[str, int] = api(lab.balancer, "stats")["queues"][0]["frames"]
    return counters


def test_packets_wait_for_a_silent_neighbour(lab: Lab, featherlb: Up) -> None:
    """In vain, as long as it doesn't answer; the one that still waits when it does, arrives."""
    backend = lab.backends[0]
    server, client = (one.new_socket(kind=socket.SOCK_DGRAM) for one in (backend, lab.client))
    server.bind(("10.0.1.2", 53))
    client.connect((VIP, 53))

    def arrives() -> bool:
        # It has and hears everything, but the questions for its MAC address.
        backend.run(["ip", "link", "set", "eth0", "arp", "off"])
        lab.balancer.run(["ip", "neigh", "flush", "dev", "back"])
        before = frames(lab)["unresolved"]

        def lost() -> bool:
            client.send(b"too early")
            return frames(lab)["unresolved"] > before

        wait_for(lost, "given up")
        wait_for(lambda: not frames(lab)["held"], "all given up")
        # What was sent before featherlb had heard of the flush has arrived.
        server.setblocking(False)
        with suppress(BlockingIOError):
            while server.recv(100):
                pass
        server.settimeout(2)
        client.send(b"in time")
        backend.run(["ip", "link", "set", "eth0", "arp", "on"])
        # Whoever asks says where he is.
        with backend.new_socket(kind=socket.SOCK_DGRAM) as asking:
            asking.sendto(b"", ("10.0.1.1", 9))
        try:
            return server.recv(100) == b"in time"
        except TimeoutError:
            # It took longer than a packet waits.
            return False

    options = ("--vip", f"{VIP}:53/udp", "--datapath", "raw", "--backend", "10.0.1.2:53")
    with closing(server), closing(client), featherlb(lab, *options):
        wait_for(arrives, "the packet that waited", 60)
        client.send(b"as ever")
        assert server.recv(100) == b"as ever"


def test_interfaces_are_renamed_under_load(lab: Lab, featherlb: Up) -> None:
    before = snapshot(lab.balancer)
    with featherlb(lab, *RAW), Load(lab, kept=4, short=2) as load:
        for old, new in (("back", "rear"), ("front", "face"), ("rear", "back"), ("face", "front")):
            lab.balancer.run(["ip", "link", "set", old, "name", new])
            answered(load)
        result = load.stop()
        assert result["errors"] == 0, result
    assert snapshot(lab.balancer) == before


def answered(load: Load) -> None:
    """Wait for more answers than can have been on their way."""
    seen = load.latest["requests"]
    wait_for(lambda: load.latest["requests"] > seen + 200, "further answers")


@pytest.mark.parametrize(("name", "upwards"), [("front", False), ("back", True)])
def test_an_mtu_changes_under_load(lab: Lab, featherlb: Up, name: str, upwards: bool) -> None:
    """A transfer continues although segments were too long for the new MTU."""
    options = ("--vip", f"{VIP}:80", "--datapath", "raw", "--backend", "10.0.1.2:9000")
    piece = bytes(1 << 20)
    with featherlb(lab, *options), pair(lab, VIP, 9000) as ends:
        sender, receiver = ends if upwards else reversed(ends)
        for end in ends:
            end.settimeout(30)

        def send() -> None:
            for _ in range(64):
                sender.sendall(piece)
            sender.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        mtus = {16 << 20: "1300", 32 << 20: "1500", 48 << 20: "1280"}
        received = 0
        while part := receiver.recv(len(piece)):
            received += len(part)
            for reached in [one for one in mtus if one <= received]:
                lab.balancer.run(["ip", "link", "set", name, "mtu", mtus.pop(reached)])
        sending.join()
        assert received == 64 * len(piece)


@NAT_MODES
def test_both_directions_meet_the_same_worker(lab: Lab, featherlb: Up, nat: str) -> None:
    with featherlb(lab, *RAW, "--nat", nat, "--workers", "2"):
        with Load(lab, kept=16, short=4) as load:
            wait_for(lambda: load.latest["connections"] > 300, "connections")
            stats = api(lab.balancer, "stats")
            status = api(lab.balancer, "status")
            result = load.stop()
        assert result["errors"] == 0, result
        assert all(worker["flows"] > 0 for worker in status["workers"])
        assert all(one["frames"]["received"] > 0 for one in stats["queues"])
        assert stats["reasons"]["no-flow"] == 0


@pytest.mark.parametrize("name", ["front", "back"])
def test_a_link_goes_down_and_up(lab: Lab, featherlb: Up, name: str) -> None:
    with featherlb(lab, *RAW), Session(lab.client) as session:
        session.ask()
        lab.balancer.run(["ip", "link", "set", name, "down"])
        wait_for(lambda: not answers(lab), "no answer over a link that is down")
        lab.balancer.run(["ip", "link", "set", name, "mtu", "1400", "up"])
        wait_for(lambda: answers(lab), "an answer over the link")
        session.socket.settimeout(30)
        assert session.ask().backend == "backend1"
        # Its sockets have an error for whoever reads them next (ENETDOWN).
        assert api(lab.balancer, "status")["worker_restarts"] == 0


def test_an_interface_is_removed_and_added_again(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *RAW) as running, Session(lab.client) as session:
        session.ask()
        lab.balancer.run(["ip", "link", "delete", "back"])
        wait_for(
            lambda: "no packet gets to backend 10.0.1.2: there is no route to it" in running.log,
            "the word of it in the log",
        )
        plug_again(lab, "back", "10.0.1.1/24")
        hasten(lab.balancer)
        session.socket.settimeout(30)
        assert session.ask().backend == "backend1"
        assert ask(lab.client).backend == "backend1"
        wait_for(lambda: "backend 10.0.1.2 is reachable again" in running.log, "the word of it")


def test_a_vip_comes_back_with_its_interface(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *RAW):
        assert ask(lab.client).backend == "backend1"
        lab.balancer.run(["ip", "link", "delete", "front"])
        plug_again(lab, "front", "10.0.0.1/24")
        wait_for(lambda: answers(lab), "an answer from the VIP")
        addresses = lab.balancer.run(["ip", "-brief", "address", "show", "front"]).stdout
        assert f" {VIP}/32" in addresses


def test_a_route_changes(lab: Lab, featherlb: Up) -> None:
    """The backend's address moves behind the other one, and back."""
    first, second = lab.backends
    with featherlb(lab, *RAW), Session(lab.client) as session:
        session.ask()
        second.sysctl("net.ipv4.ip_forward", 1)
        first.run(["ip", "route", "replace", "default", "via", second.address])
        lab.balancer.run(["ip", "route", "add", "10.0.1.2/32", "via", second.address])
        counter = ["iptables", "-t", "mangle", "-L", "FORWARD", "-v", "-x", "-n"]
        second.run(["iptables", "-t", "mangle", "-A", "FORWARD", "-d", "10.0.1.2"])

        def forwarded() -> bool:
            assert session.ask().backend == "backend1"
            return second.run(counter).stdout.splitlines()[2].split()[0] != "0"

        wait_for(forwarded, "packets on the new route")
        lab.balancer.run(["ip", "route", "delete", "10.0.1.2/32"])
        assert session.ask().backend == "backend1"


def test_a_client_whose_route_leads_through_another_link(lab: Lab, featherlb: Up) -> None:
    """Its packets come in by one link; the host's routes say that replies leave by the other."""
    client, router = lab.client, lab.backends[1]
    net = lab.balancer.namespace.removesuffix("lb") + "net"
    for command in (
        f"ip -n {net} link add around type veth peer name around netns {router.namespace}",
        f"ip -n {net} link set around master front up",
        "ip address add 10.0.0.200/24 dev around",
        "ip link set around up",
        "ip route add 192.0.2.1/32 via 10.0.0.101",
        "iptables -A FORWARD -s 10.0.0.10 -d 192.0.2.1",
    ):
        router.run(command.split())
    router.sysctl("net.ipv4.ip_forward", 1)
    client.run(["ip", "address", "add", "192.0.2.1/32", "dev", "lo"])
    lab.balancer.run(["ip", "route", "add", "192.0.2.0/24", "via", router.address])
    with featherlb(lab, *RAW), Session(client, source=("192.0.2.1", 0)) as session:
        assert session.ask() == Answer("backend1", "192.0.2.1")
    forwarded = router.run(["iptables", "-L", "FORWARD", "-v", "-x", "-n"]).stdout.splitlines()[2]
    assert forwarded.split()[0] != "0"


def test_a_router_keeps_forwarding(lab: Lab, featherlb: Up) -> None:
    """To clients that talk to the backend itself, as to those that come by the VIP."""
    lab.balancer.sysctl("net.ipv4.ip_forward", 1)
    with featherlb(lab, *RAW), Session(lab.client) as balanced:
        balanced.ask()
        with Session(lab.client, "10.0.1.2", 8080) as direct:
            for session in (direct, balanced, direct):
                assert session.ask() == Answer("backend1", lab.client.address)


def test_a_backend_of_two_datapaths(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    file = tmp_path / "lb.yaml"
    file.write_text(
        """
services:
  - {name: frames, vip: "10.0.0.10:80", datapath: raw, backends: ["10.0.1.2:8080"]}
  - {name: queue, vip: "10.0.0.10:81", backends: ["10.0.1.2:8080"]}
"""
    )
    with featherlb(lab, "--config", str(file)):
        for node in (lab.client, lab.balancer):
            for port in (80, 81, 80):
                assert ask(node, VIP, port).backend == "backend1"


def test_auto_beside_another_instance(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    """That one has the backend's replies by a queue: so has this one, then."""
    file = tmp_path / "lb.yaml"
    file.write_text(
        f"""
services:
  - {{name: web, vip: "{VIP}:80", datapath: auto, mss: 1400, backends: ["10.0.1.2:8080"]}}
"""
    )
    with (
        featherlb(lab, "--vip", "10.0.0.11:80", *RAW[4:]),
        featherlb(lab, "--config", str(file)) as running,
    ):
        assert ", dnat, nfqueue to 10.0.1.2:8080" in running.log
        for address in (VIP, "10.0.0.11", VIP):
            assert ask(lab.client, address).backend == "backend1"


def test_a_backend_of_two_instances(lab: Lab, featherlb: Up) -> None:
    """With one datapath they share it; with two, the second is refused, whichever it is."""
    options = ("--vip", "10.0.0.11:80", *RAW[4:])
    for first, second in ((RAW[2:4], ()), ((), RAW[2:4])):
        with featherlb(lab, *RAW[:2], *first, *RAW[4:]):
            refused = run(lab.balancer, "up", *options, *second)
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "also has backend 10.0.1.2,tcp:8080" in refused.stderr
            with featherlb(lab, *options, *first):
                for address in (VIP, "10.0.0.11", VIP):
                    for node in (lab.client, lab.balancer):
                        assert ask(node, address).backend == "backend1"


@pytest.mark.parametrize(("nat", "workers"), [("dnat", 1), ("full", 1), ("dnat", 3), ("full", 3)])
def test_connections_stay_when_the_datapath_changes(
    lab: Lab, featherlb: Up, tmp_path: Path, nat: str, workers: int
) -> None:
    file = tmp_path / "lb.yaml"

    def write(datapath: str) -> None:
        file.write_text(
            f"""
workers: {workers}
services:
  - name: web
    vip: {VIP}:80
    nat: {nat}
    datapath: {datapath}
    backends: ["10.0.1.2:8080"]
"""
        )

    before = snapshot(lab.balancer)
    write("nfqueue")
    with featherlb(lab, "--config", str(file)), ExitStack() as stack:
        sessions = []
        for datapath in ("raw", "nfqueue", "offload", "raw", "auto", "nfqueue"):
            for _ in range(workers):
                session = stack.enter_context(Session(lab.client))
                sessions.append(session)
                session.ask()
            write(datapath)
            assert f"-> {datapath}" in " ".join(reload(lab.balancer))
            (service,) = api(lab.balancer, "services")["services"]
            assert service["datapath"] == datapath.replace("auto", "offload")
            for one in sessions:
                one.socket.settimeout(30)
                assert one.ask().backend == "backend1"
            assert ask(lab.clients[1]).backend == "backend1"
            assert ask(lab.balancer).backend == "backend1"
    assert snapshot(lab.balancer) == before
